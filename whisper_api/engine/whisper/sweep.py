"""Measures the best batch size of a Whisper model on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, MAX_FRAMES, DecodeSettings, Row
from whisper_api.engine.worker.batch_size import SIZES, choose_batch_size
from whisper_api.engine.worker.device import release_cached_memory
from whisper_api.engine.worker.device_errors import clear_frames, kind_of

if TYPE_CHECKING:
    from whisper_api.engine.whisper.model import Whisper
    from whisper_api.engine.worker.worker import BatchOperation, GpuWorker

__all__ = ["Ct2Probe", "measure_batch_size"]


def measure_batch_size(
    whisper: Whisper, worker: GpuWorker, beam_size: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The best number of windows in a batch, with as many batches at once as jobs will run.

    Running jobs keep their turns, and no model is unloaded for the measurement.

    Args:
        whisper: the loaded model.
        worker: the device's worker.
        beam_size: number of beams of most jobs.
        clock: returns seconds.

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

    sizes = [size for size in SIZES if size == 1 or probe.decode(size).max_items >= size]
    try:
        return choose_batch_size(run, sizes, clock=clock)
    finally:
        for lane in range(worker.lanes):
            worker.forget((probe, lane))


@dataclass(frozen=True)
class Ct2Probe:
    """The operation that measures batch sizes: it decodes windows of noise, each to the same number of tokens.

    Attributes:
        whisper: the model.
        beam_size: number of beams.
        frames: length of a window, 100 a second.
    """

    whisper: Whisper
    beam_size: int
    frames: int = MAX_FRAMES

    max_items: ClassVar[int] = 1
    max_cost: ClassVar[float] = float("inf")

    @property
    def memory_key(self) -> Hashable:
        """As in :class:`BatchOperation`."""
        return ("probe", id(self.whisper))

    def decode(self, size: int) -> BatchOperation:
        """The operation for a batch of so many windows; its ``max_items`` is lower when memory does not hold them."""
        # Without an end of text, each window is decoded to the token cap.
        suppress = (*self.whisper.non_speech_tokens, self.whisper.end_of_text)
        settings = DecodeSettings(self.frames, len(self._prompt()), self.beam_size, 0.0, suppress)
        return self.whisper.decode(settings, size, float("inf"))

    def run(self, inputs: Sequence[int]) -> list[bool]:
        """Run a batch of each of these sizes, and return whether it fitted into memory.

        A batch that does not fit is no error, so that the worker unloads no model for it.
        """
        return [self._fits(size) for size in inputs]

    def _fits(self, size: int) -> bool:
        noise = np.random.default_rng(0).normal(0, 0.1, self.frames * 160).astype(np.float32)
        try:
            self.decode(size).run([Row(noise, self._prompt(), self.frames)] * size)
        except Exception as error:
            if kind_of(error) != "memory":
                raise
            failure = error
        else:
            return True
        # Outside of the handler, whose error holds the batch.
        clear_frames(failure)
        release_cached_memory()
        return False

    def _prompt(self) -> tuple[int, ...]:
        tokenizer = self.whisper.tokenizer("en")
        return (*tokenizer.sot_sequence, tokenizer.no_timestamps)
