"""Builds ONNX graphs out of the few operations that a transformer needs, with weights in int8 or float32.

In int8, a matrix product is W8A8: weights have one scale for each output, inputs one for each row, as in Dettmers et
al., "LLM.int8()" (2022), without its outlier part. A row's result so never depends on the rows beside it.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

__all__ = ["Graph"]

OPSET = 21
# ONNX Runtime's own operations: products of integers with the scales taken in, attention in blocks.
RUNTIME = "com.microsoft"
IR_VERSION = 10
# Integers reach from -127 to 127, kept as bytes around a zero point.
LARGEST = 127
ZERO_POINT = 128
EPSILON = 1e-5

Floats = NDArray[np.float32]


class Graph:
    """A graph under construction. Every method that adds an operation returns the name of its result.

    Args:
        name: of the graph.
        int8: whether :meth:`linear` computes in int8 rather than float32.
    """

    def __init__(self, name: str, *, int8: bool) -> None:
        self._name = name
        self._int8 = int8
        self._count = itertools.count()
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._quantized: dict[str, tuple[str, str]] = {}
        self._constants: dict[tuple[str, bytes], str] = {}

    def input(self, name: str, shape: tuple[int | str, ...], kind: str = "FLOAT") -> str:
        """An input; a dimension that is a string may have any size."""
        self._inputs.append(_value_info(name, shape, kind))
        return name

    def output(self, value: str, name: str, shape: tuple[int | str, ...], kind: str = "FLOAT") -> None:
        """Name a result as an output."""
        self.op("Identity", value, result=name)
        self._outputs.append(_value_info(name, shape, kind))

    def op(self, kind: str, *inputs: str, result: str = "", domain: str = "", **attributes: Any) -> str:
        """One operation with one result."""
        return self.split(kind, *inputs, results=(result or self._new(),), domain=domain, **attributes)[0]

    def split(
        self, kind: str, *inputs: str, results: tuple[str, ...] | int, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """One operation with several results."""
        from onnx import helper

        names = tuple(self._new() for _ in range(results)) if isinstance(results, int) else results
        self._nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names

    def weight(self, value: NDArray[Any]) -> str:
        """A weight or constant."""
        from onnx import numpy_helper

        name = self._new()
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def constant(self, *values: int) -> str:
        """Integers, as shapes and axes are given; equal ones are kept once."""
        array = np.array(values, np.int64)
        key = ("int64", array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(array)
        return self._constants[key]

    def number(self, value: float) -> str:
        """One float32."""
        array = np.array(value, np.float32)
        key = ("float32", array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(array)
        return self._constants[key]

    def zero_point(self, value: int) -> str:
        """The unsigned byte that stands for 0."""
        array = np.array(value, np.uint8)
        key = ("uint8", array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(array)
        return self._constants[key]

    def layer_norm(self, x: str, gain: Floats, bias: Floats) -> str:
        """Normalise the last dimension."""
        return self.op("LayerNormalization", x, self.weight(gain), self.weight(bias), axis=-1, epsilon=EPSILON)

    def linear(self, x: str, weight: Floats, bias: Floats | None = None) -> str:
        """``x @ weight.T + bias``.

        Args:
            x: shape (rows, inputs).
            weight: shape (outputs, inputs).
            bias: shape (outputs,).
        """
        y = self._int8_product(x, weight) if self._int8 else self.op("MatMul", x, self.weight(weight.T))
        return y if bias is None else self.op("Add", y, self.weight(bias))

    def reshape(self, x: str, *shape: int) -> str:
        """Another shape; 0 keeps a dimension, one may be -1."""
        return self.op("Reshape", x, self.constant(*shape))

    def transpose(self, x: str, *order: int) -> str:
        """Dimensions in another order."""
        return self.op("Transpose", x, perm=order)

    def save(self, path: Path) -> None:
        """Write the graph, its weights into a file beside it."""
        import onnx
        from onnx import helper

        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="whisper-api", ir_version=IR_VERSION)
        # A protocol buffer holds 2 GB at most, and a large model has more.
        onnx.save_model(
            model, str(path), save_as_external_data=True, location=f"{path.stem}.weights", size_threshold=1024
        )

    def _int8_product(self, x: str, weight: Floats) -> str:
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / LARGEST
        matrix = self.weight(np.rint(weight / scale[:, None]).astype(np.int8).T)
        rows, peak = self._rows_as_int8(x)
        operands = (rows, matrix, self.number(1 / LARGEST), self.weight(scale.astype(np.float32)))
        product = self.op("MatMulIntegerToFloat", *operands, self.zero_point(ZERO_POINT), "", domain=RUNTIME)
        return self.op("Mul", product, peak)

    def _rows_as_int8(self, x: str) -> tuple[str, str]:
        """Rows as integers around the zero point, and the largest value of each (rows, 1); made once for each ``x``."""
        if x not in self._quantized:
            peak = self.op("ReduceMax", self.op("Abs", x), self.constant(1), keepdims=1)
            peak = self.op("Max", peak, self.number(1e-12))
            unit = self.op("Div", x, peak)
            rows = self.op("QuantizeLinear", unit, self.number(1 / LARGEST), self.zero_point(ZERO_POINT))
            self._quantized[x] = rows, peak
        return self._quantized[x]

    def _new(self) -> str:
        return f"v{next(self._count)}"


def _value_info(name: str, shape: tuple[int | str, ...], kind: str) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
