"""The values of jobs in the REST API and the client: status, result, corrections and events.

Every Struct is frozen, so threads can share a value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from whisper_api.records import Record, Row, made_of
from whisper_api.schema import Redaction, Segment, Stage, TokenLogprob, Transcript, Turn

T = TypeVar("T")

JobState = Literal["Queued", "Processing", "Completed", "Failed", "Canceled"]
FINAL_STATES: frozenset[JobState] = frozenset({"Completed", "Failed", "Canceled"})


def _none_yet() -> tuple[str, ...]:
    return ()


class JobStatus(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The status of a job in the REST API and the client.

    Attributes:
        job_id: a UUID.
        status: the state of the job.
        queue_position: 1 for the job that is taken next; with concurrency, the number of its batch. Only while Queued.
        created_at, started_at, finished_at: RFC 3339, UTC.
        progress: from 0 to 1, weighted over the stages; None for a job that ended without a result.
        stage: the stage that runs; ``download`` while the job waits in the queue for a model that is downloaded.
        eta_seconds: estimated seconds until the job ends; None without an estimate.
        audio_seconds: length of the audio; None until it is known.
        error: the reason why the job Failed, or why the server Canceled the job.
        warnings: a sentence for each request that could not be fulfilled.
        file_name: the client's name of the file.
        metadata: the client's metadata of the job.
        result_gone: whether the job is Completed and its result was removed after delivery, by expiry or by a client.
    """

    job_id: str
    status: JobState
    queue_position: int | None = None
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    progress: float | None = None
    stage: Stage | None = None
    eta_seconds: float | None = None
    audio_seconds: float | None = None
    error: str | None = None
    file_name: str | None = None
    metadata: dict[str, Any] | None = None
    result_gone: bool = False
    # omit_defaults omits no default of a factory function, so every record has this member.
    warnings: tuple[str, ...] = msgspec.field(default_factory=_none_yet)


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of jobs.

    Attributes:
        jobs: the jobs, newest first.
        next: the cursor ``after`` for the next page; None on the last page.
    """

    jobs: tuple[JobStatus, ...]
    next: str | None


class ResultWord(Row, frozen=True, kw_only=True):
    """One word with its time: a :class:`Word` in a result, with every key.

    Attributes:
        word: with its punctuation, without surrounding spaces.
        start, end: seconds from the beginning of the audio.
        score: confidence from 0 to 1; None without word times.
        speaker: label; None without diarization.
        channel: number of the channel, counted from 0; absent when the channels were mixed.
        timing: ``attention`` for a number or symbol that the alignment model cannot spell, whose time comes from
            Whisper's cross-attention; absent for all other words.
    """

    word: str
    start: float
    end: float
    score: float | None = None
    speaker: str | None = None
    channel: int | msgspec.UnsetType = msgspec.UNSET
    timing: Literal["attention"] | msgspec.UnsetType = msgspec.UNSET


class ResultSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence: a :class:`Segment` in a result, with every key.

    Attributes:
        id: 0, 1, 2 ... in order of time.
        start, end: seconds from the beginning of the audio.
        text: the recognised text.
        speaker: label of the speaker with the most speech in the segment; None without diarization.
        words: empty without word times.
        logprobs: log probability of every decoded token; absent unless the option ``logprobs`` is set.
        channel: number of the channel, counted from 0; absent when the channels were mixed. Segments of different
            channels may overlap.
        flags: reasons to doubt the text (``repetitive``, ``low_confidence``, ``truncated``, ``hallucination``); absent
            without doubt.
        language: code of the spoken language; absent unless the option ``language`` is ``multi``.
    """

    id: int
    start: float
    end: float
    text: str
    speaker: str | None = None
    words: tuple[ResultWord, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | msgspec.UnsetType = msgspec.UNSET
    channel: int | msgspec.UnsetType = msgspec.UNSET
    flags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    language: str | msgspec.UnsetType = msgspec.UNSET


class JobResult(Record, frozen=True, kw_only=True):
    """The result of a job in the REST API and the client.

    Attributes:
        text: the transcript in the job's format.
        language: code of the spoken language; the detected language for ``auto``, that with most speech for ``multi``;
            empty for the task ``diarize``.
        language_probability: probability of the detected language; None when the options name the language.
        duration: seconds of audio.
        model: name of the Whisper model; empty for the task ``diarize``.
        segments: in order of time.
        speakers: labels in order of appearance.
        warnings: a sentence for each request that could not be fulfilled.
        speaker_embeddings: label to vector; absent unless the option ``speaker_embeddings`` is set.
        speaker_scores: name of each recognised speaker to the cosine similarity with the known voice; absent unless
            known voices were looked for.
        turns: who speaks when; turns of people who talk at once overlap. Absent without diarization.
        redactions: where personal data was replaced; absent unless the option ``redact`` is set.
        languages: the languages of the segments, the one with most speech first; absent unless the option ``language``
            is ``multi``.
        language_probabilities: code to probability; absent unless the task is ``detect_language``.
        metadata: the client's metadata of the job; absent without metadata.
    """

    text: str
    language: str
    segments: tuple[ResultSegment, ...]
    language_probability: float | None = None
    duration: float
    model: str
    warnings: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()
    speaker_embeddings: dict[str, tuple[float, ...]] | msgspec.UnsetType = msgspec.UNSET
    speaker_scores: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    turns: tuple[Turn, ...] | msgspec.UnsetType = msgspec.UNSET
    redactions: tuple[Redaction, ...] | msgspec.UnsetType = msgspec.UNSET
    languages: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    language_probabilities: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    @property
    def words(self) -> tuple[ResultWord, ...]:
        """The words of all segments; pandas reads them like :attr:`Transcript.words`."""
        return tuple(word for segment in self.segments for word in segment.words)


class SpokenLanguage(msgspec.Struct, frozen=True, kw_only=True):
    """The spoken language of a recording.

    Attributes:
        language: code of the most probable language.
        language_probability: probability of this language.
        language_probabilities: code to probability, the most probable first.
        duration: seconds of audio.
        model: name of the Whisper model.
        warnings: a sentence for each request that could not be fulfilled.
        metadata: the client's metadata of the job; absent without metadata.
        detected_language: English name of the most probable language, in lower case, as in whisper-asr-webservice.
        language_code: the same as ``language``, as in whisper-asr-webservice.
        confidence: the same as ``language_probability``, 0 when unknown, as in whisper-asr-webservice.
    """

    language: str
    language_probability: float | None
    language_probabilities: dict[str, float]
    duration: float
    model: str
    warnings: tuple[str, ...] = ()
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    detected_language: str
    language_code: str
    confidence: float


class Correction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The correction of a recognised word.

    Attributes:
        segment: id of the segment.
        word: index of the word in the segment, from 0; None for the text of a segment without words.
        text: the new text; empty text removes the word. None keeps the recognised text.
        start, end: the new times in seconds; None keeps a recognised time.
    """

    segment: Annotated[int, Meta(ge=0)]
    word: Annotated[int, Meta(ge=0)] | None = None
    text: Annotated[str, Meta(max_length=10_000)] | None = None
    start: Annotated[float, Meta(ge=0, examples=[0.25])] | None = None
    end: Annotated[float, Meta(ge=0)] | None = None


class Corrections(Record, frozen=True, kw_only=True):
    """All corrections of a transcript. Later results contain them in every format.

    Attributes:
        words: in any order; the last correction of a word applies.
        speakers: label to the name that replaces the label.
    """

    words: Annotated[tuple[Correction, ...], Meta(max_length=100_000)] = ()
    speakers: Annotated[dict[str, Annotated[str, Meta(min_length=1, max_length=255)]], Meta(max_length=1000)] = (
        msgspec.field(default_factory=dict)
    )


def result_segment(segment: Segment) -> ResultSegment:
    """Convert a segment for results and events."""
    return ResultSegment(
        id=segment.id,
        start=segment.start,
        end=segment.end,
        text=segment.text,
        speaker=segment.speaker,
        words=tuple(
            ResultWord(
                word=word.word,
                start=word.start,
                end=word.end,
                score=word.score,
                speaker=word.speaker,
                channel=_or_unset(word.channel),
                timing=word.timing or msgspec.UNSET,
            )
            for word in segment.words
        ),
        logprobs=segment.logprobs or msgspec.UNSET,
        channel=_or_unset(segment.channel),
        flags=segment.flags or msgspec.UNSET,
        language=_or_unset(segment.language),
    )


def job_result(
    transcript: Transcript, text: str, warnings: tuple[str, ...] = (), metadata: dict[str, Any] | None = None
) -> JobResult:
    """Make a job's result from its transcript.

    Args:
        transcript: the engine's transcript.
        text: the transcript in the job's format.
        warnings: warnings of the submission; they precede the transcript's warnings.
        metadata: the client's metadata.
    """
    return made_of(
        transcript,
        JobResult,
        text=text,
        segments=tuple(result_segment(segment) for segment in transcript.segments),
        warnings=tuple(dict.fromkeys((*warnings, *transcript.warnings))),
        speaker_embeddings=_or_unset(transcript.speaker_embeddings),
        speaker_scores=_or_unset(transcript.speaker_scores),
        turns=transcript.turns if transcript.turns or transcript.options.task == "diarize" else msgspec.UNSET,
        redactions=transcript.redactions if transcript.options.redact else msgspec.UNSET,
        languages=transcript.languages or msgspec.UNSET,
        language_probabilities=_or_unset(transcript.language_probabilities),
        metadata=_or_unset(metadata),
    )


def _or_unset(value: T | None) -> T | msgspec.UnsetType:
    return msgspec.UNSET if value is None else value


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """A stored list of names and terms.

    Attributes:
        name: the name by which jobs use it.
        terms: each as it is to be written; each once.
    """

    name: str
    terms: tuple[str, ...]


class JobQueuedEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="queued"):
    """The job waits in the queue, also again after a restart of the server.

    Attributes:
        job_id: id of the job.
        queue_position: as in :class:`JobStatus`.
    """

    job_id: str
    queue_position: int


class JobProgressEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """The job runs.

    Attributes:
        job_id: id of the job.
        progress, stage, eta_seconds: as in :class:`JobStatus`.
    """

    job_id: str
    progress: float
    stage: Stage
    eta_seconds: float | None = None


class JobSegmentEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="segment"):
    """New or improved text of the job.

    Attributes:
        job_id: id of the job.
        index, aligned: as in :class:`PartialSegments`: a later event with the same index replaces the earlier event.
        segments: the segments of the window. Their ids start at 0.
    """

    job_id: str
    index: int
    aligned: bool
    segments: tuple[ResultSegment, ...]


class JobCompletedEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="completed"):
    """The job has its result.

    Attributes:
        job_id: id of the job.
    """

    job_id: str


class JobFailedEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="failed"):
    """The job ended without a result.

    Attributes:
        job_id: id of the job.
        error: the reason.
    """

    job_id: str
    error: str


class JobCanceledEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="canceled"):
    """The job was canceled.

    Attributes:
        job_id: id of the job.
    """

    job_id: str


JobEvent = JobQueuedEvent | JobProgressEvent | JobSegmentEvent | JobCompletedEvent | JobFailedEvent | JobCanceledEvent
