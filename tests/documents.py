"""The Markdown documents of the repository, and the examples in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCUMENTS", "ROOT", "Example", "between", "examples", "prose"]

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block of code in a document.

    Attributes:
        document: path of the document, relative to the repository.
        language: as the block names it; empty when it names none.
        code: the lines of the block.
    """

    document: str
    language: str
    code: str


def examples(*languages: str) -> list[Example]:
    """The blocks of code in these languages, in the order of the documents."""
    return [
        Example(path.relative_to(ROOT).as_posix(), language, code)
        for path in DOCUMENTS
        for language, code in _BLOCK.findall(path.read_text(encoding="utf-8"))
        if language in languages
    ]


def between(text: str, name: str) -> str:
    """The part of a document between ``<!-- name -->`` and ``<!-- /name -->``."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found is not None, f"there is no part {name}"
    return found[1]


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return _BLOCK.sub("", text)
