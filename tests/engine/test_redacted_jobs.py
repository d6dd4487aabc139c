"""The option ``redact`` of the engine: nothing that it replaces leaves the engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from whisper_api import Engine, ExtraMissing, InvalidOption, TranscriptionOptions
from whisper_api.engine.redaction import segments
from whisper_api.formats import FORMATS, render
from whisper_api.schema import PartialSegments

pytestmark = pytest.mark.models

NAMES = ("Diane", "Sheila")


@pytest.mark.parametrize("align", [True, False])
def test_no_name_leaves_the_engine(
    engine: Engine, cut: Callable[[float, float], bytes], campplus_path: Path, align: bool
) -> None:
    options = TranscriptionOptions(
        language="en",
        redact="names",
        logprobs=True,
        align=align,
        diarize=align,
        prompt="A call of Diane.",
        hotwords="Sheila",
    )
    partials: list[PartialSegments] = []
    # "This is Diane in New Jersey. And I'm Sheila and Texas originally from Chicago."
    transcript = engine.transcribe(cut(12.4, 5.3), options, on_partial=partials.append)
    outputs = [transcript.to_json(), msgspec.json.encode(partials).decode(), transcript.text]
    outputs += [render(transcript, format) for format in FORMATS]
    outputs += [bytes(b for s in transcript.segments for t in s.logprobs for b in t.bytes).decode()]
    assert not any(name in output for name in NAMES for output in outputs)
    assert "[NAME]" in transcript.text
    assert "New Jersey" in transcript.text
    assert all(partial.aligned == align for partial in partials)
    assert "[NAME]" in "".join(segment.text for partial in partials for segment in partial.segments)
    assert {each.kind for each in transcript.redactions} == {"names"}
    assert "redact: windows in which something was replaced have no log probabilities" in transcript.warnings
    assert len(transcript.redactions) == transcript.text.count("[NAME]")
    if align:
        times = {(word.start, word.end) for word in transcript.words if "[NAME]" in word.word}
        assert times == {(each.start, each.end) for each in transcript.redactions}


def test_nothing_is_redacted_unless_asked(engine: Engine, short_call: Path) -> None:
    transcript = engine.transcribe(short_call, TranscriptionOptions(language="en", diarize=False))
    assert transcript.redactions == ()
    assert "[" not in transcript.text


@pytest.mark.parametrize(("redact", "known"), [("names, Emails", True), ("", True), ("names,shoes", False)])
def test_kinds_are_checked(redact: str, known: bool) -> None:
    if known:
        assert TranscriptionOptions(redact=redact).redact == redact
    else:
        with pytest.raises(InvalidOption, match="unknown kind 'shoes'; there are names, emails"):
            TranscriptionOptions(redact=redact)


def test_redaction_without_its_libraries_is_refused_by_name(
    engine: Engine, short_call: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(segments, "find_spec", lambda name: None if name == "faker" else find_spec(name))
    with pytest.raises(ExtraMissing, match=r"faker.*pip install 'whisper-api\[redact\]'"):
        engine.transcribe(short_call, TranscriptionOptions(redact="names"))
