"""Whisper's encoder (Radford et al., 2022) in torch, for a GPU whose decoder CTranslate2 runs, and when it is used.

CTranslate2 writes the attention matrices of a batch to memory and reads them again. Here one kernel computes each
attention without them (Dao et al., "FlashAttention", 2022), and windows pass through the layers a few at a time, so the
memory of a batch grows by little more than the encoder's output.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from whisper_api.engine.whisper.ct2_file import read_shapes, read_weights
from whisper_api.engine.worker.device import release_cached_memory
from whisper_api.engine.worker.device_errors import clear_frames, first_line, kind_of
from whisper_api.errors import ModelCorrupt

if TYPE_CHECKING:
    import torch

    from whisper_api.engine.whisper.onnx.whisper_graphs import Shape

log = logging.getLogger(__name__)

# Number of windows that pass through the layers together. Eight windows of 30 s fill the largest GPU.
AT_ONCE = 8
PREFIX = "encoder/"


@dataclass(frozen=True, eq=False)
class TorchEncoder:
    """The encoder. Any number of threads may call it.

    Attributes:
        shape: the model's dimensions.
        tensors: the weights, by CTranslate2's names without ``encoder/``, all of one type on one device.
    """

    shape: Shape
    tensors: dict[str, torch.Tensor]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Encode windows.

        Args:
            features: log-mel features, shape (windows, mels, frames), on the device of the weights.

        Returns:
            Shape (windows, positions, width), contiguous, complete for every stream; of the type of the weights, or
            float32 for bfloat16, which CTranslate2 takes from no other library but converts to without a loss.
        """
        import torch

        like = self.tensors["position_encodings/encodings"]
        dtype = torch.float32 if like.dtype == torch.bfloat16 else like.dtype
        windows, _, frames = features.shape
        encoded = torch.empty(windows, (frames + 1) // 2, self.shape.width, dtype=dtype, device=like.device)
        with torch.inference_mode():
            for first in range(0, windows, AT_ONCE):
                rows = slice(first, first + AT_ONCE)
                encoded[rows] = self._encode(features[rows].to(like.dtype))
        return completed(encoded)

    def _encode(self, features: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import conv1d, gelu

        weights = self.tensors
        x = gelu(conv1d(features, weights["conv1/weight"], weights["conv1/bias"], padding=1))
        x = gelu(conv1d(x, weights["conv2/weight"], weights["conv2/bias"], stride=2, padding=1))
        x = x.transpose(1, 2) + weights["position_encodings/encodings"][: x.shape[2]]
        for layer in range(self.shape.encoder_layers):
            x = x + self._attended(f"layer_{layer}/self_attention", x)
            x = x + self._fed_forward(f"layer_{layer}/ffn", x)
        return self._normed("", x)

    def _fed_forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import gelu

        return self._linear(f"{name}/linear_1", gelu(self._linear(f"{name}/linear_0", self._normed(name, x))))

    def _attended(self, name: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import scaled_dot_product_attention

        windows, positions, width = x.shape
        joined = self._linear(f"{name}/linear_0", self._normed(name, x)).view(
            windows, positions, 3, self.shape.heads, -1
        )
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        found = scaled_dot_product_attention(query, key, value)
        return self._linear(f"{name}/linear_1", found.transpose(1, 2).reshape(windows, positions, width))

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import linear

        return linear(x, self.tensors[f"{name}/weight"], self.tensors[f"{name}/bias"])

    def _normed(self, name: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import layer_norm

        gain, bias = (self.tensors[f"{name}/layer_norm/{part}".lstrip("/")] for part in ("gamma", "beta"))
        return layer_norm(x, (self.shape.width,), gain, bias)


def completed(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, when it is complete: CTranslate2's and other threads' streams do not wait for this one."""
    import torch

    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    return tensor


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of an encoder, by CTranslate2's names without ``encoder/``.

    Args:
        shape: the model's dimensions.
    """
    width = shape.width
    shapes: dict[str, tuple[int, ...]] = {
        "conv1/weight": (width, shape.mels, 3),
        "conv1/bias": (width,),
        "conv2/weight": (width, width, 3),
        "conv2/bias": (width,),
        "position_encodings/encodings": (shape.positions, width),
    }
    linears = {"self_attention": ((3 * width, width), (width, width)), "ffn": ((4 * width, width), (width, 4 * width))}
    norms = [""]
    for layer in range(shape.encoder_layers):
        for part, sides in linears.items():
            name = f"layer_{layer}/{part}"
            norms.append(f"{name}/")
            for number, (outputs, inputs) in enumerate(sides):
                shapes[f"{name}/linear_{number}/weight"] = (outputs, inputs)
                shapes[f"{name}/linear_{number}/bias"] = (outputs,)
    for name in norms:
        shapes[f"{name}layer_norm/gamma"] = shapes[f"{name}layer_norm/beta"] = (width,)
    return shapes


def encoder_bytes(path: Path, size: int) -> int:
    """Bytes of an encoder's weights in memory.

    Args:
        path: a ``model.bin`` of CTranslate2, of which only the names and shapes are read.
        size: bytes of a number.

    Raises:
        ModelCorrupt: the file is not a CTranslate2 model, or is truncated.
    """
    return size * _numbers(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _numbers(path: Path, changed: int) -> int:
    """How many numbers an encoder has. Kept until the file changes, because every job asks."""
    arrays = {name: value for name, value in read_shapes(path).items() if name.startswith(PREFIX) and value.ndim}
    return sum(value.size for name, value in arrays.items() if not name.endswith("_scale"))


def load_encoder(path: Path, shape: Shape, device: str, dtype: str) -> TorchEncoder:
    """Read an encoder from a ``model.bin`` of CTranslate2.

    Args:
        path: the file. Weights in int8 are dequantised.
        shape: the model's dimensions.
        device: torch's name of the device.
        dtype: ``float16``, ``bfloat16`` or ``float32``.

    Raises:
        ModelCorrupt: the file does not contain such an encoder.
    """
    import torch

    arrays = read_weights(path, PREFIX)
    tensors = {}
    for name, sides in tensor_shapes(shape).items():
        array = arrays.get(PREFIX + name)
        if array is None or array.shape != sides:
            found = "missing" if array is None else f"of shape {array.shape}"
            raise ModelCorrupt(f"{path}: the encoder's {name} is {found}; expected {sides}")
        tensors[name] = torch.tensor(array).to(device=device, dtype=getattr(torch, dtype))
    if torch.device(device).type == "cuda":
        # The worker's threads use other CUDA streams, which do not wait for this thread's stream.
        torch.cuda.synchronize(device)
    return TorchEncoder(shape, tensors)


ENCODERS = ("auto", "torch", "ctranslate2")
# The greatest difference between the two encoders, as a fraction of the output's size. With Whisper base it is 0.00001
# in float32, 0.03 in bfloat16 and 0.1 where CTranslate2 computes in int8. A wrong matrix makes it 0.3 or more.
TOLERANCE = 0.2
# The weights may take this part of the memory that is free beside CTranslate2's model, which keeps its own encoder.
MEMORY_FACTOR = 4


@dataclass(frozen=True)
class EncoderChoice:
    """The encoder of a model.

    Attributes:
        in_torch: torch's; None for CTranslate2's own.
        reason: why, in a few words.
    """

    in_torch: TorchEncoder | None
    reason: str

    @property
    def name(self) -> Literal["torch", "ctranslate2"]:
        """The name of the encoder in the configuration."""
        return "ctranslate2" if self.in_torch is None else "torch"

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def compared(
    load: Callable[[], TorchEncoder],
    reference: Callable[[torch.Tensor], torch.Tensor],
    features: Callable[[], torch.Tensor],
    size: int,
    free: int | None,
) -> EncoderChoice:
    """Torch's encoder, if there is memory for it and it gives what CTranslate2's encoder gives; else CTranslate2's.

    Args:
        load: loads torch's encoder.
        reference: CTranslate2's output for features, on the device.
        features: makes the features of a few windows, on the device.
        size: bytes of the weights of torch's encoder.
        free: free bytes of the device; None when unknown.

    Raises:
        RuntimeError: the device is lost.
    """
    if free is not None and size * MEMORY_FACTOR > free:
        return _decided(None, "torch's weights would take too much of the free memory", logging.INFO)
    try:
        given = features()
        encoder = load()
        expected = reference(given).float()
        error = float((encoder(given).float() - expected).norm() / expected.norm())
    except Exception as problem:
        if kind_of(problem) == "sticky":
            raise
        failure = problem
    else:
        # A NaN is no agreement.
        if error <= TOLERANCE:
            return _decided(encoder, f"differs from CTranslate2's by {error:.1g} on speech", logging.INFO)
        return _decided(None, f"torch's differs by {error:.2f} on speech", logging.WARNING)
    log.warning("Whisper's encoder in torch cannot be used: %s", first_line(failure))
    # Outside of the handler, whose error holds what was loaded so far.
    clear_frames(failure)
    release_cached_memory()
    return _decided(None, "torch's cannot be used; the log says why", logging.WARNING)


def _decided(encoder: TorchEncoder | None, reason: str, level: int) -> EncoderChoice:
    choice = EncoderChoice(encoder, reason)
    log.log(level, "Whisper's encoder runs in %s", choice)
    return choice
