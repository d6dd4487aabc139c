"""Whisper (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022) as three ONNX graphs.

``encoder`` computes the encoder's output from features. ``memory`` computes the keys and values of cross-attention from
that output, for every decoder layer. ``decoder`` computes the logits of new tokens, with a cache of earlier tokens.

The decoder's cache is a pool that only grows and contains the entries of all hypotheses of a window. A mask gives the
entries that each row attends to. So a beam search never moves cache entries, and the prompt is in the pool once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.whisper.onnx.graph import RUNTIME, ZERO_POINT, Graph

Weights = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Whisper model.

    Attributes:
        mels: number of mel bands.
        width: length of a hidden vector.
        heads: number of attention heads.
        encoder_layers, decoder_layers: number of layers.
        positions: number of encoder positions for 30 s.
        context: largest number of tokens in the decoder.
        vocabulary: number of tokens.
    """

    mels: int
    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    positions: int
    context: int
    vocabulary: int

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def shape_of(weights: Weights) -> Shape:
    """The dimensions of a model from its weights, by CTranslate2's names.

    Raises:
        KeyError: the weights do not belong to a Whisper model.
    """
    width, mels, _ = weights["encoder/conv1/weight"].shape
    vocabulary, _ = weights["decoder/embeddings/weight"].shape
    return Shape(
        mels=mels,
        width=width,
        heads=int(weights["encoder/num_heads"]),
        encoder_layers=_layers(weights, "encoder"),
        decoder_layers=_layers(weights, "decoder"),
        positions=weights["encoder/position_encodings/encodings"].shape[0],
        context=weights["decoder/position_encodings/encodings"].shape[0],
        vocabulary=vocabulary,
    )


def save_graphs(weights: Weights, alignment_heads: Sequence[tuple[int, int]], directory: Path, *, int8: bool) -> None:
    """Write ``encoder.onnx``, ``memory.onnx`` and ``decoder.onnx``.

    Args:
        weights: the model's weights, by CTranslate2's names.
        alignment_heads: layer and head of each cross-attention that the decoder outputs.
        directory: the existing target directory.
        int8: True for weights in int8, False for float32.
    """
    shape = shape_of(weights)
    _encoder(weights, shape, int8=int8).save(directory / "encoder.onnx")
    _memory(weights, shape, int8=int8).save(directory / "memory.onnx")
    _decoder(weights, shape, alignment_heads, int8=int8).save(directory / "decoder.onnx")


def _encoder(weights: Weights, shape: Shape, *, int8: bool) -> Graph:
    graph = Graph("encoder", int8=int8)
    x = graph.input("features", (1, shape.mels, "frames"))
    for name, stride in (("conv1", 1), ("conv2", 2)):
        kernel, bias = (graph.weight(_floats(weights[f"encoder/{name}/{part}"])) for part in ("weight", "bias"))
        x = graph.op("Gelu", graph.op("Conv", x, kernel, bias, pads=[1, 1], strides=[stride]))
    x = graph.reshape(graph.transpose(x, 0, 2, 1), -1, shape.width)
    count = graph.op("Shape", x, start=0, end=1)
    positions = graph.weight(_floats(weights["encoder/position_encodings/encodings"]))
    x = graph.op("Add", x, graph.op("Slice", positions, graph.constant(0), count, graph.constant(0)))
    for layer in range(shape.encoder_layers):
        at = f"encoder/layer_{layer}"
        h = _norm(graph, weights, f"{at}/self_attention", x)
        q, k, v = (
            graph.op("Unsqueeze", _part(graph, weights, f"{at}/self_attention/linear_0", h, i, 3), graph.constant(0))
            for i in range(3)
        )
        h = graph.op("MultiHeadAttention", q, k, v, domain=RUNTIME, num_heads=shape.heads)
        h = graph.reshape(h, -1, shape.width)
        x = graph.op("Add", x, _linear(graph, weights, f"{at}/self_attention/linear_1", h))
        x = _feed_forward(graph, weights, f"{at}/ffn", x)
    graph.output(_norm(graph, weights, "encoder", x), "encoded", ("positions", shape.width))
    return graph


def _memory(weights: Weights, shape: Shape, *, int8: bool) -> Graph:
    graph = Graph("memory", int8=int8)
    heads, size = shape.heads, shape.head_width
    x = graph.input("encoded", ("positions", shape.width))
    for layer in range(shape.decoder_layers):
        name = f"decoder/layer_{layer}/attention/linear_1"
        k, v = (graph.reshape(_part(graph, weights, name, x, i, 2), 1, -1, heads, size) for i in range(2))
        k, v = graph.transpose(k, 0, 2, 1, 3), graph.transpose(v, 0, 2, 1, 3)
        if int8:
            # The decoder reads keys and values at every step, so a quarter of the bytes saves much of the time.
            scale = _scale(graph, k, 3)
            k = graph.op("QuantizeLinear", graph.op("Div", k, scale), graph.number(1.0), graph.zero_point(ZERO_POINT))
            graph.output(graph.transpose(scale, 0, 1, 3, 2), f"key_scale_{layer}", (1, heads, 1, "positions"))
            scale = _scale(graph, v, 2)
            v = graph.op("Cast", _with_ones(graph, graph.op("Round", graph.op("Div", v, scale))), to=3)
            graph.output(scale, f"value_scale_{layer}", (1, heads, 1, size))
        else:
            v = _with_ones(graph, v)
        key_kind, value_kind = ("UINT8", "INT8") if int8 else ("FLOAT", "FLOAT")
        graph.output(k, f"key_{layer}", (1, heads, "positions", size), key_kind)
        graph.output(v, f"value_{layer}", (1, heads, "positions", size + 1), value_kind)
    return graph


def _with_ones(graph: Graph, values: str) -> str:
    """Append a column of ones to the values, so that attention's product also contains the sum of its weights.

    Such a sum does not depend on the number of zeros that follow, so a window's result is the same to the last bit in
    every batch.
    """
    return graph.op("Pad", values, graph.constant(0, 0, 0, 0, 0, 0, 0, 1), graph.number(1.0))


def _normalized(graph: Graph, product: str, size: int) -> tuple[str, str]:
    """Divide attention's product by the sum of the weights, its last column. Returns the quotient and the sum."""
    product, total = graph.split("Split", product, graph.constant(size, 1), results=2, axis=3)
    return graph.op("Div", product, total), total


def _scale(graph: Graph, x: str, axis: int) -> str:
    """The divisor that brings the values along an axis into the range from -127 to 127."""
    peak = graph.op("ReduceMax", graph.op("Abs", x), graph.constant(axis), keepdims=1)
    return graph.op("Max", graph.op("Mul", peak, graph.number(1 / 127)), graph.number(1e-12))


def _decoder(weights: Weights, shape: Shape, alignment_heads: Sequence[tuple[int, int]], *, int8: bool) -> Graph:
    """The decoder of several windows with the same number of rows each: one read of the matrices serves all windows."""
    graph = Graph("decoder", int8=int8)
    heads, size = shape.heads, shape.head_width
    x = graph.input("embedded", ("all_rows", shape.width))
    # (windows, rows, heads, head width)
    grid = graph.input("grid", (4,), "INT64")
    mask = graph.input("mask", ("windows", 1, "rows", "visible"))
    memory_mask = graph.input("memory_mask", ("windows", 1, 1, "positions"))
    # (windows, heads, rows, positions)
    score_shape = graph.input("score_shape", (4,), "INT64")
    # Attention to the pool and to the new entries is computed separately: a concatenation would copy the pool.
    old_mask, new_mask = graph.split("Split", mask, graph.input("sizes", (2,), "INT64"), results=2, axis=3)
    attended = []
    for layer in range(shape.decoder_layers):
        at = f"decoder/layer_{layer}"
        keys = graph.input(f"pool_key_{layer}", ("windows", heads, size, "pool"))
        values = graph.input(f"pool_value_{layer}", ("windows", heads, "pool", size + 1))
        h = _norm(graph, weights, f"{at}/self_attention", x)
        h = _scaled_query(graph, weights, f"{at}/self_attention/linear_0", h, shape, 3)
        parts = graph.split("Split", h, results=3, axis=1, num_outputs=3)
        q, k, v = (graph.op("Reshape", part, grid) for part in parts)
        q, k, v = graph.transpose(q, 0, 2, 1, 3), graph.transpose(k, 0, 2, 3, 1), graph.transpose(v, 0, 2, 1, 3)
        graph.output(k, f"new_key_{layer}", ("windows", heads, size, "rows"))
        v = _with_ones(graph, v)
        graph.output(v, f"new_value_{layer}", ("windows", heads, "rows", size + 1))
        old = graph.op("Add", graph.op("MatMul", q, keys), old_mask)
        new = graph.op("Add", graph.op("MatMul", q, k), new_mask)
        peaks = (graph.op("ReduceMax", part, graph.constant(3), keepdims=1) for part in (old, new))
        highest = graph.op("Max", *peaks)
        old, new = (graph.op("Exp", graph.op("Sub", part, highest)) for part in (old, new))
        h = graph.op("Add", graph.op("MatMul", old, values), graph.op("MatMul", new, v))
        h, _ = _normalized(graph, h, size)
        x = graph.op("Add", x, _linear(graph, weights, f"{at}/self_attention/linear_1", _joined(graph, h, shape)))

        h = _norm(graph, weights, f"{at}/attention", x)
        q = graph.op("Reshape", _scaled_query(graph, weights, f"{at}/attention/linear_0", h, shape, 1), grid)
        chosen = [head for in_layer, head in alignment_heads if in_layer == layer]
        attend = _attend_int8 if int8 else _attend
        h, weight = attend(graph, graph.transpose(q, 0, 2, 1, 3), memory_mask, score_shape, layer, shape, chosen)
        attended += [weight] if chosen else []
        x = graph.op("Add", x, _linear(graph, weights, f"{at}/attention/linear_2", _joined(graph, h, shape)))
        x = _feed_forward(graph, weights, f"{at}/ffn", x)
    x = _norm(graph, weights, "decoder", x)
    logits = graph.linear(x, _floats(weights["decoder/projection/weight"]))
    graph.output(logits, "logits", ("all_rows", shape.vocabulary))
    attention = graph.op("Concat", *attended, axis=1)
    graph.output(attention, "attention", ("windows", len(alignment_heads), "rows", "positions"))
    return graph


def _attend(
    graph: Graph, q: str, memory_mask: str, score_shape: str, layer: int, shape: Shape, chosen: Sequence[int]
) -> tuple[str, str]:
    """Cross-attention: the result (windows, heads, rows, head width), and the weights of the chosen heads."""
    keys = graph.input(f"key_{layer}", ("windows", shape.heads, "positions", shape.head_width))
    values = graph.input(f"value_{layer}", ("windows", shape.heads, "positions", shape.head_width + 1))
    scores = graph.transpose(graph.op("MatMul", keys, graph.transpose(q, 0, 1, 3, 2)), 0, 1, 3, 2)
    scores = graph.op("Add", graph.op("Reshape", scores, score_shape), memory_mask)
    weight = graph.op("Exp", graph.op("Sub", scores, graph.op("ReduceMax", scores, graph.constant(3), keepdims=1)))
    result, total = _normalized(graph, graph.op("MatMul", weight, values), shape.head_width)
    return result, _weights_of(graph, weight, total, chosen)


def _weights_of(graph: Graph, weight: str, total: str, chosen: Sequence[int]) -> str:
    """The weights of the chosen heads, divided by their sum."""
    if not chosen:
        return ""
    heads = graph.constant(*chosen)
    return graph.op("Div", *(graph.op("Gather", part, heads, axis=1) for part in (weight, total)))


def _attend_int8(
    graph: Graph, q: str, memory_mask: str, score_shape: str, layer: int, shape: Shape, chosen: Sequence[int]
) -> tuple[str, str]:
    """Cross-attention with integer keys and values.

    Before the division by their sum, the largest weight of each row is 1, so all rows share one scale.
    """
    keys = graph.input(f"key_{layer}", ("windows", shape.heads, "positions", shape.head_width), "UINT8")
    key_scale = graph.input(f"key_scale_{layer}", ("windows", shape.heads, 1, "positions"))
    values = graph.input(f"value_{layer}", ("windows", shape.heads, "positions", shape.head_width + 1), "INT8")
    value_scale = graph.input(f"value_scale_{layer}", ("windows", shape.heads, 1, shape.head_width))
    scale = _scale(graph, q, 3)
    columns = graph.op("Cast", graph.op("Round", graph.op("Div", q, scale)), to=3)
    # The keys are the left operand, because ONNX Runtime packs the right operand at each call.
    scores = graph.op("MatMulInteger", keys, graph.transpose(columns, 0, 1, 3, 2), graph.zero_point(ZERO_POINT))
    scores = graph.transpose(graph.op("Cast", scores, to=1), 0, 1, 3, 2)
    # This reshape does not change the shape. It prevents that ONNX Runtime moves the transpose behind the next
    # operations, where it is slow.
    scores = graph.op("Reshape", scores, score_shape)
    scores = graph.op("Add", graph.op("Mul", graph.op("Mul", scores, scale), key_scale), memory_mask)
    highest = graph.op("ReduceMax", scores, graph.constant(3), keepdims=1)
    weight = graph.op("Exp", graph.op("Sub", scores, highest))
    rows = graph.op("QuantizeLinear", weight, graph.number(1 / 255), graph.zero_point(0))
    # The divisor is the sum of the rounded integers, so rounding does not change the sum of the weights.
    product = graph.op("Cast", graph.op("MatMulInteger", rows, values), to=1)
    result, total = _normalized(graph, product, shape.head_width)
    total = graph.op("Mul", total, graph.number(1 / 255))
    return graph.op("Mul", result, value_scale), _weights_of(graph, weight, total, chosen)


def _scaled_query(graph: Graph, weights: Weights, name: str, x: str, shape: Shape, parts: int) -> str:
    """A projection whose first part is queries, with attention's scale in the weights, which saves an operation."""
    weight, bias = (_floats(weights[f"{name}/{kind}"]) for kind in ("weight", "bias"))
    factor = np.ones(parts * shape.width, np.float32)
    factor[: shape.width] = shape.head_width**-0.5
    return graph.linear(x, weight * factor[:, None], bias * factor)


def _joined(graph: Graph, x: str, shape: Shape) -> str:
    """Concatenate the heads: (windows, heads, rows, head width) to (all rows, width)."""
    return graph.reshape(graph.transpose(x, 0, 2, 1, 3), -1, shape.width)


def _norm(graph: Graph, weights: Weights, name: str, x: str) -> str:
    gain, bias = (_floats(weights[f"{name}/layer_norm/{part}"]) for part in ("gamma", "beta"))
    return graph.layer_norm(x, gain, bias)


def _linear(graph: Graph, weights: Weights, name: str, x: str) -> str:
    return graph.linear(x, _floats(weights[f"{name}/weight"]), _floats(weights[f"{name}/bias"]))


def _part(graph: Graph, weights: Weights, name: str, x: str, part: int, parts: int) -> str:
    """One of several projections whose weights one matrix contains."""
    weight, bias = (np.split(_floats(weights[f"{name}/{kind}"]), parts)[part] for kind in ("weight", "bias"))
    return graph.linear(x, weight, bias)


def _feed_forward(graph: Graph, weights: Weights, name: str, x: str) -> str:
    h = graph.op("Gelu", _linear(graph, weights, f"{name}/linear_0", _norm(graph, weights, name, x)))
    return graph.op("Add", x, _linear(graph, weights, f"{name}/linear_1", h))


def _layers(weights: Weights, part: str) -> int:
    count = 0
    while f"{part}/layer_{count}/ffn/linear_0/weight" in weights:
        count += 1
    return count


def _floats(value: NDArray[Any]) -> Floats:
    return value.astype(np.float32)
