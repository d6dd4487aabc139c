"""Structs that turn into dictionaries, JSON and rows of a table, and back."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import msgspec

from whisper_api.errors import InvalidInput

__all__ = ["Record", "Row"]

R = TypeVar("R", bound="Record")


class Record(msgspec.Struct, frozen=True):
    """A Struct with conversions. ``from_dict`` and ``from_json`` read back equal what ``to_dict`` and ``to_json`` give.

    Members that a newer version added are ignored. JSON has no infinity and no NaN.
    """

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, lists, strings, numbers, booleans and None: what any JSON library writes."""
        value: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return value

    def to_json(self, *, indent: int | None = None) -> str:
        """The same as a JSON text.

        Args:
            indent: spaces for each level; None for a single line.
        """
        encoded = msgspec.json.encode(self)
        return (encoded if indent is None else msgspec.json.format(encoded, indent=indent)).decode()

    @classmethod
    def from_dict(cls: type[R], value: dict[str, Any]) -> R:
        """The record that a dictionary describes.

        Args:
            value: as :meth:`to_dict` gives it, or as a JSON library reads it.

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
            text: as :meth:`to_json` gives it; bytes are UTF-8.

        Raises:
            InvalidInput: the text is not JSON, or a member is missing or wrong; the message names the member.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidInput(f"this is no {cls.__name__}: {error}") from error


class _DataclassMember:
    """An attribute that a dataclass with the Struct's fields has."""

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
    """A record that pandas and polars take for a dataclass: a list of them is a table with a column for each field."""

    __dataclass_fields__: ClassVar[dict[str, Any]] = _DataclassMember()  # type: ignore[assignment]
    __dataclass_params__: ClassVar[Any] = _DataclassMember()
