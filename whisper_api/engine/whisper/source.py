"""The source of a resident Whisper model: its files, and the implementation that runs them on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whisper_api.engine.whisper.model import Whisper
from whisper_api.engine.whisper.torch_encoder import encoder_bytes
from whisper_api.engine.worker.device import Device

__all__ = ["WhisperSource"]

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
