"""Speaker segmentation: which of at most three local speakers is active when, inside one short window.

This implements the network of Bredin and Laurent, "End-to-end speaker segmentation for overlap-aware
resegmentation" (Interspeech 2021): a SincNet (Ravanelli and Bengio, 2018; with sine filters as in Pariente et al.,
2020), four bidirectional LSTM layers, two linear layers and a classifier. It reads the checkpoints that pyannote.audio
publishes: multilabel (one sigmoid per speaker) and powerset (Plaquet and Bredin, Interspeech 2023). It needs only
torch, while pyannote.audio imports Lightning, which takes seconds.
"""

from __future__ import annotations

import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.audio.device_copies import COPIES
from whisper_api.engine.worker.device import limit_torch_threads, release_cached_memory
from whisper_api.errors import ModelCorrupt
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

FRAME_STEP = 270 / SAMPLE_RATE
"""Seconds between two output frames: the convolution's stride of 10 samples, then three poolings by 3."""
FRAME_START = 360.5 / SAMPLE_RATE
"""Seconds from a window's start to the left edge of its first frame; that frame is centred on sample 495."""
LOCAL_SPEAKERS = 3
"""Speakers that a window can hold."""

_SINC_LENGTH = 251
_LOCK = threading.Lock()


def frame_count(samples: int) -> int:
    """Frames that the network returns for so many samples at 16 kHz; 0 when they are too few for one frame."""
    length = (samples - _SINC_LENGTH) // 10 + 1
    for kernel in (1, 5, 5):
        length = (length - kernel + 1) // 3
    return max(0, length)


class IgnoredObject(dict[Any, Any]):
    """Replaces every class of a checkpoint that torch does not trust. It keeps the pickled values and runs no code.

    Attributes:
        args: arguments of the object's constructor.
        state: the object's attributes.
    """

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any, **_kwargs: Any) -> None:
        super().__init__()
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: Any) -> None:
        self[len(self)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a PyTorch checkpoint to the CPU without running code from the file.

    Training frameworks pickle their own objects beside the weights. :class:`IgnoredObject` replaces each class that
    torch does not trust, so the file may come from anywhere and the framework need not be installed.

    Raises:
        ModelCorrupt: the file is not a checkpoint.
    """
    import torch

    try:
        with _LOCK:  # torch keeps the allowed classes per process
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            with torch.serialization.safe_globals([(IgnoredObject, name) for name in unknown]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelCorrupt(f"{path.name}: cannot be read as a PyTorch checkpoint of weights") from error
    if not isinstance(content, dict):
        raise ModelCorrupt(f"{path.name}: holds {type(content).__name__}, not a dictionary of weights")
    return content


def load_network(
    path: Path, network: torch.nn.Module, what: str, renamed: Callable[[str], str] = str
) -> torch.nn.Module:
    """Fill a network with the weights of a checkpoint, in eval mode, on the CPU.

    Args:
        path: the checkpoint.
        network: the network, without weights.
        what: the name of its architecture, for the error.
        renamed: returns the name of a tensor in the network from its published name.

    Raises:
        ModelCorrupt: the weights are not those of this architecture.
    """
    weights = load_checkpoint(path)
    try:
        network.load_state_dict({renamed(name): value for name, value in weights.items()})
    except (RuntimeError, AttributeError) as error:
        raise ModelCorrupt(f"{path.name}: not {what} ({error})") from error
    return network.eval()


def load_segmentation(path: Path) -> torch.nn.Module:
    """Load the segmentation network of a checkpoint, in eval mode, on the CPU.

    The network maps waveforms of shape (windows, samples) to probabilities of shape (windows, frames, 3).

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
    """A network that is loaded from one checkpoint file.

    Attributes:
        path: the checkpoint.
        device: torch's name of the device.
    """

    path: str
    device: str

    @abstractmethod
    def network(self, path: Path) -> torch.nn.Module:
        """Load the network to the CPU.

        Raises:
            ModelCorrupt: the file does not hold this network.
        """

    def estimated_bytes(self) -> int:
        """Size of the weights."""
        return Path(self.path).stat().st_size

    def load(self) -> Any:
        """Load the network to its device.

        Raises:
            ModelCorrupt: the file does not hold this network.
        """
        import torch

        limit_torch_threads()
        model = self.network(Path(self.path)).to(self.device)
        if self.device != "cpu":
            # The worker's threads use streams of their own, which do not wait for the copy on this stream.
            torch.cuda.synchronize(self.device)
        return model

    def unload(self, model: Any) -> None:
        """Free the memory of the device."""
        model.to("meta")
        release_cached_memory()


@dataclass(frozen=True)
class SegmentationSource(CheckpointSource):
    """Loads the segmentation network."""

    def network(self, path: Path) -> torch.nn.Module:
        return load_segmentation(path)


@dataclass(frozen=True)
class SegmentWindows:
    """Work item: windows of equal length, (samples,), to probabilities, (frames, local speakers), float16."""

    model: Any
    device: str

    max_cost = math.inf

    @property
    def max_items(self) -> int:
        """As many windows as fit a CPU's cache, or fill a GPU."""
        return 8 if self.device == "cpu" else 128

    @property
    def memory_key(self) -> Hashable:
        """Key under which the worker keeps the batch size that fits the memory."""
        return ("segmentation", self.device)

    def run(self, inputs: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float16]]:
        import torch

        with torch.inference_mode():
            batch = torch.stack([COPIES.tensor(each, self.device) for each in inputs])
            return list(self.model(batch).half().cpu().numpy())


def whole_window(window: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """A window padded with silence to a number of samples; the same array, and no copy, when it is so long."""
    return window if len(window) == size else np.pad(window, (0, size - len(window)))


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the published weights, and compute the filters of the first layer from its learned band edges."""
    low, band = (weights[f"sincnet.conv1d.0.filterbank.{name}_hz_"] for name in ("low", "band"))
    renamed = {"sinc": sinc_filters(low, band)}
    for name, value in weights.items():
        if ".filterbank." in name or not hasattr(value, "shape"):
            continue
        for published, new in (
            ("sincnet.wav_norm1d.", "input_norm."),
            ("sincnet.conv1d.1.", "convs.0."),
            ("sincnet.conv1d.2.", "convs.1."),
            ("sincnet.norm1d.", "norms."),
        ):
            name = name.replace(published, new)
        renamed[name] = value
    return renamed


def sinc_filters(low_hz: torch.Tensor, band_hz: torch.Tensor) -> torch.Tensor:
    """Band-pass filters of shape (80, 1, 251): 40 even (cosine) filters, then 40 odd (sine) filters of the same bands.

    Args:
        low_hz: shape (40, 1): the learned lower edge of each band, less 50 Hz.
        band_hz: shape (40, 1): the learned width of each band, less 50 Hz.
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

    powerset = outputs > LOCAL_SPEAKERS
    subsets = [subset for size in range(3) for subset in itertools.combinations(range(LOCAL_SPEAKERS), size)]
    if powerset and outputs != len(subsets):
        raise ValueError(f"{outputs} classes; expected {LOCAL_SPEAKERS} speakers or {len(subsets)} subsets of them")

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
            members = torch.tensor([[float(s in subset) for s in range(LOCAL_SPEAKERS)] for subset in subsets])
            self.register_buffer("members", members, persistent=False)

        def forward(self, waveforms: torch.Tensor) -> Any:
            x = functional.conv1d(self.input_norm(waveforms.unsqueeze(1)), self.sinc, stride=10).abs()
            x = functional.leaky_relu(self.norms[0](functional.max_pool1d(x, 3)))
            for conv, norm in zip(self.convs, list(self.norms)[1:], strict=True):
                x = functional.leaky_relu(norm(functional.max_pool1d(conv(x), 3)))
            x, _ = self.lstm(x.transpose(1, 2))
            for linear in self.linear:
                x = functional.leaky_relu(linear(x))
            x = self.classifier(x)
            return x.softmax(dim=-1) @ self.members if powerset else x.sigmoid()

    return Segmentation()
