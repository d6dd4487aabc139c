"""The metadata that a client keeps with a job: parsing and searching."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from whisper_api.errors import InvalidOption

MAX_BYTES = 16_384
# Deeper than people write by hand, and far below the depth that exhausts the stack of a JSON reader.
MAX_DEPTH = 64
# Stands for an object or a list; not a JSON text.
NO_SCALAR = ""


def metadata_of(text: str) -> dict[str, Any]:
    """The metadata that a client sent.

    Args:
        text: a JSON object of at most 16384 bytes.

    Raises:
        InvalidOption: the text is not a JSON object, is too long, or is nested more than 64 levels deep.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise _refused("expected a JSON object in UTF-8") from None
    if len(data) > MAX_BYTES:
        raise _refused(f"expected at most {MAX_BYTES} bytes, not {len(data)}")
    try:
        value = msgspec.json.decode(data, type=dict[str, Any])
        msgspec.json.encode(value)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise _refused(f"expected a JSON object: {reason}") from None
    if _is_deeper(value, MAX_DEPTH):
        raise _refused(f"expected a JSON object of at most {MAX_DEPTH} levels")
    return value


def searchable(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every top-level key, with its value in the form of :func:`searched`."""
    return [(key, _scalar(value)) for key, value in metadata.items()]


def searched(text: str) -> tuple[str, ...]:
    """The stored forms that a searched value may have: the text itself, and its meaning as JSON (5, true, null).

    Args:
        text: the searched text.
    """
    found = {_scalar(text)}
    try:
        value = msgspec.json.decode(text.encode("utf-8", "replace"))
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return tuple(found)
    return tuple(sorted((found | {_scalar(value)}) - {NO_SCALAR}))


def _scalar(value: object) -> str:
    """A value as one JSON text: 5 and 5.0 are the same number."""
    if isinstance(value, (dict, list)):
        return NO_SCALAR
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return msgspec.json.encode(value).decode()


def _is_deeper(value: object, levels: int) -> bool:
    """Whether objects and lists are nested deeper than a number of levels."""
    layer: Iterable[Any] = [value]
    for _ in range(levels):
        layer = [each for outer in layer for each in _inside(outer)]
        if not layer:
            return False
    return any(isinstance(each, (dict, list)) for each in layer)


def _inside(value: object) -> Iterable[Any]:
    if isinstance(value, dict):
        return [each for each in value.values() if isinstance(each, (dict, list))]
    return [each for each in value if isinstance(each, (dict, list))] if isinstance(value, list) else []


def _refused(reason: str) -> InvalidOption:
    return InvalidOption("metadata", reason)
