"""Reads the weights of a CTranslate2 model, the format in which Whisper models are published for this field's tools.

The layout is CTranslate2's binary version 6, which ``python/ctranslate2/specs/model_spec.py`` writes: a header, then
name, shape, type and bytes of each variable, then aliases of variables.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.errors import ModelCorrupt

_OLDEST_VERSION = 4
_BFLOAT16 = 5
_TYPES: dict[int, Any] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_weights(path: Path, prefix: str = "") -> dict[str, NDArray[Any]]:
    """The variables of a ``model.bin``, by CTranslate2's names.

    Args:
        path: the file.
        prefix: only variables whose names begin so are read.

    Returns:
        Arrays of the shapes and types in the file. Quantised matrices are returned dequantised, and bfloat16 arrays
        converted, as float32. Weights have the shape (outputs, inputs).

    Raises:
        ModelCorrupt: the file is not a CTranslate2 model, or is truncated.
    """
    variables = _read(path, lambda name: name.startswith(prefix))
    return {
        name: _dequantized(value, variables[f"{name}_scale"]) if f"{name}_scale" in variables else value
        for name, value in variables.items()
        if name.startswith(prefix) and not name.endswith("weight_scale")
    }


def read_shapes(path: Path) -> dict[str, NDArray[Any]]:
    """The variables of a ``model.bin`` as in :func:`read_weights`, with zeros instead of the values of arrays.

    Args:
        path: the file, of which only the names, shapes and single numbers are read.

    Raises:
        ModelCorrupt: the file is not a CTranslate2 model, or is truncated.
    """
    return _read(path, lambda name: False)


def _read(path: Path, read: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).variables(read)
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ModelCorrupt(f"{path} cannot be read as a CTranslate2 model: {error}") from error


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the content of a variable is in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def variables(self, read: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
        """The variables by name: those that ``read`` asks for and single numbers with their values, others as zeros."""
        found: dict[str, NDArray[Any]] = {}
        # A variable with two names is read once.
        arrays: dict[_Place, NDArray[Any]] = {}
        for name, place in self._places().items():
            if place.shape and not read(name):
                found[name] = np.broadcast_to(np.float32(0), place.shape)
            else:
                found[name] = arrays[place] = arrays[place] if place in arrays else self._array(place)
        return found

    def _places(self) -> dict[str, _Place]:
        version = self._number("I")
        if not _OLDEST_VERSION <= version <= 1000:
            raise ValueError(f"binary version {version}")
        self._text()  # the name of the specification
        self._number("I")  # its revision
        found: dict[str, _Place] = {}
        for _ in range(self._number("I")):
            name = self._text()
            shape = tuple(self._number("I") for _ in range(self._number("B")))
            kind, size = self._number("B"), self._number("I")
            found[name] = _Place(shape, kind, self._at, size)
            self._skip(size)
        for _ in range(self._number("I")):
            alias, name = self._text(), self._text()
            found[alias] = found[name]
        return found

    def _array(self, place: _Place) -> NDArray[Any]:
        content = self._data[place.start : place.start + place.size]
        if place.kind == _BFLOAT16:
            # The upper half of a float32.
            return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(place.shape)
        return np.frombuffer(content, _TYPES[place.kind]).reshape(place.shape)

    def _text(self) -> str:
        return self._bytes(self._number("H"))[:-1].decode()

    def _number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self._bytes(struct.calcsize(kind)))[0])

    def _bytes(self, size: int) -> bytes:
        start = self._at
        self._skip(size)
        return self._data[start : self._at]

    def _skip(self, size: int) -> None:
        if self._at + size > len(self._data):
            raise ValueError("the file is truncated")
        self._at += size


def _dequantized(value: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    # CTranslate2 quantises by multiplication with a scale: one for each output, or one for the whole matrix (int16).
    factor = np.asarray(scale, np.float32).reshape(-1, *(1,) * (value.ndim - 1))
    return (value.astype(np.float32) / factor).astype(np.float32)
