"""The audio of a job is freed when the job ends, without the garbage collector; models are freed with their engine."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_api import Canceled, Engine, Progress, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.worker.background import BackgroundTask

pytestmark = pytest.mark.models

DEADLINE = 60.0


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Any]]]:
    """References to the audio of every job, while the garbage collector is off."""
    found: list[weakref.ref[Any]] = []

    def decode_and_note(*arguments: Any, **options: Any) -> Any:
        result = decode(*arguments, **options)
        found.append(weakref.ref(result.audio))
        return result

    monkeypatch.setattr("whisper_api.engine.pipeline.decode", decode_and_note)
    gc.collect()
    gc.disable()
    yield found
    gc.enable()


def freed(references: list[weakref.ref[Any]]) -> bool:
    # A lane of the device may still be at work on a part of the last job.
    deadline = time.monotonic() + DEADLINE
    while any(reference() is not None for reference in references):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("options", [{"align": False, "diarize": False}, {"align": True}, {"diarize": True}])
def test_the_audio_of_a_completed_job_is_freed(
    engine: Engine, short_call: Path, ecapa_path: Path, decoded: list[weakref.ref[Any]], options: dict[str, Any]
) -> None:
    """With ``align`` there is no alignment model, and a future keeps the error that says so."""
    engine.transcribe(short_call, TranscriptionOptions(language="en", **options))
    assert len(decoded) == 1
    assert freed(decoded)


@pytest.mark.parametrize("stage", ["vad", "asr", "diarize"])
def test_the_audio_of_a_canceled_job_is_freed(
    engine: Engine, short_call: Path, ecapa_path: Path, decoded: list[weakref.ref[Any]], stage: str
) -> None:
    cancel = threading.Event()

    def stop_there(progress: Progress) -> None:
        if progress.stage == stage:
            cancel.set()

    with pytest.raises(Canceled):
        engine.transcribe(
            short_call,
            TranscriptionOptions(language="en", diarize=True),
            on_progress=stop_there,
            cancel=cancel,
        )
    assert len(decoded) == 1
    assert freed(decoded)


def test_work_beside_a_job_that_failed_keeps_nothing(decoded: list[weakref.ref[Any]]) -> None:
    def work() -> None:
        audio = np.zeros(1000, np.float32)
        decoded.append(weakref.ref(audio))
        raise ValueError("broken")

    beside = BackgroundTask("work", work)
    beside.join()
    assert beside.failed()
    assert freed(decoded)
    with pytest.raises(ValueError, match="broken"):
        beside.result()


def test_an_engine_that_was_closed_keeps_no_model(
    models_dir: Path, tiny_en_model_dir: Path, ecapa_path: Path, short_call: Path
) -> None:
    with Engine(device="cpu", model="tiny.en", models_dir=models_dir, offline=True) as engine:
        engine.transcribe(short_call, TranscriptionOptions(language="en", diarize=True))
        models = [reference(engine, resident.source) for resident in engine.models.resident()]
        assert len(models) >= 3
        assert all(model() is not None for model in models)
    gc.collect()
    assert freed(models)


def reference(engine: Engine, source: Any) -> weakref.ref[Any]:
    with engine.models.lease(source) as model:
        return weakref.ref(model)
