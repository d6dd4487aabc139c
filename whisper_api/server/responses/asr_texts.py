"""A transcript as whisper-asr-webservice writes it: the formats of OpenAI's ``whisper`` command."""

from __future__ import annotations

import itertools
import json
from typing import Any, Literal

from whisper_api.formats import render
from whisper_api.schema import Segment, Transcript
from whisper_api.word_spacing import pieces, space_between

__all__ = ["AsrOutput", "asr_text"]

AsrOutput = Literal["txt", "vtt", "srt", "tsv", "json"]


def asr_text(transcript: Transcript, output: AsrOutput, *, words: bool) -> str:
    """The body of an answer.

    Args:
        transcript: what the job gave.
        output: the format. ``json`` is the dictionary that OpenAI's ``whisper`` returns: ``text``, ``segments`` and
            ``language``; with speakers, each segment has a ``speaker``, too.
        words: whether the segments of a ``json`` have ``words``.
    """
    if output != "json":
        return render(transcript, output)
    segments = [
        _segment(before, segment, transcript.language, words=words)
        for before, segment in itertools.pairwise((None, *transcript.segments))
        if segment is not None
    ]
    text = "".join(segment["text"] for segment in segments)
    return json.dumps({"text": text, "segments": segments, "language": transcript.language})


def _segment(before: Segment | None, segment: Segment, language: str, *, words: bool) -> dict[str, Any]:
    # Whisper's texts begin with the space that stands between them and the text before, the first one too.
    space = space_between(before.text.strip() if before is not None else ".", segment.text.strip())
    text = space + segment.text.strip()
    given: dict[str, Any] = {
        "id": segment.id,
        "seek": round(100 * segment.start) if segment.seek is None else segment.seek,
        "start": segment.start,
        "end": segment.end,
        "text": text,
        "tokens": segment.tokens,
        "temperature": segment.temperature or 0.0,
        "avg_logprob": segment.avg_logprob or 0.0,
        "compression_ratio": segment.compression_ratio or 0.0,
        "no_speech_prob": segment.no_speech_prob or 0.0,
    }
    if words:
        given["words"] = [
            {
                "word": piece if index else space + piece,
                "start": word.start,
                "end": word.end,
                "probability": word.score or 0.0,
            }
            for index, (piece, word) in enumerate(zip(pieces(segment, language), segment.words, strict=True))
        ]
    if segment.speaker is not None:
        given["speaker"] = segment.speaker
    return given
