"""Lays out cells as subtitles with the least cost, by dynamic programming.

The idea is that of TeX's paragraphs (Knuth and Plass, "Breaking Paragraphs into Lines", 1981): every way to divide the
text has a cost, and the cheapest way to reach a cell is computed from the cheapest ways to reach the cells before. The
time is linear in the number of cells, because the width and the duration bound the length of a subtitle.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from whisper_api.subtitles.breaks import CUT_PHRASE, SENTENCE, break_costs
from whisper_api.subtitles.cells import Cell, display_width
from whisper_api.subtitles.cue import Cue, CueWord, Line
from whisper_api.subtitles.rules import Rules
from whisper_api.time_order import MIN_MILLISECONDS

LONG_PAUSE = 3000  # milliseconds of silence that end a subtitle that may continue over the end of a segment
MOST_CELLS = 120  # in a subtitle that may be divided, so that the time of the layout stays linear
DASHES = "-–—"
EXACT_LINES = 2  # with more lines, the lines are chosen after the subtitles
PAUSE = 300  # milliseconds of silence at which a subtitle may well end
NEVER = math.inf

# Costs, on the scale of the breaks'.
PER_SUBTITLE = 60
PER_LINE = 15
RAGGED = 60  # of a line that is empty where the others are full
SINGLE_WORD = 300  # of a single word on the last line
LABEL_ALONE = 150
LONE_WORD = 90  # of a subtitle that ends after the first word of a sentence, or before the last
SENTENCE_INSIDE = 80  # of a sentence that ends inside a subtitle
TWO_SPEAKERS = 40
PER_SECOND_OF_PAUSE = 60  # inside a subtitle
BRIEF = 60  # of a subtitle that is shown for a moment, also without a rule; falls to 0 at a second
TOO_SHORT = 300
UNREADABLE = 40
PER_UNREADABLE_CHARACTER = 6
NO_GAP = 500
TOO_WIDE = 1000

Breaks = tuple[int, ...]


def speaker_label(speaker: str | None) -> str:
    """The label in front of a speaker's words; empty without a speaker."""
    return "" if speaker is None else f"[{' '.join(speaker.split())}]: "


def lay_out(cells: Sequence[Cell], rules: Rules, language: str, duration: float) -> Iterator[Cue]:
    """The subtitles of cells, in order; they do not overlap, and each lasts at least a millisecond.

    Args:
        cells: in order of time.
        rules: the rules. A rule that cannot hold is broken as little as possible.
        language: code of the text's language.
        duration: seconds of audio; no subtitle is prolonged beyond.
    """
    yield from _Layout(cells, rules, language, round(1000 * duration)).cues()


class _Layout:
    """The state of one layout: what is known of each cell, as lists by the index of the cell.

    Attributes:
        widths: printed characters of all cells before, with their spaces.
        starts, ends: milliseconds.
        breaks: cost of a line break before the cell.
        ends_of_subtitles: cost of the end of a subtitle before the cell.
        inside: cost of everything before the cell that a subtitle should not have inside.
        turns: number of changes of speaker up to the cell.
    """

    def __init__(self, cells: Sequence[Cell], rules: Rules, language: str, duration: int) -> None:
        self.cells = cells
        self.rules = rules
        self.starts = [round(1000 * cell.parts[0].start) for cell in cells]
        self.ends = [round(1000 * cell.parts[-1].end) for cell in cells]
        # Where the last subtitle may end.
        self.starts.append(max(duration, self.ends[-1] if cells else 0) + rules.gap)
        self.spaces = [int(cell.space) for cell in cells]
        self.widths = [0, *accumulate(cell.width + cell.space for cell in cells)]
        self.breaks = break_costs(cells, language) if cells else []
        self.ends_of_subtitles = self._subtitle_breaks()
        self.dash = "- " if language == "fr" else "-"
        turn = 0
        inside = 0.0
        self.turns, self.inside = [0] * len(cells), [0.0] * len(cells)
        for index in range(1, len(cells)):
            turns = cells[index].speaker != cells[index - 1].speaker
            turn += turns
            pause = self.starts[index] - self.ends[index - 1]
            inside += max(0, pause - PAUSE) * PER_SECOND_OF_PAUSE / 1000
            inside += SENTENCE_INSIDE if self.breaks[index] == SENTENCE and not turns else 0
            self.turns[index], self.inside[index] = turn, inside
        # Begin to end of the longest subtitle that begins there, when the number of lines is large.
        self.furthest: dict[int, int] = {}
        self.turn_starts = [0, *(i for i in range(1, len(cells)) if self.turns[i] > self.turns[i - 1])]

    def _subtitle_breaks(self) -> list[int]:
        """The costs of breaks between subtitles: those of lines, and more where a word is torn from its sentence."""
        found: list[int] = []
        for before, cost, after in zip(
            [SENTENCE, *self.breaks], self.breaks, [*self.breaks[1:], SENTENCE], strict=False
        ):
            alone = cost != SENTENCE and SENTENCE in (before, after) and self.spaces[len(found)]
            found.append(cost + LONE_WORD if alone else cost)
        return found

    def cues(self) -> Iterator[Cue]:
        """The subtitles."""
        for first, last in self._runs():
            for begin, end in self._divided(first, last) if self.rules.splits else [(first, last)]:
                yield self._cue(begin, end)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Stretches of cells that no subtitle crosses."""
        first = 0
        dashes = self.rules.two_speakers
        for index in range(1, len(self.cells)):
            before, after = self.cells[index - 1], self.cells[index]
            ends = before.speaker != after.speaker and not dashes
            ends = ends or (not self.rules.merges and before.segment != after.segment)
            if ends or (self.rules.splits and self.starts[index] - self.ends[index - 1] > LONG_PAUSE):
                yield first, index
                first = index
        if self.cells:
            yield first, len(self.cells)

    def _divided(self, first: int, last: int) -> list[tuple[int, int]]:
        """Divide a run into subtitles with the least cost."""
        rules, starts, ends, widths, spaces = self.rules, self.starts, self.ends, self.widths, self.spaces
        inside, turns = self.inside, self.turns
        longest = NEVER if rules.max_duration is None else rules.max_duration
        room = NEVER
        if rules.width is not None and rules.lines is not None:
            # A line break replaces a space.
            room = rules.width * rules.lines + rules.lines - 1
        mark = display_width(self._label(first))
        best = [0.0] + [NEVER] * (last - first)
        chosen = [first] * (last - first + 1)
        for end in range(first + 1, last + 1):
            spoken, following = ends[end - 1], starts[end]
            ending = float(PER_SUBTITLE)
            if end < last:
                # The longer the pause, the less a bad place for a break disturbs.
                ending += self.ends_of_subtitles[end] * PAUSE / max(PAUSE, following - spoken)
            least = NEVER
            for begin in range(end - 1, first - 1, -1):
                single = begin == end - 1
                width = mark + widths[end] - widths[begin] - spaces[begin]
                if not single and (width > room or spoken - starts[begin] > longest or end - begin > MOST_CELLS):
                    break
                speakers = turns[end - 1] - turns[begin]
                if speakers > 1:
                    break
                cost = best[begin - first] + ending + inside[end - 1] - inside[begin]
                if cost >= least:
                    continue
                cost += self._time_cost(starts[begin], spoken, following, width)
                if cost >= least:
                    continue
                if speakers:
                    cost += TWO_SPEAKERS
                if rules.width is not None and rules.lines is not None and (speakers or width > rules.width):
                    lines = self._line_cost(begin, end, mark)
                    cost += TOO_WIDE if single and lines == NEVER else lines
                if cost < least:
                    least, chosen[end - first] = cost, begin
            best[end - first] = least
        found = []
        end = last
        while end > first:
            found.append((chosen[end - first], end))
            end = chosen[end - first]
        return found[::-1]

    def _time_cost(self, start: int, spoken: int, following: int, width: int) -> float:
        """The cost of a subtitle's times.

        Args:
            start: begin of the speech, in milliseconds.
            spoken: end of the speech, in milliseconds.
            following: begin of the next speech, in milliseconds.
            width: number of printed characters.
        """
        rules = self.rules
        length = self._end(start, spoken, following, width) - start
        cost = BRIEF * (1 - length / 1000) if length < 1000 else 0.0
        if length < rules.min_duration:
            cost += TOO_SHORT * (1 + (rules.min_duration - length) / rules.min_duration)
        if rules.characters_per_second is not None:
            unreadable = width - rules.characters_per_second * length / 1000
            if unreadable > 0:
                cost += UNREADABLE + PER_UNREADABLE_CHARACTER * unreadable
        if rules.gap and start + length + rules.gap > following:
            cost += NO_GAP
        return cost

    def _end(self, start: int, spoken: int, following: int, width: int) -> int:
        """When a subtitle ends: with the speech, or in the pause after it when that is too early.

        The arguments are those of :meth:`_time_cost`.
        """
        rules = self.rules
        wanted = max(spoken, start + rules.min_duration)
        if rules.characters_per_second is not None:
            wanted = max(wanted, start + math.ceil(1000 * width / rules.characters_per_second))
        latest = following - rules.gap
        if latest < start + MIN_MILLISECONDS:
            latest = max(following, start + 1)
        if rules.max_duration is not None:
            latest = min(latest, start + rules.max_duration)
        return latest if following - wanted < rules.flicker else min(wanted, latest)

    def _label(self, index: int) -> str:
        return speaker_label(self.cells[index].speaker) if self.rules.speakers == "label" else ""

    def _line_cost(self, begin: int, end: int, mark: int) -> float:
        """The cost of the lines of a subtitle, infinite when they are too many; ``mark`` is the width of the label."""
        most = self.rules.lines or 1
        if most <= EXACT_LINES:
            return sum(cost for cost, _, _ in self._turn_lines(begin, end))
        width = self.widths[end] - self.widths[begin]
        middle = self.turn_starts[self.turns[end - 1]]
        if middle > begin:
            dash = len(self.dash)
            fits = self._line_count(begin, middle, dash) + self._line_count(middle, end, dash) <= most
        else:
            if begin not in self.furthest:
                self.furthest[begin] = self._furthest(begin, most, mark)
            fits = end <= self.furthest[begin]
        return PER_LINE * (width // (self.rules.width or 1)) if fits else NEVER

    def _furthest(self, begin: int, most: int, mark: int) -> int:
        """The end of the longest subtitle that begins with a cell and has at most so many lines."""
        found = begin
        # A label may have a line for itself.
        for end in (self._line_end(begin, mark), begin) if mark else (self._line_end(begin, 0),):
            for _ in range(most - 1):
                before, end = end, self._line_end(end, 0)
                if end == before or end - begin > MOST_CELLS:
                    break
            found = max(found, end)
        return found

    def _line_end(self, begin: int, used: int) -> int:
        """The end of the longest line that begins with a cell, after ``used`` characters; ``begin`` when none fits."""
        room = (self.rules.width or 0) - used + self.widths[begin]
        room += self.spaces[begin] if begin < len(self.cells) else 0
        return max(begin, bisect_right(self.widths, room) - 1)

    def _line_count(self, begin: int, end: int, used: int) -> float:
        """The least number of lines, infinite when a cell is too wide; the first line has ``used`` characters."""
        count = 0
        while begin < end:
            stop = self._line_end(begin, used)
            if stop == begin:
                return NEVER
            begin, used, count = stop, 0, count + 1
        return count

    def _turn_lines(self, begin: int, end: int) -> list[tuple[float, str, Breaks]]:
        """The lines of each speaker's turn in a subtitle.

        Returns:
            Cost, mark and begins of the lines for each turn; the cost is infinite when they are too many.
        """
        middle = end
        if self.turns[begin] != self.turns[end - 1]:
            middle = self.turn_starts[self.turns[end - 1]]
        if middle == end:
            mark = self._label(begin)
            cost, lines = self._lines(begin, end, self.rules.lines, display_width(mark))
            return [(cost, mark, lines)]
        width = len(self.dash)
        most = self.rules.lines or 1
        count = int(min(self._line_count(begin, middle, width), most - 1))
        above, below = self._lines(begin, middle, count, width), self._lines(middle, end, most - count, width)
        return [(above[0], self.dash, above[1]), (below[0], self.dash, below[1])]

    def _lines(self, begin: int, end: int, most: int | None, mark: int) -> tuple[float, Breaks]:
        """Break a turn into lines with the least cost.

        Args:
            begin: index of the first cell.
            end: index after the last cell.
            most: most lines; None for any number.
            mark: width of the label or the dash that precedes the first line.

        Returns:
            The cost, and the first cell of each line. A label has a line for itself when two lines begin with the
            same cell. The cost is infinite when there are too many lines.
        """
        limit = self.rules.width
        widths, spaces, breaks = self.widths, self.spaces, self.breaks
        whole = mark + widths[end] - widths[begin] - spaces[begin]
        if limit is None or whole <= limit:
            return 0.0, (begin,)
        if most == 1:
            return NEVER, (begin,)
        ideal = whole / math.ceil(whole / limit)
        scale = RAGGED / (ideal * ideal)
        if most == 2:
            least, found = NEVER, begin
            for middle in range(begin + 1, end):
                above = mark + widths[middle] - widths[begin] - spaces[begin]
                if above > limit:
                    break
                below = widths[end] - widths[middle] - spaces[middle]
                if below > limit:
                    continue
                cost = PER_LINE + breaks[middle] + scale * ((ideal - above) ** 2 + (ideal - below) ** 2)
                if middle == end - 1:
                    cost += SINGLE_WORD
                if cost < least:
                    least, found = cost, middle
            if least == NEVER and mark and whole - mark <= limit:
                return LABEL_ALONE + PER_LINE, (begin, begin)
            return least, (begin,) if least == NEVER else (begin, found)
        return self._many_lines(begin, end, most, mark, ideal)

    def _many_lines(self, begin: int, end: int, most: int | None, mark: int, ideal: float) -> tuple[float, Breaks]:
        """As :meth:`_lines`, for any number of lines; ``ideal`` is the width of balanced lines."""
        limit = self.rules.width or 0
        scale = RAGGED / (ideal * ideal)
        # For each first cell of a line: number of lines before (0 when any number is allowed) to cost and lines.
        reached: dict[int, dict[int, tuple[float, Breaks]]] = {begin: {0: (0.0, (begin,))}}
        alone = mark and (most is None or most > 1)
        if alone:
            reached[begin][1] = (LABEL_ALONE + PER_LINE, (begin, begin))
        result: tuple[float, Breaks] = (NEVER, (begin,))
        for start in range(begin, end):
            for before, (cost, lines) in reached.pop(start, {}).items():
                used = mark if len(lines) == 1 else 0
                for stop in range(start + 1, end + 1):
                    width = used + self.widths[stop] - self.widths[start] - self.spaces[start]
                    if width > limit and (stop > start + 1 or most is not None or (used and alone)):
                        break
                    total = cost + PER_LINE + scale * (ideal - width) ** 2
                    if stop == end:
                        total += SINGLE_WORD if stop == start + 1 and len(lines) > 1 else 0
                        result = min(result, (total, lines))
                        continue
                    after = 0 if most is None else before + 1
                    if most is not None and after >= most:
                        continue
                    option = (total + self.breaks[stop], (*lines, stop))
                    known = reached.setdefault(stop, {})
                    if after not in known or option < known[after]:
                        known[after] = option
        return result

    def _cue(self, begin: int, end: int) -> Cue:
        lines: list[Line] = []
        cut = end < len(self.cells) and self.breaks[end] >= CUT_PHRASE
        turns = self._turn_lines(begin, end)
        firsts = [starts[0] for _, _, starts in turns]
        lonely = False
        for (cost, mark, starts), stop in zip(turns, [*firsts[1:], end], strict=True):
            if cost == NEVER and mark and self.rules.lines != 1:
                # The only word is too wide.
                starts = (begin, begin)
            if len(turns) > 1 and self.cells[starts[0]].text[0] in DASHES:
                # Whisper wrote a dash.
                mark = ""
            marks = [mark] + [""] * (len(starts) - 1)
            for shown, first, last in zip(marks, starts, [*starts[1:], stop], strict=True):
                lines.append(Line(shown, self._words(first, last)))
            cut = cut or any(self.breaks[start] >= CUT_PHRASE for start in starts[1:] if start != begin)
            lonely = lonely or (len(set(starts)) > 1 and starts[-1] == stop - 1)
        width = sum(display_width(line.text()) for line in lines)
        start = self.starts[begin]
        finish = self._end(start, self.ends[end - 1], self.starts[end], width)
        speakers = dict.fromkeys(cell.speaker for cell in self.cells[begin:end])
        return Cue(start / 1000, finish / 1000, tuple(lines), tuple(speakers), cut, lonely)

    def _words(self, first: int, last: int) -> tuple[CueWord, ...]:
        words: list[CueWord] = []
        number = -1
        for index in range(first, last):
            cell = self.cells[index]
            for place, part in enumerate(cell.parts):
                space = part.space if place else cell.space and index > first
                if part.word == number and not space:
                    words[-1] = words[-1]._replace(text=words[-1].text + part.text, end=part.end)
                else:
                    words.append(CueWord(part.text, space, part.start, part.end, part.source))
                number = part.word
        return tuple(words)
