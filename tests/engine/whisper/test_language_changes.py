"""The most likely languages of stretches of speech: changes are found where they are clear, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_api.engine.whisper.language_changes import evidence, most_likely_languages

LANGUAGES = 6
EN, FR, DE, CY = range(4)
FLAT = np.full(LANGUAGES, 1 / LANGUAGES)


def heard(language: int, probability: float = 0.97) -> np.ndarray:
    found = np.full(LANGUAGES, (1 - probability) / (LANGUAGES - 1))
    found[language] = probability
    return found


def chosen(*stretches: tuple[np.ndarray, float]) -> list[int]:
    """The languages of stretches: probabilities, and seconds."""
    return most_likely_languages(np.array([evidence(found, found, seconds) for found, seconds in stretches]))


CHANCES = st.lists(st.floats(0.001, 1.0), min_size=LANGUAGES, max_size=LANGUAGES)


@settings(max_examples=50)
@given(st.lists(st.tuples(CHANCES, st.floats(0.1, 0.5)), max_size=2), st.integers(1, 5), st.integers(1, 5))
def test_short_stretches_have_the_language_of_their_neighbours(
    short: list[tuple[list[float], float]], before: int, after: int
) -> None:
    """Whatever is heard in a few short stretches, speech in one language around them stays in one language."""
    answers = [(np.array(found), seconds) for found, seconds in short]
    speech = [(heard(EN), 6.0)]
    assert set(chosen(*speech * before, *answers, *speech * after)) == {EN}


@given(st.lists(st.sampled_from([EN, FR, DE]), min_size=1, max_size=30))
def test_clear_changes_are_found(spoken: list[int]) -> None:
    assert chosen(*((heard(language), 5.0) for language in spoken)) == spoken


@pytest.mark.parametrize("seconds", [0.5, 3.0, 8.0])
def test_an_unclear_stretch_follows(seconds: float) -> None:
    assert chosen((heard(EN), 5.0), (FLAT, seconds), (heard(EN), 5.0)) == [EN] * 3
    assert chosen((heard(EN), 5.0), (heard(CY, 0.5), seconds), (heard(EN), 5.0)) == [EN] * 3
    assert chosen((heard(FR), 5.0), (FLAT, seconds), (heard(EN), 5.0))[::2] == [FR, EN]


def test_a_language_that_is_never_clear_is_not_used() -> None:
    """English that sometimes sounds a little like Welsh."""
    doubtful = 0.35 * heard(EN, 1.0) + 0.65 * heard(CY, 1.0)
    assert set(chosen(*[(heard(EN), 4.0), (doubtful, 2.0)] * 10)) == {EN}


def test_one_stretch_alone_has_its_most_likely_language() -> None:
    assert chosen((heard(DE, 0.3), 0.5)) == [DE]


def test_the_more_certain_way_to_hear_counts_more() -> None:
    """Beside other languages, a stretch is clear only when it is heard alone; a short one only when it is not."""
    unclear = heard(CY, 0.3)
    for inside, alone in ((unclear, heard(FR, 0.99)), (heard(FR, 0.99), unclear)):
        assert int(evidence(inside, alone, 6.0).argmax()) == FR


@given(CHANCES, CHANCES, st.floats(0.1, 30.0))
def test_evidence_is_bounded_and_grows_with_the_length(inside: list[float], alone: list[float], seconds: float) -> None:
    found = evidence(np.array(inside), np.array(alone), seconds)
    assert np.isfinite(found).all()
    # No single stretch decides about the recording.
    assert found.max() - found.min() < 6.0
    longer = evidence(np.array(inside), np.array(alone), 2 * seconds)
    assert (longer <= found + 1e-12).all()
