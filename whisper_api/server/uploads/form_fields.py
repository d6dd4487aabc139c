"""The text fields of a form: single values, lists with and without brackets, and objects field by field."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from whisper_api.coercion import convert
from whisper_api.errors import InvalidOption
from whisper_api.server.uploads.part_headers import shown

NAMES_IN_WARNING = 10
# A list's name may end with brackets, which may contain a number: clients of some languages write lists that way.
_BRACKETS = re.compile(r"\[\d{0,4}\]\Z")


@dataclass(frozen=True)
class FormField:
    """The declaration of a form's field.

    Attributes:
        name: name of the field.
        type: type of the value; ``bytes`` for a file.
        description: one sentence.
        required: whether the call fails without the field.
        repeated: whether the field is a list: the form may have it several times.
        default: the value of an absent field; None when the configuration decides.
    """

    name: str
    type: Any
    description: str
    required: bool = False
    repeated: bool = False
    default: Any = None


class FormFields:
    """The fields of a form. A field that is empty or only white space counts as absent.

    Args:
        fields: name and value of each field, in order. The last value of a field that is not a list counts.
        declared: the fields that the form may have.
        objects: names of the fields that may be sent as ``name[key]``.
    """

    def __init__(
        self, fields: Sequence[tuple[str, str]], declared: Iterable[FormField], objects: Collection[str] = ()
    ) -> None:
        self._declared = {plain_name(field.name): field for field in declared if field.type is not bytes}
        self._values: dict[str, list[str]] = {}
        # Dictionaries, because they keep the order.
        self._unknown: dict[str, None] = {}
        self._repeated: dict[str, None] = {}
        self._notes: list[str] = []
        for name, value in fields:
            plain = plain_name(name)
            is_list = plain in self._declared and self._declared[plain].repeated
            if not is_list and name not in self._declared and name.partition("[")[0] not in objects:
                self._unknown[name] = None
                continue
            values = self._values.setdefault(plain if is_list else name, [])
            if values and not is_list:
                self._repeated[name] = None
            if value.strip() or not is_list:
                values.append(value.strip())

    def warnings(self) -> tuple[str, ...]:
        """A sentence for each kind of ignored field."""
        named = (
            ("unknown fields were ignored", list(self._unknown)),
            ("of fields that were given more than once, the last counts", list(self._repeated)),
        )
        return (*(f"{sentence}: {_listed(names)}" for sentence, names in named if names), *self._notes)

    def note(self, sentence: str) -> None:
        """Add a warning about a field that has no effect."""
        self._notes.append(sentence)

    def every(self, name: str) -> tuple[str, ...]:
        """The values of a list; the name is without brackets."""
        return tuple(self._values.get(name, ()))

    def words(self, name: str) -> tuple[str, ...]:
        """The values of a list of words; one value may contain several, as a JSON array or separated by commas."""
        return tuple(word for value in self.every(name) for word in _words_in(value))

    def last(self, name: str) -> str | None:
        """A field's text; None when the field is absent."""
        return next(reversed(self._values.get(name, [])), "") or None

    def texts(self, names: Iterable[str]) -> dict[str, str]:
        """Name to text of those of these fields that are present."""
        return {name: text for name in names if (text := self.last(name)) is not None}

    def inside(self, name: str) -> dict[str, str]:
        """Key to text of the fields ``name[key]``."""
        return {
            field[len(name) + 1 : -1]: values[-1]
            for field, values in self._values.items()
            if field.startswith(f"{name}[") and field.endswith("]") and values[-1]
        }

    def value(self, name: str, default: Any = None) -> Any:
        """A field's value, of the declared type.

        Args:
            name: name of the field.
            default: the value of an absent field; None for the declared one.

        Raises:
            InvalidOption: the text is not a value of this type.
        """
        text = self.last(name)
        if text is not None:
            return converted(name, text, self._declared[name].type)
        return self._declared[name].default if default is None else default


def converted(name: str, text: str, annotation: Any) -> Any:
    """A text as a value.

    Args:
        name: name of the field or query parameter, for the error.
        text: the text.
        annotation: type of the value.

    Raises:
        InvalidOption: the text is not a value of this type; says what is expected.
    """
    try:
        return convert(text, annotation)
    except ValueError as error:
        raise InvalidOption(name, str(error)) from None


def plain_name(name: str) -> str:
    """The name of a list's field without brackets."""
    return _BRACKETS.sub("", name)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_IN_WARNING
    return ", ".join(map(shown, names[:NAMES_IN_WARNING])) + (f" and {more} more" if more > 0 else "")


def _words_in(value: str) -> list[str]:
    if value.startswith("["):
        try:
            return msgspec.json.decode(value, type=list[str])
        except msgspec.MsgspecError:
            return [value]
    return [word.strip() for word in value.split(",") if word.strip()]
