"""Times in order: every span has a length, none overlaps another, and little is moved."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.schema import Segment, Word
from whisper_api.time_order import Span, fitted, in_order

moments = st.one_of(st.floats(-1, 30), st.sampled_from((0.0, 0.48, 0.4804, 1.06, 29.9996)))
spans = st.lists(st.tuples(moments, moments), max_size=40)


def milliseconds(spans: list[Span]) -> list[tuple[int, int]]:
    return [(round(1000 * start), round(1000 * end)) for start, end in spans]


@given(spans, st.none() | st.floats(0.0, 30.0))
def test_every_span_has_a_length_and_none_overlaps_another(given: list[Span], high: float | None) -> None:
    found = fitted(given, 0.0, high)
    assert len(found) == len(given)
    assert all(start < end for start, end in milliseconds(found))
    assert all(before[1] <= after[0] for before, after in pairwise(found))
    assert all(start >= 0 for start, _ in found)
    if high is not None and round(1000 * high) >= len(given) and found:
        assert found[-1][1] <= round(high, 3)
    assert fitted(found, 0.0, high) == found


@given(st.lists(st.floats(0.001, 2.0), min_size=2, max_size=40))
def test_spans_in_order_stay_to_the_last_digit(steps: list[float]) -> None:
    clock, given = 0.0, []
    for step in steps:
        begin = clock
        clock += step + 0.001
        given.append((begin, clock))
    assert fitted(given) == given


def test_a_word_without_length_takes_its_room_from_both_neighbours() -> None:
    # These are the times of "He could rise" in a recording.
    assert fitted([(0.3, 0.48), (0.48, 0.48), (0.48, 0.76)]) == [(0.3, 0.47), (0.47, 0.49), (0.49, 0.76)]


def test_a_word_in_a_pause_moves_nobody() -> None:
    assert fitted([(0.0, 0.5), (1.0, 1.0), (1.5, 2.0)]) == [(0.0, 0.5), (0.99, 1.01), (1.5, 2.0)]


def test_a_word_at_the_end_of_the_audio_stays_inside() -> None:
    assert fitted([(0.9, 1.06), (1.06, 1.06)], 0.0, 1.06) == [(0.9, 1.04), (1.04, 1.06)]
    assert fitted([(1.0, 1.2), (1.3, 1.4)], 0.0, 1.1) == [(1.0, 1.08), (1.08, 1.1)]


def test_more_words_than_there_is_room_for_are_short() -> None:
    found = fitted([(0.05, 0.05)] * 20, 0.0, 0.1)
    assert milliseconds(found) == [(5 * n, 5 * n + 5) for n in range(20)]
    # There are more moments than milliseconds: the order is kept, and the end is exceeded.
    assert milliseconds(fitted([(0.0, 0.0)] * 20, 0.0, 0.01)) == [(n, n + 1) for n in range(20)]


def test_moments_far_from_a_conflict_stay() -> None:
    given = [(0.0, 1.0), (1.5, 2.0), (2.0, 2.0), (2.0, 3.0), (4.0, 5.0)]
    found = fitted(given)
    assert (found[0], found[4]) == (given[0], given[4])


def test_the_worst_case_takes_linear_time() -> None:
    # Each word begins before the one before it: the worst case for pooling. Quadratic work would take hours.
    found = fitted([(1000.0 - n / 1000, 1000.0 - n / 1000) for n in range(200_000)])
    assert len(found) == 200_000


words = st.lists(st.tuples(moments, moments), max_size=6)


@given(st.lists(st.tuples(moments, moments, words), max_size=8), st.none() | st.floats(0.5, 30.0))
def test_segments_hold_their_words_and_none_overlaps_another(
    given: list[tuple[float, float, list[Span]]], high: float | None
) -> None:
    segments = [
        Segment(
            id=number,
            start=start,
            end=end,
            text="x",
            words=tuple(Word(word=f"w{index}", start=s, end=e, score=0.5) for index, (s, e) in enumerate(inside)),
        )
        for number, (start, end, inside) in enumerate(given)
    ]
    found = in_order(segments, 0.0, high)
    assert [segment.id for segment in found] == [segment.id for segment in segments]
    assert [[word.word for word in segment.words] for segment in found] == [
        [word.word for word in segment.words] for segment in segments
    ]
    everything = [(segment.start, segment.end) for segment in found]
    inside = [(word.start, word.end) for segment in found for word in segment.words]
    for times in (everything, inside):
        assert all(start < end for start, end in milliseconds(times))
        assert all(before[1] <= after[0] for before, after in pairwise(times))
    for segment in found:
        for word in segment.words:
            assert segment.start <= word.start < word.end <= segment.end
    assert in_order(found, 0.0, high) == found


@pytest.mark.parametrize("high", [None, 10.0])
def test_a_segment_keeps_what_it_has_around_its_words(high: float | None) -> None:
    words = (Word(word="a", start=1.0, end=1.0), Word(word="b", start=1.0, end=2.0))
    (found,) = in_order([Segment(id=0, start=0.5, end=3.0, text="a b", words=words)], 0.0, high)
    assert (found.start, found.end) == (0.5, 3.0)
    assert in_order([]) == ()


def test_a_segment_with_words_in_order_lies_within_the_audio_too() -> None:
    words = (Word(word="a", start=0.0, end=1.0), Word(word="b", start=1.0, end=2.0))
    (found,) = in_order([Segment(id=0, start=-0.5, end=9.0, text="a b", words=words)], 0.0, 2.5)
    assert (found.start, found.end, found.words) == (0.0, 2.5, words)


@given(st.lists(st.tuples(moments, moments, st.sampled_from((0, 1, 5))), max_size=10), st.none() | st.floats(0.5, 30.0))
def test_each_channel_is_in_order_by_itself(given: list[tuple[float, float, int]], high: float | None) -> None:
    segments = [
        Segment(id=number, start=start, end=end, text="x", channel=channel)
        for number, (start, end, channel) in enumerate(given)
    ]
    found = in_order(segments, 0.0, high)
    for channel in (0, 1, 5):
        own = [segment for segment in segments if segment.channel == channel]
        assert [segment for segment in found if segment.channel == channel] == list(in_order(own, 0.0, high))
    if len({segment.channel for segment in segments}) > 1:
        assert all(before.start <= after.start for before, after in pairwise(found))
    assert in_order(found, 0.0, high) == found
