"""Finds numbers that identify somebody, written as digits or words: "zéro six douze", "double five", "twenty-one"."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from whisper_api.engine.redaction.checks import possible_kinds, regions
from whisper_api.engine.redaction.findings import Finding
from whisper_api.options import RedactKind

# The kind "numbers" is every run of so many digits.
LEAST_DIGITS = 3
# An account number and an id may have letters too, at most so many together where no digit touches them.
TOKEN = re.compile(r"\d+|[^\W\d_]+")
MOST_LETTERS = 4
PLAIN_GAP = re.compile(r"[\s.,;:/()*#+–—_'’-]{0,4}")
# People hesitate while they dictate a number.
FILLED_GAP = re.compile(r"[\s.,…-]{1,4}(?:e?uh+|heu+|um+|hum+|hmm+|äh+|ähm+|eh+)[\s.,…-]{1,4}", re.IGNORECASE)
# Between groups of one number.
GROUP_GAP = re.compile(r"[\s.\u2019'–-]?")
# Digits and letters of the longest number here: an IBAN has at most 34.
LONGEST = 34
NUMBER_KINDS = frozenset(("phones", "cards", "accounts", "ids", "numbers"))

# Languages whose words text2num knows.
LANGUAGES = frozenset(("da", "de", "en", "es", "fr", "it", "nl", "pt"))
WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]")
# English says "oh" for zero between other digits, and doubles the next digit.
ZERO = {"en": ("oh", "o")}
REPEATS = {"double": 2, "triple": 3}
SPACE = re.compile(r"[\s,-]+")


class Code(NamedTuple):
    """A part of a number.

    Attributes:
        start, end: characters of the text.
        value: digits, also those that words mean, such as ``06``; or capital letters and digits.
    """

    start: int
    end: int
    value: str


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


def spoken_digits(text: str, language: str) -> list[Code]:
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
            found.append(Code(words[start].start(), words[end - 1].end(), digits))
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


def _with_zeros(text: str, found: Sequence[Code], zeros: Sequence[str]) -> list[Code]:
    """Add the zeros beside other digits, and repeat the digits after "double" and "triple"."""
    starts = {each.start for each in found} | {match.start() for match in re.finditer(r"\d", text)}
    ends = {each.end for each in found} | {match.end() for match in re.finditer(r"\d", text)}
    words = list(re.finditer(r"[^\W\d_]+", text))
    result = list(found)
    # Zeros may follow each other, so that each one found is a neighbour of the next.
    for match in (*words, *reversed(words)):
        near = _end_before(text, match.start()) in ends or _start_after(text, match.end()) in starts
        if match[0].lower() in zeros and near and match.start() not in starts:
            result.append(Code(match.start(), match.end(), "0"))
            starts.add(match.start())
            ends.add(match.end())
    times = {_start_after(text, match.end()): match for match in words if match[0].lower() in REPEATS}
    for index, each in enumerate(result):
        repeat = times.get(each.start)
        if repeat is not None and len(each.value) == 1:
            result[index] = Code(repeat.start(), each.end, each.value * REPEATS[repeat[0].lower()])
    return sorted(result)


def _end_before(text: str, position: int) -> int:
    return len(text[max(position - 4, 0) : position].rstrip(" ,-")) + max(position - 4, 0)


def _start_after(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position


def find_numbers(text: str, language: str, kinds: Collection[RedactKind]) -> list[Finding]:
    """The numbers of a text.

    Every run of digits is told apart among all kinds of numbers first; so no part of a card's number is a phone number.

    Args:
        text: any text.
        language: code of the text's language: says how its words of digits read, and whose phone numbers and ids they
            may be.
        kinds: the kinds to find; others are ignored.
    """
    if NUMBER_KINDS.isdisjoint(kinds):
        return []
    found = []
    for run in _runs(text, language):
        numbers = list(_told_apart(text, run, language))
        chosen = [next((kind for kind in possible if kind in kinds), None) for _, possible in numbers]
        for index, ((parts, possible), kind) in enumerate(zip(numbers, chosen, strict=True)):
            if kind is not None:
                found.append(Finding(parts[0].start, parts[-1].end, kind))
            elif "numbers" in kinds:
                digits = [part for part in parts if _count(part)]
                if digits and sum(map(_count, run)) >= LEAST_DIGITS:
                    found.append(Finding(digits[0].start, digits[-1].end, "numbers"))
            elif not possible and index and chosen[index - 1] is not None:
                found[-1] = found[-1]._replace(end=_end_of_rest(text, parts, found[-1].end))
    return found


def _end_of_rest(text: str, parts: Sequence[Code], end: int) -> int:
    """Where a number ends to which the next groups of digits belong.

    With a digit that was misheard, a long number may have been taken for a shorter one and a rest.

    Args:
        text: the whole text.
        parts: parts of numbers of no kind, after the number.
        end: where the number ends without them.
    """
    for part in parts:
        if not _count(part) or not GROUP_GAP.fullmatch(text[end : part.start]):
            break
        end = part.end
    return end


def _runs(text: str, language: str) -> list[list[Code]]:
    """Parts of numbers that follow each other, with at least one digit among them."""
    runs: list[list[Code]] = []
    for code in _codes(text, language):
        if runs and _follows(text, runs[-1][-1].end, code.start):
            runs[-1].append(code)
        else:
            runs.append([code])
    return [run for run in runs if any(map(_count, run))]


def _follows(text: str, end: int, start: int) -> bool:
    """Whether the part of a number that begins at ``start`` continues the number that ends at ``end``."""
    gap = text[end:start]
    begins_sentence = "." in gap and text[start].isupper() and text[start + 1 : start + 2].islower()
    return not begins_sentence and bool(PLAIN_GAP.fullmatch(gap) or FILLED_GAP.fullmatch(gap))


def _codes(text: str, language: str) -> Iterator[Code]:
    """The parts of numbers in a text: digits, words of digits, and letters that may belong to a number."""
    spoken = {each.start: each for each in spoken_digits(text, language)}
    position = 0
    for match in TOKEN.finditer(text):
        if match.start() < position:
            continue
        token = match[0]
        words = spoken.get(match.start())
        if words is not None:
            position = words.end
            yield words
        elif token.isdecimal():
            yield Code(match.start(), match.end(), "".join(str(unicodedata.decimal(digit)) for digit in token))
        elif token.isascii() and token.isupper() and (len(token) <= MOST_LETTERS or _touches_digit(text, match)):
            yield Code(match.start(), match.end(), token)


def _touches_digit(text: str, match: re.Match[str]) -> bool:
    """Whether letters are a part of a written code, as in RSSMRA85T10A562S."""
    return text[match.start() - 1 : match.start()].isdecimal() or text[match.end() : match.end() + 1].isdecimal()


def _count(code: Code) -> int:
    return sum(map(str.isdecimal, code.value))


def _told_apart(
    text: str, run: Sequence[Code], language: str
) -> Iterator[tuple[Sequence[Code], tuple[RedactKind, ...]]]:
    """Divide a run into numbers with the kinds that each may be, and the rest; the longest numbers first."""
    start = position = 0
    while position < len(run):
        end, kinds = _longest_at(text, run, position, language)
        if not kinds:
            position += 1
            continue
        if start < position:
            yield run[start:position], ()
        yield run[position:end], kinds
        start = position = end
    if start < len(run):
        yield run[start:], ()


def _longest_at(text: str, run: Sequence[Code], first: int, language: str) -> tuple[int, tuple[RedactKind, ...]]:
    start = run[first].start
    plus = text[max(start - 6, 0) : start].rstrip().lower().endswith(("+", "plus"))
    values = [""]
    for code in run[first:]:
        values.append(values[-1] + code.value)
        if len(values[-1]) > LONGEST:
            values.pop()
            break
    for number in range(len(values) - 1, 0, -1):
        groups = tuple(len(code.value) for code in run[first : first + number])
        if kinds := possible_kinds(values[number], groups, regions(language), plus=plus):
            return first + number, kinds
    return first, ()
