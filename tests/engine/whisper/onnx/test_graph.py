"""Graphs of ONNX operations: what they compute, in float32 and in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from whisper_api.engine.whisper.onnx.graph import Graph

Floats = np.ndarray[Any, np.dtype[np.float32]]


def normal(*shape: int) -> Floats:
    return np.random.default_rng(len(shape)).normal(0, 1, shape).astype(np.float32)


def product(tmp_path: Path, weight: Floats, bias: Floats | None, *, int8: bool) -> Any:
    """A function of x that a graph with one linear layer computes."""
    graph = Graph("test", int8=int8)
    y = graph.linear(graph.input("x", ("rows", weight.shape[1])), weight, bias)
    graph.output(y, "y", ("rows", weight.shape[0]))
    graph.save(tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


@pytest.mark.parametrize("bias", [None, np.arange(96, dtype=np.float32)])
def test_a_linear_layer(tmp_path: Path, bias: Floats | None) -> None:
    weight, x = normal(96, 64), normal(7, 64)
    expected = x @ weight.T + (0 if bias is None else bias)
    exact = product(tmp_path, weight, bias, int8=False)(x)
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-4)
    close = product(tmp_path, weight, bias, int8=True)(x)
    assert np.abs(close - expected).mean() < 0.02 * np.abs(expected).mean()


def test_an_int8_row_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    linear = product(tmp_path, normal(96, 64), None, int8=True)
    x = normal(5, 64)
    x[3] *= 1_000
    np.testing.assert_array_equal(linear(x)[0], linear(x[:1])[0])


def test_a_row_of_zeros_stays_zeros(tmp_path: Path) -> None:
    x = normal(3, 64)
    x[1] = 0
    y = product(tmp_path, normal(96, 64), None, int8=True)(x)
    assert not y[1].any()
    assert np.isfinite(y).all()


def test_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    product(tmp_path, normal(96, 64), None, int8=True)
    assert (tmp_path / "graph.weights").stat().st_size >= 96 * 64
    assert (tmp_path / "graph.onnx").stat().st_size < 4096
