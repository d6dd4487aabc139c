"""Subtitles: splits a transcript into subtitles with their lines and times.

Without options, the subtitles are those of whisperx 3.8: one line for each segment. With options:

- No line is wider than ``max_line_width``, the speaker's label included, unless a single word is wider. The width is
  the number of printed characters: a letter with its accents counts as one, a wide character as one, and invisible
  characters and highlighting tags as none.
- Lines break at spaces, and between the characters of Chinese and Japanese. Lines never break inside a word of
  letters, before a closing mark or after an opening mark. Thai, Lao, Khmer, Burmese and Tibetan break between words.
- A highlighted subtitle has the same text as the plain subtitle.
- Without word times, each word gets a share of its segment's time in proportion to its number of characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, RenderOptions, Segment, Transcript, Word
from whisper_api.time_order import Span, fitted, in_order
from whisper_api.word_spacing import is_spaceless, pieces, space_between

__all__ = ["Subtitle", "display_width", "layout_warnings", "speaker_label", "subtitles"]

LONG_PAUSE = 3.0  # seconds of silence that end a subtitle when max_line_count is set

# A line never begins with a CLOSING character and never ends with an OPENING character or a bracket that opens.
CLOSING = frozenset(",.!?:;%)]}'\"、。，．！？：；・…‥ーゝゞヽヾ々〜％ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ")
OPENING = frozenset("([{“‘")
# Scripts without spaces whose lines break only between words.
BETWEEN_WORDS = ("KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN")
INVISIBLE = frozenset(("Mn", "Me", "Cf", "Cc"))


class Subtitle(NamedTuple):
    """One subtitle.

    Attributes:
        start, end: seconds.
        text: the lines, joined by line ends.
    """

    start: float
    end: float
    text: str


def subtitles(transcript: Transcript, options: RenderOptions) -> Iterator[Subtitle]:
    """The subtitles of a transcript, in order of time. Subtitles do not overlap, and each lasts at least a millisecond.

    Args:
        transcript: with or without word times; its segments come from :func:`~whisper_api.time_order.in_order`.
        options: the layout.
    """
    language = transcript.options.written_language(transcript.language)
    segments = transcript.segments
    if options.max_line_width is None and not options.highlight_words:
        yield from _plain(segments, language)
        return
    timed = in_order([segment if segment.words else _with_estimated_words(segment) for segment in segments])
    cues = list(_laid_out(list(_tokens(timed, language)), options))
    # The end of a subtitle may cut a word; each part of the word then has its own span.
    spans = iter(fitted([span for cue in cues for span in cue.spans()]))
    for cue in cues:
        times = [next(spans) for _ in cue.parts]
        if options.highlight_words:
            yield from cue.highlighted(times)
        else:
            yield Subtitle(times[0][0], times[-1][1], cue.text())


def layout_warnings(segments: Sequence[Segment], options: RenderOptions, format: str) -> tuple[str, ...]:
    """A warning for each layout option that has no or limited effect.

    Args:
        segments: the transcript's segments.
        options: the layout options of the request.
        format: a name in :data:`~whisper_api.formats.FORMATS`.
    """
    if options == RenderOptions():
        return ()
    if format not in ("srt", "vtt"):
        return (f"max_line_width, max_line_count and highlight_words lay out srt and vtt; {format} is without them",)
    warnings = []
    if options.max_line_count is not None and options.max_line_width is None:
        warnings.append("max_line_count has no effect without max_line_width")
    timed = options.highlight_words or None not in (options.max_line_width, options.max_line_count)
    if timed and any(not segment.words for segment in segments):
        warnings.append(
            "the subtitles' times are estimated from the length of the words, since there are no word times"
        )
    return tuple(warnings)


def speaker_label(speaker: str | None) -> str:
    """The label in front of a speaker's words; empty without a speaker."""
    return "" if speaker is None else f"[{speaker}]: "


def display_width(text: str) -> int:
    """The number of printed characters: combining marks and invisible characters count 0, wide characters count 1."""
    if text.isascii():
        return len(text)
    return sum(unicodedata.category(c) not in INVISIBLE for c in unicodedata.normalize("NFC", text))


def _plain(segments: Sequence[Segment], language: str) -> Iterator[Subtitle]:
    # whisperx, too, decides by the first segment whether the transcript has words.
    worded = bool(segments and segments[0].words)
    for segment in segments:
        if worded and segment.words:
            start, end, text = segment.words[0].start, segment.words[-1].end, "".join(pieces(segment, language))
        else:
            start, end, text = segment.start, segment.end, segment.text.strip().replace("-->", "->")
        yield Subtitle(start, end, speaker_label(segment.speaker) + text)


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


@dataclass(frozen=True)
class _Token:
    """A word of a subtitle.

    Attributes:
        text: the word as it is printed.
        space: whether a space precedes the word.
        span: the time of the word.
        speaker: the speaker whose label the subtitle gets.
        segment: index of the word's segment.
    """

    text: str
    space: bool
    span: Span
    speaker: str | None
    segment: int


def _tokens(segments: Sequence[Segment], language: str) -> Iterator[_Token]:
    spaced = language not in LANGUAGES_WITHOUT_SPACES
    last = ""
    for number, segment in enumerate(segments):
        for index, (word, piece) in enumerate(zip(segment.words, pieces(segment, language), strict=True)):
            # Players read an arrow as the times of a subtitle, and an empty line as the end of a subtitle.
            text = " ".join(piece.split()).replace("-->", "->")
            space = piece[:1].isspace() if index else spaced or bool(space_between(last, text))
            if text:
                yield _Token(text, space, (word.start, word.end), segment.speaker, number)
                last = text


@dataclass
class _Cell:
    """Text without a place for a line break.

    Attributes:
        parts: index and text of each token; several tokens when a line must not break between them.
        space: whether a space precedes the cell.
    """

    parts: list[tuple[int, str]]
    space: bool

    @property
    def width(self) -> int:
        """The number of printed characters."""
        return display_width("".join(text for _, text in self.parts))


def _cells(tokens: Sequence[_Token]) -> list[_Cell]:
    cells: list[_Cell] = []
    before: _Token | None = None
    for number, token in enumerate(tokens):
        for index, text in enumerate(_breakable(token.text, between_words=False)):
            glued = before is not None and index == 0 and not token.space and before.segment == token.segment
            if before is not None and glued and not _may_break(before.text[-1], text[0], between_words=True):
                cells[-1].parts.append((number, text))
            else:
                cells.append(_Cell([(number, text)], token.space and index == 0))
        before = token
    return cells


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


@dataclass
class _Part:
    """A word of a subtitle, or the part of a word that fits in the subtitle.

    Attributes:
        number: index of the token.
        text: the printed characters.
        before: the separator before the text: a space, a line end or nothing.
        after_characters: number of the token's characters in earlier subtitles.
    """

    number: int
    text: str
    before: str
    after_characters: int = 0


@dataclass
class _Cue:
    """A subtitle under construction.

    Attributes:
        tokens: the tokens of the whole transcript.
        label: the speaker's label; empty without a speaker.
        width, count: ``max_line_width`` and ``max_line_count``; None for no bound.
        parts: the words so far.
        lines: the number of lines so far.
        used: width of the last line; -1 while the line is empty.
    """

    tokens: Sequence[_Token]
    label: str
    width: int | None
    count: int | None
    parts: list[_Part] = field(default_factory=list)
    lines: int = 1
    used: int = -1

    def __post_init__(self) -> None:
        if self.label:
            self.used = display_width(self.label.rstrip())

    def add(self, cell: _Cell, before: int) -> bool:
        """Add a cell. An empty subtitle accepts every cell.

        Args:
            cell: the cell to add.
            before: number of characters of the cell's first token in earlier subtitles.

        Returns:
            False when the subtitle has no room for the cell.
        """
        space = " " if self.parts and cell.space else ""
        size = cell.width
        # The label already ends with a space.
        used = self.used + bool(space or not self.parts) if self.used >= 0 else 0
        if self.width is not None and self.used >= 0 and used + size > self.width:
            if self.count is None or self.lines < self.count:
                self.lines, used, space = self.lines + 1, 0, "\n"
            elif self.parts:
                return False
        self.used = used + size
        for number, text in cell.parts:
            if self.parts and self.parts[-1].number == number and not space:
                self.parts[-1].text += text
            else:
                self.parts.append(_Part(number, text, space, before))
            before, space = 0, ""
        return True

    def spans(self) -> list[Span]:
        """The time of each part."""
        found = []
        for part in self.parts:
            token = self.tokens[part.number]
            start, end = token.span
            share = (end - start) / len(token.text)
            last = part.after_characters + len(part.text)
            found.append(
                (start + share * part.after_characters, end if last == len(token.text) else start + share * last)
            )
        return found

    def text(self, marked: int | None = None) -> str:
        """The lines.

        Args:
            marked: index of the part to underline; None to underline nothing.
        """
        label = self.label
        if self.parts and self.parts[0].before == "\n":
            label = label.rstrip()
        shown = (
            part.before + (f"<u>{part.text}</u>" if number == marked else part.text)
            for number, part in enumerate(self.parts)
        )
        return label + "".join(shown)

    def highlighted(self, spans: Sequence[Span]) -> Iterator[Subtitle]:
        """A subtitle for each word, and a subtitle for each pause between two words.

        Args:
            spans: the time of each part.
        """
        until = spans[0][0]
        for number, (start, end) in enumerate(spans):
            if round(1000 * until) < round(1000 * start):
                yield Subtitle(until, start, self.text())
            yield Subtitle(start, end, self.text(number))
            until = end


def _laid_out(tokens: Sequence[_Token], options: RenderOptions) -> Iterator[_Cue]:
    width, count = options.max_line_width, options.max_line_count
    across_segments = width is not None and count is not None
    cue: _Cue | None = None
    before: _Token | None = None
    placed: dict[int, int] = {}
    for cell in _cells(tokens):
        token = tokens[cell.parts[0][0]]
        if before is not None and cue is not None:
            ends = token.speaker != before.speaker or (not across_segments and token.segment != before.segment)
            if ends or (across_segments and token.span[0] - before.span[1] > LONG_PAUSE):
                yield cue
                cue = None
        # Only the first token of a cell may have characters in earlier subtitles.
        characters = placed.get(cell.parts[0][0], 0)
        if cue is None or not cue.add(cell, characters):
            if cue is not None:
                yield cue
            cue = _Cue(tokens, speaker_label(token.speaker), width, count)
            cue.add(cell, characters)
        placed = {cell.parts[-1][0]: len(cell.parts[-1][1]) + (characters if len(cell.parts) == 1 else 0)}
        before = tokens[cell.parts[-1][0]]
    if cue is not None:
        yield cue
