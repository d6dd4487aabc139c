"""Compares word times with the voice: bounds words that begin or end in noise, and finds voice without words.

Cross-attention and forced alignment both place every word somewhere, so a word takes the time of the noise, the
laughter or the lost text beside it. A voice activity detector knows where somebody speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from whisper_api.engine.vad import SpeechFrames
from whisper_api.schema import SAMPLE_RATE, Segment, Word

Interval = tuple[float, float]
"""Start and end in seconds."""

# Longest time without voice inside a word: the closure of a stop consonant, which the detector smooths over.
MAX_PAUSE = 0.25
# A longer word has noise, laughter or a pause in it: seconds, and seconds for each letter. None of 400 read and sung
# words is longer.
LONGEST_SECONDS, LONGEST_PER_LETTER = 0.6, 0.12
# A stretch of voice with less than this for each letter is no whole word, and no word is shorter than that and this.
SHORTEST_PER_LETTER, SHORTEST_SECONDS = 0.025, 0.08
# The length that is given to a word in continuous noise: seconds, and seconds for each letter.
USUAL_SECONDS, USUAL_PER_LETTER = 0.1, 0.07
# Two words with less time between them are spoken together.
TOGETHER = 0.3

# Voice without words is lost text from this many seconds on: voice of its own, with pauses around it, and voice that
# continues a word, whose end the attention may have missed.
LOST_APART, LOST_BESIDE = 0.6, 0.8
APART = 0.15


@dataclass(frozen=True)
class Voicing:
    """Where a voice is heard.

    Attributes:
        voiced: bool, shape (frames,).
        step: seconds between two frames.
    """

    voiced: NDArray[np.bool_]
    step: float

    @classmethod
    def of(cls, frames: SpeechFrames, threshold: float) -> Voicing:
        """The frames with at least this probability of speech."""
        return cls(frames.probabilities >= threshold, frames.step / SAMPLE_RATE)

    def runs(self, start: float, end: float, bridge: float = 0.0) -> list[Interval]:
        """Stretches of voice between two times, in seconds.

        Args:
            start: seconds; a stretch that begins earlier begins here.
            end: seconds; a stretch that ends later ends here.
            bridge: a pause of at most so many seconds does not divide a stretch.
        """
        first = max(0, int(start / self.step))
        frames = np.flatnonzero(self.voiced[first : max(first, int(np.ceil(end / self.step)))]) + first
        if not len(frames):
            return []
        breaks = np.flatnonzero(np.diff(frames) - 1 > bridge / self.step)
        begins, ends = frames[np.r_[0, breaks + 1]], frames[np.r_[breaks, len(frames) - 1]] + 1
        cut = ((max(start, a * self.step), min(end, b * self.step)) for a, b in zip(begins, ends, strict=True))
        return [(float(a), float(b)) for a, b in cut if a < b]

    def seconds(self, start: float, end: float) -> float:
        """Seconds of voice between two times."""
        return sum(b - a for a, b in self.runs(start, end))

    def lost(self, words: Sequence[Word], spans: Sequence[Interval]) -> list[tuple[Interval, Interval]]:
        """Stretches of voice without words that are long enough for lost text.

        Args:
            words: all words, in order of time.
            spans: what was decoded to these words, in order of time, in seconds.

        Returns:
            Each stretch, and the gap between two words in which it is; in order of time, at most one for each gap.
        """
        found: list[tuple[Interval, Interval]] = []
        index = 0
        for low, high in spans:
            at = max(low, words[index - 1].end) if index else low
            while index < len(words) and words[index].start < high:
                found += self._lost_between((at, words[index].start), low, high)
                at = max(at, words[index].end)
                index += 1
            found += self._lost_between((at, high), low, high)
        return found

    def _lost_between(self, gap: Interval, low: float, high: float) -> list[tuple[Interval, Interval]]:
        start, end = gap
        runs = self.runs(start, end, APART) if end - start >= LOST_APART else []
        kept = []
        for begin, stop in runs:
            beside = (begin - start < APART and start > low) or (end - stop < APART and end < high)
            if self.seconds(begin, stop) >= (LOST_BESIDE if beside else LOST_APART):
                kept.append((begin, stop))
        return [((kept[0][0], kept[-1][1]), gap)] if kept else []


def longest_plausible(word: str) -> float:
    """The most seconds that a spoken word takes."""
    return LONGEST_SECONDS + LONGEST_PER_LETTER * _letters(word)


def bounded_segments(segments: Sequence[Segment], voicing: Voicing) -> tuple[Segment, ...]:
    """Bound the words of segments, and the segments with them; see :func:`bounded`.

    Args:
        segments: in order of time.
        voicing: where a voice is heard.
    """
    given = [word for segment in segments for word in segment.words]
    words = bounded(given, voicing)
    if words == given:
        return tuple(segments)
    found = []
    position = 0
    for segment in segments:
        before = segment.words
        after = tuple(words[position : position + len(before)])
        position += len(before)
        if after == before:
            found.append(segment)
            continue
        start = after[0].start if after[0] != before[0] else segment.start
        end = after[-1].end if after[-1] != before[-1] else segment.end
        found.append(replace(segment, start=start, end=end, words=after))
    return tuple(found)


def bounded(words: Sequence[Word], voicing: Voicing) -> list[Word]:
    """Bound each word by the voice and by a plausible length.

    Only words change that are longer than plausible or contain a pause. Word times count a pause, noise or laughter
    before a word as part of that word, so the word becomes the last stretch of voice in its time. The last word before
    a pause becomes the first stretch. In continuous noise a word gets a usual length.

    Args:
        words: in order of time.
        voicing: where a voice is heard.

    Returns:
        The same words, each with a time inside its former time.
    """
    found = list(words)
    for index in range(len(words) - 1, -1, -1):
        word = words[index]
        after_word = index > 0 and word.start - words[index - 1].end < TOGETHER
        before_word = index + 1 < len(words) and words[index + 1].start - word.end < TOGETHER
        start, end = _bounds(word, voicing, keeps_start=after_word and not before_word)
        if index + 1 < len(words) and not after_word and word.end - word.start > longest_plausible(word.word):
            following = found[index + 1].start
            if following - words[index + 1].start > TOGETHER:
                # The next word was in the same noise, so this one is spoken right before that word.
                start, end = max(word.start, following - _usual(word)), following
        if (start, end) != (word.start, word.end):
            found[index] = replace(word, start=round(start, 3), end=round(end, 3))
    return found


def _bounds(word: Word, voicing: Voicing, *, keeps_start: bool) -> Interval:
    start, end = word.start, word.end
    longest = longest_plausible(word.word)
    if end - start <= MAX_PAUSE:
        return start, end
    runs = voicing.runs(start, end, MAX_PAUSE)
    pauses = [after[0] - before[1] for before, after in pairwise([(start, start), *runs, (end, end)])]
    if end - start <= longest and max(pauses) <= MAX_PAUSE:
        return start, end
    keeps_start = keeps_start and bool(runs) and runs[0][0] - start < APART
    least = SHORTEST_PER_LETTER * _letters(word.word)
    if runs:
        whole = [run for run in runs if run[1] - run[0] >= least] or runs
        start, end = whole[0 if keeps_start else -1]
    if end - start > longest or end - start < SHORTEST_SECONDS + least:
        usual = _usual(word)
        start, end = (start, start + usual) if keeps_start else (end - usual, end)
    return max(word.start, start), min(word.end, end)


def _usual(word: Word) -> float:
    return USUAL_SECONDS + USUAL_PER_LETTER * _letters(word.word)


def _letters(word: str) -> int:
    return sum(character.isalnum() for character in word)
