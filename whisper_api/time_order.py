"""Times in order: each word and segment begins before it ends, and ends before the next word or segment begins.

People on separate channels may talk at once, so this holds for each channel by itself.

Recognised times can violate this order: two words fall in the same frame, a word that the alignment could not place has
the time of its neighbour, or two times become equal by rounding to milliseconds. A player skips a subtitle without
length, and some players refuse the whole file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import replace

from whisper_api.schema import Segment

Span = tuple[float, float]
"""Start and end in seconds."""

MIN_MILLISECONDS = 20
"""The new length of a word that was shorter than a millisecond: one frame of Whisper's attention."""


def fitted(spans: Sequence[Span], low: float = 0.0, high: float | None = None) -> list[Span]:
    """Put spans in order with the least change.

    The result is the isotonic regression of the starts and ends (Barlow et al., "Statistical Inference under Order
    Restrictions", 1972), which has the least sum of squared changes. A word without length takes half of its new length
    from each neighbour, or from the pause around the word.

    Args:
        spans: start and end in seconds; their order is kept. A span of less than a millisecond becomes
            :data:`MIN_MILLISECONDS` long. A longer span keeps at least the smaller of its length and
            :data:`MIN_MILLISECONDS`.
        low: seconds; no span begins earlier.
        high: seconds; no span ends later, if the room suffices for a millisecond each. None for no limit.

    Returns:
        The same spans when they are in order already, else spans in whole milliseconds.
    """
    if _ordered(spans, low, high):
        return list(spans)
    given = [(round(1000 * start), round(1000 * end)) for start, end in spans]
    lengths = [min(end - start, MIN_MILLISECONDS) if start < end else MIN_MILLISECONDS for start, end in given]
    first = round(1000 * low)
    if high is not None:
        room = max(1, (round(1000 * high) - first) // len(given))
        lengths = [min(length, room) for length in lengths] if sum(lengths) > round(1000 * high) - first else lengths
    # After subtraction of all earlier lengths, the starts and ends only need to be non-decreasing.
    values: list[int] = []
    before = 0
    for (start, end), length in zip(given, lengths, strict=True):
        values += (start - before, end - before - length)
        before += length
    last = None if high is None else max(first, round(1000 * high) - before)
    rising = [max(first, value if last is None else min(value, last)) for value in _rising(values)]
    found = []
    before = 0
    for index, length in enumerate(lengths):
        start = rising[2 * index] + before
        before += length
        found.append((start / 1000, (rising[2 * index + 1] + before) / 1000))
    return found


def in_order(segments: Sequence[Segment], low: float = 0.0, high: float | None = None) -> tuple[Segment, ...]:
    """Put segments and their words in order: they do not overlap, and each lasts at least a millisecond.

    Args:
        segments: the segments; their order within a channel is kept. A segment with words takes its time from its
            words.
        low: seconds, as in :func:`fitted`.
        high: seconds, as in :func:`fitted`.

    Returns:
        The same segments when they are in order already, else corrected copies. Segments of several channels are
        sorted by their start.
    """
    channels = list(dict.fromkeys(segment.channel for segment in segments))
    if len(channels) < 2:
        return _in_order(segments, low, high)
    found = [
        placed
        for channel in channels
        for placed in _in_order([segment for segment in segments if segment.channel == channel], low, high)
    ]
    return tuple(sorted(found, key=lambda segment: (segment.start, -1 if segment.channel is None else segment.channel)))


def _in_order(segments: Sequence[Segment], low: float, high: float | None) -> tuple[Segment, ...]:
    spans = [(item.start, item.end) for segment in segments for item in (segment.words or (segment,))]
    placed = fitted(spans, low, high)
    if placed == spans and _around_words(segments) and _within(segments, low, high):
        return tuple(segments)
    found: list[Segment] = []
    position = 0
    end = low
    for segment in segments:
        count = len(segment.words) or 1
        mine = placed[position : position + count]
        position += count
        following = placed[position][0] if position < len(placed) else high
        start = max(end, min(segment.start, mine[0][0])) if segment.words else mine[0][0]
        end = max(segment.end, mine[-1][1]) if segment.words else mine[-1][1]
        if following is not None:
            end = max(mine[-1][1], min(end, following))
        words = tuple(
            word if (word.start, word.end) == span else replace(word, start=span[0], end=span[1])
            for word, span in zip(segment.words, mine, strict=False)
        )
        found.append(replace(segment, start=start, end=end, words=words))
    return tuple(found)


def _ordered(spans: Sequence[Span], low: float, high: float | None) -> bool:
    if any(round(1000 * start) >= round(1000 * end) for start, end in spans):
        return False
    if any(before[1] > after[0] for before, after in pairwise(spans)):
        return False
    return not spans or (spans[0][0] >= low and (high is None or spans[-1][1] <= high))


def _around_words(segments: Sequence[Segment]) -> bool:
    if any(before.end > after.start for before, after in pairwise(segments)):
        return False
    return all(s.start <= s.words[0].start and s.words[-1].end <= s.end for s in segments if s.words)


def _within(segments: Sequence[Segment], low: float, high: float | None) -> bool:
    """Whether ordered segments lie between low and high; a segment may begin before its first word."""
    return not segments or (segments[0].start >= low and (high is None or segments[-1].end <= high))


def _rising(values: Sequence[int]) -> list[int]:
    """Isotonic regression by pooling adjacent violators: falling neighbours are replaced by their mean."""
    pools: list[tuple[int, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] * count > total * pools[-1][1]:
            total, count = total + pools[-1][0], count + pools[-1][1]
            pools.pop()
        pools.append((total, count))
    return [round(total / count) for total, count in pools for _ in range(count)]
