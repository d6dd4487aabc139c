"""Builds ONNX graphs from the few operations of a transformer, with weights in int8 or float32.

In int8, a matrix product is W8A8: weights have one scale for each output, inputs one for each row, as in Dettmers et
al., "LLM.int8()" (2022), without the outlier decomposition. So a row's result does not depend on the other rows.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

OPSET = 21
# Domain of ONNX Runtime's own operations: integer products with scales, and fused attention.
RUNTIME = "com.microsoft"
IR_VERSION = 10
# Integers range from -127 to 127; unsigned bytes store them with a zero point.
LARGEST = 127
ZERO_POINT = 128
EPSILON = 1e-5

Floats = NDArray[np.float32]


class Graph:
    """A graph under construction. Every method that adds an operation returns the name of its result.

    Args:
        name: the graph's name.
        int8: True for int8 products in :meth:`linear`, False for float32.
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
        """Declare an input.

        Args:
            name: the input's name.
            shape: dimensions; a string names a dimension of any size.
            kind: name of an ONNX element type.
        """
        self._inputs.append(_value_info(name, shape, kind))
        return name

    def output(self, value: str, name: str, shape: tuple[int | str, ...], kind: str = "FLOAT") -> None:
        """Declare a result as an output.

        Args:
            value: name of the result.
            name: the output's name.
            shape: dimensions; a string names a dimension of any size.
            kind: name of an ONNX element type.
        """
        self.op("Identity", value, result=name)
        self._outputs.append(_value_info(name, shape, kind))

    def op(self, kind: str, *inputs: str, result: str = "", domain: str = "", **attributes: Any) -> str:
        """Add an operation with one result.

        Args:
            kind: the operation's name.
            inputs: names of its inputs; an empty name omits an optional input.
            result: name for the result; empty for a new name.
            domain: the operation's domain; empty for ONNX's own.
            attributes: the operation's attributes.
        """
        return self.split(kind, *inputs, results=(result or self._new(),), domain=domain, **attributes)[0]

    def split(
        self, kind: str, *inputs: str, results: tuple[str, ...] | int, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add an operation with several results.

        Args:
            kind: the operation's name.
            inputs: as for :meth:`op`.
            results: names of the results, or their number for new names.
            domain: as for :meth:`op`.
            attributes: the operation's attributes.
        """
        from onnx import helper

        names = tuple(self._new() for _ in range(results)) if isinstance(results, int) else results
        self._nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names

    def weight(self, value: NDArray[Any]) -> str:
        """Add a weight or constant."""
        from onnx import numpy_helper

        name = self._new()
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def constant(self, *values: int) -> str:
        """Add an int64 vector, for shapes and axes."""
        return self._shared(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Add a float32 scalar."""
        return self._shared(np.array(value, np.float32))

    def zero_point(self, value: int) -> str:
        """Add an unsigned byte, the zero point of a quantised tensor."""
        return self._shared(np.array(value, np.uint8))

    def layer_norm(self, x: str, gain: Floats, bias: Floats) -> str:
        """Add a layer normalisation over the last dimension.

        Args:
            x: name of the input.
            gain: shape (channels,).
            bias: shape (channels,).
        """
        return self.op("LayerNormalization", x, self.weight(gain), self.weight(bias), axis=-1, epsilon=EPSILON)

    def linear(self, x: str, weight: Floats, bias: Floats | None = None) -> str:
        """Add ``x @ weight.T + bias``.

        Args:
            x: name of the input, of shape (rows, inputs).
            weight: shape (outputs, inputs).
            bias: shape (outputs,).
        """
        y = self._int8_product(x, weight) if self._int8 else self.op("MatMul", x, self.weight(weight.T))
        return y if bias is None else self.op("Add", y, self.weight(bias))

    def reshape(self, x: str, *shape: int) -> str:
        """Add a reshape; 0 keeps a dimension, and one dimension may be -1."""
        return self.op("Reshape", x, self.constant(*shape))

    def transpose(self, x: str, *order: int) -> str:
        """Add a transpose to another order of the dimensions."""
        return self.op("Transpose", x, perm=order)

    def save(self, path: Path) -> None:
        """Write the graph to a path, and its weights to a file in the same directory."""
        import onnx
        from onnx import helper

        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="whisper-api", ir_version=IR_VERSION)
        # A protocol buffer is limited to 2 GB, and large models exceed that.
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
        """Quantise each row: unsigned bytes, and the largest absolute value (rows, 1). Added once for each ``x``."""
        if x not in self._quantized:
            peak = self.op("ReduceMax", self.op("Abs", x), self.constant(1), keepdims=1)
            peak = self.op("Max", peak, self.number(1e-12))
            unit = self.op("Div", x, peak)
            rows = self.op("QuantizeLinear", unit, self.number(1 / LARGEST), self.zero_point(ZERO_POINT))
            self._quantized[x] = rows, peak
        return self._quantized[x]

    def _shared(self, constant: NDArray[Any]) -> str:
        """Add a constant, once for equal values."""
        key = (constant.dtype.str, constant.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(constant)
        return self._constants[key]

    def _new(self) -> str:
        return f"v{next(self._count)}"


def _value_info(name: str, shape: tuple[int | str, ...], kind: str) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
