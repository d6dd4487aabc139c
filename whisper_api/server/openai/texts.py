"""Pieces of text put together as OpenAI's answers have them: with a space between, where the script has spaces."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

__all__ = ["joined", "space_between"]

# Scripts that put no space between words or sentences, as Unicode's names of their characters begin; the sentence
# marks of Chinese and Japanese belong to them. Korean, as wide, has spaces.
SPACELESS = (
    "CJK",
    "FULLWIDTH",
    "HIRAGANA",
    "IDEOGRAPHIC",
    "KATAKANA",
    "KHMER",
    "LAO",
    "LEFT CORNER BRACKET",
    "MYANMAR",
    "RIGHT CORNER BRACKET",
    "THAI",
    "TIBETAN",
)


def joined(texts: Iterable[str]) -> str:
    """Texts in one line."""
    whole = ""
    for text in texts:
        text = text.strip()
        whole += space_between(whole, text) + text
    return whole


def space_between(before: str, after: str) -> str:
    """What stands between two pieces of text: a space, or nothing where one is empty or its script has none."""
    if not before or not after or _spaceless(before[-1]) or _spaceless(after[0]):
        return ""
    return " "


def _spaceless(character: str) -> bool:
    return not character.isascii() and unicodedata.name(character, "").startswith(SPACELESS)
