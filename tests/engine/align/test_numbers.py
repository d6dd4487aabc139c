"""Numbers have times from cross-attention, between the words whose times come from the alignment model."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.engine.align.numbers import AttentionTime, attention_times
from whisper_api.engine.whisper.model import is_unspelled
from whisper_api.schema import Segment, Word

TEXT = "It cost 5,000 dollars"
SPELLED = {index for index, character in enumerate(TEXT) if character.isalpha()}
# A tenth of a second for each character, from the start of the text.
TIMES = [(index / 10, (index + 1) / 10) for index in range(len(TEXT))]


def segment(*words: tuple[str, float, float], text: str = TEXT) -> Segment:
    attended = tuple(Word(word=word, start=start, end=end, score=0.9) for word, start, end in words)
    return Segment(id=0, start=0.0, end=3.0, text=text, words=attended)


def test_a_number_has_the_time_of_attention_and_no_other_word_has() -> None:
    given = segment(("It", 0.5, 0.6), ("cost", 0.6, 0.7), ("5,000", 0.9, 1.2), ("dollars", 1.3, 2.9))
    assert attention_times(given, SPELLED, TIMES) == [AttentionTime(8, 13, 0.9, 1.2, 0.9)]


def test_a_number_keeps_between_the_letters_around_it() -> None:
    given = segment(("It", 0.0, 0.2), ("cost", 0.2, 0.4), ("5,000", 0.4, 2.0), ("dollars", 2.0, 2.5))
    (found,) = attention_times(given, SPELLED, TIMES)
    assert (found.start, found.end) == (0.7, 1.4)


def test_a_number_that_attention_places_elsewhere_keeps_the_time_of_the_model() -> None:
    given = segment(("It", 0.0, 0.2), ("cost", 0.2, 0.4), ("5,000", 2.4, 2.9), ("dollars", 2.9, 3.0))
    assert attention_times(given, SPELLED, TIMES) == []


def test_a_word_with_a_digit_among_letters_keeps_the_time_of_the_model() -> None:
    text = "the mp3 file"
    given = segment(("the", 0.0, 0.2), ("mp3", 0.4, 0.6), ("file", 0.7, 1.0), text=text)
    spelled = {index for index, character in enumerate(text) if character.isalpha()}
    assert attention_times(given, spelled, [(i / 10, (i + 1) / 10) for i in range(len(text))]) == []


def test_text_without_attention_has_no_such_times() -> None:
    assert attention_times(segment(), SPELLED, TIMES) == []


@pytest.mark.parametrize(("character", "expected"), [("5", True), ("€", True), ("%", True), ("½", True), ("&", True)])
def test_digits_and_symbols_are_not_spelled(character: str, expected: bool) -> None:
    assert is_unspelled(character) == expected


@pytest.mark.parametrize("character", ["a", "é", "日", ".", ",", "-", "'", " ", "\ufffd"])
def test_letters_and_punctuation_are_spelled(character: str) -> None:
    assert not is_unspelled(character)


TOKENS = st.sampled_from(["one", "42", "$5", "3,000", "%", "mp3", "1984.", "–"])


@given(tokens=st.lists(TOKENS, min_size=1, max_size=10), data=st.data())
def test_times_are_in_order_whatever_attention_says(tokens: list[str], data: st.DataObject) -> None:
    text = " ".join(tokens)
    spelled = {index for index, character in enumerate(text) if character.isalpha()}
    cuts = sorted(data.draw(st.lists(st.floats(0, 3), min_size=2 * len(tokens), max_size=2 * len(tokens))))
    words = [(token, cuts[2 * i], cuts[2 * i + 1]) for i, token in enumerate(tokens)]
    edges = sorted(data.draw(st.lists(st.floats(0, 3), min_size=len(text) + 1, max_size=len(text) + 1)))
    times = list(pairwise(edges))
    found = attention_times(segment(*words, text=text), spelled, times)
    assert all(time.start < time.end for time in found)
    assert all(a.after <= b.first and a.end <= b.start for a, b in pairwise(found))
    for time in found:
        assert not any(text[place].isalpha() for place in range(time.first, time.after)) or "3" in text
        assert all(times[place][1] <= time.start for place in spelled if place < time.first)
        assert all(times[place][0] >= time.end for place in spelled if place >= time.after)
