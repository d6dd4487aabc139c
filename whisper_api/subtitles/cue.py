"""A subtitle: its lines and its times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from whisper_api.time_order import fitted


class Source(NamedTuple):
    """The word of a transcript that a subtitle shows.

    Attributes:
        segment: id of the segment.
        word: index of the word in the segment, from 0; None when the segment has no words.
    """

    segment: int
    word: int | None


class Subtitle(NamedTuple):
    """A subtitle as text.

    Attributes:
        start, end: seconds.
        text: the lines, joined by line ends.
    """

    start: float
    end: float
    text: str


class CueWord(NamedTuple):
    """A word of a line, or the part of a word that fits in the line.

    Attributes:
        text: the printed characters.
        space: whether a space precedes the word in its line.
        start, end: seconds.
        source: the word in the transcript.
    """

    text: str
    space: bool
    start: float
    end: float
    source: Source


class Line(NamedTuple):
    """A line of a subtitle.

    Attributes:
        mark: the speaker's label or the dash before the words; empty without.
        words: empty when a label has the line for itself.
    """

    mark: str
    words: tuple[CueWord, ...]

    def text(self) -> str:
        """The printed characters."""
        if not self.words:
            return self.mark.rstrip()
        return self.mark + "".join([f" {word.text}" if word.space else word.text for word in self.words])


class Cue(NamedTuple):
    """A subtitle with its words.

    Attributes:
        start, end: seconds.
        lines: at least one.
        speakers: those who speak, in order; None for an unknown speaker.
        cut: whether a line or the subtitle ends inside a phrase.
        lonely: whether the last of several lines of one speaker has a single word.
        channel: number of the channel; None when the channels were mixed.
        broken: names of the rules that do not hold for this subtitle.
    """

    start: float
    end: float
    lines: tuple[Line, ...]
    speakers: tuple[str | None, ...] = (None,)
    cut: bool = False
    lonely: bool = False
    channel: int | None = None
    broken: tuple[str, ...] = ()

    def text(self) -> str:
        """The lines, joined by line ends."""
        return "\n".join([line.text() for line in self.lines])

    def pieces(self) -> list[tuple[str, str]]:
        """The words, each with all characters between the word and the word before; joined, they are the text."""
        found = []
        before = ""
        for number, line in enumerate(self.lines):
            before += "\n" if number else ""
            before += line.mark if line.words else line.mark.rstrip()
            for word in line.words:
                found.append((f"{before} " if word.space else before, word.text))
                before = ""
        return found

    def highlighted(self) -> Iterator[Subtitle]:
        """A subtitle for each word, which is underlined, and a subtitle for each pause between two words."""
        plain = self.text()
        pieces = self.pieces()
        shown = [before + text for before, text in pieces]
        until = self.start
        for number, (start, end) in enumerate(self.word_times()):
            if round(1000 * until) < round(1000 * start):
                yield Subtitle(until, start, plain)
            before, text = pieces[number]
            yield Subtitle(start, end, "".join((*shown[:number], f"{before}<u>{text}</u>", *shown[number + 1 :])))
            until = end
        if round(1000 * until) < round(1000 * self.end):
            yield Subtitle(until, self.end, plain)

    def word_times(self) -> list[tuple[float, float]]:
        """The times of the words, within those of the subtitle."""
        spans = [(word.start, min(word.end, self.end)) for line in self.lines for word in line.words]
        return fitted(spans, self.start, self.end)
