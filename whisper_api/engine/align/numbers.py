"""Times of numbers, amounts and symbols, which an alignment model cannot spell, from Whisper's cross-attention.

The alphabet of an alignment model has letters, so it does not hear "1984" in "nineteen eighty-four": the number's time
is what the neighbouring words leave over. Whisper's decoder attends to the number's audio when it writes the number.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from whisper_api.engine.whisper.model import is_unspelled
from whisper_api.schema import Segment
from whisper_api.word_spacing import word_spans

# A word that has less time between its neighbours is not where cross-attention places it: half a frame.
LEAST_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class AttentionTime:
    """The time of one word.

    Attributes:
        first, after: position of the word's first character in the text, and after its last.
        start, end: seconds.
        score: the word's probability.
    """

    first: int
    after: int
    start: float
    end: float
    score: float


def attention_times(
    segment: Segment, spelled: Collection[int], times: Sequence[tuple[float, float] | None]
) -> list[AttentionTime]:
    """The times of the words of which the alignment model knows less than half of the characters.

    Such a time is cut where the nearest known characters begin and end. A word that has no time left, because
    cross-attention places it elsewhere, is left out.

    Args:
        segment: text, whose words have times from cross-attention.
        spelled: positions of the characters that the alignment model knows.
        times: start and end of each character, in seconds; None for a character without time.

    Returns:
        Times in order, not overlapping.
    """
    text = segment.text
    places = word_spans(text, [word.word for word in segment.words]) if segment.words else None
    known = sorted(position for position in spelled if not text[position].isspace() and times[position] is not None)
    found: list[AttentionTime] = []
    for word, (first, after) in zip(segment.words, places or (), strict=False):
        read = [place for place in range(first, after) if text[place].isalnum() or is_unspelled(text[place])]
        if 2 * sum(place in spelled for place in read) >= len(read):
            continue
        low, high = segment.start, segment.end
        left, right = bisect.bisect_left(known, first), bisect.bisect_left(known, after)
        if left and (before := times[known[left - 1]]) is not None:
            low = before[1]
        if right < len(known) and (following := times[known[right]]) is not None:
            high = following[0]
        start = max(word.start, low, found[-1].end if found else low)
        end = min(word.end, high)
        if end - start >= LEAST_SECONDS:
            found.append(AttentionTime(first, after, start, end, word.score or 0.0))
    return found
