"""Texts of the API's description, taken from the docstrings of handlers and Structs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Described", "described", "plain"]

# ``:class:`~whisper_api.schema.Word```, of which the description keeps the last name.
ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]*\.)?(\w+)`")
LITERAL = re.compile(r"``([^`]+)``")
CONSTANT = re.compile(r"\b(None|True|False)\b")
IN_JSON = {"None": "null", "True": "true", "False": "false"}
SECTION = re.compile(r"(Attributes|Args|Returns|Raises|Yields)(?:, as an answer)?:(.*)")
# One or several names with the same description.
ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")


@dataclass(frozen=True)
class Described:
    """The parts of a docstring.

    Attributes:
        summary: the first line, without the full stop.
        text: the paragraphs between the summary and the first section.
        attributes: name to description.
    """

    summary: str = ""
    text: str = ""
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> str:
        """The summary and the text as paragraphs."""
        return "\n\n".join(part for part in (f"{self.summary}." if self.summary else "", self.text) if part)


def described(thing: Callable[..., object]) -> Described:
    """The parts of the docstring of a class or function."""
    summary, _, rest = inspect.cleandoc(thing.__doc__ or "").partition("\n")
    paragraphs = [""]
    attributes: dict[str, list[str]] = {}
    section = ""
    names: tuple[str, ...] = ()
    for line in rest.splitlines():
        if heading := SECTION.fullmatch(line):
            section = heading[1]
        elif line and not line.startswith(" "):
            section = ""
        if section == "Attributes":
            if entry := ENTRY.fullmatch(line):
                names = tuple(entry[1].split(", "))
                attributes.update({name: [entry[2]] for name in names})
            elif line.strip() and names:
                for name in names:
                    attributes[name].append(line.strip())
        elif not section:
            if not line:
                paragraphs.append("")
            else:
                # The lines of a paragraph are joined; the items of a list stay on lines of their own.
                separator = "\n" if line.startswith("- ") else " "
                paragraphs[-1] = separator.join(filter(None, (paragraphs[-1], line.strip())))
    return Described(
        summary=plain(summary).rstrip("."),
        text="\n\n".join(plain(paragraph) for paragraph in paragraphs if paragraph),
        attributes={
            # Readers of the API know Python's constants by JSON's names.
            name: CONSTANT.sub(lambda found: IN_JSON[found[0]], plain(" ".join(lines)))
            for name, lines in attributes.items()
        },
    )


def plain(text: str) -> str:
    """Convert a text from reStructuredText to CommonMark, the language of OpenAPI's descriptions."""
    return LITERAL.sub(r"`\1`", ROLE.sub(r"`\1`", text)).strip()
