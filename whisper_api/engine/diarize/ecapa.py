"""Speaker embeddings: ECAPA-TDNN and its filterbank features.

This implements the network of Desplanques, Thienpondt and Demuynck, "ECAPA-TDNN: Emphasized Channel
Attention, Propagation and Aggregation in TDNN Based Speaker Verification" (Interspeech 2020). It reads the weights
published as speechbrain/spkrec-ecapa-voxceleb, and computes the features that those weights were trained on.

The convolutional trunk runs once over a chunk of audio with many short spans. Only the attentive statistics pooling
runs for each span, over the frames of the span.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.diarize.embedding import DIMENSION, HOP
from whisper_api.engine.diarize.segmentation import CheckpointSource, load_network

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

_WINDOW = 400
_MELS = 80
_CHANNELS = 1024
_SCALE = 8


@cache
def _mel_filters() -> torch.Tensor:
    """Triangles of shape (80, 201) on the mel scale 2595 log10(1 + f / 700), from 0 to 8 kHz.

    Both flanks of a triangle are as wide as the distance to the triangle below, as when the weights were trained.
    """
    import torch

    top = 2595 * torch.log10(torch.tensor(1 + 8000 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, float(top), _MELS + 2, dtype=torch.float64) / 2595) - 1)
    widths = (edges[1:] - edges[:-1])[:-1]
    bins = torch.linspace(0, 8000, _WINDOW // 2 + 1, dtype=torch.float64)
    slope = (bins - edges[1:-1, None]) / widths[:, None]
    filters: torch.Tensor = (1 - slope.abs()).clamp(min=0).float()
    return filters


def features(waveforms: torch.Tensor) -> torch.Tensor:
    """Log mel filterbank energies in decibels, clipped at 80 dB below the loudest value of the window.

    Args:
        waveforms: shape (windows, samples), 16 kHz, from -1 to 1.

    Returns:
        Shape (windows, 80, 1 + samples // 160), one frame each 10 ms, without mean normalization.
    """
    import torch

    spectrum = torch.stft(
        waveforms,
        _WINDOW,
        hop_length=HOP,
        window=torch.hamming_window(_WINDOW, device=waveforms.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    energy = _mel_filters().to(waveforms.device) @ (spectrum.real.square() + spectrum.imag.square())
    decibels = 10 * torch.log10(energy.clamp(min=1e-10))
    return torch.maximum(decibels, decibels.amax(dim=(1, 2), keepdim=True) - 80)


def load_ecapa(path: Path) -> torch.nn.Module:
    """Load the embedding network of a checkpoint, in eval mode, on the CPU.

    Raises:
        ModelCorrupt: the weights are not those of this architecture.
    """
    return load_network(path, _network(), f"an ECAPA-TDNN of {_CHANNELS} channels", _renamed)


@dataclass(frozen=True)
class EcapaSource(CheckpointSource):
    """Loads the embedding network."""

    def network(self, path: Path) -> torch.nn.Module:
        return load_ecapa(path)


# Published name of a layer, and the name of the layer here. Longer names come first, since one may contain another.
_NAMES = (
    ("res2net_block.blocks.", "groups."),
    ("se_block.conv1.conv.", "squeeze."),
    ("se_block.conv2.conv.", "excite."),
    ("asp.conv.conv.", "attention_out."),
    ("asp.tdnn.", "attention_in."),
    ("asp_bn.norm.", "statistics_norm."),
    ("fc.conv.", "output."),
    ("mfa.", "aggregate."),
    ("blocks.0.", "first."),
    ("tdnn1.", "enter."),
    ("tdnn2.", "leave."),
    ("conv.conv.", "conv."),
    ("norm.norm.", "norm."),
)


def _renamed(name: str) -> str:
    for published, here in _NAMES:
        name = name.replace(published, here)
    return name


def _network() -> torch.nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional

    class Layer(nn.Module):
        """Convolution over time, rectifier, batch normalisation."""

        def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
            super().__init__()
            self.padding = dilation * (kernel - 1) // 2
            self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
            self.norm = nn.BatchNorm1d(outputs)

        def forward(self, x: torch.Tensor) -> Any:
            if self.padding:
                x = functional.pad(x, (self.padding, self.padding), mode="reflect")
            return self.norm(functional.relu(self.conv(x)))

    class Block(nn.Module):
        """Res2Net of dilated convolutions between two pointwise convolutions, then squeeze and excitation."""

        def __init__(self, dilation: int) -> None:
            super().__init__()
            width = _CHANNELS // _SCALE
            self.enter = Layer(_CHANNELS, _CHANNELS)
            self.groups = nn.ModuleList(Layer(width, width, 3, dilation) for _ in range(_SCALE - 1))
            self.leave = Layer(_CHANNELS, _CHANNELS)
            self.squeeze = nn.Conv1d(_CHANNELS, 128, 1)
            self.excite = nn.Conv1d(128, _CHANNELS, 1)

        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> Any:
            first, *rest = self.enter(x).chunk(_SCALE, dim=1)
            parts, previous = [first], None
            for part, layer in zip(rest, self.groups, strict=True):
                previous = layer(part if previous is None else part + previous)
                parts.append(previous)
            y = self.leave(torch.cat(parts, dim=1))
            mean = y @ weight.unsqueeze(2).to(y.dtype)
            return x + y * self.excite(functional.relu(self.squeeze(mean))).sigmoid()

    class EcapaTdnn(nn.Module):
        stride = 1

        def __init__(self) -> None:
            super().__init__()
            wide = 3 * _CHANNELS
            self.first = Layer(_MELS, _CHANNELS, 5)
            self.blocks = nn.ModuleDict({str(i): Block(dilation=i + 1) for i in (1, 2, 3)})
            self.aggregate = Layer(wide, wide)
            self.attention_in = Layer(3 * wide, 128)
            self.attention_out = nn.Conv1d(128, wide, 1)
            self.statistics_norm = nn.BatchNorm1d(2 * wide)
            self.output = nn.Conv1d(2 * wide, DIMENSION, 1)

        def features(self, waveforms: torch.Tensor) -> torch.Tensor:
            return features(waveforms)

        def trunk(self, x: torch.Tensor, stretches: npt.NDArray[np.int64]) -> Any:
            """Features (1, 80, frames) to (1, 3072, frames); the context is all stretches together."""
            inside = (stretches >= 0).astype(np.float32)
            weight = torch.from_numpy(inside / inside.sum()).to(x.device)[None]
            x = self.first(x)
            outputs = []
            for block in self.blocks.values():
                x = block(x, weight)
                outputs.append(x)
            return self.aggregate(torch.cat(outputs, dim=1))

        def pool(self, x: torch.Tensor, spans: Sequence[npt.NDArray[np.int64]], dtype: torch.dtype) -> Any:
            """Output of the trunk (frames, 3072) and frame numbers of the spans to embeddings (spans, 192)."""
            weights = np.zeros((len(spans), len(x)), dtype=np.float32)
            for number, span in enumerate(spans):
                weights[number, span] = 1 / len(span)
            of_spans = torch.from_numpy(weights).to(x.device)
            mean = of_spans @ x
            statistics = torch.cat([mean, _deviation(of_spans @ x.square(), mean)], dim=1)
            # The layer is linear: mean and deviation are the same for all frames of a span, so they are multiplied once
            # for each span, and the frames once for all spans.
            weight, bias = self.attention_in.conv.parameters()
            channels = x.shape[1]
            context = statistics @ weight[:, channels:, 0].T + bias
            hidden = x @ weight[:, :channels, 0].T
            norm: Any = self.attention_in.norm
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift = norm.bias - norm.running_mean * scale
            # exp2 is faster than exp. The bias of the layer is the same for all frames, so it cancels in the softmax.
            out = (self.attention_out.weight[:, :, 0].T * math.log2(math.e)).to(dtype)
            pooled = torch.empty(len(spans), 2 * channels, device=x.device)
            for number, span in enumerate(spans):
                rows = _rows(span, x.device)
                inner = torch.addcmul(shift, functional.relu(hidden[rows] + context[number]), scale).tanh()
                attention = (inner.to(dtype) @ out).float()
                attention.sub_(attention.amax(dim=0)).exp2_()
                total = attention.sum(dim=0)
                values = x[rows]
                average = attention.mul_(values).sum(dim=0) / total
                pooled[number, :channels] = average
                pooled[number, channels:] = _deviation(attention.mul_(values).sum(dim=0) / total, average)
            return self.output(self.statistics_norm(pooled).unsqueeze(2)).squeeze(2)

    def _rows(span: npt.NDArray[np.int64], device: torch.device) -> Any:
        """Index of the frames of a span: a slice, which copies nothing, when the span has no gap."""
        if int(span[-1]) - int(span[0]) + 1 == len(span):
            return slice(int(span[0]), int(span[-1]) + 1)
        return torch.from_numpy(span).to(device)

    def _deviation(mean_of_squares: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return (mean_of_squares - mean.square()).clamp(min=1e-12).sqrt()

    return EcapaTdnn()
