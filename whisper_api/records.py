"""Base classes of Structs that convert to and from dictionaries and JSON, or that pandas reads; and times as text."""

from __future__ import annotations

import functools
from datetime import datetime, timezone
from typing import Any, ClassVar, TypeVar

import msgspec

from whisper_api.errors import InvalidInput

R = TypeVar("R", bound="Record")
S = TypeVar("S", bound=msgspec.Struct)


class Record(msgspec.Struct, frozen=True):
    """A Struct with conversions. ``from_dict`` and ``from_json`` invert ``to_dict`` and ``to_json``.

    Unknown members are ignored, so that records of a newer version can be read. JSON has no infinity and no NaN.
    """

    def to_dict(self) -> dict[str, Any]:
        """The record as dictionaries, lists, strings, numbers, booleans and None, which any JSON library writes."""
        value: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return value

    def to_json(self, *, indent: int | None = None) -> str:
        """The record as JSON text.

        Args:
            indent: spaces for each level; None for a single line.
        """
        encoded = msgspec.json.encode(self)
        return (encoded if indent is None else msgspec.json.format(encoded, indent=indent)).decode()

    @classmethod
    def from_dict(cls: type[R], value: dict[str, Any]) -> R:
        """The record that a dictionary describes.

        Args:
            value: a dictionary from :meth:`to_dict` or from a JSON library.

        Raises:
            InvalidInput: a member is missing or has a wrong value; the message names the member.
        """
        try:
            return msgspec.convert(value, type=cls)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"this is no {cls.__name__}: {error}") from error

    @classmethod
    def from_json(cls: type[R], text: str | bytes) -> R:
        """The record that a JSON text describes.

        Args:
            text: JSON text from :meth:`to_json`; bytes are UTF-8.

        Raises:
            InvalidInput: the text is not JSON, or a member is missing or wrong; the message names the member.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidInput(f"this is no {cls.__name__}: {error}") from error


class _DataclassMember:
    """A dataclass attribute such as ``__dataclass_fields__``, computed from the Struct's fields at the first access."""

    def __init__(self) -> None:
        self._made: dict[type, Any] = {}

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type[msgspec.Struct]) -> Any:
        if owner not in self._made:
            from dataclasses import make_dataclass

            stand_in = make_dataclass(owner.__name__, owner.__struct_fields__, repr=False)
            self._made[owner] = getattr(stand_in, self._name)
        return self._made[owner]


class Row(Record, frozen=True):
    """A record that pandas and polars read as a dataclass: a list of rows is a table with a column for each field."""

    __dataclass_fields__: ClassVar[dict[str, Any]] = _DataclassMember()  # type: ignore[assignment]
    __dataclass_params__: ClassVar[Any] = _DataclassMember()


def made_of(source: msgspec.Struct, kind: type[S], **others: Any) -> S:
    """A Struct that takes the fields of the same names from another Struct.

    A time in seconds since 1970 under a name that ends with ``_at`` becomes text, as with :func:`rfc3339`, where the
    Struct has text.

    Args:
        source: the other Struct; fields that it does not have take their default.
        kind: class of the Struct.
        others: the values of fields that are not those of the source.
    """
    for name, is_time in _shared(type(source), kind):
        if name not in others:
            value = getattr(source, name)
            others[name] = rfc3339(value) if is_time and isinstance(value, (int, float)) else value
    return kind(**others)


@functools.cache
def _shared(source: type, kind: type[msgspec.Struct]) -> tuple[tuple[str, bool], ...]:
    """The names of the fields that both have, and whether each is a time as text."""
    fields = [field for field in msgspec.structs.fields(kind) if hasattr(source, field.name)]
    return tuple((each.name, each.name.endswith("_at") and each.type in (str, str | None)) for each in fields)


def rfc3339(seconds: float) -> str:
    """A time as text with milliseconds, in UTC (RFC 3339).

    Args:
        seconds: seconds since 1970.
    """
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339_or_none(seconds: float | None) -> str | None:
    """A time as with :func:`rfc3339`; None for no time."""
    return None if seconds is None else rfc3339(seconds)


def seconds_of(moment: datetime | None) -> float | None:
    """A time as seconds since 1970; None stays None."""
    return None if moment is None else moment.timestamp()
