"""The options of a transcription and of its subtitles. Other modules import them from :mod:`whisper_api.schema`."""

from __future__ import annotations

from typing import Annotated, Literal, cast, get_args

import msgspec
from msgspec import Meta

from whisper_api.errors import InvalidOption
from whisper_api.records import Record

Threshold = Annotated[float, Meta(gt=0.0, lt=1.0)]
SpeakerCount = Annotated[int, Meta(ge=1, le=100)]
Seconds = Annotated[float, Meta(ge=0.0, le=60.0)]

Task = Literal["transcribe", "translate", "detect_language", "diarize"]
Channels = Literal["mix", "separate", "auto"]
VadMethod = Literal["silero", "pyannote", "none"]
Hallucinations = Literal["keep", "flag", "drop"]
Preset = Literal["netflix", "bbc", "default"]
SpeakerMarks = Literal["label", "dash", "voice", "none"]
RedactKind = Literal["names", "emails", "phones", "cards", "accounts", "ids", "numbers"]
# Voice activity detection: speech begins at this probability, for every detection model.
VAD_ONSET = 0.5


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
