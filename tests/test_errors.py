"""The tree in the docstring is the tree of the classes."""

from __future__ import annotations

import inspect
import re

from whisper_api import errors


def test_the_docstring_draws_every_error_below_its_base() -> None:
    drawn: dict[str, str] = {}
    above: dict[int, str] = {}
    assert errors.__doc__
    for line in errors.__doc__.splitlines():
        found = re.match(r"^    ([ │├└─]*)([A-Z]\w+)", line)
        if found:
            depth = len(found[1]) // 4
            above[depth] = found[2]
            if depth:
                drawn[found[2]] = above[depth - 1]
    classes = {
        name: value.__base__.__name__
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if value.__module__ == errors.__name__ and value is not errors.WhisperApiError and value.__base__
    }
    assert drawn == classes
    assert sorted(errors.__all__) == sorted({*classes, "WhisperApiError"})


def test_an_invalid_option_names_its_field() -> None:
    error = errors.InvalidOption("language", "'xx' is not a language")
    assert error.field == "language"
    assert str(error) == "language: 'xx' is not a language"
