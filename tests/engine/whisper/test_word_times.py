"""Word times from cross-attention: grouping of tokens, punctuation, pauses."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from whisper_api.engine.whisper.model import Attention, Whisper
from whisper_api.engine.whisper.settings import WhisperSource
from whisper_api.engine.whisper.word_times import token_times, words_of
from whisper_api.schema import Word

RATE = 16_000


@pytest.fixture(scope="module")
def whisper(base_model_dir: Path) -> Whisper:
    return WhisperSource(str(base_model_dir), "cpu", 0, "int8", 1).load()


def attention(frames_per_token: list[int]) -> Attention:
    """A path on which each token is heard for so many frames of 20 ms."""
    tokens = np.repeat(np.arange(len(frames_per_token)), frames_per_token)
    return Attention(
        tokens, np.arange(len(tokens)), np.asarray(np.linspace(0.5, 0.9, len(frames_per_token) - 1), np.float64)
    )


def loud(seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def test_tokens_begin_where_the_path_reaches_them() -> None:
    np.testing.assert_allclose(token_times(attention([5, 10, 20, 1]), 3), [0.0, 0.1, 0.3, 0.7])


def test_a_path_that_ends_early_gives_the_last_time_to_the_rest() -> None:
    path = Attention(np.array([0, 0, 1]), np.array([0, 1, 2]), np.array([0.5, 0.5, 0.5]))
    np.testing.assert_allclose(token_times(path, 3), [0.0, 0.04, 0.04, 0.04])


@pytest.mark.models
@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("en", " Hello, world! It's me.", ["Hello,", "world!", "It's", "me."]),
        ("en", ' He said "go" (twice).', ["He", "said", '"go"', "(twice)."]),
        ("fr", " Où est-il ? L'été « chaud » !", ["Où", "est-il ?", "L'été", "« chaud » !"]),
        ("ca", " l'últim cop, tornar-hi", ["l'últim", "cop,", "tornar-hi"]),
        ("en", " (", []),
        ("ja", "今日は。いい天気", ["今日は。", "いい", "天", "気"]),
    ],
)
def test_words_hold_all_of_the_text(whisper: Whisper, language: str, text: str, words: list[str]) -> None:
    tokenizer = whisper.tokenizer(language)
    tokens = tokenizer.encode(text)
    found = words_of(attention([5] * (len(tokens) + 1)), tokens, tokenizer, loud(5), offset=10.0)
    assert [word.word for word in found] == words
    assert_in_order(found, 10.0, 15.0)
    assert all(word.score is not None and 0 < word.score <= 1 for word in found)


def assert_in_order(words: list[Word], low: float, high: float) -> None:
    assert all(low <= word.start < word.end <= high for word in words)
    assert all(a.end <= b.start for a, b in itertools.pairwise(words))


@pytest.mark.models
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from([" one", " day", ",", " l'", "été", " 日本", "。", " ("]), min_size=1, max_size=30),
    frames=st.lists(st.integers(0, 12), min_size=8, max_size=8),
    pause=st.none() | st.floats(0.0, 2.0),
    lead=st.floats(-0.2, 0.2),
)
def test_words_have_a_length_and_do_not_overlap_whatever_the_attention(
    whisper: Whisper, words: list[str], frames: list[int], pause: float | None, lead: float
) -> None:
    tokenizer = whisper.tokenizer("fr")
    tokens = tokenizer.encode("".join(words))
    per_token = [frames[index % len(frames)] for index in range(len(tokens))]
    audio = loud(3)
    if pause is not None:
        audio[int(pause * RATE) : int((pause + 0.5) * RATE)] *= 0.001
    found = words_of(attention([*per_token, 1]), tokens, tokenizer, audio, offset=7.0, lead=lead)
    assert_in_order(found, 7.0, 10.0)


@pytest.mark.models
def test_a_word_begins_after_the_pause_before_it(whisper: Whisper) -> None:
    tokenizer = whisper.tokenizer("en")
    tokens = tokenizer.encode(" one day")
    assert len(tokens) == 2
    audio = loud(2)
    audio[int(0.5 * RATE) : int(1.2 * RATE)] *= 0.001
    # The attention moves to the second word as soon as the first one ends, at 0.5 s.
    first, second = words_of(attention([25, 50, 1]), tokens, tokenizer, audio)
    assert second.start == pytest.approx(1.2, abs=0.03)
    assert first.end == pytest.approx(0.5, abs=0.03)


@pytest.mark.models
def test_a_lead_moves_all_times_inside_the_window(whisper: Whisper) -> None:
    tokenizer = whisper.tokenizer("en")
    tokens = tokenizer.encode(" one day more")
    plain = words_of(attention([25, 25, 25, 1]), tokens, tokenizer, loud(1.5))
    moved = words_of(attention([25, 25, 25, 1]), tokens, tokenizer, loud(1.5), lead=0.1)
    assert [round(b.start - a.start, 3) for a, b in zip(plain, moved, strict=True)] == [0.1, 0.1, 0.1]
    assert moved[-1].end == 1.5


@pytest.mark.models
def test_no_tokens_are_no_words(whisper: Whisper) -> None:
    assert words_of(attention([1]), [], whisper.tokenizer("en"), loud(1)) == []
