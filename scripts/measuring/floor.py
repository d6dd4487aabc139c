"""The cost model: a lower bound of the CPU time of a computation on this machine.

The bound is the arithmetic of the model's shape divided by the measured speed of a core, plus the weights and states
that each step reads divided by the measured memory bandwidth of a core. The bound has no cost for softmax,
normalisation, search or the surrounding program, so no program reaches it; a third of it is good.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from measuring.children import SCRIPTS, one_process

WINDOW_SECONDS = 30.0
FRAMES_PER_SECOND = 100
MELS = 80
# Per second of audio, forward pass: 4.9 GFLOP of convolutions and 11.7 of the transformer.
WAV2VEC2_BASE_FLOP = 16.6e9
# Per second of audio: 17.9 million weights at 100 frames a second.
ECAPA_FLOP = 3.6e9
# Per second of audio: the filters and convolutions 0.1, four bidirectional LSTM layers at 59 frames a second 0.16.
SEGMENTATION_FLOP = 0.26e9


@dataclass(frozen=True)
class Shape:
    """A Whisper model's shape (Radford et al., 2022, table 1; large-v3 and turbo by their model cards).

    Attributes:
        width: width of the hidden states.
        encoder_layers, decoder_layers: number of layers; the feed-forward part is four times as wide.
        vocabulary: number of tokens.
    """

    width: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int = 51_865


SHAPES = {
    "tiny": Shape(384, 4, 4),
    "tiny.en": Shape(384, 4, 4, 51_864),
    "base": Shape(512, 6, 6),
    "base.en": Shape(512, 6, 6, 51_864),
    "small": Shape(768, 12, 12),
    "small.en": Shape(768, 12, 12, 51_864),
    "medium": Shape(1024, 24, 24),
    "large-v2": Shape(1280, 32, 32),
    "large-v3": Shape(1280, 32, 32, 51_866),
    "turbo": Shape(1280, 32, 4, 51_866),
    "distil-large-v3": Shape(1280, 32, 2, 51_866),
}


@dataclass(frozen=True)
class Ceilings:
    """The highest measured speed of a core, per second of CPU time.

    Attributes:
        int8: operations per second of a product of int8 matrices.
        fp32: the same in single precision.
        bf16: the same in bfloat16, or the value of fp32 when that is higher.
        read: bytes per second read from memory.
    """

    int8: float
    fp32: float
    bf16: float
    read: float

    def __str__(self) -> str:
        return (
            f"one core at best: int8 {self.int8 / 1e9:.0f}, bfloat16 {self.bf16 / 1e9:.0f}, float32 "
            f"{self.fp32 / 1e9:.0f} GOP/s, reads {self.read / 1e9:.0f} GB/s"
        )


def ceilings(seconds: float = 0.3) -> Ceilings:
    """Measure this machine. The measurement takes about five times ``seconds``, and 300 MB.

    Use :func:`measured_ceilings` when memory is measured too, because this function imports torch.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        size = 1024
        operations = 2.0 * size**3
        left, right = torch.randn(size, size), torch.randn(size, size)
        fp32 = _rate(lambda: left @ right, operations, seconds)
        halves = left.bfloat16(), right.bfloat16()
        bf16 = _rate(lambda: halves[0] @ halves[1], operations, seconds)
        integers = torch.randint(-127, 127, (size, size), dtype=torch.int8)
        # PyTorch has no public product of int8 matrices.
        int8 = _rate(lambda: torch._int_mm(integers, integers), operations, seconds)  # noqa: SLF001
        block = torch.zeros(1 << 26)
        read = _rate(lambda: block.sum(), 4.0 * len(block), seconds)
    finally:
        torch.set_num_threads(threads)
    return Ceilings(max(int8, fp32), fp32, max(bf16, fp32), read)


def _rate(work: Callable[[], object], amount: float, seconds: float) -> float:
    """The highest of three rates, in amounts per CPU-second; other processes only lower a rate."""
    work()
    best = 0.0
    for _ in range(3):
        count, begun = 0, time.process_time()
        while time.process_time() - begun < seconds / 3:
            work()
            count += 1
        best = max(best, count * amount / (time.process_time() - begun))
    return best


def whisper_floor(
    shape: Shape, found: Ceilings, *, seconds: float, tokens: float, beam: int = 1, batch: int = 1
) -> dict[str, float]:
    """Least CPU-seconds to transcribe: linear layers in int8, attention in bfloat16 over float32 states.

    Args:
        shape: shape of the model.
        found: measured speed of a core.
        seconds: length of the audio, which is cut into windows of 30 s and a rest.
        tokens: number of tokens in all windows.
        beam: number of hypotheses.
        batch: number of windows in a batch, which share the reading of the weights.

    Returns:
        Stage (``encoder``, ``decoder``) to CPU-seconds.
    """
    whole, rest = divmod(seconds, WINDOW_SECONDS)
    lengths = [WINDOW_SECONDS] * int(whole) + ([rest] if rest > 0.01 else [])
    positions = [length * FRAMES_PER_SECOND / 2 for length in lengths]
    square = float(shape.width) ** 2
    encoder = decoder = 0.0
    for count in positions:
        convolutions = 2 * 3 * MELS * shape.width * 2 * count + 2 * 3 * square * count
        linear = 24 * square * count * shape.encoder_layers
        keys = 4 * square * count * shape.decoder_layers
        attention = 4 * count**2 * shape.width * shape.encoder_layers
        encoder += (convolutions + linear + keys) / found.int8 + attention / found.bf16
        here = tokens * count / sum(positions)
        weights = 14 * square * shape.decoder_layers + shape.width * shape.vocabulary
        states = 2 * count * shape.width * shape.decoder_layers
        decoder += here * beam * (2 * weights / found.int8 + 2 * states / found.bf16)
        decoder += here * (weights / batch + 4 * states) / found.read
    return {"encoder": encoder, "decoder": decoder}


def wav2vec2_floor(found: Ceilings, seconds: float) -> float:
    """Least CPU-seconds of wav2vec 2.0 base (Baevski et al., 2020) for ``seconds`` of audio, in bfloat16."""
    return WAV2VEC2_BASE_FLOP * seconds / found.bf16


def measured_ceilings() -> Ceilings:
    """Run :func:`ceilings` in a child process, so that the caller does not import torch."""
    code = "import dataclasses, json; from measuring import ceilings; print(json.dumps(dataclasses.asdict(ceilings())))"
    run = one_process([sys.executable, "-c", code], variables={"PYTHONPATH": str(SCRIPTS)})
    return Ceilings(**json.loads(run.text or ""))


def diarization_floor(found: Ceilings, seconds: float) -> float:
    """Least CPU-seconds of both networks of diarization, each run once over ``seconds`` of audio.

    The networks are the segmentation (Bredin and Laurent, 2021) in single precision and ECAPA-TDNN of 1024 channels
    (Desplanques et al., 2020) in bfloat16.
    """
    return (SEGMENTATION_FLOP / found.fp32 + ECAPA_FLOP / found.bf16) * seconds
