"""Bodies of OpenAI's routes for any transcript: text, order of times."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from subtitles.test_subtitles import transcripts

from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.schema import Transcript
from whisper_api.server.openai.answers import rendered_body
from whisper_api.server.openai.openai_request import OpenAIRequest
from whisper_api.time_order import in_order


@pytest.mark.parametrize("format", ["verbose_json", "diarized_json"])
@settings(max_examples=100, deadline=None)
@given(given=transcripts())
def test_times_are_in_order(format: Literal["verbose_json", "diarized_json"], given: Transcript) -> None:
    # Every result is prepared like this before it is rendered.
    given = replace(given, segments=in_order(given.segments))
    openai_request = OpenAIRequest(
        options=TranscriptionOptions(), response_format=format, granularities=frozenset(("word", "segment"))
    )
    body: dict[str, Any] = json.loads(rendered_body(given, openai_request).content)
    for items in (body["segments"], body.get("words", [])):
        assert all(round(1000 * item["start"]) < round(1000 * item["end"]) for item in items)
        assert all(before["end"] <= after["start"] for before, after in pairwise(items))


@given(transcripts(in_order=True), st.integers(1, 40))
def test_subtitles_have_the_layout_of_the_wish(given: Transcript, width: int) -> None:
    from whisper_api.formats import render

    options = RenderOptions(max_line_width=width)
    openai_request = OpenAIRequest(options=TranscriptionOptions(), response_format="srt", render_options=options)
    assert rendered_body(given, openai_request).content.decode() == render(given, "srt", options)
