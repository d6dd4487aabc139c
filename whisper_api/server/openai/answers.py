"""A transcript as the body that was asked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from whisper_api.formats import FORMATS, rendered
from whisper_api.schema import SPEAKER_LABEL, Segment, TokenLogprob, Transcript
from whisper_api.server.openai.bodies import (
    DiarizedSegment,
    DiarizedTranscription,
    Language,
    Transcription,
    Translation,
    Usage,
    VerboseSegment,
    VerboseTranscription,
    VerboseTranslation,
    VerboseWord,
)
from whisper_api.server.openai.events import TextDone
from whisper_api.server.openai.openai_request import OpenAIRequest
from whisper_api.word_spacing import joined, space_between

__all__ = ["Answer", "answer_of", "diarized_segments", "done_event", "speaker_names"]

# Of no more digits than the engine gives: the number of a name that somebody has written may be of any size.
# A segment that nobody was heard in, though the type that clients read has no place for that.
NOBODY = "unknown"


# Diarization never tells a thousand speakers apart: a longer number is part of a name that somebody chose.
MAX_DIGITS = 3


class Answer(NamedTuple):
    """A body, ready to be sent.

    Attributes:
        body: the content.
        content_type: the media type with its parameters.
        warnings: a sentence for each rule of a layout that does not hold.
    """

    body: bytes
    content_type: str
    warnings: tuple[str, ...] = ()


def answer_of(transcript: Transcript, openai_request: OpenAIRequest) -> Answer:
    """The answer to a request that does not stream.

    Args:
        transcript: what the job gave.
        openai_request: what the request asked for.
    """
    return RENDERERS[openai_request.response_format](transcript, openai_request)


def done_event(transcript: Transcript, openai_request: OpenAIRequest) -> TextDone:
    """The last event of a stream."""
    return TextDone(
        text=_text(transcript),
        languages=_languages(transcript),
        logprobs=_logprobs(transcript, openai_request),
    )


def diarized_segments(transcript: Transcript) -> tuple[DiarizedSegment, ...]:
    """What each speaker says."""
    names = speaker_names(transcript.speakers)
    return tuple(
        DiarizedSegment(
            id=f"seg_{number}",
            start=segment.start,
            end=segment.end,
            text=segment.text.strip(),
            speaker=names.get(segment.speaker, segment.speaker) if segment.speaker else NOBODY,
        )
        for number, segment in enumerate(transcript.segments)
    )


def speaker_names(labels: tuple[str, ...]) -> dict[str, str]:
    """What speakers are called: those without a name by letters, in which each keeps its number.

    Args:
        labels: of all speakers: ``SPEAKER_00``, or the names of those that are known.

    Returns:
        Label to A, B ... Z, AA ...; no letter that is somebody's name is given to another.
    """
    matches = ((label, SPEAKER_LABEL.fullmatch(label)) for label in labels)
    numbers = {label: int(match[1]) for label, match in matches if match and len(match[1]) <= MAX_DIGITS}
    taken = set(labels) - set(numbers)
    free = (letters for letters in _letters() if letters not in taken)
    by_number = list(itertools.islice(free, max(numbers.values(), default=-1) + 1))
    return {label: by_number[number] for label, number in numbers.items()}


def _letters() -> Iterator[str]:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for length in itertools.count(1):
        yield from map("".join, itertools.product(alphabet, repeat=length))


def _json(transcript: Transcript, openai_request: OpenAIRequest) -> Answer:
    text = _text(transcript)
    if openai_request.options.task == "translate":
        return _encoded(Translation(text=text))
    return _encoded(
        Transcription(
            text=text,
            languages=_languages(transcript),
            logprobs=_logprobs(transcript, openai_request),
            usage=_usage(transcript),
        )
    )


def _verbose_json(transcript: Transcript, openai_request: OpenAIRequest) -> Answer:
    segments = tuple(
        _verbose_segment(before, segment)
        for before, segment in itertools.pairwise((None, *transcript.segments))
        if segment is not None
    )
    if openai_request.options.task == "translate":
        return _encoded(
            VerboseTranslation(duration=transcript.duration, text=_text(transcript), segments=segments),
        )
    words: tuple[VerboseWord, ...] = ()
    if "word" in openai_request.granularities:
        words = tuple(VerboseWord(word=word.word, start=word.start, end=word.end) for word in transcript.words)
    return _encoded(
        VerboseTranscription(
            language=_english_name(transcript.language),
            duration=transcript.duration,
            text=_text(transcript),
            segments=segments if "segment" in openai_request.granularities else UNSET,
            words=words if "word" in openai_request.granularities else UNSET,
            usage=_usage(transcript),
        )
    )


def _verbose_segment(before: Segment | None, segment: Segment) -> VerboseSegment:
    text = segment.text.strip()
    # OpenAI's begin with the space that stands between, the first one too.
    space = space_between(before.text.strip() if before is not None else ".", text)
    return VerboseSegment(
        id=segment.id,
        seek=round(100 * segment.start) if segment.seek is None else segment.seek,
        start=segment.start,
        end=segment.end,
        text=space + text,
        tokens=segment.tokens,
        temperature=segment.temperature or 0.0,
        avg_logprob=segment.avg_logprob or 0.0,
        compression_ratio=segment.compression_ratio or 0.0,
        no_speech_prob=segment.no_speech_prob or 0.0,
    )


def _diarized_json(transcript: Transcript, openai_request: OpenAIRequest) -> Answer:
    return _encoded(
        DiarizedTranscription(
            duration=transcript.duration,
            text=_text(transcript),
            segments=diarized_segments(transcript),
            usage=_usage(transcript),
        )
    )


def _plain(transcript: Transcript, openai_request: OpenAIRequest) -> Answer:
    return Answer(f"{_text(transcript)}\n".encode(), "text/plain; charset=utf-8")


def _subtitles(transcript: Transcript, openai_request: OpenAIRequest) -> Answer:
    format = FORMATS[openai_request.response_format]
    text, warnings = rendered(transcript, format.name, openai_request.render_options)
    return Answer(text.encode(), f"{format.media_type}; charset=utf-8", warnings)


def _encoded(body: msgspec.Struct) -> Answer:
    return Answer(msgspec.json.encode(body), "application/json")


def _text(transcript: Transcript) -> str:
    return joined(segment.text for segment in transcript.segments)


def _usage(transcript: Transcript) -> Usage:
    return Usage(seconds=math.ceil(transcript.duration))


def _languages(transcript: Transcript) -> tuple[Language, ...]:
    return (Language(code=transcript.language),) if transcript.segments else ()


def _logprobs(transcript: Transcript, openai_request: OpenAIRequest) -> tuple[TokenLogprob, ...] | UnsetType:
    if not openai_request.options.logprobs:
        return UNSET
    return tuple(token for segment in transcript.segments for token in segment.logprobs)


def _english_name(code: str) -> str:
    from whisper_api.engine.languages import ENGLISH_NAMES

    return ENGLISH_NAMES.get(code, code)


RENDERERS: dict[str, Callable[[Transcript, OpenAIRequest], Answer]] = {
    "json": _json,
    "text": _plain,
    "srt": _subtitles,
    "vtt": _subtitles,
    "verbose_json": _verbose_json,
    "diarized_json": _diarized_json,
}
