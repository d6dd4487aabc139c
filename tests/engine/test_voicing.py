"""Words keep within the voice, and voice without words is found."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.engine.voicing import Interval, Voicing, bounded, bounded_segments, longest_plausible
from whisper_api.schema import Segment, Word

STEP = 0.032


def voiced(*spans: Interval, seconds: float = 30.0) -> Voicing:
    frames = np.zeros(int(seconds / STEP), bool)
    for start, end in spans:
        frames[round(start / STEP) : round(end / STEP)] = True
    return Voicing(frames, STEP)


def words(*items: tuple[str, float, float]) -> list[Word]:
    return [Word(word=text, start=start, end=end) for text, start, end in items]


def times(found: Sequence[Word]) -> list[Interval]:
    return [(word.start, word.end) for word in found]


def near(*spans: Interval) -> list[object]:
    return [pytest.approx(span, abs=STEP) for span in spans]


def test_the_first_word_begins_after_the_noise_before_it() -> None:
    given = words(("La", 1.0, 3.3), ("partie", 3.3, 3.7))
    assert times(bounded(given, voiced((1.0, 1.5), (3.1, 4.0)))) == near((3.1, 3.3), (3.3, 3.7))


def test_a_first_word_in_noise_without_a_pause_has_the_length_of_a_word() -> None:
    first, second = bounded(words(("And", 0.0, 8.0), ("so", 8.0, 8.2)), voiced((0.0, 9.0)))
    assert first.end == 8.0
    assert 0.1 < first.end - first.start <= longest_plausible("And")
    assert times([second]) == [(8.0, 8.2)]


def test_two_words_in_the_noise_before_speech_are_both_spoken_after_it() -> None:
    given = words(("And", 0.0, 2.2), ("Mr.", 2.7, 6.3), ("John", 6.3, 6.7))
    first, second, _ = bounded(given, voiced((0.0, 4.0), (6.1, 7.0)))
    assert times([second]) == near((6.1, 6.3))
    assert 5.5 < first.start < first.end <= second.start


def test_the_last_word_ends_before_the_noise_after_it() -> None:
    given = words(("boule", 1.0, 1.4), ("de", 1.4, 1.5), ("lumière.", 1.5, 6.0))
    assert times(bounded(given, voiced((1.0, 2.0), (4.0, 6.0)))) == near((1.0, 1.4), (1.4, 1.5), (1.5, 2.0))
    _, _, last = bounded(given, voiced((1.0, 6.0)))
    assert last.start == 1.5
    assert last.end - last.start <= longest_plausible("lumière")


def test_a_word_after_a_pause_inside_a_window_begins_after_the_pause() -> None:
    given = words(("okay", 1.0, 1.4), ("if", 1.4, 4.2), ("you", 4.2, 4.4))
    assert times(bounded(given, voiced((1.0, 1.45), (4.0, 5.0)))) == near((1.0, 1.4), (4.0, 4.2), (4.2, 4.4))


def test_segments_begin_and_end_with_their_words() -> None:
    given = Segment(
        id=0, start=0.9, end=6.1, text="La lumière.", words=tuple(words(("La", 1, 3.3), ("lumière.", 3.3, 6)))
    )
    (found,) = bounded_segments([given], voiced((1.0, 1.5), (3.1, 4.0)))
    assert (found.start, found.end) == (found.words[0].start, found.words[-1].end)
    assert times(found.words) == near((3.1, 3.3), (3.3, 4.0))
    whole = voiced((0.0, 30.0))
    calm = Segment(
        id=0, start=0.9, end=6.1, text="La lumière.", words=tuple(words(("La", 1, 1.3), ("lumière.", 1.3, 2)))
    )
    assert bounded_segments([calm], whole) == (calm,)


LENGTHS = st.floats(0.02, 6.0)
PAUSES = st.sampled_from([0.0, 0.0, 0.1, 1.0])
TEXTS = st.sampled_from(["a", "word", "extérieure", "日", "42", "–"])
STREAMS = st.lists(st.tuples(TEXTS, PAUSES, LENGTHS), max_size=12)


def stream(items: Sequence[tuple[str, float, float]]) -> list[Word]:
    found, at = [], 0.0
    for text, pause, length in items:
        start = round(at + pause, 3)
        at = round(start + length, 3)
        found.append(Word(word=text, start=start, end=at))
    return found


@given(items=STREAMS, edges=st.lists(st.floats(0, 80), max_size=16))
def test_bounded_words_stay_in_order_inside_their_former_times(
    items: list[tuple[str, float, float]], edges: list[float]
) -> None:
    before = stream(items)
    edges = sorted(edges)
    voice = voiced(*zip(edges[::2], edges[1::2], strict=False), seconds=90.0)
    after = bounded(before, voice)
    assert [word.word for word in after] == [word.word for word in before]
    assert all(word.start < word.end for word in after)
    assert all(a.end <= b.start for a, b in pairwise(after))
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        latest = after[index + 1].start if index + 1 < len(after) else old.end
        assert old.start <= new.start
        assert new.end <= max(old.end, latest)
        assert new.end - new.start <= max(longest_plausible(new.word), 0.02)


@given(items=st.lists(st.tuples(TEXTS, PAUSES, st.floats(0.02, 0.59)), max_size=12))
def test_words_of_plausible_length_in_a_voice_stay_as_they_are(items: list[tuple[str, float, float]]) -> None:
    before = stream(items)
    assert bounded(before, voiced((0.0, 30.0))) == before


def test_voice_between_words_is_found_with_its_gap() -> None:
    voice = voiced((0.0, 3.0), (5.0, 7.0), (9.0, 12.0))
    given = words(("one", 0.0, 3.0), ("two", 9.0, 12.0))
    ((stretch, gap),) = voice.lost(given, [(0.0, 12.0)])
    assert stretch == pytest.approx((5.0, 7.0), abs=STEP)
    assert gap == (3.0, 9.0)


def test_voice_before_the_first_and_after_the_last_word_of_a_window_is_found() -> None:
    voice = voiced((0.0, 12.0))
    found = voice.lost(words(("one", 4.0, 6.0)), [(0.0, 12.0)])
    assert [gap for _, gap in found] == [(0.0, 4.0), (6.0, 12.0)]


def test_the_tail_of_a_word_and_what_was_not_decoded_are_not_lost() -> None:
    voice = voiced((0.0, 3.6), (20.0, 28.0))
    assert voice.lost(words(("one", 0.0, 3.0)), [(0.0, 10.0)]) == []


@given(items=STREAMS, edges=st.lists(st.floats(0, 80), max_size=16))
def test_lost_stretches_are_voiced_and_have_no_word(items: list[tuple[str, float, float]], edges: list[float]) -> None:
    given = stream(items)
    edges = sorted(edges)
    voice = voiced(*zip(edges[::2], edges[1::2], strict=False), seconds=90.0)
    for (start, end), (low, high) in voice.lost(given, [(0.0, 40.0), (40.0, 85.0)]):
        assert low <= start < end <= high
        assert voice.seconds(start, end) >= 0.5
        assert not any(word.start < end and word.end > start for word in given)
