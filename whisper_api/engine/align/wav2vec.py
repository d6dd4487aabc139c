"""Wav2vec 2.0 (Baevski et al., 2020) in bfloat16 on a CPU: torchaudio's and transformers' network in larger steps.

A strided convolution over (frames, channels) is a matrix product with overlapping rows. So the whole network except the
positional convolution consists of products with weights that were packed when the model was loaded. The products also
apply GELU and residual sums when they write their results. The stack of convolutions runs over short blocks of frames,
which stay in the processor's cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whisper_api.engine.worker import idle_cores

if TYPE_CHECKING:
    import torch

# Number of frames of the convolutions' output that are computed together.
_BLOCK = 50
# Number of rows of an attention matrix that are computed together.
_ROWS = 256


class _Linear:
    """A matrix product with packed weights and a fused activation."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none") -> None:
        import torch

        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous())
        self.bias = None if bias is None else bias.detach().bfloat16()
        self.activation = activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")
        return y

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual`` plus the product."""
        import torch

        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return y


class _Norm:
    """Layer normalisation over the channels."""

    def __init__(self, module: Any) -> None:
        self.shape, self.eps = tuple(module.normalized_shape), module.eps
        self.weight, self.bias = module.weight.detach().bfloat16(), module.bias.detach().bfloat16()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.nn.functional.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class _FirstConvolution:
    """The convolution over samples, in float32.

    When its output is normalised over time (one group for each channel), the output's mean and variance follow from the
    mean and covariance of its input windows, so the normalisation becomes part of the weights.
    """

    def __init__(self, conv: Any, norm: Any) -> None:
        import torch

        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.weight = conv.weight.detach().float()[:, 0]
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.over_time: tuple[torch.Tensor, torch.Tensor, float] | None = None
        self.over_channels: _Norm | None = None
        if isinstance(norm, torch.nn.GroupNorm):
            self.over_time = norm.weight.detach().double(), norm.bias.detach().double(), norm.eps
        elif norm is not None:
            self.over_channels = _Norm(norm)

    def windows(self, waveform: torch.Tensor, first: int, count: int) -> torch.Tensor:
        return waveform.as_strided(
            (count, self.kernel), (self.stride, 1), waveform.storage_offset() + first * self.stride
        )

    def weights(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias for one waveform."""
        if self.over_time is None:
            return self.weight, self.bias
        gain, offset, eps = self.over_time
        windows = self.windows(waveform, 0, (len(waveform) - self.kernel) // self.stride + 1).double()
        mean = windows.mean(dim=0)
        windows -= mean
        covariance = windows.T @ windows / len(windows)
        weight = self.weight.double()
        variance = ((weight @ covariance) * weight).sum(dim=1)
        scale = gain / (variance + eps).sqrt()
        # The normalisation removes a bias of the convolution.
        return (weight * scale[:, None]).float(), (offset - weight @ mean * scale).float()

    def __call__(self, windows: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        import torch

        activation = "none" if self.over_channels else "gelu"
        y = torch.ops.mkldnn._linear_pointwise(windows, *weights, activation, [], "none").bfloat16()
        return torch.nn.functional.gelu(self.over_channels(y)) if self.over_channels else y


class _Convolution:
    """A convolution after the first."""

    def __init__(self, conv: Any, norm: Any) -> None:
        self.kernel, self.stride, self.channels = conv.kernel_size[0], conv.stride[0], conv.in_channels
        weight = conv.weight.detach().permute(0, 2, 1).flatten(1)
        self.norm = None if norm is None else _Norm(norm)
        self.linear = _Linear(weight, conv.bias, "none" if self.norm else "gelu")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        count = (len(x) - self.kernel) // self.stride + 1
        y = self.linear(x.as_strided((count, self.kernel * self.channels), (self.stride * self.channels, 1)))
        return torch.nn.functional.gelu(self.norm(y)) if self.norm else y


class _Positions:
    """The grouped convolution that gives the transformer relative positions; its weights are normalised once."""

    def __init__(self, conv: Any) -> None:
        import torch

        self.kernel, self.groups = conv.kernel_size[0], conv.groups
        self.bias = conv.bias.detach().bfloat16()
        weight = conv.weight.detach().bfloat16().unsqueeze(2)
        sides = ([0, self.kernel // 2], [1, 1], [1, 1], self.groups)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *sides, [1, conv.in_channels, 1, 512])
        self.sides = sides

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        image = x.T[None, :, None]
        y = torch.ops.mkldnn._convolution_pointwise(image, self.weight, self.bias, *self.sides, "gelu", [], "none")
        frames: torch.Tensor = y[0, :, 0, : len(x)].T.contiguous()
        return frames


class _Layer:
    """Self-attention and two linear layers, each with a residual sum and a normalisation before or after it."""

    def __init__(self, layer: Any, norm_first: bool) -> None:
        import torch

        attention, forward = layer.attention, layer.feed_forward
        query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
        self.heads, self.norm_first = attention.num_heads, norm_first
        # exp2 is faster than exp, and a factor in the weights costs nothing.
        scale = (query.out_features // self.heads) ** -0.5 * math.log2(math.e)
        weights = [query.weight * scale, key.weight, value.weight]
        self.input = _Linear(torch.cat(weights), torch.cat([query.bias * scale, key.bias, value.bias]))
        self.output = _Linear(attention.out_proj.weight, attention.out_proj.bias)
        self.wide = _Linear(forward.intermediate_dense.weight, forward.intermediate_dense.bias, "gelu")
        self.narrow = _Linear(forward.output_dense.weight, forward.output_dense.bias)
        self.norm, self.final_norm = _Norm(layer.layer_norm), _Norm(layer.final_layer_norm)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm_first:
            x = self.output.add(_attend(self.input(self.norm(x)), self.heads), x)
            return self.narrow.add(self.wide(self.final_norm(x)), x)
        x = self.norm(self.output.add(_attend(self.input(x), self.heads), x))
        return self.final_norm(self.narrow.add(self.wide(x), x))


def _attend(joined: torch.Tensor, heads: int) -> torch.Tensor:
    """Self-attention.

    Args:
        joined: shape (frames, 3 * width): queries, keys and values; the queries include the scale and log2(e).
        heads: number of heads.

    Returns:
        Shape (frames, width).
    """
    import torch

    frames, width = len(joined), joined.shape[1] // 3
    size = width // heads
    result = torch.empty(frames, width, dtype=joined.dtype)
    products = torch.empty(min(frames, _ROWS), frames, dtype=joined.dtype)
    powers = torch.empty(products.shape, dtype=torch.float32)
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        query, key, value = (part[:, columns] for part in joined.chunk(3, dim=1))
        for first in range(0, frames, _ROWS):
            rows = slice(first, min(first + _ROWS, frames))
            scores, weights = products[: rows.stop - first], powers[: rows.stop - first]
            torch.mm(query[rows], key.T, out=scores)
            weights.copy_(scores)
            weights.sub_(weights.amax(dim=1, keepdim=True)).exp2_()
            scores.copy_(weights)
            result[rows, columns] = torch.mm(scores, value) / weights.sum(dim=1, keepdim=True)
    return result


@dataclass(frozen=True, eq=False)
class Wav2Vec:
    """The network, made by :func:`convert`. Any number of threads may call it."""

    first: _FirstConvolution
    convolutions: list[_Convolution]
    feature_norm: _Norm
    projection: _Linear
    positions: _Positions
    norm: _Norm
    norm_first: bool
    layers: list[_Layer]
    labels: _Linear

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Args:
            waveform: float32, shape (samples,), 16 kHz; long enough for a frame.

        Returns:
            Logits: bfloat16, shape (frames, labels).
        """
        x = self.projection(self.feature_norm(self._features(waveform)))
        x = x + self.positions(x)
        if not self.norm_first:
            x = self.norm(x)
        for layer in self.layers:
            idle_cores.adjust()
            x = layer(x)
        return self.labels(self.norm(x) if self.norm_first else x)

    def _features(self, waveform: torch.Tensor) -> torch.Tensor:
        import torch

        weights = self.first.weights(waveform)
        frames, step, reach = (len(waveform) - self.first.kernel) // self.first.stride + 1, 1, 1
        for conv in self.convolutions:
            frames = (frames - conv.kernel) // conv.stride + 1
            reach += (conv.kernel - 1) * step
            step *= conv.stride
        blocks = []
        for begin in range(0, frames, _BLOCK):
            idle_cores.adjust()
            count = min(_BLOCK, frames - begin)
            x = self.first(self.first.windows(waveform, begin * step, (count - 1) * step + reach), weights)
            for conv in self.convolutions:
                x = conv(x)
            blocks.append(x)
        return torch.cat(blocks)


def convert(network: Any) -> Wav2Vec | None:
    """Convert a network to packed bfloat16 weights; None when the network has an unknown part.

    Args:
        network: torchaudio's ``Wav2Vec2Model`` with a linear layer for labels, or transformers' ``Wav2Vec2ForCTC``.
    """
    import torch

    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch._C._has_mkldnn:
        return None
    with torch.no_grad():
        return _from_hub(network) if hasattr(network, "config") else _from_torchaudio(network)


def _from_torchaudio(network: Any) -> Wav2Vec | None:
    if not hasattr(network, "feature_extractor") or network.aux is None:
        return None
    encoder = network.encoder.transformer
    # torchaudio's transformer normalises before its layers exactly when the layers normalise after their parts.
    norm_first = not encoder.layer_norm_first
    return _assembled(network.feature_extractor, network.encoder.feature_projection, encoder, norm_first, network.aux)


def _from_hub(network: Any) -> Wav2Vec | None:
    config = network.config
    activations = {config.feat_extract_activation, config.hidden_act}
    if config.model_type != "wav2vec2" or config.add_adapter or activations != {"gelu"}:
        return None
    if getattr(config, "adapter_attn_dim", None) is not None:
        return None
    parts, norm_first = network.wav2vec2, config.do_stable_layer_norm
    return _assembled(parts.feature_extractor, parts.feature_projection, parts.encoder, norm_first, network.lm_head)


def _assembled(features: Any, projection: Any, encoder: Any, norm_first: bool, labels: Any) -> Wav2Vec:
    """Assemble the network from its parts, which have the same attributes in both libraries."""
    first, *further = features.conv_layers
    return Wav2Vec(
        _FirstConvolution(first.conv, getattr(first, "layer_norm", None)),
        [_Convolution(layer.conv, getattr(layer, "layer_norm", None)) for layer in further],
        _Norm(projection.layer_norm),
        _Linear(projection.projection.weight, projection.projection.bias),
        _Positions(encoder.pos_conv_embed.conv),
        _Norm(encoder.layer_norm),
        norm_first,
        [_Layer(layer, norm_first) for layer in encoder.layers],
        _Linear(labels.weight, labels.bias),
    )
