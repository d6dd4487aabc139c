"""The cost model of a GPU: a lower bound of the time for a window of speech.

The bound is the arithmetic of the model's shape divided by the device's speed in half precision, plus the weights and
states that the decoder reads at each step divided by the memory bandwidth. The bound has no cost for launches, softmax
or search, so no program reaches it. ``measuring.floor`` is the cost model of a CPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from random_models import CONTEXT, POSITIONS, WhisperShape

__all__ = ["Ceiling", "ceiling", "measured", "wav2vec2_floor", "whisper_floor"]

WINDOW_SECONDS = 30.0
# wav2vec 2.0 base, forward pass: 4.9 GFLOP of convolutions and 11.7 of the transformer for each second of audio.
WAV2VEC2_BASE_FLOP = 16.6e9


@dataclass(frozen=True)
class Ceiling:
    """The highest speed of a device.

    Attributes:
        flops: operations per second of a product of half-precision matrices that sums in single precision.
        read: bytes per second of its memory.
        origin: the source of the figures.
    """

    flops: float
    read: float
    origin: str

    def __str__(self) -> str:
        return f"{self.flops / 1e12:.3g} TFLOP/s, {self.read / 1e12:.3g} TB/s ({self.origin})"


# Part of a device's name to TFLOP/s and TB/s, as measured with large products and copies and not from data sheets.
KNOWN = {
    "H200": (790.0, 4.3),
    "H100 PCIe": (480.0, 1.8),
    "H100": (700.0, 3.0),
    "A100-SXM4-40GB": (260.0, 1.35),
    "A100": (260.0, 1.75),
    "RTX 4090": (150.0, 0.95),
    "RTX 3060": (25.0, 0.34),
}


def ceiling(device: str, *, quick: bool = False) -> Ceiling:
    """The highest speed of a device, from the table for known names, else measured.

    Args:
        device: ``cpu`` or as torch names a GPU.
        quick: measure with small matrices.
    """
    import torch

    name = "" if device == "cpu" else torch.cuda.get_device_name(device)
    for part, (tera, terabytes) in KNOWN.items():
        if part in name:
            return Ceiling(tera * 1e12, terabytes * 1e12, f"known of {part}")
    return measured(device, quick=quick)


def measured(device: str, *, quick: bool = False) -> Ceiling:
    """The best of a few large products and copies on a device."""
    import torch

    size = 512 if quick else 8192
    kind = torch.float32 if device == "cpu" else torch.float16
    left, right = (torch.randn(size, size, dtype=kind, device=device) for _ in range(2))
    block = torch.zeros((1 << 24) if quick else (1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    product = _best(lambda: torch.matmul(left, right), device)
    # A copy reads and writes.
    copy = _best(lambda: target.copy_(block), device)
    return Ceiling(2.0 * size**3 / product, 2.0 * len(block) / copy, "measured in this run")


def _best(work: object, device: str) -> float:
    """Seconds of the fastest of some calls."""
    import torch

    assert callable(work)
    best = float("inf")
    for _ in range(5):
        _synchronize(torch, device)
        begun = time.perf_counter()
        for _ in range(4):
            work()
        _synchronize(torch, device)
        best = min(best, (time.perf_counter() - begun) / 4)
    return best


def _synchronize(torch: object, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)  # type: ignore[attr-defined]


def whisper_floor(shape: WhisperShape, best: Ceiling, *, tokens: int, batch: int, beam: int = 1) -> float:
    """Least seconds for one window of 30 s when encoding and decoding overlap perfectly.

    Args:
        shape: of the model.
        best: what the device does.
        tokens: of each window.
        batch: windows that are decoded together, and so share the reading of the weights.
        beam: hypotheses; they share what they hear.
    """
    width, layers = float(shape.width), shape.decoder_layers
    square = width * width
    convolutions = 2 * 3 * width * (2 * POSITIONS * shape.mels + POSITIONS * width)
    encoder = shape.encoder_layers * (24 * square * POSITIONS + 4 * POSITIONS**2 * width) + convolutions
    memory = 4 * square * POSITIONS * layers
    weights = 14 * square * layers + width * shape.vocabulary
    heard = 2 * POSITIONS * width * layers
    # Self-attention reads on average half of the tokens so far, of each hypothesis.
    own = beam * 2 * min(tokens, CONTEXT) / 2 * width * layers
    compute = encoder + memory + tokens * beam * 2 * (weights + heard)
    read = 2 * tokens * (weights / batch + heard + own)
    return max(compute / best.flops, read / best.read)


def wav2vec2_floor(best: Ceiling, seconds: float) -> float:
    """Least seconds of wav2vec 2.0 base (Baevski et al., 2020) for a length of audio in seconds."""
    return WAV2VEC2_BASE_FLOP * seconds / best.flops
