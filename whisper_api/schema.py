"""The values of the engine: options, transcripts and progress.

Every Struct is frozen, so threads can share a value. ``forbid_unknown_fields`` is off, so that an older version can
read the records of a newer version.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, cast, get_args

import msgspec
from msgspec import Meta

from whisper_api.errors import InvalidOption
from whisper_api.records import Record, Row

__all__ = [
    "HALLUCINATION",
    "LANGUAGES_WITHOUT_SPACES",
    "SAMPLE_RATE",
    "SPEAKER_LABEL",
    "VAD_ONSET",
    "Channels",
    "PartialSegments",
    "Progress",
    "RedactKind",
    "Redaction",
    "RenderOptions",
    "Segment",
    "TokenLogprob",
    "Transcript",
    "TranscriptionOptions",
    "Turn",
    "Word",
    "redact_kinds",
]

LANGUAGES_WITHOUT_SPACES = frozenset({"ja", "lo", "my", "th", "yue", "zh"})
"""Languages that write no space between words, according to Whisper's tokenizer."""

Threshold = Annotated[float, Meta(gt=0.0, lt=1.0)]
SpeakerCount = Annotated[int, Meta(ge=1, le=100)]
Seconds = Annotated[float, Meta(ge=0.0, le=60.0)]

Task = Literal["transcribe", "translate", "detect_language", "diarize"]
Channels = Literal["mix", "separate", "auto"]
VadMethod = Literal["silero", "pyannote", "none"]
Hallucinations = Literal["keep", "flag", "drop"]
WordTimes = Literal["ctc", "attention", "none"]
Preset = Literal["netflix", "bbc", "default"]
SpeakerMarks = Literal["label", "dash", "voice", "none"]
RedactKind = Literal["names", "emails", "phones", "cards", "accounts", "ids", "numbers"]
# Voice activity detection: speech begins at this probability, for every detection model.
VAD_ONSET = 0.5
# The flag of segments that Whisper has probably invented.
HALLUCINATION = "hallucination"
# Samples per second of decoded audio, which is mono: Whisper, alignment and speaker models expect this rate.
SAMPLE_RATE = 16_000
# Labels that diarization gives to speakers without a name.
SPEAKER_LABEL = re.compile(r"SPEAKER_(\d+)")
Stage = Literal["queue", "download", "load", "decode", "vad", "asr", "align", "diarize", "done"]


def _described(text: str) -> Meta:
    return Meta(description=text)


class TranscriptionOptions(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The options of a transcription, for the form, the flags, the job row and the engine.

    ``omit_defaults`` keeps stored records short, and a stored record follows later changes of a default.
    The description of each field is its help text on the command line.

    Raises:
        InvalidOption: ``min_speakers`` is above ``max_speakers``, ``vad_offset`` above ``vad_onset``, or the task
            ``diarize`` comes with ``diarize=False``; ``redact`` names an
            unknown kind.
    """

    model: Annotated[str | None, _described("Whisper model: a name (base, turbo ...), a directory or a hub id")] = None
    language: Annotated[
        str | None,
        _described(
            "language spoken in the audio: a code or a name (fr, pt-BR, French), auto to detect it, or multi: "
            "several languages in one recording"
        ),
    ] = None
    task: Annotated[
        Task,
        _described(
            "transcribe, translate into English, detect_language: only say which one is spoken, or diarize: only say "
            "who speaks when"
        ),
    ] = "transcribe"
    audio_track: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None,
        _described("which audio track of the file, counted from 1; unset: its default one, or the first"),
    ] = None
    channels: Annotated[
        Channels,
        _described(
            "mix the channels; separate: recognize each channel by itself, as one speaker each; auto: separate them "
            "where each surely has a voice of its own"
        ),
    ] = "mix"
    align: Annotated[bool, _described("give every word its start and end")] = True
    diarize: Annotated[
        bool | None,
        _described("tell the speakers apart; unset: do so where a model can be had, else warn"),
    ] = None
    prompt: Annotated[str | None, _described("text that precedes the audio: spelling, style, names")] = None
    hotwords: Annotated[str | None, _described("words to expect, put before every window")] = None
    vocabulary: Annotated[
        str | tuple[str, ...] | None,
        _described(
            "names and terms that may be said: the name of a server's vocabulary, or a file with a term in each line"
        ),
    ] = None
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
    hallucinations: Annotated[
        Hallucinations,
        _described("text that Whisper invents where nobody speaks: keep it, flag its segments, or drop it"),
    ] = "drop"
    num_speakers: Annotated[SpeakerCount | None, _described("exact number of speakers, when it is known")] = None
    min_speakers: Annotated[SpeakerCount | None, _described("at least so many speakers")] = None
    max_speakers: Annotated[SpeakerCount | None, _described("at most so many speakers")] = None
    speaker_embeddings: Annotated[bool, _described("return one embedding vector for each speaker")] = False
    identify: Annotated[bool, _described("name the speakers whose voices the caller has enrolled")] = False
    identify_threshold: Annotated[
        Threshold | None,
        _described("least cosine similarity of a speaker and a known voice; unset: as measured for the model"),
    ] = None
    logprobs: Annotated[bool, _described("keep the log probability of every token")] = False
    redact: Annotated[
        str | None,
        _described(f"replace personal data by markers, kinds with commas between: {', '.join(get_args(RedactKind))}"),
    ] = None

    def __post_init__(self) -> None:
        redact_kinds(self.redact)
        low, high = self.min_speakers, self.max_speakers
        if low is not None and high is not None and low > high:
            raise InvalidOption("min_speakers", f"{low} is more than max_speakers ({high})")
        onset, offset = VAD_ONSET if self.vad_onset is None else self.vad_onset, self.vad_offset
        if offset is not None and offset > onset:
            raise InvalidOption(
                "vad_offset", f"{offset} is above vad_onset ({onset}); speech would end before it begins"
            )

        if self.task == "diarize" and self.diarize is False:
            raise InvalidOption("diarize", "the task diarize tells the speakers apart; leave diarize out")

    def written_language(self, spoken: str) -> str:
        """Code of the text's language: English for translations.

        Args:
            spoken: code of the spoken language.
        """
        return "en" if self.task == "translate" else spoken


def redact_kinds(redact: str | None) -> frozenset[RedactKind]:
    """The kinds of personal data that the option ``redact`` names.

    Args:
        redact: kinds with commas between them, in any case; None for no kind.

    Raises:
        InvalidOption: there is no such kind.
    """
    kinds: set[RedactKind] = set()
    for name in (word.strip().lower() for word in (redact or "").split(",")):
        if name and name not in get_args(RedactKind):
            raise InvalidOption("redact", f"unknown kind {name[:40]!r}; there are {', '.join(get_args(RedactKind))}")
        if name:
            kinds.add(cast(RedactKind, name))
    return frozenset(kinds)


class RenderOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The layout of subtitles; formats without subtitles ignore these options.

    Attributes:
        subtitle_preset: the rules of ``netflix``, of the ``bbc``, or the ``default`` that this project recommends. The
            other options replace the preset's values.
        max_line_width: most printed characters in a line, the speaker's label included. Longer lines break between
            words; a word that is wider gets its own line.
        max_line_count: most lines in a subtitle; needs ``max_line_width``. A subtitle then ends when its lines are
            full, when the speaker changes or after a long pause, and may continue over the end of a segment.
        min_duration, max_duration: seconds. A short subtitle is prolonged into the pause after the speech.
        min_gap: least seconds between two subtitles.
        max_characters_per_second: a subtitle with more characters is prolonged into the pause after the speech.
        speakers: ``label`` (the name in brackets, as whisperx), ``dash`` (speakers who follow each other may share a
            subtitle, each on a line with a dash), ``voice`` (WebVTT's voice spans, Name in ass; nothing in the text) or
            ``none``; None for the way of the preset, or ``label``, in ass ``voice``.
        highlight_words: make a subtitle for each word, with the word underlined; in ass as ``karaoke``.
        karaoke: time each word inside its subtitle, for players that highlight words (vtt and ass).

    Raises:
        InvalidOption: ``min_duration`` is above ``max_duration``.
    """

    subtitle_preset: Annotated[
        Preset | None, _described("rules for subtitles: netflix, bbc or default; other options replace its numbers")
    ] = None
    max_line_width: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        _described("most characters in a line of subtitles, the speaker's label included"),
    ] = None
    max_line_count: Annotated[
        Annotated[int, Meta(ge=1)] | None, _described("most lines in a subtitle; needs max_line_width")
    ] = None
    min_duration: Annotated[Seconds | None, _described("least seconds that a subtitle is shown")] = None
    max_duration: Annotated[
        Annotated[float, Meta(ge=0.1, le=3600.0)] | None, _described("most seconds that a subtitle is shown")
    ] = None
    min_gap: Annotated[Seconds | None, _described("least seconds between two subtitles")] = None
    max_characters_per_second: Annotated[
        Annotated[float, Meta(ge=1.0, le=1000.0)] | None, _described("most characters of a subtitle for each second")
    ] = None
    speakers: Annotated[
        SpeakerMarks | None,
        _described("how subtitles mark speakers: label, dash, voice or none; unset: as the preset does"),
    ] = None
    highlight_words: Annotated[bool, _described("underline each word of the subtitles as it is spoken")] = False
    karaoke: Annotated[bool, _described("time each word inside its subtitle (vtt, ass)")] = False

    def __post_init__(self) -> None:
        low, high = self.min_duration, self.max_duration
        if low is not None and high is not None and low > high:
            raise InvalidOption("min_duration", f"{low} is more than max_duration ({high})")


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
