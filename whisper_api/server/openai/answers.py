"""A transcript as the body of a response, in the format that the request names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from whisper_api.formats import FORMATS, rendered
from whisper_api.records import made_of
from whisper_api.schema import SPEAKER_LABEL, Segment, TokenLogprob, Transcript
from whisper_api.server.openai import bodies
from whisper_api.server.openai.openai_request import OpenAIRequest
from whisper_api.server.responses.results import Body
from whisper_api.word_spacing import joined, space_between

# The speaker of a segment without one; OpenAI's type requires a speaker.
NO_SPEAKER = "unknown"
# Diarization never tells a thousand speakers apart: a longer number is part of a name that a person chose.
MAX_DIGITS = 3


def rendered_body(transcript: Transcript, openai_request: OpenAIRequest) -> Body:
    """The body of the response to a request that does not stream.

    Args:
        transcript: the transcript of the job.
        openai_request: the values of the request's form.
    """
    return RENDERERS[openai_request.response_format](transcript, openai_request)


def done_event(transcript: Transcript, openai_request: OpenAIRequest) -> bodies.TextDone:
    """The last event of a stream.

    Args:
        transcript: the transcript of the job.
        openai_request: the values of the request's form.
    """
    return bodies.TextDone(
        text=_text(transcript),
        languages=_languages(transcript),
        logprobs=_logprobs(transcript, openai_request),
    )


def diarized_segments(transcript: Transcript) -> tuple[bodies.DiarizedSegment, ...]:
    """The segments with their speakers."""
    names = speaker_names(transcript.speakers)
    return tuple(
        made_of(
            segment,
            bodies.DiarizedSegment,
            id=f"seg_{number}",
            text=segment.text.strip(),
            speaker=names.get(segment.speaker, segment.speaker) if segment.speaker else NO_SPEAKER,
        )
        for number, segment in enumerate(transcript.segments)
    )


def speaker_names(labels: tuple[str, ...]) -> dict[str, str]:
    """Letters for the speakers without a name: the letter's position in the alphabet is the speaker's number.

    Args:
        labels: the labels of all speakers: ``SPEAKER_00``, or the names of known speakers.

    Returns:
        Label to A, B ... Z, AA ...; a letter that is the name of a known speaker is left out.
    """
    matches = ((label, SPEAKER_LABEL.fullmatch(label)) for label in labels)
    numbers = {label: int(match[1]) for label, match in matches if match and len(match[1]) <= MAX_DIGITS}
    names = set(labels) - set(numbers)
    free = (letters for letters in _letters() if letters not in names)
    by_number = list(itertools.islice(free, max(numbers.values(), default=-1) + 1))
    return {label: by_number[number] for label, number in numbers.items()}


def _letters() -> Iterator[str]:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for length in itertools.count(1):
        yield from map("".join, itertools.product(alphabet, repeat=length))


def verbose_segments(segments: Sequence[Segment]) -> tuple[bodies.VerboseSegment, ...]:
    """Segments with the fields of OpenAI's Whisper. As there, each text begins with the space before it."""
    texts = [segment.text.strip() for segment in segments]
    return tuple(
        made_of(
            segment,
            bodies.VerboseSegment,
            seek=round(100 * segment.start) if segment.seek is None else segment.seek,
            # Whisper writes a space before the first text too, as after the end of a sentence.
            text=space_between(before, text) + text,
            temperature=segment.temperature or 0.0,
            avg_logprob=segment.avg_logprob or 0.0,
            compression_ratio=segment.compression_ratio or 0.0,
            no_speech_prob=segment.no_speech_prob or 0.0,
            flags=segment.flags or msgspec.UNSET,
            language=_language_name(segment.language) if segment.language else UNSET,
        )
        for before, text, segment in zip((".", *texts), texts, segments, strict=False)
    )


def _json(transcript: Transcript, openai_request: OpenAIRequest) -> Body:
    text = _text(transcript)
    if openai_request.options.task == "translate":
        return _encoded(bodies.Translation(text=text))
    return _encoded(
        bodies.Transcription(
            text=text,
            languages=_languages(transcript),
            logprobs=_logprobs(transcript, openai_request),
            usage=_usage(transcript),
        )
    )


def _verbose_json(transcript: Transcript, openai_request: OpenAIRequest) -> Body:
    segments = verbose_segments(transcript.segments)
    if openai_request.options.task == "translate":
        return _encoded(
            bodies.VerboseTranslation(duration=transcript.duration, text=_text(transcript), segments=segments)
        )
    words = tuple(made_of(word, bodies.VerboseWord) for word in transcript.words)
    return _encoded(
        bodies.VerboseTranscription(
            language=_language_name(transcript.language),
            duration=transcript.duration,
            text=_text(transcript),
            segments=segments if "segment" in openai_request.granularities else UNSET,
            words=words if "word" in openai_request.granularities else UNSET,
            usage=_usage(transcript),
        )
    )


def _diarized_json(transcript: Transcript, openai_request: OpenAIRequest) -> Body:
    return _encoded(
        bodies.DiarizedTranscription(
            duration=transcript.duration,
            text=_text(transcript),
            segments=diarized_segments(transcript),
            usage=_usage(transcript),
        )
    )


def _plain(transcript: Transcript, openai_request: OpenAIRequest) -> Body:
    return Body(f"{_text(transcript)}\n".encode(), "text/plain; charset=utf-8")


def _subtitles(transcript: Transcript, openai_request: OpenAIRequest) -> Body:
    format = FORMATS[openai_request.response_format]
    text, warnings = rendered(transcript, format.name, openai_request.render_options)
    return Body(text.encode(), f"{format.media_type}; charset=utf-8", warnings)


def _encoded(body: msgspec.Struct) -> Body:
    return Body(msgspec.json.encode(body), "application/json")


def _text(transcript: Transcript) -> str:
    return joined(segment.text for segment in transcript.segments)


def _usage(transcript: Transcript) -> bodies.Usage:
    return bodies.Usage(seconds=math.ceil(transcript.duration))


def _language_name(code: str) -> str:
    from whisper_api.engine.languages import ENGLISH_NAMES

    return ENGLISH_NAMES.get(code, code)


def _languages(transcript: Transcript) -> tuple[bodies.Language, ...]:
    codes = transcript.languages or (transcript.language,)
    return tuple(bodies.Language(code=code) for code in codes) if transcript.segments else ()


def _logprobs(transcript: Transcript, openai_request: OpenAIRequest) -> tuple[TokenLogprob, ...] | UnsetType:
    if not openai_request.options.logprobs:
        return UNSET
    return tuple(token for segment in transcript.segments for token in segment.logprobs)


RENDERERS: dict[str, Callable[[Transcript, OpenAIRequest], Body]] = {
    "json": _json,
    "text": _plain,
    "srt": _subtitles,
    "vtt": _subtitles,
    "verbose_json": _verbose_json,
    "diarized_json": _diarized_json,
}
