"""What stands in a form that OpenAI's clients send: single values, lists with and without brackets, and objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from whisper_api.schema import Task
from whisper_api.server.intake.form_values import (
    LINE_BREAKS,
    MAX_TEXT_CHARACTERS,
    RENDER_FIELDS,
    check_text,
    converted,
    field_warnings,
)
from whisper_api.server.openai.chunking import CHUNKING_FIELD

__all__ = ["Given"]

COMMON = ("model", "prompt", "temperature", "response_format", "hotwords", "url", *RENDER_FIELDS)
SINGLE = {
    "transcribe": frozenset((*COMMON, "language", "stream", CHUNKING_FIELD)),
    "translate": frozenset(COMMON),
}
# The brackets that a list's name ends with may be left out.
LISTS = {
    "transcribe": frozenset(
        (
            "timestamp_granularities",
            "include",
            "keywords",
            "languages",
            "known_speaker_names",
            "known_speaker_references",
        )
    ),
    "translate": frozenset(("keywords",)),
}


class Given:
    """The fields of a form that say something.

    Args:
        fields: name and value of each, in order. Of a field that is no list and comes twice, the last counts.
        task: which decides what fields there are.
    """

    def __init__(self, fields: Sequence[tuple[str, str]], task: Task) -> None:
        self._values: dict[str, list[str]] = {}
        # Dictionaries, since they keep the order.
        self._unknown: dict[str, None] = {}
        self._repeated: dict[str, None] = {}
        for name, value in fields:
            plain = name.removesuffix("[]")
            known_list = plain in LISTS[task]
            parent = name.partition("[")[0]
            if not known_list and name not in SINGLE[task] and (parent, task) != (CHUNKING_FIELD, "transcribe"):
                self._unknown[name] = None
                continue
            values = self._values.setdefault(plain if known_list else name, [])
            if values and not known_list:
                self._repeated[name] = None
            if value.strip():
                values.append(value.strip())

    def warnings(self) -> tuple[str, ...]:
        """What was not understood, one sentence each."""
        return field_warnings(self._unknown, self._repeated)

    def every(self, name: str) -> tuple[str, ...]:
        """The values of a list; its name without brackets."""
        return tuple(self._values.get(name, ()))

    def last(self, name: str) -> str | None:
        """A field's text; None when it is not there."""
        return next(reversed(self._values.get(name, [])), None)

    def single(self, names: Iterable[str]) -> dict[str, str]:
        """Those of these fields that are there, with their texts."""
        return {name: text for name in names if (text := self.last(name)) is not None}

    def inside(self, name: str) -> dict[str, str]:
        """``name[key]=value`` as key and value."""
        return {
            field[len(name) + 1 : -1]: values[-1]
            for field, values in self._values.items()
            if field.startswith(f"{name}[") and field.endswith("]") and values
        }

    def value(self, name: str, annotation: Any, default: Any) -> Any:
        """A field's value.

        Raises:
            InvalidOption: it is no value of this type.
        """
        text = self.last(name)
        return default if text is None else converted(name, text, annotation)

    def text(self, name: str, max_characters: int = MAX_TEXT_CHARACTERS) -> str | None:
        """A field's text, checked; None when it is not there.

        Raises:
            InvalidOption: it is too long, or no text.
        """
        text = self.last(name)
        if text is not None:
            check_text(name, text, max_characters, LINE_BREAKS)
        return text
