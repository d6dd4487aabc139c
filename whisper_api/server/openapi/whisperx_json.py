"""The format ``json`` as a type: what :func:`whisper_api.formats.to_whisperx` makes, for the description of the API."""

from __future__ import annotations

import msgspec

__all__ = ["WhisperxTranscript"]


class WhisperxWord(msgspec.Struct, frozen=True, kw_only=True):
    """One word, as whisperx writes it.

    Attributes:
        word: with its punctuation.
        start, end: seconds.
        score: confidence from 0 to 1, where it is known.
        speaker: label, where it is known.
    """

    word: str
    start: float
    end: float
    score: float | msgspec.UnsetType = msgspec.UNSET
    speaker: str | msgspec.UnsetType = msgspec.UNSET


class WhisperxSegment(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence, as whisperx writes it.

    Attributes:
        start, end: seconds.
        text: what was said.
        words: where there are any.
        avg_logprob: mean log probability per token, where it is known.
        speaker: label, where it is known.
    """

    start: float
    end: float
    text: str
    words: tuple[WhisperxWord, ...] | msgspec.UnsetType = msgspec.UNSET
    avg_logprob: float | msgspec.UnsetType = msgspec.UNSET
    speaker: str | msgspec.UnsetType = msgspec.UNSET


class WhisperxTranscript(msgspec.Struct, frozen=True, kw_only=True):
    """A transcript as whisperx writes it to a file: the format ``json``.

    Attributes:
        segments: in order of time.
        word_segments: the words of all segments, where words have times.
        speaker_embeddings: label to vector, when they were asked for.
        language: code.
    """

    segments: tuple[WhisperxSegment, ...]
    word_segments: tuple[WhisperxWord, ...] | msgspec.UnsetType = msgspec.UNSET
    speaker_embeddings: dict[str, tuple[float, ...]] | msgspec.UnsetType = msgspec.UNSET
    language: str
