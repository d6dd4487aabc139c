"""Speaker embeddings: CAM++ and its filterbank features.

This implements the network of Wang, Zheng, Chen, Cheng and Chen, "CAM++: A Fast and Efficient Network for Speaker
Verification Using Context-Aware Masking" (Interspeech 2023, arXiv 2303.00332): a small two-dimensional convolution
network, then a densely connected TDNN whose layers are masked by the context of the whole and of each two seconds. It
reads the weights that 3D-Speaker publishes as speech_campplus_sv_zh_en_16k-common_advanced.

The trunk runs once over a chunk of audio with many short spans. Only the statistics pooling runs for each span, over
the frames of the span. Each stretch of one speaker is embedded by itself, as the network was trained: it has masks of
its own, and convolutions do not reach from one stretch into another. Otherwise a short answer resembles the voices
around it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from whisper_api.engine.diarize.embedding import DIMENSION, HOP
from whisper_api.engine.diarize.segmentation import CheckpointSource, load_network
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

_WINDOW = 400
_FFT = 512
_MELS = 80
_GROWTH = 32
_SEGMENT = 100
# Frames of the trunk's output between two stretches: the first layers reach six of them far.
_GAP = 6


@cache
def _mel_filters() -> torch.Tensor:
    """Kaldi's triangles of shape (80, 257), equally wide on the mel scale 1127 ln(1 + f / 700), from 20 Hz to 8 kHz."""
    import torch

    def mel(hertz: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = 1127 * torch.log1p(hertz / 700)
        return found

    low, high = mel(torch.tensor([20.0, SAMPLE_RATE / 2], dtype=torch.float64))
    centres = torch.linspace(float(low), float(high), _MELS + 2, dtype=torch.float64)[1:-1, None]
    bins = mel(torch.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1, dtype=torch.float64))
    filters = (1 - (bins - centres).abs() * (_MELS + 1) / (high - low)).clamp(min=0)
    # Kaldi leaves out the highest bin.
    filters[:, -1] = 0
    found: torch.Tensor = filters.float()
    return found


def features(waveforms: torch.Tensor) -> torch.Tensor:
    """Log mel filterbank energies as Kaldi computes them, without dither.

    Args:
        waveforms: shape (windows, samples), 16 kHz, from -1 to 1.

    Returns:
        Shape (windows, 80, 1 + samples // 160), one frame each 10 ms, centred on its sample, without mean
        normalization.
    """
    import torch
    from torch.nn import functional

    frames = functional.pad(waveforms, (_WINDOW // 2, _WINDOW // 2)).unfold(1, _WINDOW, HOP)
    frames = frames - frames.mean(dim=2, keepdim=True)
    before = functional.pad(frames, (1, 0), mode="replicate")[..., :-1]
    # Povey's window.
    window = torch.hann_window(_WINDOW, periodic=False, device=waveforms.device) ** 0.85
    spectrum = torch.fft.rfft((frames - 0.97 * before) * window, n=_FFT)
    energy = (spectrum.real.square() + spectrum.imag.square()) @ _mel_filters().to(waveforms.device).T
    found: torch.Tensor = energy.clamp(min=torch.finfo(torch.float32).eps).log().transpose(1, 2)
    return found


def load_campplus(path: Path) -> torch.nn.Module:
    """Load the embedding network of a checkpoint, in eval mode, on the CPU.

    Raises:
        ModelCorrupt: the weights are not those of this architecture.
    """
    return load_network(path, _network(), f"a CAM++ of {DIMENSION} dimensions")


@dataclass(frozen=True)
class CampplusSource(CheckpointSource):
    """Loads the embedding network."""

    def network(self, path: Path) -> torch.nn.Module:
        return load_campplus(path)


class _Layout(NamedTuple):
    """Where the stretches of a chunk lie, one after the other with gaps, in frames of the trunk's output.

    Attributes:
        frames: (kept,) numbers of the chunk's frames that belong to a stretch.
        places: (kept,) where these frames lie.
        inside: (places,) 1 for frames of stretches, 0 for gaps.
        context: (places, segments) weights of the mean over each segment plus the mean over its stretch.
        segments: (places,) number of the segment.
    """

    frames: torch.Tensor
    places: torch.Tensor
    inside: torch.Tensor
    context: torch.Tensor
    segments: torch.Tensor


def _layout(stretches: npt.NDArray[np.int64], device: torch.device) -> _Layout:
    """Lay out stretches, cut into segments.

    Args:
        stretches: number of the stretch of each frame; -1 for none.
        device: of the tensors.
    """
    import torch

    frames = [np.flatnonzero(stretches == number) for number in np.unique(stretches[stretches >= 0])]
    lengths = np.array([len(each) for each in frames])
    begins = np.cumsum(lengths + _GAP) - lengths - _GAP
    total = int(begins[-1] + lengths[-1])
    inside = np.zeros(total, dtype=np.float32)
    segments = np.zeros(total, dtype=np.int64)
    columns: list[Floats] = []
    for begin, end in zip(begins.tolist(), (begins + lengths).tolist(), strict=True):
        inside[begin:end] = 1
        for first in range(begin, end, _SEGMENT):
            last = min(end, first + _SEGMENT)
            segments[first:last] = len(columns)
            column = np.zeros(total, dtype=np.float32)
            column[begin:end] = 1 / (end - begin)
            column[first:last] += 1 / (last - first)
            columns.append(column)
    arrays = (np.concatenate(frames), np.flatnonzero(inside), inside, np.stack(columns, axis=1), segments)
    return _Layout(*(torch.from_numpy(array).to(device) for array in arrays))


def _network() -> torch.nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional

    def named(**layers: nn.Module) -> nn.Sequential:
        """Layers one after the other, with the names of the published weights."""
        return nn.Sequential(OrderedDict(layers))

    def norm(channels: int) -> nn.Sequential:
        return named(batchnorm=nn.BatchNorm1d(channels), rectifier=nn.ReLU())

    def narrow(inputs: int, outputs: int) -> nn.Sequential:
        return named(nonlinear=norm(inputs), linear=nn.Conv1d(inputs, outputs, 1, bias=False))

    class ResidualBlock(nn.Module):
        """Two convolutions over frequency and time beside a shortcut."""

        def __init__(self, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(32, 32, 3, (stride, 1), 1, bias=False)
            self.bn1 = nn.BatchNorm2d(32)
            self.conv2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(32)
            self.shortcut = nn.Sequential()
            if stride > 1:
                self.shortcut = nn.Sequential(nn.Conv2d(32, 32, 1, (stride, 1), bias=False), nn.BatchNorm2d(32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = functional.relu(self.bn1(self.conv1(x)))
            return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))

    class Masked(nn.Module):
        """A convolution over time whose output is weighed by the means of the stretch and of the segment."""

        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.linear_local = nn.Conv1d(128, _GROWTH, 3, padding=dilation, dilation=dilation, bias=False)
            self.linear1 = nn.Conv1d(128, 64, 1)
            self.linear2 = nn.Conv1d(64, _GROWTH, 1)

        def forward(self, x: torch.Tensor, layout: _Layout) -> Any:
            mask = self.linear2(functional.relu(self.linear1(x @ layout.context))).sigmoid()
            return self.linear_local(x * layout.inside.to(x.dtype)) * mask[..., layout.segments]

    class DenseLayer(nn.Module):
        def __init__(self, inputs: int, dilation: int) -> None:
            super().__init__()
            self.nonlinear1 = norm(inputs)
            self.linear1 = nn.Conv1d(inputs, 128, 1, bias=False)
            self.nonlinear2 = norm(128)
            self.cam_layer = Masked(dilation)

        def forward(self, x: torch.Tensor, layout: _Layout) -> Any:
            return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))), layout)

    class DenseBlock(nn.ModuleDict):
        """Layers that each read the outputs of all layers before."""

        def __init__(self, layers: int, inputs: int, dilation: int) -> None:
            super().__init__({f"tdnnd{i + 1}": DenseLayer(inputs + i * _GROWTH, dilation) for i in range(layers)})

        def forward(self, x: torch.Tensor, layout: _Layout) -> torch.Tensor:
            for layer in self.values():
                x = torch.cat([x, layer(x, layout)], dim=1)
            return x

    class Campplus(nn.Module):
        stride = 2

        def __init__(self) -> None:
            super().__init__()
            # Features (1, 1, 80, frames) to (1, 320, frames): 32 channels of ten frequencies.
            self.head = named(
                conv1=nn.Conv2d(1, 32, 3, 1, 1, bias=False),
                bn1=nn.BatchNorm2d(32),
                rectifier1=nn.ReLU(),
                layer1=nn.Sequential(ResidualBlock(2), ResidualBlock(1)),
                layer2=nn.Sequential(ResidualBlock(2), ResidualBlock(1)),
                conv2=nn.Conv2d(32, 32, 3, (2, 1), 1, bias=False),
                bn2=nn.BatchNorm2d(32),
                rectifier2=nn.ReLU(),
                flatten=nn.Flatten(1, 2),
            )
            self.xvector: Any = named(
                tdnn=named(linear=nn.Conv1d(320, 128, 5, 2, 2, bias=False), nonlinear=norm(128)),
                block1=DenseBlock(12, 128, 1),
                transit1=narrow(512, 256),
                block2=DenseBlock(24, 256, 2),
                transit2=narrow(1024, 512),
                block3=DenseBlock(16, 512, 2),
                transit3=narrow(1024, 512),
                out_nonlinear=norm(512),
                dense=named(
                    linear=nn.Conv1d(1024, DIMENSION, 1, bias=False),
                    nonlinear=named(batchnorm=nn.BatchNorm1d(DIMENSION, affine=False)),
                ),
            )

        def features(self, waveforms: torch.Tensor) -> torch.Tensor:
            return features(waveforms)

        def trunk(self, x: torch.Tensor, stretches: npt.NDArray[np.int64]) -> Any:
            """Features (1, 80, frames) to (1, 512, frames / 2), 0 for frames that are in no stretch."""
            net = self.xvector
            layout = _layout(stretches, x.device)
            x = functional.pad(x, (0, 2 * len(stretches) - x.shape[2]))
            # The gaps between the stretches are 0 in the features and before each convolution of the blocks.
            packed = x.new_zeros(1, x.shape[1], len(layout.segments), 2)
            packed[:, :, layout.places] = x.reshape(1, x.shape[1], -1, 2)[:, :, layout.frames]
            y = net.tdnn(self.head(packed.flatten(2).unsqueeze(1)))
            y = net.transit1(net.block1(y, layout))
            y = net.transit2(net.block2(y, layout))
            y = net.out_nonlinear(net.transit3(net.block3(y, layout)))
            found = y.new_zeros(1, y.shape[1], len(stretches))
            found[..., layout.frames] = y[..., layout.places]
            return found

        def pool(self, x: torch.Tensor, spans: Sequence[npt.NDArray[np.int64]], dtype: torch.dtype) -> Any:
            """Output of the trunk (frames, 512) and frame numbers of the spans to embeddings (spans, 192).

            Pooling costs next to nothing, so it stays in single precision whatever ``dtype`` is.
            """
            weights = np.zeros((len(spans), len(x)), dtype=np.float32)
            for number, span in enumerate(spans):
                weights[number, span] = 1 / len(span)
            of_spans = torch.from_numpy(weights).to(x.device)
            mean = of_spans @ x
            # The published network takes the deviation of a sample, not of the population.
            count = torch.tensor([[len(span)] for span in spans], device=x.device)
            variance = (of_spans @ x.square() - mean.square()).clamp(min=1e-12) * count / (count - 1).clamp(min=1)
            statistics = torch.cat([mean, variance.sqrt()], dim=1)
            return self.xvector.dense(statistics.unsqueeze(2)).squeeze(2)

    return Campplus()
