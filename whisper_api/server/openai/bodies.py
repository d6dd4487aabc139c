"""Bodies and events of the responses under ``/v1``, field for field as the types of OpenAI's clients read them."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from whisper_api.schema import TokenLogprob

ErrorType = Literal["invalid_request_error", "rate_limit_error", "insufficient_quota", "server_error"]


class InputAudio(msgspec.Struct, frozen=True, kw_only=True):
    """A recording in a JSON body.

    Attributes:
        data: the file in base64.
        format: format of the file; the server ignores it and reads the format from the file itself.
    """

    data: str
    format: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The usage by which OpenAI bills.

    Attributes:
        type: always ``duration``, the length of the audio.
        seconds: length of the audio, rounded up.
    """

    type: Literal["duration"] = "duration"
    seconds: int


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """A spoken language.

    Attributes:
        code: code of ISO 639.
    """

    code: str


class Transcription(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a recording (``json``).

    Attributes:
        text: the text in one line.
        languages: the detected languages, or the language of the request.
        logprobs: log probabilities of all tokens, when ``include[]=logprobs`` asks for them.
        usage: length of the audio.
    """

    text: str
    languages: tuple[Language, ...]
    logprobs: tuple[TokenLogprob, ...] | UnsetType = UNSET
    usage: Usage


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a recording in English (``json``).

    Attributes:
        text: the text in one line.
    """

    text: str


class VerboseSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence of a ``verbose_json`` answer.

    Attributes:
        id: 0, 1, 2 ... in order of time.
        seek: start of the decoded window, in hundredths of a second.
        start, end: seconds.
        text: the text with the space before it.
        tokens: ids of the decoded text tokens.
        temperature: temperature of the accepted decoding.
        avg_logprob: mean log probability per token of the accepted decoding.
        compression_ratio: zlib compression ratio of the text; above 2.4 the text repeats itself.
        no_speech_prob: probability that the window holds no speech.
        flags: reasons to doubt the text, such as ``hallucination``; absent without doubt.
        language: English name of the language, in lower case; absent unless the request's ``language`` is ``multi``.
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
    flags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    language: str | msgspec.UnsetType = msgspec.UNSET


class VerboseWord(msgspec.Struct, frozen=True, kw_only=True):
    """A word with its time.

    Attributes:
        word: the word with its punctuation.
        start, end: seconds.
    """

    word: str
    start: float
    end: float


class VerboseTranscription(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a recording with times (``verbose_json``).

    Attributes:
        task: always ``transcribe``.
        language: English name of the language, in lower case; of several languages, the one with most speech.
        duration: seconds of audio.
        text: the text in one line.
        segments: absent when the request asks for words only.
        words: present when ``timestamp_granularities[]=word`` asks for them.
        usage: length of the audio.
    """

    task: Literal["transcribe"] = "transcribe"
    language: str
    duration: float
    text: str
    segments: tuple[VerboseSegment, ...] | UnsetType = UNSET
    words: tuple[VerboseWord, ...] | UnsetType = UNSET
    usage: Usage


class VerboseTranslation(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a recording in English with times (``verbose_json``).

    Attributes:
        task: always ``translate``.
        language: language of the text.
        duration: seconds of audio.
        text: the text in one line.
        segments: in order of time.
    """

    task: Literal["translate"] = "translate"
    language: Literal["english"] = "english"
    duration: float
    text: str
    segments: tuple[VerboseSegment, ...]


class DiarizedSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A segment of one speaker. A stream sends each segment as an event.

    Attributes:
        type: type of the event.
        id: ``seg_0``, ``seg_1`` ... in order of time.
        start, end: seconds.
        text: text of the segment.
        speaker: the name of a known speaker, else A, B ... in order of appearance.
    """

    type: Literal["transcript.text.segment"] = "transcript.text.segment"
    id: str
    start: float
    end: float
    text: str
    speaker: str


class DiarizedTranscription(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a recording with its speakers (``diarized_json``).

    Attributes:
        task: always ``transcribe``.
        duration: seconds of audio.
        text: the text in one line.
        segments: in order of time.
        usage: length of the audio.
    """

    task: Literal["transcribe"] = "transcribe"
    duration: float
    text: str
    segments: tuple[DiarizedSegment, ...]
    usage: Usage


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """The details of an error.

    Attributes:
        message: one sentence for people: what is wrong and what to do.
        type: the kind of error.
        param: the wrong field; null when the error is not about a field.
        code: the error as one word for programs.
    """

    message: str
    type: ErrorType
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as OpenAI's clients read it.

    Attributes:
        error: the details.
    """

    error: ErrorDetail


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that transcriptions may ask for.

    Attributes:
        id: name of the model.
        object: always ``model``.
        created: modification time of the model's files, in seconds since 1970; 0 when the server does not have them.
        owned_by: always ``whisper-api``.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "whisper-api"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The models on the server.

    Attributes:
        object: always ``list``.
        data: the models; the configured model is the first.
    """

    object: Literal["list"] = "list"
    data: tuple[Model, ...]


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The next piece of the text, sent as soon as it is decoded.

    Attributes:
        type: type of the event.
        delta: the text to append to the text so far.
    """

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TextDone(msgspec.Struct, frozen=True, kw_only=True):
    """The last event, with the whole text.

    It has no ``usage``: OpenAI's type of this event counts tokens, and strict clients refuse a usage in seconds.

    Attributes:
        type: type of the event.
        text: the text in one line.
        languages: the detected languages, or the language of the request.
        logprobs: log probabilities of all tokens, when ``include[]=logprobs`` asks for them.
    """

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    languages: tuple[Language, ...]
    logprobs: tuple[TokenLogprob, ...] | UnsetType = UNSET


StreamEvent = DiarizedSegment | TextDelta | TextDone | ErrorBody
