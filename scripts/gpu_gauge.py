"""Shared code of the sides of ``gpu_acceptance.py``: the settings, the memory gauge and the audio."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring.speech import sample_call
from numpy.typing import NDArray

from whisper_api.engine.worker.device import cuda_problem
from whisper_api.schema import SAMPLE_RATE

__all__ = ["SAMPLE_RATE", "WINDOW", "Floats", "Gauge", "Setting", "speech"]

Floats = NDArray[np.float32]

WINDOW = 30.0
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Setting:
    """The settings of all sides of a run.

    Attributes:
        models: the models directory.
        whisper: name of the Whisper model in it.
        device: ``cpu`` or ``cuda:0`` ...
        compute_type: as CTranslate2 names it.
        tokens: of each window.
        beam: hypotheses.
        batch: windows in one batch.
    """

    models: str
    whisper: str
    device: str
    compute_type: str
    tokens: int
    beam: int
    batch: int

    @property
    def weights(self) -> str:
        """The directory of the Whisper model."""
        return str(Path(self.models) / "whisper" / self.whisper)

    @property
    def place(self) -> dict[str, Any]:
        """The peers' name of the device."""
        kind, _, index = self.device.partition(":")
        return {"device": kind, "device_index": int(index or 0)}


def require_cuda(device: str) -> None:
    """Load the CUDA libraries of CTranslate2.

    Args:
        device: nothing is needed for ``cpu``.

    Raises:
        SystemExit: it cannot be had; says what to do.
    """
    if device != "cpu" and (problem := cuda_problem()):
        raise SystemExit(f"the GPU cannot be used: {problem}")


class Gauge:
    """The device's memory that this process adds to the memory in use at its start.

    Args:
        device: as torch names it. Of a CPU nothing is told.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        require_cuda(device)
        self._before = self._used()
        self._loaded = self._before

    def loaded(self) -> None:
        """Note that the models are on the device."""
        self._loaded = self._used()

    @contextlib.contextmanager
    def run(self, seconds: float, values: dict[str, float]) -> Iterator[None]:
        """Measure a job with a length of audio in seconds, and write its figures into ``values``."""
        done = threading.Event()
        start = self._used()
        peak = [start]

        def watch() -> None:
            while not done.wait(POLL_SECONDS):
                peak[0] = max(peak[0], self._used())

        watcher = threading.Thread(target=watch)
        if self._device != "cpu":
            watcher.start()
        begun = time.perf_counter()
        try:
            yield
        finally:
            wall = time.perf_counter() - begun
            done.set()
            if self._device != "cpu":
                watcher.join()
        values["x real time"] = seconds / wall
        if self._device != "cpu":
            values["GPU MB"] = (peak[0] - start + self._loaded - self._before) / (1 << 20)

    def _used(self) -> int:
        if self._device == "cpu":
            return 0
        import torch

        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


def speech(seconds: float, start: float = 0.0) -> Floats:
    """Telephone speech of a length in seconds: the sample call of pyannote.audio, repeated."""
    from faster_whisper.audio import decode_audio

    call: Floats = decode_audio(str(sample_call()), sampling_rate=SAMPLE_RATE)
    return np.resize(np.roll(call, -round(start * SAMPLE_RATE)), round(seconds * SAMPLE_RATE))
