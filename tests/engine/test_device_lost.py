"""An engine whose device is lost says so by name, whichever stage meets the error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whisper_api import DeviceLost, Engine, TranscriptionOptions
from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.device_errors import DeviceFault
from whisper_api.engine.worker.device_pool import DeviceRuntime
from whisper_api.engine.worker.worker import GpuWorker

pytestmark = pytest.mark.models

STICKY = "CUDA error: an illegal memory access was encountered"
PLACES = [
    "decode_operation.run",
    # Errors of an optional stage cost a job no text, but nothing can be trusted after this one.
    "whisper_api.engine.diarize.pipeline.diarize",
]


def failing(*ignored: object, **also_ignored: object) -> None:
    raise RuntimeError(STICKY)


@pytest.mark.parametrize("place", PLACES)
def test_every_stage_that_meets_a_sticky_error_ends_the_engine(
    place: str,
    models_dir: Path,
    ecapa_path: Path,
    cut: Callable[[float, float], bytes],
    decode_operation: type[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = cut(12.0, 2.0)
    options = TranscriptionOptions(language="en", align=False, diarize=True)
    with Engine(device="cpu", model="tiny.en", models_dir=models_dir, offline=True) as engine:
        with monkeypatch.context() as patch:
            if place == "decode_operation.run":
                patch.setattr(decode_operation, "run", failing)
            else:
                patch.setattr(place, failing)
            with pytest.raises(DeviceLost, match="an illegal memory access was encountered"):
                engine.transcribe(clip, options)
        # The device would work again here: it is not asked.
        for _ in range(2):
            with pytest.raises(DeviceLost, match="new process"):
                engine.transcribe(clip, options)
        with pytest.raises(DeviceLost):
            engine.preload(options)


def test_an_enrolment_that_meets_a_sticky_error_ends_the_engine(
    models_dir: Path, ecapa_path: Path, cut: Callable[[float, float], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(device="cpu", model="tiny.en", models_dir=models_dir, offline=True) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("whisper_api.engine.diarize.embed_speaker.embed_speaker", failing)
            with pytest.raises(DeviceLost, match="an illegal memory access was encountered"):
                engine.enroll(cut(12.0, 2.0))
        with pytest.raises(DeviceLost):
            engine.enroll(cut(12.0, 2.0))


@pytest.mark.parametrize("place", ["SegmentationSource.network", "CheckpointSource.unload"])
def test_a_model_that_meets_a_sticky_error_while_it_is_loaded_or_unloaded_ends_the_engine(
    place: str, models_dir: Path, ecapa_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TranscriptionOptions(language="en", align=False, diarize=True)
    with Engine(device="cpu", model="tiny.en", models_dir=models_dir, offline=True, keep_alive=0) as engine:
        monkeypatch.setattr(f"whisper_api.engine.diarize.segmentation.{place}", failing)
        # The next model is not loaded any more, whatever has met the error.
        with pytest.raises(DeviceLost, match="an illegal memory access was encountered"):
            engine.preload_rest(options)


def test_the_free_memory_of_a_lost_device_is_no_error_of_the_status_page() -> None:
    class Lost(Device):
        def free_memory(self) -> int:
            raise RuntimeError(STICKY)

    fault = DeviceFault()
    with contextlib.closing(GpuWorker(fault=fault)) as worker:
        runtime = DeviceRuntime(Lost("cuda"), worker, ModelCache())
        for _ in range(2):
            assert runtime.statistics().free_bytes is None
            assert fault.reported
