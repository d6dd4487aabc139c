"""What all forms have in common: fields as values, checked, and what is said of those that mean nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from whisper_api.coercion import convert
from whisper_api.errors import InvalidOption
from whisper_api.schema import RenderOptions, TranscriptionOptions
from whisper_api.server.uploads.multipart import shown

__all__ = [
    "LINE_BREAKS",
    "MAX_TEXT_CHARACTERS",
    "MAX_WORD_CHARACTERS",
    "OPTION_TYPES",
    "RENDER_FIELDS",
    "check_text",
    "converted",
    "field_warnings",
    "render_options_of",
]

OPTION_TYPES = {field.name: field.type for field in msgspec.structs.fields(TranscriptionOptions)}
"""Name of each option of a transcription to the type of its values."""

MAX_TEXT_CHARACTERS = 10_000
MAX_WORD_CHARACTERS = 255
NAMES_IN_WARNING = 10
LINE_BREAKS = frozenset("\t\r\n")
RENDER_FIELDS = RenderOptions.__struct_fields__


def converted(name: str, text: str, annotation: Any) -> Any:
    """A field's text as a value.

    Raises:
        InvalidOption: it is no value of this type; says what is expected.
    """
    try:
        return convert(text, annotation)
    except ValueError as error:
        raise InvalidOption(name, str(error)) from None


def render_options_of(given: Mapping[str, str]) -> RenderOptions:
    """The layout of subtitles that a form asks for.

    Args:
        given: name to text of the fields that say something; others than those of the layout may be among them.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(RenderOptions)}
    return RenderOptions(**{name: converted(name, given[name], types[name]) for name in RENDER_FIELDS if name in given})


def check_text(name: str, text: str, max_characters: int, allowed: frozenset[str] = frozenset()) -> None:
    """Refuse what is too long to be meant, or no text.

    Args:
        name: of the field.
        text: its value.
        max_characters: that it may have.
        allowed: control characters that may stand in it.

    Raises:
        InvalidOption: says what is expected.
    """
    if len(text) > max_characters:
        raise InvalidOption(name, f"expected at most {max_characters} characters")
    if any(unicodedata.category(character) == "Cc" and character not in allowed for character in text):
        raise InvalidOption(name, "expected text without control characters")


def field_warnings(unknown: Iterable[str], repeated: Iterable[str]) -> tuple[str, ...]:
    """What is to be said about a form's fields, one sentence each.

    Args:
        unknown: names that mean nothing.
        repeated: names that came more than once, and may not.
    """
    told = (
        ("unknown fields were ignored", list(unknown)),
        ("of fields that were given more than once, the last counts", list(repeated)),
    )
    return tuple(f"{what}: {_listed(names)}" for what, names in told if names)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_IN_WARNING
    return ", ".join(map(shown, names[:NAMES_IN_WARNING])) + (f" and {more} more" if more > 0 else "")
