"""What docstrings say, for those who read the description of the API and not the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Described", "described", "plain"]

# ``:class:`~whisper_api.schema.Word```: of the path, only the last name is of interest.
ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]*\.)?(\w+)`")
LITERAL = re.compile(r"``([^`]+)``")
CONSTANT = re.compile(r"\b(None|True|False)\b")
IN_JSON = {"None": "null", "True": "true", "False": "false"}
SECTION = re.compile(r"(Attributes|Args|Returns|Raises|Yields)(?:, as an answer)?:(.*)")
# One or several names, of which all have the description that follows.
ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")

# What stands before a line that is not the first of its paragraph: one that begins an item, if so.
NEXT_ITEM = {False: " ", True: "\n"}


@dataclass(frozen=True)
class Described:
    """A docstring, taken apart.

    Attributes:
        summary: its first sentence or line, without the full stop.
        text: what follows, until the first section; may be several paragraphs.
        attributes: name to description.
    """

    summary: str = ""
    text: str = ""
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> str:
        """Summary and text, as paragraphs."""
        return "\n\n".join(part for part in (f"{self.summary}." if self.summary else "", self.text) if part)


def described(thing: Callable[..., object]) -> Described:
    """What the docstring of a class or function says of it."""
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
                # Lines are only kept apart where they are the items of a list.
                paragraphs[-1] += f"{'' if not paragraphs[-1] else NEXT_ITEM[line.startswith('- ')]}{line.strip()}"
    return Described(
        summary=plain(summary).rstrip("."),
        text="\n\n".join(plain(paragraph) for paragraph in paragraphs if paragraph),
        attributes={name: _of_json(plain(" ".join(lines))) for name, lines in attributes.items()},
    )


def plain(text: str) -> str:
    """Text as CommonMark, which is what descriptions of an API are written in, without what is only for the code."""
    return LITERAL.sub(r"`\1`", ROLE.sub(r"`\1`", text)).strip()


def _of_json(text: str) -> str:
    """The constants by the names that they have there."""
    return CONSTANT.sub(lambda found: IN_JSON[found[0]], text)
