"""Converts text to typed values, and describes types in words, for the configuration, the flags and the forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def convert(value: object, annotation: Any) -> Any:
    """Convert a value that a person wrote. Numbers and booleans may be text in any usual spelling.

    Args:
        value: text, or a value from a TOML file.
        annotation: a type that msgspec supports, or Path; a leading ``~`` of a path is the user's home directory.

    Returns:
        A value of the type.

    Raises:
        ValueError: the value does not fit the type. The message names the expected values, not the value itself.
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
                # The lenient conversion would accept a number as a time.
                strict = True
    try:
        return msgspec.convert(value, annotation, strict=strict, dec_hook=_path)
    except (msgspec.ValidationError, ValueError):
        raise ValueError(f"expected {expected(annotation)}") from None


def expected(annotation: Any) -> str:
    """The accepted values in words: ``a whole number from 0 to 65535``, or an example for text with a pattern."""
    for info in _with_members(inspect.type_info(annotation)):
        if isinstance(info, inspect.Metadata) and info.extra_json_schema and "examples" in info.extra_json_schema:
            return f"text such as {info.extra_json_schema['examples'][0]}"
    return " or ".join(_in_words(part) for part in union_parts(annotation))


def help_line(annotation: Any) -> str:
    """The description in an annotated type; empty without a description."""
    return next((meta.description for meta in get_args(annotation)[1:] if getattr(meta, "description", None)), "")


def bare_type(annotation: Any) -> inspect.Type:
    """The description by msgspec of a type, without the annotations."""
    info = inspect.type_info(annotation)
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def union_parts(annotation: Any) -> list[inspect.Type]:
    """The members of a union without None; for any other type, the type alone."""
    info = bare_type(annotation)
    parts = info.types if isinstance(info, inspect.UnionType) else (info,)
    return [part for part in parts if not isinstance(part, inspect.NoneType)]


def _with_members(info: inspect.Type) -> Iterator[inspect.Type]:
    """A type, the type inside its annotations, and the members of its union."""
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
