"""How Whisper runs on each device of an engine: the type of its numbers, its encoder, its source, its batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from whisper_api.engine.models.store import LocalModel
from whisper_api.engine.whisper.model import Whisper
from whisper_api.engine.whisper.torch_encoder import ENCODERS, encoder_bytes
from whisper_api.engine.whisper.window_decoder import Batching
from whisper_api.engine.worker.device import Device, choose_compute_type, threads_and_lanes
from whisper_api.engine.worker.device_pool import DeviceRuntime
from whisper_api.errors import InvalidOption

__all__ = ["WhisperSettings", "WhisperSource"]

log = logging.getLogger(__name__)

# Window lengths are rounded up to a multiple of the bucket, so that more windows share a batch. The bucket of a GPU is
# coarse, because full batches matter more than padding.
GPU_BUCKET_SECONDS = 5.0
# Most windows in a batch of a GPU until measure_batches() has found a better number. Memory may allow fewer.
GPU_BATCH = 64
CPU_BATCH, CPU_BUCKET_SECONDS = 4, 1.0

# What may run the encoder on a GPU.


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
        halves = "float16" in self.compute_type
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
        from whisper_api.engine.whisper.sweep import measure_batch_size

        device = runtime.device
        with runtime.models.lease(self.source(model, device)) as whisper:
            size = measure_batch_size(whisper, runtime.worker, beam_size)
        self._batching[device] = replace(self._batching[device], max_items=size)
        log.info("the best batch size on %s is %d windows", device.torch_name, size)
