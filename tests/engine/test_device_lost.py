"""An engine whose device is lost says so by name, whichever stage meets the error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from whisper_api import DeviceLost, Engine, TranscriptionOptions

pytestmark = pytest.mark.models

STICKY = "CUDA error: an illegal memory access was encountered"
PLACES = [
    "whisper_api.engine.whisper.onnx.model.OnnxDecode.run",
    # Errors of an optional stage cost a job no text, but nothing can be trusted after this one.
    "whisper_api.engine.diarize.pipeline.diarize",
]


@pytest.mark.parametrize("place", PLACES)
def test_every_stage_that_meets_a_sticky_error_ends_the_engine(
    place: str,
    models_dir: Path,
    ecapa_path: Path,
    cut: Callable[[float, float], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*ignored: object, **also_ignored: object) -> None:
        raise RuntimeError(STICKY)

    clip = cut(12.0, 2.0)
    options = TranscriptionOptions(language="en", align=False, diarize=True)
    with Engine(device="cpu", model="tiny.en", models_dir=models_dir) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            with pytest.raises(DeviceLost, match="an illegal memory access was encountered"):
                engine.transcribe(clip, options)
        # The device would work again here: it is not asked.
        for _ in range(2):
            with pytest.raises(DeviceLost, match="new process"):
                engine.transcribe(clip, options)
        with pytest.raises(DeviceLost):
            engine.preload(options)
