"""Assigns the speakers of a diarization to words and segments, and splits segments where the speaker changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise

import msgspec
import numpy as np
import numpy.typing as npt

from whisper_api.schema import Segment, Turn, Word
from whisper_api.word_spacing import word_spans

# A single word between words of another speaker keeps its speaker only if that speaker overlaps it longer by this share
# of its duration, because turns begin and end with an error of a few tenths of a second.
MIN_MARGIN = 0.5

Times = npt.NDArray[np.float64]


def assign_speakers(segments: Sequence[Segment], turns: Sequence[Turn]) -> tuple[Segment, ...]:
    """Give every word and segment a speaker, and split segments in which the speaker changes.

    A word gets the speaker whose turns overlap it longest; of two equal ones, the speaker whose turn began first. When
    no turn overlaps the word, it gets the speaker of the nearest turn. A single word between words of another speaker
    gets that speaker, unless its own overlaps it clearly longer. A segment without words gets the speaker whose turns
    overlap it longest.

    Args:
        segments: in order of time.
        turns: in any order; they may overlap.

    Returns:
        Segments of one speaker each, ids counted from 0. Without turns, the segments as they were.
    """
    if not turns:
        return tuple(segments)
    turn_index = _TurnIndex(turns)
    spans = [(item.start, item.end) for segment in segments for item in (segment.words or (segment,))]
    overlaps = iter(turn_index.overlaps(spans))
    pieces: list[Segment] = []
    for segment in segments:
        if not segment.words:
            speaker = turn_index.choose(next(overlaps), segment.start, segment.end)
            pieces.append(msgspec.structs.replace(segment, speaker=speaker))
            continue
        shares = [next(overlaps) for _ in segment.words]
        labels = [turn_index.choose(s, w.start, w.end) for s, w in zip(shares, segment.words, strict=True)]
        pieces += _split(segment, _smooth(segment.words, labels, shares))
    return tuple(msgspec.structs.replace(piece, id=index) for index, piece in enumerate(pieces))


class _TurnIndex:
    """Finds the turns at a given time by bisection."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = sorted(turns, key=lambda turn: turn.start)
        self.starts: Times = np.array([turn.start for turn in self.turns])
        ends: Times = np.array([turn.end for turn in self.turns])
        self.latest: Times = np.maximum.accumulate(ends)
        self.by_speaker: dict[str, list[int]] = {}
        for index, turn in enumerate(self.turns):
            self.by_speaker.setdefault(turn.speaker, []).append(index)

    def overlaps(self, spans: Sequence[tuple[float, float]]) -> list[dict[str, tuple[float, int]]]:
        """For each span and speaker: seconds of overlap, and number of the first turn that overlaps."""
        found: list[dict[str, tuple[float, int]]] = [{} for _ in spans]
        begins: Times = np.array([start for start, _ in spans], dtype=np.float64)
        finishes: Times = np.array([end for _, end in spans], dtype=np.float64)
        for speaker, indices in self.by_speaker.items():
            # Each speaker's turns by themselves: a turn of an hour then slows down the search for its speaker only.
            latest = np.maximum.accumulate([self.turns[i].end for i in indices])
            first = np.searchsorted(latest, begins, side="right")
            last = np.searchsorted(self.starts[indices], finishes, side="left")
            for span in np.flatnonzero(first < last).tolist():
                start, end = spans[span]
                total, earliest = 0.0, -1
                for index in indices[first[span] : last[span]]:
                    seconds = min(self.turns[index].end, end) - max(self.turns[index].start, start)
                    if seconds > 0:
                        total += seconds
                        earliest = index if earliest < 0 else earliest
                if earliest >= 0:
                    found[span][speaker] = (total, earliest)
        return found

    def choose(self, shares: dict[str, tuple[float, int]], start: float, end: float) -> str:
        if shares:
            return max(shares, key=lambda speaker: (shares[speaker][0], -shares[speaker][1]))
        following = int(np.searchsorted(self.starts, end, side="right"))
        if following == 0:
            return self.turns[0].speaker
        # Of the turns that began before, the first one with the latest end.
        before = int(np.searchsorted(self.latest[:following], self.latest[following - 1], side="left"))
        if following < len(self.turns) and self.starts[following] - end < start - self.latest[before]:
            return self.turns[following].speaker
        return self.turns[before].speaker


def _smooth(words: Sequence[Word], labels: list[str], shares: Sequence[dict[str, tuple[float, int]]]) -> list[str]:
    smoothed = list(labels)
    for i, (word, label) in enumerate(zip(words, labels, strict=True)):
        around = {smoothed[j] for j in (i - 1,) if j >= 0} | {labels[j] for j in (i + 1,) if j < len(labels)}
        if len(around) != 1 or label in around:
            continue
        (other,) = around
        margin = shares[i].get(label, (0.0, 0))[0] - shares[i].get(other, (0.0, 0))[0]
        if margin < MIN_MARGIN * (word.end - word.start) or not shares[i]:
            smoothed[i] = other
    return smoothed


def _split(segment: Segment, labels: Sequence[str]) -> Iterator[Segment]:
    words = [msgspec.structs.replace(word, speaker=label) for word, label in zip(segment.words, labels, strict=True)]
    runs = [tuple(run) for _, run in groupby(words, key=lambda word: word.speaker)]
    if len(runs) == 1:
        yield msgspec.structs.replace(segment, speaker=labels[0], words=runs[0])
        return
    for number, (run, text) in enumerate(zip(runs, _texts(segment.text, runs), strict=True)):
        yield msgspec.structs.replace(
            segment,
            start=segment.start if number == 0 else run[0].start,
            end=segment.end if number == len(runs) - 1 else run[-1].end,
            text=text,
            speaker=run[0].speaker,
            words=run,
        )


def _texts(text: str, runs: Sequence[tuple[Word, ...]]) -> list[str]:
    """The part of the text that each run of words comes from, with its spacing."""
    spans = word_spans(text, [word.word for run in runs for word in run])
    if spans is None:
        return [" ".join(word.word for word in run) for run in runs]
    firsts = accumulate(len(run) for run in runs[:-1])
    bounds = [0, *(spans[first][0] for first in firsts), len(text)]
    return [text[start:end].strip() for start, end in pairwise(bounds)]
