"""The neural segmentation of diarization: who of at most three local speakers is active when, inside one short window.

This is our own writing of the network of Bredin and Laurent, "End-to-end speaker segmentation for overlap-aware
resegmentation" (Interspeech 2021): a SincNet (Ravanelli and Bengio, 2018; with sine filters as in Pariente et al.,
2020), four bidirectional LSTM layers, two linear ones and a classifier. It reads the checkpoints pyannote.audio
publishes, both the multilabel ones (one sigmoid per speaker) and the powerset ones (Plaquet and Bredin, Interspeech
2023), and needs nothing but torch: pyannote.audio brings Lightning along, which takes seconds to import.
"""

from __future__ import annotations

import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.worker.device import limit_torch_threads
from whisper_api.errors import ModelCorrupt
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

__all__ = [
    "FRAME_START",
    "FRAME_STEP",
    "SAMPLE_RATE",
    "CheckpointSource",
    "Inert",
    "SegmentWindows",
    "SegmentationSource",
    "frame_count",
    "load_checkpoint",
    "load_segmentation",
]

FRAME_STEP = 270 / SAMPLE_RATE
"""Seconds between two output frames: the convolution's stride of 10 samples, then three poolings by 3."""
FRAME_START = 360.5 / SAMPLE_RATE
"""Seconds from a window's start to the left edge of its first frame; that frame is centred on sample 495."""

_SINC_LENGTH = 251
_SPEAKERS = 3
_LOCK = threading.Lock()


def frame_count(samples: int) -> int:
    """Frames that the network gives for ``samples`` samples at 16 kHz; 0 when they are too few for one."""
    length = (samples - _SINC_LENGTH) // 10 + 1
    for kernel in (1, 5, 5):
        length = (length - kernel + 1) // 3
    return max(0, length)


class Inert(dict[Any, Any]):
    """Stands for every class a checkpoint names that is no tensor: it keeps what it is given and runs nothing.

    Attributes:
        args: what the object was made from.
        state: what was to become its attributes.
    """

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any, **_kwargs: Any) -> None:
        super().__init__()
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: Any) -> None:
        """Take a list's item."""
        self[len(self)] = value

    def extend(self, values: Any) -> None:
        """Take a list's items."""
        for value in values:
            self.append(value)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a PyTorch checkpoint, on the CPU, without running anything the file asks for.

    Training frameworks pickle their own objects beside the weights. Each class that torch does not know as harmless is
    replaced by :class:`Inert`, so neither the packages they come from nor trust in the file is needed.

    Raises:
        ModelCorrupt: the file is not a checkpoint.
    """
    import torch

    try:
        with _LOCK:  # what is allowed is kept by torch per process
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            with torch.serialization.safe_globals([(Inert, name) for name in unknown]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelCorrupt(f"{path.name}: cannot be read as a PyTorch checkpoint of weights") from error
    if not isinstance(content, dict):
        raise ModelCorrupt(f"{path.name}: holds {type(content).__name__}, not a dictionary of weights")
    return content


def load_segmentation(path: Path) -> torch.nn.Module:
    """The segmentation network of a checkpoint, in eval mode, on the CPU.

    The network maps waveforms of shape (windows, samples) to activity of shape (windows, frames, 3) from 0 to 1.

    Raises:
        ModelCorrupt: the weights are not those of this architecture.
    """
    content = load_checkpoint(path)
    weights = content.get("state_dict", content)
    try:
        model = _network(len(weights["classifier.bias"]))
        model.load_state_dict(_renamed(weights))
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise ModelCorrupt(f"{path.name}: not a speaker segmentation model ({error})") from error
    return model.eval()


@dataclass(frozen=True)
class CheckpointSource(ABC):
    """A network in one checkpoint file, and where it runs.

    Attributes:
        path: the checkpoint.
        device: as torch names it.
    """

    path: str
    device: str

    @abstractmethod
    def network(self, path: Path) -> torch.nn.Module:
        """The network of the checkpoint, on the CPU.

        Raises:
            ModelCorrupt: the file holds something else.
        """

    def estimated_bytes(self) -> int:
        """The size of the weights."""
        return Path(self.path).stat().st_size

    def load(self) -> Any:
        """Load the network onto its device.

        Raises:
            ModelCorrupt: the file holds something else.
        """
        import torch

        limit_torch_threads()
        model = self.network(Path(self.path)).to(self.device)
        if self.device != "cpu":
            # The worker's threads run it on streams of their own, which do not wait for this one's.
            torch.cuda.synchronize(self.device)
        return model

    def unload(self, model: Any) -> None:
        """Give the device's memory back."""
        import torch

        model.to("meta")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class SegmentationSource(CheckpointSource):
    """The segmentation network."""

    def network(self, path: Path) -> torch.nn.Module:
        return load_segmentation(path)


@dataclass(frozen=True)
class SegmentWindows:
    """Run the segmentation: (samples,) windows of one length to (frames, speakers) activity, float16."""

    model: Any
    device: str

    max_cost = math.inf

    @property
    def max_items(self) -> int:
        """What fits a CPU's cache, or fills a GPU."""
        return 8 if self.device == "cpu" else 128

    @property
    def memory_key(self) -> Hashable:
        """What an out-of-memory limit is remembered under."""
        return ("segmentation", self.device)

    def run(self, inputs: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float16]]:
        """One result for each window."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(inputs)).to(self.device)
            return list(self.model(batch).half().cpu().numpy())


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published names as ours, the learned band edges of the first layer turned into its filters."""
    low, band = (weights[f"sincnet.conv1d.0.filterbank.{name}_hz_"] for name in ("low", "band"))
    ours = {"sinc": sinc_filters(low, band)}
    for name, value in weights.items():
        if ".filterbank." in name or not hasattr(value, "shape"):
            continue
        for theirs, new in (
            ("sincnet.wav_norm1d.", "input_norm."),
            ("sincnet.conv1d.1.", "convs.0."),
            ("sincnet.conv1d.2.", "convs.1."),
            ("sincnet.norm1d.", "norms."),
        ):
            name = name.replace(theirs, new)
        ours[name] = value
    return ours


def sinc_filters(low_hz: torch.Tensor, band_hz: torch.Tensor) -> torch.Tensor:
    """Band-pass filters of shape (80, 1, 251): 40 even (cosine) ones, then 40 odd (sine) ones over the same bands.

    Args:
        low_hz, band_hz: shape (40, 1), learned lower edges and widths, each on top of a minimum of 50 Hz.
    """
    import torch

    low = 50 + low_hz.double().abs()
    high = (low + 50 + band_hz.double().abs()).clamp(50, SAMPLE_RATE / 2)
    half = _SINC_LENGTH // 2
    time = torch.arange(-half, half + 1, dtype=torch.float64) / SAMPLE_RATE
    phase = 2 * math.pi * time
    phase[half] = 1.0
    window = torch.hamming_window(_SINC_LENGTH, periodic=False, dtype=torch.float64)
    even = 2 * (torch.sin(high * phase) - torch.sin(low * phase)) / phase * window
    odd = 2 * (torch.cos(low * phase) - torch.cos(high * phase)) / phase * window
    even[:, half] = 2 * (high - low)[:, 0]
    odd[:, half] = 0.0
    return (torch.cat([even, odd]) / (2 * (high - low)).repeat(2, 1)).unsqueeze(1).float()


def _network(outputs: int) -> torch.nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional

    powerset = outputs > _SPEAKERS
    subsets = [subset for size in range(3) for subset in itertools.combinations(range(_SPEAKERS), size)]
    if powerset and outputs != len(subsets):
        raise ValueError(f"{outputs} classes; known are {_SPEAKERS} speakers and {len(subsets)} subsets of them")

    class Segmentation(nn.Module):
        sinc: torch.Tensor
        members: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.input_norm = nn.InstanceNorm1d(1, affine=True)
            self.register_buffer("sinc", torch.zeros(80, 1, _SINC_LENGTH))
            self.convs = nn.ModuleList([nn.Conv1d(80, 60, 5), nn.Conv1d(60, 60, 5)])
            self.norms = nn.ModuleList(nn.InstanceNorm1d(channels, affine=True) for channels in (80, 60, 60))
            self.lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
            self.linear = nn.ModuleList([nn.Linear(256, 128), nn.Linear(128, 128)])
            self.classifier = nn.Linear(128, outputs)
            members = torch.tensor([[float(s in subset) for s in range(_SPEAKERS)] for subset in subsets])
            self.register_buffer("members", members, persistent=False)

        def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
            x = functional.conv1d(self.input_norm(waveforms.unsqueeze(1)), self.sinc, stride=10).abs()
            x = functional.leaky_relu(self.norms[0](functional.max_pool1d(x, 3)))
            for conv, norm in zip(self.convs, list(self.norms)[1:], strict=True):
                x = functional.leaky_relu(norm(functional.max_pool1d(conv(x), 3)))
            x, _ = self.lstm(x.transpose(1, 2))
            for linear in self.linear:
                x = functional.leaky_relu(linear(x))
            x = self.classifier(x)
            activity: torch.Tensor = x.softmax(dim=-1) @ self.members if powerset else x.sigmoid()
            return activity

    return Segmentation()
