"""What a client keeps with a job: read from text, and made ready to be searched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from whisper_api.errors import InvalidOption

__all__ = ["MAX_BYTES", "metadata_of", "searchable", "searched"]

MAX_BYTES = 16_384
# Deeper than anybody writes by hand, and far from what would exhaust the stack of whoever reads it again.
MAX_DEPTH = 64
# Stands for an object or a list, and is no JSON text.
NO_SCALAR = ""


def metadata_of(text: str) -> dict[str, Any]:
    """The metadata that a client sent.

    Args:
        text: a JSON object of at most 16384 bytes.

    Raises:
        InvalidOption: it is none, is too long, or is nested more than 64 levels deep.
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
    """Every top-level key, with its value as :func:`searched` names it."""
    return [(key, _scalar(value)) for key, value in metadata.items()]


def searched(text: str) -> tuple[str, ...]:
    """What a value may be that is searched for: this text, and the number, true, false, null or string it is as JSON.

    Args:
        text: as somebody wrote it.
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
    """Whether objects and lists stand more than so many levels deep in one another."""
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
