"""Finds words of digits and numbers: "zéro six douze", "double five", "twenty-one"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Digits", "spoken_digits"]

# Languages whose words text2num knows.
LANGUAGES = frozenset(("da", "de", "en", "es", "fr", "it", "nl", "pt"))
WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]")
# English says "oh" for zero between other digits, and doubles the next digit.
ZERO = {"en": ("oh", "o")}
REPEATS = {"double": 2, "triple": 3}
SPACE = re.compile(r"[\s,-]+")


class Digits(NamedTuple):
    """Words that mean digits.

    Attributes:
        start, end: characters of the text.
        digits: what the words mean, such as ``06``.
    """

    start: int
    end: int
    digits: str


class _Token:
    """A word for text2num."""

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self) -> str:
        return self._text

    def nt_separated(self, previous: _Token) -> bool:
        return False

    def not_a_number_part(self) -> bool:
        return self._text.isdecimal()


def spoken_digits(text: str, language: str) -> list[Digits]:
    """The words of digits in a text, in order; none in a language whose words are not known.

    Args:
        text: any text.
        language: code of the text's language.
    """
    if language not in LANGUAGES:
        return []
    words = [match for match in WORD.finditer(text) if not match[0].isdecimal()]
    found = []
    for start, end, value in _numbers([word[0] for word in words], language):
        if digits := "".join(filter(str.isdecimal, value)):
            found.append(Digits(words[start].start(), words[end - 1].end(), digits))
    return _with_zeros(text, found, ZERO[language]) if language in ZERO else found


def _numbers(words: Sequence[str], language: str) -> list[tuple[int, int, str]]:
    """First word, word after the last, and value of each number."""
    import text_to_num

    try:
        found = text_to_num.find_numbers([_Token(word) for word in words], language, 0.0)
    except BaseException as error:
        # A panic of text2num's native code is a BaseException, which would end the thread.
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError("text2num failed") from None
    return [(each.start, each.end, each.text) for each in found]


def _with_zeros(text: str, found: Sequence[Digits], zeros: Sequence[str]) -> list[Digits]:
    """Add the zeros beside other digits, and repeat the digits after "double" and "triple"."""
    starts = {each.start for each in found} | {match.start() for match in re.finditer(r"\d", text)}
    ends = {each.end for each in found} | {match.end() for match in re.finditer(r"\d", text)}
    words = list(re.finditer(r"[^\W\d_]+", text))
    result = list(found)
    # Zeros may follow each other, so that each one found is a neighbour of the next.
    for match in (*words, *reversed(words)):
        near = _end_before(text, match.start()) in ends or _start_after(text, match.end()) in starts
        if match[0].lower() in zeros and near and match.start() not in starts:
            result.append(Digits(match.start(), match.end(), "0"))
            starts.add(match.start())
            ends.add(match.end())
    times = {_start_after(text, match.end()): match for match in words if match[0].lower() in REPEATS}
    for index, each in enumerate(result):
        repeat = times.get(each.start)
        if repeat is not None and len(each.digits) == 1:
            result[index] = Digits(repeat.start(), each.end, each.digits * REPEATS[repeat[0].lower()])
    return sorted(result)


def _end_before(text: str, position: int) -> int:
    return len(text[max(position - 4, 0) : position].rstrip(" ,-")) + max(position - 4, 0)


def _start_after(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position
