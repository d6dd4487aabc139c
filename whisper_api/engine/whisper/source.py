"""Which Whisper model to load, and with which of the two ways to run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whisper_api.engine.whisper.model import Whisper

__all__ = ["WhisperSource"]


@dataclass(frozen=True)
class WhisperSource:
    """Which Whisper model, and how it computes.

    Attributes:
        path: a directory in CTranslate2's format.
        device, device_index: ``cpu`` or ``cuda``, and which one.
        compute_type: as CTranslate2 names them: int8, float16 ...
        threads: that one call may use, on a CPU.
        lanes: calls at once.
        offline: whether nothing may be fetched for it.
    """

    path: str
    device: str
    device_index: int
    compute_type: str
    threads: int
    lanes: int = 1
    offline: bool = False

    def estimated_bytes(self) -> int:
        size = (Path(self.path) / "model.bin").stat().st_size
        # Published files hold float16: weights in int8 are half of that, in float32 twice as much.
        return size * 2 if self.compute_type == "float32" else size // 2 if "int8" in self.compute_type else size

    def load(self) -> Whisper:
        """Load the model.

        Raises:
            ModelCorrupt: the files are not those of a Whisper model.
        """
        if self.device == "cpu":
            from whisper_api.engine.whisper.onnx.model import OnnxWhisper

            return OnnxWhisper.load(
                Path(self.path), int8="int8" in self.compute_type, threads=self.threads, offline=self.offline
            )
        from whisper_api.engine.whisper.ctranslate2 import Ct2Whisper

        return Ct2Whisper.load(
            Path(self.path),
            device=self.device,
            device_index=self.device_index,
            compute_type=self.compute_type,
            threads=self.threads,
            lanes=self.lanes,
            offline=self.offline,
        )

    def unload(self, model: Whisper) -> None:
        model.unload()
