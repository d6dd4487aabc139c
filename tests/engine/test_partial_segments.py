"""What is told of the text while the rest is still to come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from whisper_api import Engine, Segment, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.diarize.segmentation import SegmentWindows
from whisper_api.engine.whisper.onnx import model as whisper_onnx
from whisper_api.schema import PartialSegments

pytestmark = pytest.mark.models

RATE = 16_000
Floats = np.ndarray[Any, np.dtype[np.float32]]
TIMED = TranscriptionOptions(language="en", diarize=False)


@pytest.fixture(scope="module")
def long(sample_call: Path) -> Floats:
    """Ninety seconds, which are three windows."""
    return np.tile(decode(sample_call).audio, 3)


def shown(segments: Sequence[Segment]) -> list[Segment]:
    """Segments without what a stretch does not tell."""
    return [replace(segment, id=0, speaker=None) for segment in segments]


def test_stretches_put_together_are_the_transcript(engine: Engine, long: Floats) -> None:
    told: list[PartialSegments] = []
    transcript = engine.transcribe(long, TIMED, on_partial=told.append)
    assert transcript.word_times == "attention"
    # Windows that were told before the alignment model turned out not to be had are told once more, with their times.
    timed = [stretch for stretch in told if stretch.aligned]
    early = told[: len(told) - len(timed)]
    assert not any(stretch.aligned for stretch in early)
    for seen in (early, timed):
        assert [stretch.index for stretch in seen] == list(range(len(seen)))
    assert len(timed) >= 3
    assert len(early) <= len(timed)
    assert [[segment.id for segment in stretch.segments] for stretch in timed] == [
        list(range(len(stretch.segments))) for stretch in timed
    ]
    assert shown([segment for stretch in timed for segment in stretch.segments]) == shown(transcript.segments)


def test_without_word_times_each_window_is_told_once(engine: Engine, long: Floats) -> None:
    seen: list[PartialSegments] = []
    transcript = engine.transcribe(long, replace(TIMED, align=False), on_partial=seen.append)
    assert not any(stretch.aligned for stretch in seen)
    assert shown([segment for stretch in seen for segment in stretch.segments]) == shown(transcript.segments)


def test_silence_has_none(engine: Engine) -> None:
    seen: list[PartialSegments] = []
    engine.transcribe(np.zeros(3 * RATE, np.float32), TIMED, on_partial=seen.append)
    assert seen == []


@pytest.mark.parametrize("language", ["en", "auto"])
def test_the_first_window_goes_before_all_others_and_before_diarization(
    language: str,
    models_dir: Path,
    base_model_dir: Path,
    ecapa_path: Path,
    long: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On one lane, what runs until the first window has its text can be told without a clock."""
    order: list[str] = []
    begin, segment = whisper_onnx.OnnxDecode.run, SegmentWindows.run
    finish = whisper_onnx.OnnxAdvance._decoded

    def begun(self: Any, inputs: Any) -> Any:
        order.append("begun")
        return begin(self, inputs)

    def finished(self: Any, running: Any) -> Any:
        order.append("decoded")
        return finish(self, running)

    def segmented(self: Any, inputs: Any) -> Any:
        order.append("segmentation")
        return segment(self, inputs)

    monkeypatch.setattr(whisper_onnx.OnnxDecode, "run", begun)
    monkeypatch.setattr(whisper_onnx.OnnxAdvance, "_decoded", finished)
    monkeypatch.setattr(SegmentWindows, "run", segmented)
    monkeypatch.setattr("whisper_api.engine.worker.device.physical_cores", lambda: 1)
    with Engine(device="cpu", model="base", models_dir=models_dir, offline=True) as engine:
        assert engine.lanes == 1
        engine.preload_rest(TranscriptionOptions(language=language, diarize=True))
        engine.transcribe(long, TranscriptionOptions(language=language, diarize=True))
    assert order.count("begun") >= 3
    assert order.count("segmentation") > 6
    first = order.index("begun")
    # Once its decoding has begun nothing comes in between, and no more than what ran already has gone before it.
    assert order[first : first + 2] == ["begun", "decoded"]
    assert order[:first].count("segmentation") <= (2 if language == "en" else 4)
