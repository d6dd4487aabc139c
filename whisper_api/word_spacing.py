"""Finds words in a text, and the spaces between them.

The language alone does not decide whether two words have a space between them: a Chinese text may contain Latin words.
The text itself has the right spaces, since Whisper writes them.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment

# First words of the Unicode names of characters that have no space around them: scripts without spaces, and the
# sentence marks of Chinese and Japanese. Korean characters are wide too, but Korean has spaces.
SPACELESS = (
    "CJK",
    "FULLWIDTH",
    "HALFWIDTH KATAKANA",
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
    """Join texts in one line, with a space where the scripts have spaces."""
    whole: list[str] = []
    before = ""
    for text in map(str.strip, texts):
        whole += (space_between(before, text), text)
        before = text or before
    return "".join(whole)


def space_between(before: str, after: str) -> str:
    """The separator of two texts: a space, or nothing when a text is empty or its script has no spaces.

    Args:
        before: the first text, without surrounding white space.
        after: the second text, without surrounding white space.
    """
    if not before or not after or is_spaceless(before[-1]) or is_spaceless(after[0]):
        return ""
    return " "


@functools.lru_cache(maxsize=4096)
def is_spaceless(character: str) -> bool:
    """Whether a character belongs to a script that puts no space between words."""
    return not character.isascii() and unicodedata.name(character, "").startswith(SPACELESS)


def word_spans(text: str, words: Sequence[str]) -> list[tuple[int, int]] | None:
    """Find words in a text.

    Args:
        text: any text.
        words: the words, in the order of the text. White space inside a word may differ from the text's.

    Returns:
        (start, end) of each word, in characters; None when the text does not contain the words in this order.
    """
    found = []
    position = 0
    for word in words:
        while position < len(text) and text[position].isspace():
            position += 1
        if not text.startswith(word, position):
            return _spans_of_visible(text, words)
        found.append((position, position + len(word)))
        position += len(word)
    return found


def _spans_of_visible(text: str, words: Sequence[str]) -> list[tuple[int, int]] | None:
    """Find words by their visible characters; the text may have marks between the words."""
    places = [place for place, character in enumerate(text) if not character.isspace()]
    visible = "".join(text[place] for place in places)
    found = []
    position = 0
    for word in words:
        bare = "".join(word.split())
        begin = visible.find(bare, position)
        if begin < 0 or not bare:
            return None
        position = begin + len(bare)
        found.append((places[begin], places[position - 1] + 1))
    return found


def pieces(segment: Segment, language: str) -> list[str]:
    """Split a segment's text into its words, each with the space before it.

    The joined pieces are the segment's text, in which every run of white space is a single space. A mark between two
    words belongs to the first word. When the text does not contain the words, the language decides about the spaces.

    Args:
        segment: a segment with words.
        language: code of the text's language.
    """
    words = [word.word for word in segment.words]
    spans = word_spans(segment.text, words)
    if not spans:
        space = "" if language in LANGUAGES_WITHOUT_SPACES else " "
        return [f"{space if index else ''}{word}" for index, word in enumerate(words)]
    text = segment.text
    borders = [*(start for start, _ in spans[1:]), len(text)]
    found = []
    space = ""
    for index, (word, (_, end), border) in enumerate(zip(words, spans, borders, strict=True)):
        between = text[end:border]
        marks = _one_space(between.rstrip())
        before = _one_space(text[: spans[0][0]].lstrip()) if index == 0 else ""
        found.append(f"{space}{before}{word}{marks}")
        space = " " if between[-1:].isspace() else ""
    return found


def _one_space(text: str) -> str:
    return re.sub(r"\s+", " ", text)
