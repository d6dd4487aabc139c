"""How Whisper runs on each device of an engine: the type of its numbers, its encoder, its source, its batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from whisper_api.engine.models.files import LocalModel
from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, MAX_FRAMES, DecodeSettings, Row, Whisper
from whisper_api.engine.whisper.torch_encoder import ENCODERS, encoder_bytes
from whisper_api.engine.whisper.window import Batching
from whisper_api.engine.worker.device import Device, choose_compute_type, release_cached_memory, threads_and_lanes
from whisper_api.engine.worker.device_errors import clear_frames, is_out_of_memory, kind_of
from whisper_api.engine.worker.device_pool import DeviceRuntime
from whisper_api.engine.worker.fair_queue import BatchOperation
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import InvalidOption

log = logging.getLogger(__name__)

# Window lengths are rounded up to a multiple of the bucket, so that more windows share a batch. The bucket of a GPU is
# coarse, because full batches matter more than padding.
GPU_BUCKET_SECONDS = 5.0
# Most windows in a batch of a GPU until measure_batches() has found a better number. Memory may allow fewer.
GPU_BATCH = 64
CPU_BATCH, CPU_BUCKET_SECONDS = 4, 1.0

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


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


def choose_batch_size(
    run: Callable[[int], object],
    sizes: Sequence[int] = SIZES,
    tolerance: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The smallest batch size whose throughput is close to the best. A larger batch only delays other jobs.

    Each size runs twice, the first time as a warm-up. The sweep ends when a batch does not fit into memory, or when a
    larger batch no longer increases the throughput.

    Args:
        run: runs one batch of so many items, and returns after its end.
        sizes: the sizes to try, in rising order.
        tolerance: accepted loss, as a fraction of the best number of items per second.
        clock: returns seconds.

    Returns:
        One of the sizes; the first size when no batch fits into memory.

    Raises:
        ValueError: ``sizes`` is empty.
        Exception: an error of ``run`` other than one about memory.
    """
    if not sizes:
        raise ValueError("there are no sizes to choose from")
    speeds: dict[int, float] = {}
    for size in sizes:
        try:
            run(size)
            begun = clock()
            run(size)
            seconds = clock() - begun
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.info("a batch of %d does not fit into memory", size)
            break
        speeds[size] = size / max(seconds, 1e-9)
        log.debug("batches of %d: %.1f items a second", size, speeds[size])
        if speeds[size] < (1.0 - tolerance) * max(speeds.values()):
            break
    enough = (1.0 - tolerance) * max(speeds.values(), default=0.0)
    return next((size for size, speed in speeds.items() if speed >= enough), sizes[0])


@dataclass(frozen=True)
class WhisperSource:
    """Identifies a Whisper model on a device, and loads it.

    Attributes:
        path: a directory in CTranslate2's format.
        device, device_index: ``cpu`` or ``cuda``, and the number of the GPU.
        compute_type: a compute type of CTranslate2: int8, float16 ...
        threads: number of CPU threads of one call.
        lanes: number of simultaneous calls.
        offline: whether downloads are forbidden.
        encoder: as for :class:`~whisper_api.engine.whisper.ctranslate2.Ct2Whisper`; on a CPU, ONNX Runtime runs it.
    """

    path: str
    device: str
    device_index: int
    compute_type: str
    threads: int
    lanes: int = 1
    offline: bool = False
    encoder: str = "auto"

    def estimated_bytes(self) -> int:
        path = Path(self.path) / "model.bin"
        size = path.stat().st_size
        # Published files contain float16. In memory, int8 weights take half as much, and float32 weights twice as much.
        weights = size * 2 if self.compute_type == "float32" else size // 2 if "int8" in self.compute_type else size
        if self.device == "cpu" or self.encoder == "ctranslate2":
            return weights
        # CTranslate2 keeps its own encoder beside torch's.
        # In plain int8, CTranslate2 computes in the file's type beside, which is float16.
        halves = "float16" in self.compute_type or self.compute_type == "int8"
        return weights + (encoder_bytes(path, 2 if halves else 4) if halves or self.encoder == "torch" else 0)

    def load(self) -> Whisper:
        """Load the model.

        Raises:
            ModelCorrupt: the files do not belong to a Whisper model.
        """
        if self.device == "cpu":
            from whisper_api.engine.whisper.onnx.model import OnnxWhisper

            int8 = "int8" in self.compute_type
            return OnnxWhisper(Path(self.path), int8=int8, threads=self.threads, offline=self.offline)
        from whisper_api.engine.whisper.ctranslate2 import Ct2Whisper

        return Ct2Whisper(
            Path(self.path),
            device=self.device,
            device_index=self.device_index,
            compute_type=self.compute_type,
            threads=self.threads,
            lanes=self.lanes,
            offline=self.offline,
            free_memory=Device("cuda", self.device_index).free_memory,
            encoder=self.encoder,
        )

    def unload(self, model: Whisper) -> None:
        model.unload()


class WhisperSettings:
    """How Whisper runs on the devices of an engine.

    Args:
        devices: the devices.
        compute_type: a compute type of CTranslate2, or ``auto``.
        batch_size: number of windows in a batch on a GPU; None to measure the best number.
        encoder: as for :class:`~whisper_api.engine.whisper.ctranslate2.Ct2Whisper`.
        offline: whether downloads are forbidden.

    Attributes:
        lanes: number of batches that run at once on a device.
        threads: number of CPU threads of a batch.
        compute_types: the compute type of each device.
        measures: whether the size of batches is to be measured (:meth:`measure_batches`).

    Raises:
        InvalidOption: an argument has an unknown value.
    """

    def __init__(
        self, devices: Sequence[Device], compute_type: str, batch_size: int | None, encoder: str, *, offline: bool
    ) -> None:
        if encoder not in ENCODERS:
            raise InvalidOption("encoder", f"{encoder!r} is not one of {', '.join(ENCODERS)}")
        self.compute_types = {each: choose_compute_type(each, compute_type) for each in devices}
        self.lanes, self.threads = threads_and_lanes(devices[0])
        batching = Batching(CPU_BATCH, float("inf"), CPU_BUCKET_SECONDS, self.lanes)
        if devices[0].kind == "cuda":
            batching = Batching(batch_size or GPU_BATCH, float("inf"), GPU_BUCKET_SECONDS, self.lanes)
        self._batching = dict.fromkeys(devices, batching)
        self._first = devices[0]
        self.measures = devices[0].kind == "cuda" and batch_size is None
        self._encoder = encoder
        self._offline = offline

    def batching(self, device: Device | None = None) -> Batching:
        """The size of batches on a device; None for the first."""
        return self._batching[device or self._first]

    def source(self, model: LocalModel, device: Device | None = None) -> WhisperSource:
        """The source that loads a model.

        Args:
            model: the files of the model.
            device: the device to load it on; None for the first.
        """
        device = device or self._first
        return WhisperSource(
            str(model.path),
            device.kind,
            device.index,
            self.compute_types[device],
            self.threads,
            self.lanes,
            self._offline,
            self._encoder,
        )

    def measure_batches(self, model: LocalModel, runtime: DeviceRuntime, beam_size: int) -> None:
        """Measure the fastest size of batches on a GPU. Running jobs keep their turns.

        Args:
            model: the files of the model.
            runtime: the GPU. Call this before its other models are loaded, while the memory that batches may take is
                free.
            beam_size: number of beams of most jobs.
        """
        device = runtime.device
        with runtime.models.lease(self.source(model, device)) as whisper:
            size = measure_batch_size(whisper, runtime.worker, beam_size)
        self._batching[device] = replace(self._batching[device], max_items=size)
        log.info("the best batch size on %s is %d windows", device.torch_name, size)
