"""What stands in a form that OpenAI's clients send: single values, lists with and without brackets, and objects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from whisper_api.schema import Task
from whisper_api.server.openai.chunking import CHUNKING_FIELD
from whisper_api.server.uploads.form_values import (
    LINE_BREAKS,
    MAX_TEXT_CHARACTERS,
    RENDER_FIELDS,
    check_text,
    converted,
    field_warnings,
)

__all__ = ["FormFields"]

COMMON = ("model", "prompt", "temperature", "response_format", "hotwords", "audio_track", "url", *RENDER_FIELDS)
SINGLE = {
    "transcribe": frozenset((*COMMON, "language", "stream", CHUNKING_FIELD)),
    "translate": frozenset(COMMON),
}
# Clients send these for translations too, where OpenAI has no such fields; why they mean nothing there.
OF_TRANSCRIPTIONS = {
    "language": "a translation is in English, and the language that is spoken is detected",
    "stream": "a translation is not streamed",
}
NOTHING = ("", "false", "0", "null")
# A list's name may end with brackets, and in these may be a number, as some languages' clients write lists.
_BRACKETS = re.compile(r"\[\d{0,4}\]\Z")
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


class FormFields:
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
        """What was not understood, one sentence each."""
        return (*field_warnings(self._unknown, self._repeated), *self._notes)

    def note(self, sentence: str) -> None:
        """Add a warning: something that was asked for means nothing here."""
        self._notes.append(sentence)

    def every(self, name: str) -> tuple[str, ...]:
        """The values of a list; its name without brackets."""
        return tuple(self._values.get(name, ()))

    def words(self, name: str) -> tuple[str, ...]:
        """The values of a list of words, which may stand in one value: with commas between, or as a JSON array."""
        return tuple(word for value in self.every(name) for word in _words_in(value))

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


def _words_in(value: str) -> list[str]:
    if value.startswith("["):
        try:
            return msgspec.json.decode(value, type=list[str])
        except msgspec.MsgspecError:
            return [value]
    return [word.strip() for word in value.split(",") if word.strip()]
