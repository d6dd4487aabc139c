"""The format ``json`` of :func:`whisper_api.formats.to_whisperx` as Structs, for the description of the API."""

from __future__ import annotations

import msgspec

__all__ = ["WhisperxTranscript"]


class WhisperxWord(msgspec.Struct, frozen=True, kw_only=True):
    """A word, as whisperx writes it.

    Attributes:
        word: the word with its punctuation.
        start, end: seconds.
        score: confidence from 0 to 1, when it is known.
        speaker: label of the speaker, when it is known.
        channel: number of the channel, counted from 0, when the channels were recognized separately.
    """

    word: str
    start: float
    end: float
    score: float | msgspec.UnsetType = msgspec.UNSET
    speaker: str | msgspec.UnsetType = msgspec.UNSET
    channel: int | msgspec.UnsetType = msgspec.UNSET


class WhisperxSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence, as whisperx writes it.

    Attributes:
        start, end: seconds.
        text: text of the sentence.
        words: words with times; absent without word times.
        avg_logprob: mean log probability per token, when it is known.
        speaker: label of the speaker, when it is known.
        channel: number of the channel, counted from 0, when the channels were recognized separately.
        flags: reasons to doubt the text; only with ``hallucinations=flag``, in segments with the flag
            ``hallucination``.
        language: code of the spoken language; absent unless the option ``language`` is ``multi``.
    """

    start: float
    end: float
    text: str
    words: tuple[WhisperxWord, ...] | msgspec.UnsetType = msgspec.UNSET
    avg_logprob: float | msgspec.UnsetType = msgspec.UNSET
    speaker: str | msgspec.UnsetType = msgspec.UNSET
    channel: int | msgspec.UnsetType = msgspec.UNSET
    flags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    language: str | msgspec.UnsetType = msgspec.UNSET


class WhisperxTranscript(msgspec.Struct, frozen=True, kw_only=True):
    """A transcript as whisperx writes it to a file: the format ``json``.

    Attributes:
        segments: in order of time.
        word_segments: the words of all segments; absent without word times.
        speaker_embeddings: label to vector, when the request asks for them.
        language: code of the language.
    """

    segments: tuple[WhisperxSegment, ...]
    word_segments: tuple[WhisperxWord, ...] | msgspec.UnsetType = msgspec.UNSET
    speaker_embeddings: dict[str, tuple[float, ...]] | msgspec.UnsetType = msgspec.UNSET
    language: str
