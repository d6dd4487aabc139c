"""Where the language is listened for, how the answers are weighed, and what is said about another language."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_api.engine.context import JobContext
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.detection import (
    Disagreement,
    differ,
    mean_languages,
    speech_parts,
    speech_stretches,
    spread,
)
from whisper_api.engine.whisper.window import Window

RATE = 16_000


def window(start: float, end: float, voiced: float = 0.0) -> Window:
    return Window(Span(round(start * RATE), round(end * RATE)), 3000, voiced=voiced)


def told(disagreement: Disagreement, speech: float, *, asked: bool) -> list[str]:
    warnings: list[str] = []
    disagreement.warn(cast(JobContext, SimpleNamespace(warn=warnings.append)), speech, asked=asked)
    return warnings


@given(st.lists(st.floats(0.1, 30.0), min_size=1, max_size=40), st.integers(1, 12))
def test_the_windows_to_hear_are_spread_over_the_speech(voiced: list[float], count: int) -> None:
    windows = [window(30 * number, 30 * number + 30, seconds) for number, seconds in enumerate(voiced)]
    chosen = spread(windows, count)
    assert chosen == sorted(set(chosen))
    assert 1 <= len(chosen) <= max(count, 1)
    if len(windows) <= count:
        assert chosen == list(range(len(windows)))
    # However little is spoken at the beginning, a place with much speech is heard.
    assert max(voiced[index] for index in chosen) >= 0.8 * np.median(voiced)


def test_a_window_of_music_is_passed_over_for_one_of_speech() -> None:
    windows = [window(0, 30, 2.0), *(window(30 * n, 30 * n + 30, 25.0) for n in range(1, 9))]
    assert 0 not in spread(windows, 3)
    assert spread(windows[1:], 3)[0] == 0


def test_a_certain_window_counts_more_than_an_uncertain_one_and_a_long_one_more_than_a_short_one() -> None:
    music = {"en": 0.1, "nn": 0.3, "fr": 0.05}
    speech = {"en": 0.01, "nn": 0.0, "fr": 0.98}
    mean = mean_languages([30.0, 10.0], [music, speech])
    assert max(mean, key=lambda code: mean[code]) == "fr"
    mean = mean_languages([4.0, 25.0], [{"en": 0.9, "fr": 0.1}, {"en": 0.1, "fr": 0.9}])
    assert mean["fr"] == pytest.approx((25 * 0.9 + 4 * 0.1) / 29)


NOISE = np.random.default_rng(0).normal(0, 0.1, 40 * RATE).astype(np.float32)


@settings(max_examples=20)
@given(st.integers(0, 8), st.integers(1, 30), st.integers(2, 10))
def test_parts_cover_the_speech_of_a_window_and_nothing_else(start: int, length: int, seconds: int) -> None:
    audio = NOISE
    speech = [Span(2 * RATE, 5 * RATE), Span(6 * RATE, 30 * RATE), Span(31 * RATE, 33 * RATE)]
    whole = Span(start * RATE, (start + length) * RATE)
    parts = speech_parts(whole, speech, audio, seconds)
    covered = np.zeros(len(audio), int)
    for part in parts:
        assert part.seconds <= seconds
        covered[part.start : part.end] += 1
    expected = np.zeros(len(audio), int)
    for span in speech:
        expected[max(span.start, whole.start) : max(min(span.end, whole.end), max(span.start, whole.start))] = 1
    np.testing.assert_array_equal(covered, expected)
    stretches = speech_stretches(whole, speech, audio)
    assert stretches == sorted(stretches, key=lambda span: span.start)
    assert len(stretches) != 1
    assert all(stretch.seconds <= 10.0 for stretch in stretches)


def test_without_known_speech_the_window_itself_is_cut() -> None:
    audio = np.zeros(20 * RATE, np.float32)
    parts = speech_parts(Span(0, len(audio)), [], audio, 8.0)
    assert (parts[0].start, parts[-1].end) == (0, len(audio))
    assert all(part.seconds <= 8.0 for part in parts)


CLEAR = {"de": 0.97, "en": 0.01}


@pytest.mark.parametrize(
    ("seconds", "languages"),
    [(3.0, CLEAR), (10.0, {"de": 0.85, "en": 0.01}), (10.0, {"de": 0.95, "en": 0.03}), (10.0, {}), (10.0, {"de": 1.0})],
    ids=["short", "not certain", "the used one is possible", "nothing heard", "a language that the model lacks"],
)
def test_what_is_not_clear_is_not_warned_about(seconds: float, languages: dict[str, float]) -> None:
    disagreement = Disagreement("en")
    assert not disagreement.add(Span(0, round(seconds * RATE)), seconds, languages)
    assert told(disagreement, 20.0, asked=True) == []


def test_another_language_in_a_part_is_named_with_its_place() -> None:
    disagreement = Disagreement("en")
    assert disagreement.add(Span(75 * RATE, 85 * RATE), 8.0, CLEAR)
    assert disagreement.add(Span(95 * RATE, 105 * RATE), 9.0, CLEAR)
    for asked in (True, False):
        (warning,) = told(disagreement, 60.0, asked=asked)
        assert "17.0 s of the speech, first at 1:15.0, sound like 'de'" in warning
        assert "'multi'" in warning


def test_a_wrong_language_of_the_whole_recording_is_named() -> None:
    disagreement = Disagreement("en")
    disagreement.add(Span(0, 20 * RATE), 18.0, CLEAR)
    (warning,) = told(disagreement, 20.0, asked=True)
    assert "'de' (probability 0.97)" in warning
    assert "'auto'" in warning


def test_a_window_is_heard_in_parts_when_one_of_them_sounds_different() -> None:
    whole = {"fr": 0.9, "en": 0.06, "cy": 0.04}
    english = {"fr": 0.1, "en": 0.8, "cy": 0.1}
    unsure = {"fr": 0.3, "en": 0.4, "cy": 0.3}
    assert differ(whole, [(Span(0, 5 * RATE), whole), (Span(6 * RATE, 12 * RATE), english)])
    assert not differ(whole, [(Span(0, 5 * RATE), whole), (Span(6 * RATE, 9 * RATE), english)])
    assert not differ(whole, [(Span(0, 5 * RATE), whole), (Span(6 * RATE, 12 * RATE), unsure)])
    assert not differ(whole, [])


def test_a_likely_language_is_looked_for_in_the_parts() -> None:
    disagreement = Disagreement("en")
    likely: dict[str, Any] = {"fr": 0.9, "en": 0.06}
    assert disagreement.doubted(likely)
    assert not disagreement.doubted({"fr": 0.6, "en": 0.35})
    assert not disagreement.doubted({"en": 0.9, "fr": 0.06})
    assert not disagreement.doubted({})
