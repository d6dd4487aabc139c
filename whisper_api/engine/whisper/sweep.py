"""Measures the best batch size of a Whisper model on a GPU."""

from __future__ import annotations

from concurrent.futures import wait
from typing import TYPE_CHECKING

from whisper_api.engine.whisper.ctranslate2 import Ct2Probe
from whisper_api.engine.whisper.model import FRAMES_PER_SECOND
from whisper_api.engine.worker.batch_size import SIZES, choose_batch_size

if TYPE_CHECKING:
    from whisper_api.engine.whisper.model import Whisper
    from whisper_api.engine.worker.worker import GpuWorker

__all__ = ["measure_batch_size"]


def measure_batch_size(whisper: Whisper, worker: GpuWorker, beam_size: int) -> int:
    """The best number of windows in a batch, with as many batches at once as jobs will run.

    Running jobs keep their turns, and no model is unloaded for the measurement.

    Args:
        whisper: the loaded model.
        worker: the device's worker.
        beam_size: number of beams of most jobs.

    Raises:
        EngineClosed: the worker was closed.
        DeviceLost: the device has failed.
    """
    probe = Ct2Probe(whisper, beam_size)

    def run(size: int) -> None:
        cost = size * probe.frames / FRAMES_PER_SECOND
        futures = [worker.submit((probe, lane), probe, size, cost) for lane in range(worker.lanes)]
        wait(futures)
        if not all(future.result() for future in futures):
            raise MemoryError(f"{worker.lanes} batches of {size} windows do not fit")

    try:
        return choose_batch_size(run, [size for size in SIZES if size == 1 or probe.decode(size).max_items >= size])
    finally:
        for lane in range(worker.lanes):
            worker.forget((probe, lane))
