"""The text that a job reports while it runs: the partial segments."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from whisper_api import Canceled, Engine, Segment, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.diarize.segmentation import SegmentWindows
from whisper_api.engine.whisper.onnx.model import OnnxAdvance, OnnxDecode
from whisper_api.engine.worker.fair_queue import Again
from whisper_api.schema import PartialSegments

pytestmark = pytest.mark.models

RATE = 16_000
Floats = np.ndarray[Any, np.dtype[np.float32]]
TIMED = TranscriptionOptions(language="en", diarize=False, beam_size=1)


@pytest.fixture(scope="module")
def long(short_call: Path) -> Floats:
    """Eight seconds of speech three times, with pauses so long that each becomes a window of its own."""
    return np.tile(np.concatenate([decode(short_call).audio, np.zeros(25 * RATE, np.float32)]), 3)


def shown(segments: Sequence[Segment]) -> list[Segment]:
    """Segments without the id and the speaker, which partial segments do not have."""
    return [replace(segment, id=0, speaker=None) for segment in segments]


def test_the_partial_segments_together_are_the_transcript(engine: Engine, long: Floats) -> None:
    reported: list[PartialSegments] = []
    transcript = engine.transcribe(long, TIMED, on_partial=reported.append)
    assert transcript.word_times == "attention"
    # A window that was reported before the job found no alignment model is reported again with the times of its words.
    timed = [partial for partial in reported if partial.aligned]
    early = reported[: len(reported) - len(timed)]
    assert not any(partial.aligned for partial in early)
    for partials in (early, timed):
        indices = list(dict.fromkeys(partial.index for partial in partials))
        assert indices == list(range(len(indices)))
    assert len(early) <= len(timed)
    assert [[segment.id for segment in partial.segments] for partial in timed] == [
        list(range(len(partial.segments))) for partial in timed
    ]
    # A later value replaces the earlier one: a stretch without text may have been decoded again.
    latest = {partial.index: partial for partial in timed}
    assert len(latest) >= 3
    assert shown([segment for partial in latest.values() for segment in partial.segments]) == shown(transcript.segments)


def test_a_job_without_word_times_reports_each_window_once(engine: Engine, long: Floats) -> None:
    reported: list[PartialSegments] = []
    transcript = engine.transcribe(long, replace(TIMED, align=False), on_partial=reported.append)
    assert not any(partial.aligned for partial in reported)
    assert shown([segment for partial in reported for segment in partial.segments]) == shown(transcript.segments)


def test_silence_has_no_partial_segments(engine: Engine) -> None:
    seen: list[PartialSegments] = []
    engine.transcribe(np.zeros(3 * RATE, np.float32), TIMED, on_partial=seen.append)
    assert seen == []


@pytest.mark.cpu("the order of the steps of ONNX Runtime's decoder")
@pytest.mark.parametrize("language", ["en", "auto"])
def test_the_first_window_is_decoded_before_the_others_and_before_diarization(
    language: str,
    models_dir: Path,
    base_model_dir: Path,
    ecapa_path: Path,
    long: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one lane, the order of the work items shows it without a clock."""
    order: list[str] = []
    # Nothing later is of interest, so the job is canceled there.
    enough = threading.Event()
    begin, advance, segment = OnnxDecode.run, OnnxAdvance.run, SegmentWindows.run

    def note(*what: str) -> None:
        order.extend(what)
        if order.count("begun") >= 3 and order.count("segmentation") > 6:
            enough.set()

    def begun(self: Any, inputs: Any) -> Any:
        note("begun")
        return begin(self, inputs)

    def advanced(self: Any, inputs: Any) -> Any:
        results = advance(self, inputs)
        note(*("decoded" for result in results if not isinstance(result, Again)))
        return results

    def segmented(self: Any, inputs: Any) -> Any:
        note("segmentation")
        return segment(self, inputs)

    monkeypatch.setattr(OnnxDecode, "run", begun)
    monkeypatch.setattr(OnnxAdvance, "run", advanced)
    monkeypatch.setattr(SegmentWindows, "run", segmented)
    monkeypatch.setattr("whisper_api.engine.worker.device.physical_cores", lambda: 1)
    with Engine(device="cpu", model="base", models_dir=models_dir, offline=True) as engine:
        assert engine.whisper.lanes == 1
        options = TranscriptionOptions(language=language, diarize=True, beam_size=1)
        engine.preload_rest(options)
        with pytest.raises(Canceled):
            engine.transcribe(long, options, cancel=enough)
    first = order.index("begun")
    # Nothing runs between the start and the end of the first decoding, and only items that ran already come before.
    assert order[first : first + 2] == ["begun", "decoded"]
    assert order[:first].count("segmentation") <= (2 if language == "en" else 4)
