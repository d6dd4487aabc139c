"""Text to typed values, and types to words: shared by all who read what people wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

__all__ = ["bare_type", "convert", "expected", "help_line", "union_parts"]

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def convert(value: object, annotation: Any) -> Any:
    """Convert what a person wrote to a type, leniently: numbers and booleans may be text, in any usual spelling.

    Args:
        value: text, or what TOML makes of it.
        annotation: a type msgspec can convert to, or a Path, whose leading ``~`` is the user's home directory.

    Raises:
        ValueError: it is no such value; the message says what was expected, and does not repeat the value.
    """
    strict = False
    if isinstance(value, str):
        value = value.strip()
        word = value.lower()
        for part in union_parts(annotation):
            if isinstance(part, inspect.BoolType):
                value = _BOOLEANS.get(word, value)
            elif isinstance(part, inspect.LiteralType) and word in part.values:
                value = word
            elif isinstance(part, inspect.DateTimeType):
                # Not strictly, a number would be one too.
                strict = True
    try:
        return msgspec.convert(value, annotation, strict=strict, dec_hook=_path)
    except (msgspec.ValidationError, ValueError):
        raise ValueError(f"expected {expected(annotation)}") from None


def expected(annotation: Any) -> str:
    """What values a type takes, in words: ``a whole number from 0 to 65535``, or an example of text with a pattern."""
    for info in _with_members(inspect.type_info(annotation)):
        if isinstance(info, inspect.Metadata) and info.extra_json_schema and "examples" in info.extra_json_schema:
            return f"text such as {info.extra_json_schema['examples'][0]}"
    return " or ".join(_in_words(part) for part in union_parts(annotation))


def help_line(annotation: Any) -> str:
    """The description in an annotated type; empty when it has none."""
    return next((meta.description for meta in get_args(annotation)[1:] if getattr(meta, "description", None)), "")


def bare_type(annotation: Any) -> inspect.Type:
    """What msgspec knows of a type, without what was said about it."""
    info = inspect.type_info(annotation)
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def union_parts(annotation: Any) -> list[inspect.Type]:
    """The types of a union but None; of any other type, itself."""
    info = bare_type(annotation)
    parts = info.types if isinstance(info, inspect.UnionType) else (info,)
    return [part for part in parts if not isinstance(part, inspect.NoneType)]


def _with_members(info: inspect.Type) -> Iterator[inspect.Type]:
    """A type, and those that it is made of: of a union, and under what was said about it."""
    yield info
    if isinstance(info, inspect.Metadata):
        yield from _with_members(info.type)
    elif isinstance(info, inspect.UnionType):
        for part in info.types:
            yield from _with_members(part)


def _in_words(info: inspect.Type) -> str:
    match info:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number{_bounds(info)}"
        case inspect.FloatType():
            return f"a number{_bounds(info)}"
        case inspect.LiteralType(values=(single,)):
            return str(single)
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.DateTimeType():
            return "a time with its zone, as in 2030-12-31T23:59:59Z"
        case inspect.CustomType():
            return "a path"
        case _:
            return "text"


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge:.15g} to {info.le:.15g}"
    limits = (("at least", info.ge), ("above", info.gt), ("at most", info.le), ("below", info.lt))
    words = [f"{word} {bound:.15g}" for word, bound in limits if bound is not None]
    return f", {' and '.join(words)}" if words else ""


def _path(annotation: Any, value: object) -> object:
    if annotation is Path and isinstance(value, (str, Path)):
        return Path(value).expanduser()
    raise ValueError("not a path")
