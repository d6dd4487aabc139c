"""Text that the first decoding of a window has left out is decoded again and put in its place."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.lost_speech import inserted
from whisper_api.engine.vad import Span
from whisper_api.engine.voicing import Voicing
from whisper_api.engine.whisper.model import DecodedTokens
from whisper_api.engine.whisper.onnx.model import OnnxAdvance, RunningDecode
from whisper_api.engine.whisper.recognizer import Recognizer
from whisper_api.schema import PartialSegments, Segment, Word

RATE = 16_000
EVERYWHERE = Voicing(np.ones(2000, bool), 0.032)


def sentence(text: str, start: float, **fields: object) -> Segment:
    """A segment whose words take half a second each."""
    words = tuple(
        Word(word=word, start=start + index / 2, end=start + (index + 1) / 2) for index, word in enumerate(text.split())
    )
    segment = Segment(id=0, start=words[0].start, end=words[-1].end, text=text, words=words)
    return replace(segment, **fields)


def said(partials: Mapping[int, PartialSegments]) -> str:
    return " ".join(segment.text for index in sorted(partials) for segment in partials[index].segments)


def texts(segments: Sequence[Segment] | None) -> list[str]:
    return [segment.text for segment in segments or ()]


def test_new_text_goes_between_sentences() -> None:
    window = [sentence("One two.", 0.0), sentence("Three four.", 8.0)]
    assert texts(inserted(window, sentence("And more.", 4.0), EVERYWHERE)) == ["One two.", "And more.", "Three four."]


def test_new_text_inside_a_sentence_cuts_the_sentence() -> None:
    first = sentence("One two", 0.0)
    last = sentence("three, four.", 8.0)
    whole = replace(first, end=last.end, text="One two three, four.", words=(*first.words, *last.words))
    found = inserted([whole], sentence("and more", 4.0), EVERYWHERE)
    assert found is not None
    assert texts(found) == ["One two", "and more", "three, four."]
    assert [(each.start, each.end) for each in found] == [(0.0, 1.0), (4.0, 5.0), (8.0, 9.0)]


@pytest.mark.parametrize(("start", "place"), [(-2.0, 0), (20.0, 1)])
def test_new_text_goes_before_the_first_or_after_the_last_word(start: float, place: int) -> None:
    found = inserted([sentence("One two.", 0.0)], sentence("And more.", start), EVERYWHERE)
    assert texts(found)[place] == "And more."


def test_words_that_were_cut_in_two_are_written_once() -> None:
    window = [sentence("One two", 0.0), sentence("three four.", 8.0)]
    found = inserted(window, sentence("Two and more three", 3.0), EVERYWHERE)
    assert texts(found) == ["One two", "and more", "three four."]


def test_a_word_with_a_wrong_time_is_not_written_twice() -> None:
    silent = Voicing(np.arange(2000) * 0.032 < 6.0, 0.032)
    assert inserted([sentence("One two", 0.0), sentence("three", 8.0)], sentence("Three.", 4.0), silent) is None


def test_what_is_said_twice_is_written_twice() -> None:
    window = [sentence("Bonjour !", 0.0), sentence("Bonjour !", 8.0)]
    assert texts(inserted(window, sentence("Bonjour !", 4.0), EVERYWHERE)) == ["Bonjour !"] * 3


@pytest.fixture(scope="module")
def call(sample_call: Path) -> NDArray[np.float32]:
    return decode(sample_call).audio[6 * RATE : 22 * RATE]


@pytest.fixture
def decoded_again(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """The stretches that are decoded again."""
    stretches: list[Span] = []
    run = Recognizer.transcribe_again

    def watched(self: Recognizer, language: str, spans: Sequence[Span]) -> list[Segment]:
        stretches.extend(spans)
        return run(self, language, spans)

    monkeypatch.setattr(Recognizer, "transcribe_again", watched)
    return stretches


@pytest.mark.cpu("shortens the text of the decoder for a CPU")
@pytest.mark.models
def test_a_dense_window_whose_text_ends_early_gets_its_end(
    engine: Engine, call: NDArray[np.float32], decoded_again: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TranscriptionOptions(language="en", diarize=False)
    whole = engine.transcribe(call, options)
    assert decoded_again == []
    decode_window = OnnxAdvance._decoded  # noqa: SLF001

    def shortened(self: OnnxAdvance, running: RunningDecode) -> DecodedTokens:
        best = running.decoding.result()
        if running.row.speech_frames > 800:
            best = dataclasses.replace(best, tokens=best.tokens[:-24], logprobs=best.logprobs[:-24])
        monkeypatch.setattr(running.decoding, "result", lambda: best)
        return decode_window(self, running)

    monkeypatch.setattr(OnnxAdvance, "_decoded", shortened)
    first: dict[int, PartialSegments] = {}
    last: dict[int, PartialSegments] = {}

    def tell(partial: PartialSegments) -> None:
        first.setdefault(partial.index, partial)
        last[partial.index] = partial

    transcript = engine.transcribe(call, options, on_partial=tell)
    assert decoded_again
    expected = Counter(whole.text.lower().split())
    assert (Counter(said(first).lower().split()) & expected).total() < 0.8 * expected.total()
    assert (Counter(transcript.text.lower().split()) & expected).total() > 0.85 * expected.total()
    assert len(transcript.words) <= 1.1 * len(whole.words)
    assert all(a.end <= b.start for a, b in pairwise(transcript.words))
    assert said(last).split() == transcript.text.split()
    assert not any(segment.flags for segment in transcript.segments)
    monkeypatch.setattr(Recognizer, "transcribe_again", lambda *ignored: [])
    doubted = engine.transcribe(call, options)
    assert doubted.text.split() == said(first).split()
    assert [segment.flags for segment in doubted.segments][-1] == ("low_confidence",)
    assert any(warning.endswith("of what sounds like speech gave no text") for warning in doubted.warnings)
