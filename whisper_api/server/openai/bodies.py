"""Bodies of answers under ``/v1``, field for field as the types of OpenAI's clients read them."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from whisper_api.schema import TokenLogprob

__all__ = [
    "DiarizedSegment",
    "DiarizedTranscription",
    "ErrorBody",
    "ErrorDetail",
    "InputAudio",
    "Language",
    "Model",
    "ModelList",
    "Transcription",
    "Translation",
    "Usage",
    "VerboseSegment",
    "VerboseTranscription",
    "VerboseTranslation",
    "VerboseWord",
]


ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class InputAudio(msgspec.Struct, frozen=True, kw_only=True):
    """A recording in a JSON body.

    Attributes:
        data: the file in base64.
        format: of the file; counts for nothing, as the file says what it is.
    """

    data: str
    format: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted.

    Attributes:
        type: that it is the length of the audio.
        seconds: of audio, rounded up.
    """

    type: Literal["duration"] = "duration"
    seconds: int


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """A language that is spoken.

    Attributes:
        code: as in ISO 639.
    """

    code: str


class Transcription(msgspec.Struct, frozen=True, kw_only=True):
    """What was said (``json``).

    Attributes:
        text: in one line.
        languages: the one that was detected, or given.
        logprobs: of every token, when ``include[]=logprobs`` asks for them.
        usage: seconds of audio.
    """

    text: str
    languages: tuple[Language, ...]
    logprobs: tuple[TokenLogprob, ...] | UnsetType = UNSET
    usage: Usage


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """What was said, in English (``json``).

    Attributes:
        text: in one line.
    """

    text: str


class VerboseSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence of a ``verbose_json`` answer.

    Attributes:
        id: 0, 1, 2 ... in order of time.
        seek: where the window that it was decoded from begins, in hundredths of a second.
        start, end: seconds.
        text: with the space before it.
        tokens: ids of the text tokens it was decoded as.
        temperature: of the decoding that was kept.
        avg_logprob: mean log probability per token of the decoding that it comes from.
        compression_ratio: of the text under zlib; above 2.4 it repeats itself.
        no_speech_prob: probability that the window holds no speech.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseWord(msgspec.Struct, frozen=True, kw_only=True):
    """One word with its time.

    Attributes:
        word: with its punctuation.
        start, end: seconds.
    """

    word: str
    start: float
    end: float


class VerboseTranscription(msgspec.Struct, frozen=True, kw_only=True):
    """What was said, with its times (``verbose_json``).

    Attributes:
        task: what was done.
        language: its English name, in lower case.
        duration: seconds of audio.
        text: in one line.
        segments: unless only words are asked for.
        words: when ``timestamp_granularities[]=word`` asks for them.
        usage: seconds of audio.
    """

    task: Literal["transcribe"] = "transcribe"
    language: str
    duration: float
    text: str
    segments: tuple[VerboseSegment, ...] | UnsetType = UNSET
    words: tuple[VerboseWord, ...] | UnsetType = UNSET
    usage: Usage


class VerboseTranslation(msgspec.Struct, frozen=True, kw_only=True):
    """What was said, in English and with its times (``verbose_json``).

    Attributes:
        task: what was done.
        language: of the text.
        duration: seconds of audio.
        text: in one line.
        segments: in order of time.
    """

    task: Literal["translate"] = "translate"
    language: Literal["english"] = "english"
    duration: float
    text: str
    segments: tuple[VerboseSegment, ...]


class DiarizedSegment(msgspec.Struct, frozen=True, kw_only=True):
    """What one speaker says; in a stream, an event of its own.

    Attributes:
        type: of the event.
        id: ``seg_0``, ``seg_1`` ... in order of time.
        start, end: seconds.
        text: of the segment.
        speaker: the name of a known speaker, else A, B ... in order of appearance.
    """

    type: Literal["transcript.text.segment"] = "transcript.text.segment"
    id: str
    start: float
    end: float
    text: str
    speaker: str


class DiarizedTranscription(msgspec.Struct, frozen=True, kw_only=True):
    """What was said, and by whom (``diarized_json``).

    Attributes:
        task: what was done.
        duration: seconds of audio.
        text: in one line.
        segments: in order of time.
        usage: seconds of audio.
    """

    task: Literal["transcribe"] = "transcribe"
    duration: float
    text: str
    segments: tuple[DiarizedSegment, ...]
    usage: Usage


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong.

    Attributes:
        message: one sentence for people: what is wrong and what to do.
        type: which kind of error it is.
        param: the field that is wrong, where it is one.
        code: one word for programs.
    """

    message: str
    type: ErrorType
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error.

    Attributes:
        error: what is wrong.
    """

    error: ErrorDetail


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that transcriptions may ask for.

    Attributes:
        id: its name.
        object: what this is.
        created: when its files came here, in seconds since 1970; 0 while they are not here.
        owned_by: who serves it.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "whisper-api"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The models that are here.

    Attributes:
        object: what this is.
        data: the configured one first.
    """

    object: Literal["list"] = "list"
    data: tuple[Model, ...]
