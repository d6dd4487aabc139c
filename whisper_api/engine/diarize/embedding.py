"""Speaker embeddings of many short spans: the trunk runs once for a chunk of audio, pooling runs for each span."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from whisper_api.engine.audio.device_copies import COPIES

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Frames = npt.NDArray[np.int64]

DIMENSION = 192
"""Length of an embedding."""
HOP = 160
"""Samples between two feature frames."""


class EmbeddingNetwork(Protocol):
    """What the embedding networks have in common.

    Attributes:
        stride: feature frames for one frame of the trunk's output.
    """

    stride: int

    def parameters(self) -> Any: ...

    def features(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Shape (windows, samples) to (windows, 80, 1 + samples // 160)."""

    def trunk(self, x: torch.Tensor, stretches: Frames) -> torch.Tensor:
        """Features (1, 80, frames) to (1, channels, frames / stride).

        ``stretches`` has the number of the stretch that each frame of the output belongs to; -1 for no context.
        """

    def pool(self, x: torch.Tensor, spans: Sequence[Frames], dtype: torch.dtype) -> torch.Tensor:
        """Output of the trunk (frames, channels) and frame numbers of the spans to embeddings (spans, 192)."""


def embed(
    model: EmbeddingNetwork,
    waveform: Floats,
    mean: Floats,
    stretches: Frames,
    spans: Sequence[Frames],
    *,
    half_precision: bool = False,
) -> Floats:
    """Embed several spans of one chunk of audio.

    Args:
        model: on any device.
        waveform: shape (samples,), 16 kHz, from -1 to 1.
        mean: shape (80,), mean of the features over the speech of the whole recording. It is subtracted, so that all
            chunks are normalized alike.
        stretches: shape (frames,), number of the stretch of one speaker that each feature frame belongs to; -1 for the
            frames that are no context. At least one frame is.
        spans: for each span the numbers of its feature frames, at least one.
        half_precision: run the trunk and the attention in bfloat16, or float16 where the device has no bfloat16.

    Returns:
        Shape (spans, 192), each of length 1.
    """
    import torch

    device = next(model.parameters()).device
    half = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported(False) else torch.float16
    # A frame of the trunk's output belongs to a stretch when any of its feature frames does.
    starts = np.arange(0, len(stretches), model.stride)
    with torch.inference_mode():
        x = model.features(COPIES.tensor(waveform, str(device))[None])
        x = x - torch.from_numpy(mean).to(device)[None, :, None]
        with torch.autocast(device.type, half, enabled=half_precision):
            x = model.trunk(x, np.maximum.reduceat(stretches, starts))
        frames = [np.unique(span // model.stride) for span in spans]
        vectors = model.pool(x[0].float().T.contiguous(), frames, half if half_precision else torch.float32)
        embeddings: Floats = torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()
    return embeddings


@dataclass(frozen=True)
class EmbedSpans:
    """Work item: chunks of audio with their spans, as arguments of :func:`embed`, to (spans, 192)."""

    model: EmbeddingNetwork
    device: str
    half_precision: bool

    max_cost = math.inf

    @property
    def max_items(self) -> int:
        """One chunk on a CPU, so that another thread can run the next chunk at the same time."""
        return 1 if self.device == "cpu" else 4

    @property
    def memory_key(self) -> Hashable:
        """Key under which the worker keeps the batch size that fits the memory."""
        return ("speaker embedding", type(self.model).__name__, self.device)

    def run(self, inputs: Sequence[tuple[Floats, Floats, Frames, list[Frames]]]) -> Sequence[Floats]:
        return [embed(self.model, *value, half_precision=self.half_precision) for value in inputs]
