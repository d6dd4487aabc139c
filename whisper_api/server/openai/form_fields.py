"""The fields of a form that OpenAI's clients send: single values, lists with and without brackets, and objects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from whisper_api.schema import Task
from whisper_api.server.openai.chunking import CHUNKING_FIELD
from whisper_api.server.uploads.forms import RENDER_FIELDS, converted, field_warnings
from whisper_api.server.uploads.known_speakers import NAMES_FIELD, REFERENCES_FIELD

__all__ = ["FormFields"]

COMMON = ("model", "prompt", "temperature", "response_format", "hotwords", "audio_track", "url", *RENDER_FIELDS)
SINGLE = {
    "transcribe": frozenset((*COMMON, "language", "stream", CHUNKING_FIELD)),
    "translate": frozenset(COMMON),
}
# Clients send these for translations too, where OpenAI has no such fields. The warning gives the reason.
OF_TRANSCRIPTIONS = {
    "language": "a translation is in English, and the language that is spoken is detected",
    "stream": "a translation is not streamed",
}
NOTHING = ("", "false", "0", "null")
# A list's name may end with brackets, which may hold a number: clients of some languages write lists that way.
_BRACKETS = re.compile(r"\[\d{0,4}\]\Z")
LISTS = {
    "transcribe": frozenset(
        (
            "timestamp_granularities",
            "include",
            "keywords",
            "languages",
            NAMES_FIELD,
            REFERENCES_FIELD,
        )
    ),
    "translate": frozenset(("keywords",)),
}


class FormFields:
    """The fields of a form that have a value.

    Args:
        fields: name and value of each, in order. Of a field that is no list and comes twice, the last counts.
        task: decides which fields there are.
    """

    def __init__(self, fields: Sequence[tuple[str, str]], task: Task) -> None:
        self._values: dict[str, list[str]] = {}
        # Dictionaries, since they keep the order.
        self._unknown: dict[str, None] = {}
        self._repeated: dict[str, None] = {}
        self._notes: list[str] = []
        for name, value in fields:
            plain = _BRACKETS.sub("", name)
            known_list = plain in LISTS[task]
            parent = name.partition("[")[0]
            if task == "translate" and name in OF_TRANSCRIPTIONS:
                if value.strip().lower() not in NOTHING:
                    self.note(f"{name} was ignored: {OF_TRANSCRIPTIONS[name]}")
                continue
            if not known_list and name not in SINGLE[task] and (parent, task) != (CHUNKING_FIELD, "transcribe"):
                self._unknown[name] = None
                continue
            values = self._values.setdefault(plain if known_list else name, [])
            if values and not known_list:
                self._repeated[name] = None
            if value.strip():
                values.append(value.strip())

    def warnings(self) -> tuple[str, ...]:
        """Fields that were ignored or not understood, one sentence each."""
        return (*field_warnings(self._unknown, self._repeated), *self._notes)

    def note(self, sentence: str) -> None:
        """Add a warning about a field that has no effect."""
        self._notes.append(sentence)

    def every(self, name: str) -> tuple[str, ...]:
        """The values of a list; its name without brackets."""
        return tuple(self._values.get(name, ()))

    def words(self, name: str) -> tuple[str, ...]:
        """The values of a list of words; one value may hold several, with commas between or as a JSON array."""
        return tuple(word for value in self.every(name) for word in _words_in(value))

    def last(self, name: str) -> str | None:
        """A field's text; None when the field is absent."""
        return next(reversed(self._values.get(name, [])), None)

    def single(self, names: Iterable[str]) -> dict[str, str]:
        """Those of these fields that are present, with their texts."""
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


def _words_in(value: str) -> list[str]:
    if value.startswith("["):
        try:
            return msgspec.json.decode(value, type=list[str])
        except msgspec.MsgspecError:
            return [value]
    return [word.strip() for word in value.split(",") if word.strip()]
