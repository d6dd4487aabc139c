"""Formats and streams of the OpenAI-compatible routes, read by the ``openai`` package, with real models."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.audio import (
    Transcription,
    TranscriptionDiarized,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionTextSegmentEvent,
    TranscriptionVerbose,
)

from server.harness import RunningServer
from server.openai_client import MODEL, named, sdk

Cut = Callable[[float, float], bytes]


@pytest.fixture
def ai(server: RunningServer) -> Iterator[openai.OpenAI]:
    with sdk(server) as client:
        yield client


# --- formats ---


def test_json(ai: openai.OpenAI, conversation: bytes) -> None:
    answer = ai.audio.transcriptions.create(file=named(conversation), model=MODEL)
    assert type(answer) is Transcription
    assert "Chicago" in answer.text
    assert answer.usage is not None
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == 8
    assert answer.languages is not None
    assert [language.code for language in answer.languages] == ["en"]
    assert answer.logprobs is None


def test_json_with_logprobs(ai: openai.OpenAI, speech: bytes) -> None:
    answer = ai.audio.transcriptions.create(file=named(speech), model=MODEL, language="en", include=["logprobs"])
    assert answer.logprobs
    text = b"".join(bytes(map(int, token.bytes or ())) for token in answer.logprobs).decode()
    assert text.split() == answer.text.split()
    assert all(token.logprob is not None and token.logprob <= 0 for token in answer.logprobs)


def test_text_and_subtitles(ai: openai.OpenAI, conversation: bytes) -> None:
    # The package has no type for these formats, and returns the text.
    answers = {
        name: str(ai.audio.transcriptions.create(file=named(conversation), model=MODEL, response_format=name))
        for name in ("text", "srt", "vtt")
    }
    assert answers["text"].endswith("\n")
    assert answers["text"].count("\n") == 1
    assert answers["srt"].startswith("1\n00:00:0")
    assert answers["vtt"].startswith("WEBVTT\n\n00:0")
    assert all("Chicago" in answer for answer in answers.values())
    assert "-->" in answers["srt"]


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_subtitles_are_laid_out_as_extra_fields_say(ai: openai.OpenAI, conversation: bytes, name: Any) -> None:
    def ask(resource: Any, **extra: object) -> str:
        return str(resource.create(file=named(conversation), model=MODEL, response_format=name, extra_body=extra))

    narrow = ask(ai.audio.transcriptions, max_line_width=20, max_line_count=1)
    shown = [line for line in narrow.split("\n") if line and "-->" not in line and not line.isdecimal()]
    assert max(map(len, shown)) <= 20
    assert narrow.count("-->") > ask(ai.audio.transcriptions).count("-->")
    assert "<u>" in ask(ai.audio.translations, highlight_words=True)
    with pytest.raises(openai.BadRequestError, match="max_line_width"):
        ask(ai.audio.transcriptions, max_line_width=0)
    raw = ai.audio.transcriptions.with_raw_response.create(
        file=named(conversation),
        model=MODEL,
        response_format=name,
        extra_body={"subtitle_preset": "bbc", "max_characters_per_second": 2},
    )
    assert "max_characters_per_second: the speech is faster than 2 characters" in raw.headers["Warning"]


def test_verbose_json(ai: openai.OpenAI, conversation: bytes) -> None:
    answer = ai.audio.transcriptions.create(file=named(conversation), model=MODEL, response_format="verbose_json")
    assert type(answer) is TranscriptionVerbose
    assert answer.language == "english"
    assert answer.duration == pytest.approx(8.0)
    assert answer.segments
    assert answer.words is None
    assert answer.usage is not None
    assert answer.usage.seconds == 8
    assert "".join(segment.text for segment in answer.segments).strip() == answer.text
    for segment in answer.segments:
        assert all(value is not None for value in segment.to_dict().values())
        assert 0 <= segment.start <= segment.end <= answer.duration
        assert segment.tokens
        assert segment.avg_logprob < 0
    assert [segment.id for segment in answer.segments] == list(range(len(answer.segments)))


def test_verbose_json_with_words(ai: openai.OpenAI, conversation: bytes) -> None:
    def ask(*granularities: Any) -> TranscriptionVerbose:
        return ai.audio.transcriptions.create(
            file=named(conversation),
            model=MODEL,
            response_format="verbose_json",
            timestamp_granularities=list(granularities),
        )

    words = ask("word")
    assert words.segments is None
    assert words.words
    assert " ".join(word.word for word in words.words) == words.text
    assert all(word.start <= word.end for word in words.words)
    both = ask("word", "segment")
    assert both.segments
    assert both.words == words.words


def test_diarized_json(ai: openai.OpenAI, conversation: bytes) -> None:
    answer = ai.audio.transcriptions.create(
        file=named(conversation), model=MODEL, response_format="diarized_json", chunking_strategy="auto"
    )
    assert type(answer) is TranscriptionDiarized
    assert answer.task == "transcribe"
    assert answer.duration == pytest.approx(8.0)
    assert [segment.id for segment in answer.segments] == [f"seg_{n}" for n in range(len(answer.segments))]
    assert [segment.speaker for segment in answer.segments][:2] == ["A", "B"]
    assert {segment.type for segment in answer.segments} == {"transcript.text.segment"}


def test_diarized_json_with_known_speakers(ai: openai.OpenAI, cut: Cut) -> None:
    def reference(begin: float, seconds: float) -> str:
        return f"data:audio/wav;base64,{base64.b64encode(cut(begin, seconds)).decode()}"

    # The seconds in which each person speaks alone, by the .rttm of the recording.
    references = [reference(22.0, 5.0), reference(11.2, 3.2)]
    begin = 10.0
    call = cut(begin, 18.0)
    answer = ai.audio.transcriptions.create(
        file=named(call),
        model=MODEL,
        response_format="diarized_json",
        known_speaker_names=["Ann", "Bob"],
        known_speaker_references=references,
    )
    assert {segment.speaker for segment in answer.segments} == {"Ann", "Bob"}
    late = [segment for segment in answer.segments if segment.start >= 21.9 - begin and segment.end <= 28.0 - begin]
    assert late
    assert {segment.speaker for segment in late} == {"Ann"}
    one = ai.audio.transcriptions.create(
        file=named(call),
        model=MODEL,
        response_format="diarized_json",
        known_speaker_names=["Ann"],
        known_speaker_references=references[:1],
    )
    # An unknown speaker keeps the letter of its number among all speakers.
    assert {segment.speaker for segment in one.segments} in ({"Ann", "A"}, {"Ann", "B"})


def test_translations(ai: openai.OpenAI, speech: bytes) -> None:
    with warnings.catch_warnings():
        # The package marks this call as deprecated, but clients still use it.
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = ai.audio.translations.create(file=named(speech), model=MODEL)
        verbose = ai.audio.translations.create(file=named(speech), model=MODEL, response_format="verbose_json")
        text = ai.audio.translations.create(file=named(speech), model=MODEL, response_format="text")
    assert plain.text
    assert verbose.language == "english"
    assert verbose.duration == pytest.approx(3.0)
    assert verbose.segments
    assert str(text).strip() == plain.text


# --- streams ---


def test_stream(ai: openai.OpenAI, sample_call: Path) -> None:
    audio = named(sample_call.read_bytes())
    events = list(ai.audio.transcriptions.create(file=audio, model=MODEL, stream=True, include=["logprobs"]))
    *deltas, done = events
    assert deltas
    assert all(isinstance(event, TranscriptionTextDeltaEvent) for event in deltas)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(getattr(event, "delta", "") for event in deltas) == done.text
    assert "New Jersey" in done.text
    assert done.logprobs
    # OpenAI's type for this field counts tokens; a usage in seconds would not fit it.
    assert done.usage is None


def test_stream_of_diarized_json(ai: openai.OpenAI, conversation: bytes) -> None:
    events = list(
        ai.audio.transcriptions.create(
            file=named(conversation), model=MODEL, response_format="diarized_json", stream=True
        )
    )
    segments = [event for event in events if isinstance(event, TranscriptionTextSegmentEvent)]
    assert isinstance(events[0], TranscriptionTextDeltaEvent)
    assert isinstance(events[-1], TranscriptionTextDoneEvent)
    assert [segment.speaker for segment in segments][:2] == ["A", "B"]
    assert " ".join(segment.text for segment in segments) == events[-1].text


def test_an_error_in_mid_stream_is_raised(ai: openai.OpenAI, hello: bytes) -> None:
    # A model of the catalogue that the server does not have and cannot download.
    stream = ai.audio.transcriptions.create(file=named(hello), model="medium", stream=True)
    with pytest.raises(openai.APIError, match="medium") as caught:
        list(stream)
    assert caught.value.code == "model_unavailable"
    assert caught.value.type == "invalid_request_error"
