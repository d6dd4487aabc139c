"""Splits a transcript into cells: the pieces of text that no line break divides.

- Lines break at spaces, and between the characters of Chinese and Japanese. Lines never break inside a word of
  letters, before a closing mark or after an opening mark. Thai, Lao, Khmer, Burmese and Tibetan break between words.
- Without word times, each word gets a share of its segment's time in proportion to its number of characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment, Word
from whisper_api.subtitles.cue import Source
from whisper_api.time_order import Span, fitted, in_order
from whisper_api.word_spacing import is_spaceless, pieces, space_between

# A line never begins with a CLOSING character and never ends with an OPENING character or a bracket that opens.
CLOSING = frozenset(",.!?:;%)]}'\"、。，．！？：；・…‥ーゝゞヽヾ々〜％ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ")
OPENING = frozenset("([{“‘")
# Scripts without spaces whose lines break only between words.
BETWEEN_WORDS = ("KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN")
# Marks in a row that stay with their word, although spaces precede them.
MOST_MARKS = 2
INVISIBLE = frozenset(("Mn", "Me", "Cf", "Cc"))


class Part(NamedTuple):
    """A word, or a piece of a word.

    Attributes:
        word: number of the word in the transcript; the pieces of a word have the same number.
        text: the printed characters.
        start, end: seconds; parts do not overlap, and each lasts at least a millisecond.
        source: the word in the segments.
        space: whether a space precedes the part inside its cell.
    """

    word: int
    text: str
    start: float
    end: float
    source: Source
    space: bool = False


class Cell(NamedTuple):
    """Text without a place for a line break.

    Attributes:
        parts: several when a line must not break between them.
        text: the printed characters.
        width: the number of printed characters.
        space: whether a space precedes the cell when it is not the first of its line.
        speaker: the segment's speaker.
        segment: index of the segment.
    """

    parts: tuple[Part, ...]
    text: str
    width: int
    space: bool
    speaker: str | None
    segment: int


def display_width(text: str) -> int:
    """The number of printed characters: combining marks and invisible characters count 0, wide characters count 1."""
    if text.isascii():
        return len(text)
    return sum(unicodedata.category(c) not in INVISIBLE for c in unicodedata.normalize("NFC", text))


def cells_of(segments: Sequence[Segment], language: str, width: int | None = None) -> list[Cell]:
    """The cells of a transcript, in order.

    Args:
        segments: with or without word times.
        language: code of the text's language, for segments that have none of their own.
        width: most printed characters in a line, without a label; None for any number. A mark that a space sets apart
            stays with its word where both fit.
    """
    timed = in_order([segment if segment.words else _with_estimated_words(segment) for segment in segments])
    wordless = {segment.id for segment in segments if not segment.words}
    return _cells(list(_tokens(timed, language, wordless)), width)


def _with_estimated_words(segment: Segment) -> Segment:
    """The segment with words whose times are in proportion to their numbers of characters."""
    words = [part for word in segment.text.split() for part in _breakable(word, between_words=True)]
    total = sum(map(len, words))
    seconds = segment.end - segment.start
    found = []
    before = 0
    for word in words:
        start = segment.start + seconds * before / total
        before += len(word)
        end = segment.start + seconds * before / total
        found.append(Word(word=word, start=start, end=end, speaker=segment.speaker))
    return replace(segment, words=tuple(found))


def _breakable(word: str, *, between_words: bool) -> list[str]:
    """Split a word where a line may break.

    Args:
        word: a text without spaces.
        between_words: whether every border counts as a border between words.
    """
    if word.isascii():
        return [word]
    found: list[str] = []
    for character in word:
        if found and not _may_break(found[-1][-1], character, between_words=between_words):
            found[-1] += character
        else:
            found.append(character)
    return found


def _may_break(before: str, after: str, *, between_words: bool) -> bool:
    """Whether a line may break between two adjacent characters."""
    spaceless = [c for c in (before, after) if is_spaceless(c)]
    if not spaceless:
        return False
    category = unicodedata.category(after)
    if category in INVISIBLE or category in ("Mc", "Pe", "Pf") or after in CLOSING:
        return False
    if before in OPENING or before == "\u200d" or unicodedata.category(before) in ("Ps", "Pi"):
        return False
    return between_words or any(not unicodedata.name(c, "").startswith(BETWEEN_WORDS) for c in spaceless)


@dataclass(frozen=True)
class _Token:
    text: str
    space: bool
    span: Span
    speaker: str | None
    segment: int
    source: Source


def _tokens(segments: Sequence[Segment], language: str, wordless: Set[int]) -> Iterator[_Token]:
    last = ""
    for number, segment in enumerate(segments):
        worded = segment.id not in wordless
        spoken = segment.language or language
        spaced = spoken not in LANGUAGES_WITHOUT_SPACES
        for index, (word, piece) in enumerate(zip(segment.words, pieces(segment, spoken), strict=True)):
            # Players read an arrow as the times of a subtitle, and an empty line as the end of a subtitle.
            text = " ".join(piece.split()).replace("-->", "->")
            space = piece[:1].isspace() if index else spaced or bool(space_between(last, text))
            if text:
                source = Source(segment.id, index if worded else None)
                yield _Token(text, space, (word.start, word.end), segment.speaker, number, source)
                last = text


def _only(text: str, kind: Callable[[str], bool]) -> bool:
    return all(map(kind, text))


def _closes(character: str) -> bool:
    """Whether a character, as a word of its own, belongs to the word before; straight quotes may belong to either."""
    return (character in CLOSING and character not in "'\"") or unicodedata.category(character) in ("Pe", "Pf")


def _opens(character: str) -> bool:
    """Whether a character, as a word of its own, belongs to the word after."""
    return character in OPENING or unicodedata.category(character) in ("Ps", "Pi")


def _cells(tokens: Sequence[_Token], width: int | None) -> list[Cell]:
    # Number of the token, text, time, whether a new cell begins, and whether a space precedes.
    drafts: list[tuple[int, str, Span, bool, bool]] = []
    before: _Token | None = None
    whole = ""  # of the cell so far
    marks = 0
    for number, token in enumerate(tokens):
        start, end = token.span
        share = (end - start) / len(token.text)
        place = 0
        for index, text in enumerate(_breakable(token.text, between_words=False)):
            first, place = start + share * place, place + len(text)
            glued = before is not None and index == 0 and not token.space and before.segment == token.segment
            glued = glued and not _may_break(drafts[-1][1][-1], text[0], between_words=True)
            if index == 0 and before is not None and before.segment == token.segment and token.space:
                # French sets its marks apart: "« Oui ! »".
                marks = marks + 1 if _only(token.text, _closes) else 0
                opened = _only(before.text, _opens) and not _only(token.text, _opens)
                fits = width is None or display_width(f"{whole} {text}") <= width
                glued = fits and (opened or 0 < marks <= MOST_MARKS)
            space = token.space and index == 0
            whole = f"{whole}{' ' * space}{text}" if glued else text
            span = (first, end if place == len(token.text) else start + share * place)
            drafts.append((number, text, span, not glued, space))
        before = token
    # A word that lasts a few milliseconds may have more characters than milliseconds.
    spans = fitted([span for _, _, span, _, _ in drafts])
    cells: list[Cell] = []
    for (number, text, _, begins, space), (start, end) in zip(drafts, spans, strict=True):
        token = tokens[number]
        part = Part(number, text, start, end, token.source, space and not begins)
        if begins:
            cells.append(Cell((part,), text, display_width(text), space, token.speaker, token.segment))
        else:
            last = cells[-1]
            whole = f"{last.text} {text}" if space else last.text + text
            cells[-1] = last._replace(parts=(*last.parts, part), text=whole, width=display_width(whole))
    return cells
