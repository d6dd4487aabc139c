"""The values of the engine: options, which are in :mod:`~whisper_api.options`, transcripts and progress.

Every Struct is frozen, so threads can share a value. ``forbid_unknown_fields`` is off, so that an older version can
read the records of a newer version.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from whisper_api.options import (
    RedactKind,
    TranscriptionOptions,
)
from whisper_api.records import Record, Row

LANGUAGES_WITHOUT_SPACES = frozenset({"ja", "lo", "my", "th", "yue", "zh"})
"""Languages that write no space between words, according to Whisper's tokenizer."""

WordTimes = Literal["ctc", "attention", "none"]
# The flag of segments that Whisper has probably invented.
HALLUCINATION = "hallucination"
# Samples per second of decoded audio, which is mono: Whisper, alignment and speaker models expect this rate.
SAMPLE_RATE = 16_000
# Labels that diarization gives to speakers without a name.
SPEAKER_LABEL = re.compile(r"SPEAKER_(\d+)")
Stage = Literal["queue", "download", "load", "decode", "vad", "asr", "align", "diarize", "done"]


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded token with its log probability.

    Attributes:
        token: the text; U+FFFD when the token is only a part of a character.
        bytes: the UTF-8 bytes; the joined bytes of all tokens are valid UTF-8.
        logprob: natural logarithm of the token's probability, given the tokens before.
    """

    token: str
    bytes: tuple[int, ...]
    logprob: float


class Word(Row, frozen=True, kw_only=True, omit_defaults=True):
    """One word with its time.

    Attributes:
        word: the word with its punctuation, without surrounding spaces.
        start, end: seconds from the beginning of the audio; at least a millisecond apart. Words of one channel do not
            overlap.
        score: confidence from 0 to 1: the mean probability of the word's characters (CTC) or tokens (attention).
            The mean of tokens is close to the share of such words that are right.
        speaker: the speaker's label, when diarization ran or the channels were separated.
        interpolated: True when the time was not measured but interpolated between the neighbouring words.
        channel: number of the word's channel, counted from 0; None when the channels were mixed.
        timing: ``attention`` for a word of a transcript with CTC word times whose time comes from Whisper's
            cross-attention, since the alignment model cannot spell it: numbers, amounts, symbols. None for all others:
            their times come from where :attr:`Transcript.word_times` says.
    """

    word: str
    start: float
    end: float
    score: float | None = None
    speaker: str | None = None
    interpolated: bool = False
    channel: int | None = None
    timing: Literal["attention"] | None = None


class Turn(Row, frozen=True, omit_defaults=True):
    """An interval in which one person speaks.

    Attributes:
        start, end: seconds from the beginning of the audio.
        speaker: label of the person.
        channel: number of the channel, counted from 0, when the channels were recognised separately.
    """

    start: float
    end: float
    speaker: str
    channel: int | None = None


class Segment(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A sentence, or a stretch of speech when the text is not split into sentences.

    Attributes:
        id: 0, 1, 2 ... in order of time.
        start, end: seconds; at least a millisecond apart. Segments of one channel do not overlap.
        text: the recognised text. ``words`` are the words of this text, in order.
        speaker: label of the speaker with the most speech in the segment.
        words: empty without word times.
        avg_logprob: mean log probability per token of the decoding.
        compression_ratio: of the UTF-8 text under zlib; above 2.4 the text repeats itself.
        no_speech_prob: probability that the window holds no speech.
        temperature: temperature of the accepted decoding; above 0 the first attempts had failed.
        flags: reasons to doubt the text (``repetitive``, ``low_confidence``, ``truncated``, ``hallucination``), and
            ``prompt_leak`` where the prompt's own words came out without being heard and other text replaces them.
            Empty without doubt.
        seek: start of the decoded window, in hundredths of a second.
        tokens: ids of the text tokens. When a segment's end cuts a word, its tokens belong to the first part.
        logprobs: log probabilities of the tokens; empty unless the option ``logprobs`` is set.
        channel: number of the segment's channel, counted from 0; None when the channels were mixed.
        language: code of the spoken language; None unless the option ``language`` is ``multi``.
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
    channel: int | None = None
    language: str | None = None


class Redaction(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A place at which the option ``redact`` replaced what was said.

    Attributes:
        kind: the kind of personal data.
        start, end: seconds: the times of the replaced words, or of the segment where the words have no times.
        channel: number of the channel, counted from 0, when the channels were recognised separately.
    """

    kind: RedactKind
    start: float
    end: float
    channel: int | None = None


class PartialSegments(msgspec.Struct, frozen=True, kw_only=True):
    """The text of one window of speech, before the transcript is complete.

    Attributes:
        index: 0, 1, 2 ... in order of time. A later value with the same index replaces the earlier value.
        aligned: whether the word times are final.
        segments: the segments, without speakers and with ids that differ from those of the transcript.
    """

    index: int
    aligned: bool
    segments: tuple[Segment, ...]


class Transcript(Record, frozen=True, kw_only=True):
    """The result of a transcription.

    Attributes:
        language: code of the spoken language; of several languages, the one with most speech; empty for the task
            ``diarize``.
        language_probability: probability of the detected language; None when the options name the language, or several
            languages were detected.
        languages: with the option ``language`` as ``multi``, the languages of the segments, the one with most speech
            first; otherwise empty.
        language_probabilities: code to probability of all languages, the most probable first; only for the task
            ``detect_language``.
        duration: seconds of audio.
        segments: in order of time; empty without speech, and for the task ``diarize``.
        turns: who speaks when, in order of their starts; turns of people who talk at once overlap. Empty without
            diarization.
        speakers: labels in order of appearance (``SPEAKER_00`` ..., or the name of a known speaker); empty without
            diarization. With separate channels, the number in a label is that of the channel.
        channels: numbers of the channels that were recognised separately, counted from 0; empty when the channels were
            mixed.
        speaker_embeddings: label to vector; None unless the option ``speaker_embeddings`` is set.
        speaker_scores: name of each recognised speaker to the cosine similarity of this speaker's voice and the known
            voice; None unless known voices were looked for.
        word_times: source of the word times: ``ctc`` (an alignment model), ``attention`` (Whisper's own
            cross-attention) or ``none``.
        model, model_revision: name of the Whisper model, and revision of its files; empty and None for the task
            ``diarize``, which needs no Whisper model.
        alignment_model, diarization_model: the models of these stages; None for a stage that did not run. The alignment
            models of several languages are separated by commas.
        redactions: where personal data was replaced, in order of time; empty unless the option ``redact`` is set.
        options: the options, with all defaults filled in; with ``redact``, without the prompt and the hotwords.
        timings: stage name to seconds of wall time. Diarization runs in parallel with recognition; its time is the
            time that it takes longer.
        warnings: a sentence for each request that could not be fulfilled.
    """

    language: str
    duration: float
    segments: tuple[Segment, ...]
    language_probability: float | None = None
    languages: tuple[str, ...] = ()
    language_probabilities: dict[str, float] | None = None
    speakers: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    speaker_embeddings: dict[str, tuple[float, ...]] | None = None
    speaker_scores: dict[str, float] | None = None
    word_times: WordTimes = "none"
    model: str
    model_revision: str | None = None
    alignment_model: str | None = None
    diarization_model: str | None = None
    turns: tuple[Turn, ...] = ()
    redactions: tuple[Redaction, ...] = ()
    options: TranscriptionOptions
    timings: dict[str, float] = msgspec.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def written_language(self, segment: Segment) -> str:
        """Code of the language in which a segment's text is written."""
        return self.options.written_language(segment.language or self.language)

    @property
    def text(self) -> str:
        """The segments' texts joined by line ends."""
        return "\n".join(segment.text.strip() for segment in self.segments)

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments.

        ``pandas.DataFrame(transcript.words, columns=Word.__struct_fields__)`` is a table with a row for each word and
        the columns ``word``, ``start``, ``end``, ``score``, ``speaker``, ``interpolated``, ``channel`` and ``timing``.
        The argument ``columns`` gives an empty transcript the same columns.
        """
        return tuple(word for segment in self.segments for word in segment.words)


class Progress(msgspec.Struct, frozen=True):
    """The progress of a transcription.

    Attributes:
        fraction: from 0 to 1 over all stages; never decreases.
        stage: the stage that runs now.
        stage_fraction: from 0 to 1 within the stage.
    """

    fraction: float
    stage: Stage
    stage_fraction: float = 0.0

    def __str__(self) -> str:
        return f"{self.fraction:4.0%} {self.stage}"
