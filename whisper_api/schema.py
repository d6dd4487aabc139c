"""The values that travel through Whisper API: what is asked for, and what comes back.

Every Struct is frozen, so a value can be shared between threads, and ``forbid_unknown_fields`` is off, so that a record
written by a newer version can be read by an older one.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from whisper_api.records import Record, Row

__all__ = [
    "FINAL_STATES",
    "LANGUAGES_WITHOUT_SPACES",
    "SAMPLE_RATE",
    "SPEAKER_LABEL",
    "Correction",
    "Corrections",
    "JobCanceledEvent",
    "JobCompletedEvent",
    "JobEvent",
    "JobFailedEvent",
    "JobProgressEvent",
    "JobQueuedEvent",
    "JobResult",
    "JobSegmentEvent",
    "JobState",
    "JobStatus",
    "PartialSegments",
    "Progress",
    "RenderOptions",
    "ResultSegment",
    "ResultWord",
    "Segment",
    "SpokenLanguage",
    "TokenLogprob",
    "Transcript",
    "TranscriptionOptions",
    "Word",
    "job_result",
    "result_segment",
]

T = TypeVar("T")

LANGUAGES_WITHOUT_SPACES = frozenset({"ja", "lo", "my", "th", "yue", "zh"})
"""Languages that write no space between words, as Whisper's tokenizer has it: their words are put together without."""

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Threshold = Annotated[float, Meta(gt=0.0, lt=1.0)]
SpeakerCount = Annotated[int, Meta(ge=1, le=100)]

Task = Literal["transcribe", "translate", "detect_language"]
VadMethod = Literal["silero", "pyannote", "none"]
WordTimes = Literal["ctc", "attention", "none"]
# Samples a second of all audio inside: mono, as Whisper, the aligners and the speaker models were trained.
SAMPLE_RATE = 16_000
JobState = Literal["Queued", "Processing", "Completed", "Failed", "Canceled"]
FINAL_STATES: frozenset[JobState] = frozenset({"Completed", "Failed", "Canceled"})
# The labels of speakers without a name, as diarization gives them.
SPEAKER_LABEL = re.compile(r"SPEAKER_(\d+)")
Stage = Literal["queue", "load", "decode", "vad", "asr", "align", "diarize", "done"]


def _described(text: str) -> Meta:
    return Meta(description=text)


class TranscriptionOptions(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that can be asked of one transcription. The form, the flags, the job row and the engine all read it.

    ``omit_defaults`` keeps a stored record short and lets a default that later changes apply to it.
    The description of each field is its help text on the command line.
    """

    model: Annotated[str | None, _described("Whisper model: a name (base, turbo ...), a directory or a hub id")] = None
    language: Annotated[
        str | None,
        _described("language spoken in the audio: a code or a name (fr, pt-BR, French), or auto to detect it"),
    ] = None
    task: Annotated[
        Task, _described("transcribe, translate into English, or detect_language: only say which one is spoken")
    ] = "transcribe"
    audio_track: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None,
        _described("which audio track of the file, counted from 1; unset: its default one, or the first"),
    ] = None
    align: Annotated[bool, _described("give every word its start and end")] = True
    diarize: Annotated[
        bool | None,
        _described("tell the speakers apart; unset: do so where a model can be had, else warn"),
    ] = None
    prompt: Annotated[str | None, _described("text that precedes the audio: spelling, style, names")] = None
    hotwords: Annotated[str | None, _described("words to expect, put before every window")] = None
    temperature: Annotated[float, Meta(ge=0.0, le=1.0, description="sampling temperature of the first attempt")] = 0.0
    beam_size: Annotated[
        Annotated[int, Meta(ge=1, le=32)] | None,
        _described("beams of the first attempt; unset: the engine's default"),
    ] = None
    suppress_numerals: Annotated[bool, _described("write numbers and currency signs out as words")] = False
    vad: Annotated[VadMethod, _described("voice activity detection: silero, pyannote or none")] = "silero"
    vad_onset: Annotated[Threshold | None, _described("speech begins above this probability")] = None
    vad_offset: Annotated[Threshold | None, _described("speech ends below this probability")] = None
    vad_min_silence: Annotated[
        Annotated[float, Meta(ge=0.0, le=10.0)] | None, _described("seconds of silence that end a stretch of speech")
    ] = None
    vad_padding: Annotated[
        Annotated[float, Meta(ge=0.0, le=2.0)] | None, _described("seconds of audio kept around each stretch of speech")
    ] = None
    num_speakers: Annotated[SpeakerCount | None, _described("exact number of speakers, when it is known")] = None
    min_speakers: Annotated[SpeakerCount | None, _described("at least so many speakers")] = None
    max_speakers: Annotated[SpeakerCount | None, _described("at most so many speakers")] = None
    speaker_embeddings: Annotated[bool, _described("return one embedding vector for each speaker")] = False
    logprobs: Annotated[bool, _described("keep the log probability of every token")] = False

    def written_language(self, spoken: str) -> str:
        """Code of the language that the text is in.

        Args:
            spoken: code of the one that is spoken.
        """
        return "en" if self.task == "translate" else spoken


class RenderOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How subtitles (srt, vtt) are laid out; other formats have no lines.

    Attributes:
        max_line_width: characters in a line, as they are printed, the speaker's label included. Longer lines are broken
            between words; a word that is wider stands in a line of its own.
        max_line_count: lines in a subtitle. With ``max_line_width``, which it needs, a subtitle ends where its lines
            are full, where the speaker changes or after a long pause, no longer where a segment ends.
        highlight_words: one subtitle for each word, which is underlined in it.
    """

    max_line_width: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        _described("most characters in a line of subtitles, the speaker's label included"),
    ] = None
    max_line_count: Annotated[
        Annotated[int, Meta(ge=1)] | None, _described("most lines in a subtitle; needs max_line_width")
    ] = None
    highlight_words: Annotated[bool, _described("underline each word of the subtitles as it is spoken")] = False


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token that was decoded, and how sure the decoder was of it.

    Attributes:
        token: its text; U+FFFD where it is only a part of a character.
        bytes: its UTF-8, which is whole when the bytes of all tokens are put together.
        logprob: natural logarithm of its probability, given those before it.
    """

    token: str
    bytes: tuple[int, ...]
    logprob: float


class Word(Row, frozen=True, kw_only=True, omit_defaults=True):
    """One word with its time.

    Attributes:
        word: the word with its punctuation, without surrounding spaces.
        start, end: seconds from the beginning of the audio; at least a millisecond apart. The next word does not begin
            before this one ends.
        score: confidence from 0 to 1: the mean probability of the word's characters (CTC) or tokens (attention).
        speaker: the speaker's label, when diarization ran.
        interpolated: True when the time was not measured but put between those of the neighbours.
    """

    word: str
    start: float
    end: float
    score: float | None = None
    speaker: str | None = None
    interpolated: bool = False


class Segment(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A sentence, or a stretch of speech where sentences were not looked for.

    Attributes:
        id: 0, 1, 2 ... in order of time.
        start, end: seconds; at least a millisecond apart. The next segment does not begin before this one ends.
        text: what was said; when there are words, they are this text's words in order, with its spaces between them.
        speaker: label of the speaker who talks most in it.
        words: empty when word times were not asked for.
        avg_logprob: mean log probability per token of the decoding that this text comes from.
        compression_ratio: of the UTF-8 text under zlib; above 2.4 the text repeats itself.
        no_speech_prob: probability that the window holds no speech.
        temperature: of the decoding that was kept; above 0 the first attempts had failed.
        flags: why to doubt this text (``repetitive``, ``low_confidence``, ``truncated``); empty when all is well.
        seek: where the window that it was decoded from begins, in hundredths of a second.
        tokens: ids of the text tokens it was decoded as; those of a word that was cut go with its first character.
        logprobs: of the same tokens, when they were asked for.
    """

    id: int
    start: float
    end: float
    text: str
    speaker: str | None = None
    words: tuple[Word, ...] = ()
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    temperature: float | None = None
    flags: tuple[str, ...] = ()
    seek: int | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class PartialSegments(msgspec.Struct, frozen=True, kw_only=True):
    """One window of speech as far as it is known: what is shown before the transcript is there.

    Attributes:
        index: 0, 1, 2 ... in order of time. A later stretch with the same index takes the earlier one's place.
        aligned: whether its words have the times they will keep.
        segments: as :class:`Segment`, but for their ids, which only the transcript gives, and their speakers.
    """

    index: int
    aligned: bool
    segments: tuple[Segment, ...]


class Transcript(Record, frozen=True, kw_only=True):
    """What a transcription gives.

    Attributes:
        language: code of the language used for the transcription.
        language_probability: of that language, when it was judged; None when it was given.
        language_probabilities: code to probability of all languages, the likeliest first; only for the task
            ``detect_language``.
        duration: seconds of audio.
        segments: in order of time; empty when nobody speaks.
        speakers: labels in order of appearance (``SPEAKER_00`` ..., or the name of a known speaker); empty without
            diarization.
        speaker_embeddings: label to vector, when asked for.
        word_times: where word times come from: ``ctc`` (an alignment model), ``attention`` (Whisper's own
            cross-attention) or ``none``.
        model, model_revision: the Whisper model by name, and which files exactly.
        alignment_model, diarization_model: the models of those stages, when they ran.
        options: what was asked for, with every default filled in.
        timings: stage name to seconds of wall time. Diarization runs beside recognition; its time is what it takes
            longer.
        warnings: what could not be done as asked, one sentence each.
    """

    language: str
    duration: float
    segments: tuple[Segment, ...]
    language_probability: float | None = None
    language_probabilities: dict[str, float] | None = None
    speakers: tuple[str, ...] = ()
    speaker_embeddings: dict[str, tuple[float, ...]] | None = None
    word_times: WordTimes = "none"
    model: str
    model_revision: str | None = None
    alignment_model: str | None = None
    diarization_model: str | None = None
    options: TranscriptionOptions
    timings: dict[str, float] = msgspec.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The segments' texts joined by line ends."""
        return "\n".join(segment.text.strip() for segment in self.segments)

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments.

        ``pandas.DataFrame(transcript.words, columns=Word.__struct_fields__)`` is a table with a row for each word and
        the columns ``word``, ``start``, ``end``, ``score``, ``speaker`` and ``interpolated``. An empty transcript has
        the same columns; without ``columns``, pandas finds the columns only where there is a word.
        """
        return tuple(word for segment in self.segments for word in segment.words)


class Progress(msgspec.Struct, frozen=True):
    """How far one transcription is.

    Attributes:
        fraction: from 0 to 1 over all stages, never falling.
        stage: the stage that runs now.
    """

    fraction: float
    stage: Stage

    def __str__(self) -> str:
        return f"{self.fraction:4.0%} {self.stage}"


def _none_yet() -> tuple[str, ...]:
    return ()


class JobStatus(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Where one job stands, as the REST API tells it and the client reads it.

    Attributes:
        job_id: a UUID.
        status: in one word.
        queue_position: 1 for the job that is taken next; with concurrency, the batch it falls in. Only while Queued.
        created_at, started_at, finished_at: RFC 3339, UTC.
        progress: from 0 to 1, weighted over the stages; None for a job that ended without a result.
        stage: the stage that runs.
        eta_seconds: until the job ends, when that can be told.
        audio_seconds: length of the audio, when it is known.
        error: why it Failed, or why the server has Canceled it.
        warnings: what could not be done as asked, one sentence each.
        file_name: what the client called the file.
        metadata: what the client gave to be kept with the job.
        result_gone: whether it is Completed, and its result was delivered and has gone, has expired or was deleted.
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
    # A default that a function makes is never left out: whoever reads this need not ask whether it is there.
    warnings: tuple[str, ...] = msgspec.field(default_factory=_none_yet)


class ResultWord(Row, frozen=True, kw_only=True):
    """One word with its time: a :class:`Word` as a result shows it, with every key.

    Attributes:
        word: with its punctuation, without surrounding spaces.
        start, end: seconds from the beginning of the audio.
        score: confidence from 0 to 1; None where word times were not asked for.
        speaker: label; None without diarization.
    """

    word: str
    start: float
    end: float
    score: float | None = None
    speaker: str | None = None


class ResultSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence: a :class:`Segment` as a result shows it, with every key.

    Attributes:
        id: 0, 1, 2 ... in order of time.
        start, end: seconds from the beginning of the audio.
        text: what was said.
        speaker: label of the speaker who talks most in it; None without diarization.
        words: empty when word times were not asked for.
        logprobs: of every token, as they were decoded; not there unless they were asked for.
    """

    id: int
    start: float
    end: float
    text: str
    speaker: str | None = None
    words: tuple[ResultWord, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | msgspec.UnsetType = msgspec.UNSET


class JobResult(Record, frozen=True, kw_only=True):
    """What a finished job gives, as the REST API tells it and the client reads it.

    Attributes:
        text: the transcript in the job's format.
        language: that was used; the one detected, when asked for ``auto``.
        language_probability: of that language, when it was judged.
        duration: seconds of audio.
        model: the Whisper model by name.
        segments: in order of time.
        speakers: labels in order of appearance.
        warnings: what could not be done as asked, one sentence each.
        speaker_embeddings: label to vector; not there unless it was asked for.
        language_probabilities: code to probability; not there unless the task was ``detect_language``.
        metadata: what the client gave to be kept with the job; not there when it gave none.
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
    language_probabilities: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    @property
    def words(self) -> tuple[ResultWord, ...]:
        """The words of all segments, which pandas takes as it does those of :attr:`Transcript.words`."""
        return tuple(word for segment in self.segments for word in segment.words)


class SpokenLanguage(msgspec.Struct, frozen=True, kw_only=True):
    """Which language is spoken in a recording.

    Attributes:
        language: code of the likeliest.
        language_probability: of that one.
        language_probabilities: code to probability, the likeliest first.
        duration: seconds of audio.
        model: the Whisper model that judged, by name.
        warnings: what could not be done as asked, one sentence each.
        metadata: what the client gave to be kept with the job; not there when it gave none.
        detected_language: English name of the likeliest language, in small letters.
        language_code: the same as ``language``. This and the two beside it are what whisper-asr-webservice answers.
        confidence: the same as ``language_probability``; 0 where that is not known.
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


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wrote in place of what was recognised.

    Attributes:
        segment: id of the segment.
        word: which of its words, from 0; None for the text of a segment without words.
        text: what stands there instead; empty removes the word.
    """

    segment: Annotated[int, Meta(ge=0)]
    word: Annotated[int, Meta(ge=0)] | None = None
    text: Annotated[str, Meta(max_length=10_000)]


class Corrections(Record, frozen=True, kw_only=True):
    """All that was corrected in one transcript; later results, in every format, have it.

    Attributes:
        words: in any order; of two for the same place the last counts.
        speakers: label to the name that is shown instead.
    """

    words: Annotated[tuple[Correction, ...], Meta(max_length=100_000)] = ()
    speakers: Annotated[dict[str, Annotated[str, Meta(min_length=1, max_length=255)]], Meta(max_length=1000)] = (
        msgspec.field(default_factory=dict)
    )


def result_segment(segment: Segment) -> ResultSegment:
    """A segment as results and events show it."""
    return ResultSegment(
        id=segment.id,
        start=segment.start,
        end=segment.end,
        text=segment.text,
        speaker=segment.speaker,
        words=tuple(
            ResultWord(word=word.word, start=word.start, end=word.end, score=word.score, speaker=word.speaker)
            for word in segment.words
        ),
        logprobs=segment.logprobs or msgspec.UNSET,
    )


def job_result(
    transcript: Transcript, text: str, warnings: tuple[str, ...] = (), metadata: dict[str, Any] | None = None
) -> JobResult:
    """The result that a transcript makes.

    Args:
        transcript: what the engine gave.
        text: the same, rendered in the job's format.
        warnings: of the submission; they stand before the transcript's own.
        metadata: the client's.
    """
    return JobResult(
        text=text,
        language=transcript.language,
        segments=tuple(result_segment(segment) for segment in transcript.segments),
        language_probability=transcript.language_probability,
        duration=transcript.duration,
        model=transcript.model,
        warnings=tuple(dict.fromkeys((*warnings, *transcript.warnings))),
        speakers=transcript.speakers,
        speaker_embeddings=_or_unset(transcript.speaker_embeddings),
        language_probabilities=_or_unset(transcript.language_probabilities),
        metadata=_or_unset(metadata),
    )


def _or_unset(value: T | None) -> T | msgspec.UnsetType:
    return msgspec.UNSET if value is None else value


class JobQueuedEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="queued"):
    """The job waits, or waits again after the server was stopped.

    Attributes:
        job_id: which.
        queue_position: as in :class:`JobStatus`.
    """

    job_id: str
    queue_position: int


class JobProgressEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """The job runs.

    Attributes:
        job_id: which.
        progress, stage, eta_seconds: as in :class:`JobStatus`.
    """

    job_id: str
    progress: float
    stage: Stage
    eta_seconds: float | None = None


class JobSegmentEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="segment"):
    """Some more of the text is known, or known better.

    Attributes:
        job_id: which.
        index, aligned: as in :class:`PartialSegments`: a later event with the same index replaces the earlier one.
        segments: what is said there. Their ids count within the stretch.
    """

    job_id: str
    index: int
    aligned: bool
    segments: tuple[ResultSegment, ...]


class JobCompletedEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="completed"):
    """The job has its result.

    Attributes:
        job_id: which.
    """

    job_id: str


class JobFailedEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="failed"):
    """The job ended without a result.

    Attributes:
        job_id: which.
        error: why.
    """

    job_id: str
    error: str


class JobCanceledEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="canceled"):
    """The job was canceled.

    Attributes:
        job_id: which.
    """

    job_id: str


JobEvent = JobQueuedEvent | JobProgressEvent | JobSegmentEvent | JobCompletedEvent | JobFailedEvent | JobCanceledEvent
