"""Word alignment from cross-attention, held against CTranslate2 with the same model and the same encoder output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from numpy_decoder import Pair

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.whisper.dtw import align, align_tokens, median_filter, warp

RATE = 16_000


@pytest.fixture(scope="module")
def english(tiny_en_model_dir: Path) -> Pair:
    return Pair(tiny_en_model_dir)


@pytest.mark.models
@pytest.mark.parametrize(("begin", "end"), [(6.4, 14.3), (14.3, 21.6), (21.6, 30.0)])
def test_tokens_are_where_ctranslate2_finds_them(english: Pair, sample_call: Path, begin: float, end: float) -> None:
    window = english.window(decode(sample_call).audio[int(begin * RATE) : int(end * RATE)], seconds=15)
    text = window.generate(english.prompt, english.rules.suppress, 100, beam_size=1).sequences_ids[0]
    eot = english.rules.eot
    for frames in (2, 7, window.speech_frames, 1500):
        expected = english.ct2.align(window.encoded, list(english.start), [text], [frames], median_filter_width=7)[0]
        tokens, positions, probabilities = align(
            window.state(), english.start, text, no_timestamps=english.no_timestamps, eot=eot, frames=frames
        )
        if frames >= window.speech_frames:
            assert list(zip(tokens.tolist(), positions.tolist(), strict=True)) == expected.alignments
        assert (tokens[0], positions[0]) == (0, 0)
        assert (tokens[-1], positions[-1]) == (len(text), frames // 2 - 1)
        np.testing.assert_allclose(probabilities, expected.text_token_probs, atol=1e-3)


def test_cutting_probabilities_is_cutting_scores() -> None:
    scores = np.random.default_rng(0).normal(0, 3, (2, 12, 200)).astype(np.float32)

    def softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
        weights = np.exp(values - values.max(-1, keepdims=True))
        return np.asarray(weights / weights.sum(-1, keepdims=True), np.float32)

    cut = align_tokens(softmax(scores[:, :, :90]), start_length=3, frames=180)
    for found, expected in zip(align_tokens(softmax(scores), start_length=3, frames=180), cut, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_less_than_a_position_has_no_path() -> None:
    for found in align_tokens(np.ones((2, 5, 10), np.float32), start_length=1, frames=1):
        assert len(found) == 0


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_broken_attention_still_gives_a_path(value: float) -> None:
    tokens, positions = align_tokens(np.full((2, 6, 10), value, np.float32), start_length=1, frames=20)
    assert (tokens[0], positions[0]) == (0, 0)
    assert (tokens[-1], positions[-1]) == (3, 9)


def test_uniform_attention_still_gives_a_path() -> None:
    tokens, positions = align_tokens(np.full((2, 6, 10), 0.1, np.float32), start_length=1, frames=20)
    assert (tokens[-1], positions[-1]) == (3, 9)


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 40),
    length=st.integers(4, 60),
    levels=st.sampled_from([3, 10_000]),
)
def test_the_median_is_that_of_sorting(seed: int, rows: int, length: int, levels: int) -> None:
    values = np.random.default_rng(seed).integers(0, levels, (2, rows, length)).astype(np.float32)
    padded = np.pad(values, ((0, 0), (0, 0), (3, 3)), mode="reflect")
    expected = np.median(np.lib.stride_tricks.sliding_window_view(padded, 7, axis=2), axis=3)
    np.testing.assert_array_equal(median_filter(values), expected)


def test_three_values_are_not_filtered() -> None:
    values = np.array([[5, 1, 3]], np.float32)
    np.testing.assert_array_equal(median_filter(values), values)


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 12),
    columns=st.integers(1, 30),
    levels=st.sampled_from([2, 10_000]),
)
def test_the_path_is_the_cheapest(seed: int, rows: int, columns: int, levels: int) -> None:
    cost = np.random.default_rng(seed).integers(-levels, levels, (rows, columns)).astype(np.float64)
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for row in range(rows):
        for column in range(columns):
            before = min(total[row, column], total[row, column + 1], total[row + 1, column])
            total[row + 1, column + 1] = cost[row, column] + before
    path = np.stack(warp(cost), axis=1)
    np.testing.assert_array_equal(path[[0, -1]], [(0, 0), (rows - 1, columns - 1)])
    steps = np.diff(path, axis=0)
    assert ((steps >= 0) & (steps <= 1)).all()
    assert steps.any(axis=1).all()
    assert cost[path[:, 0], path[:, 1]].sum() == total[-1, -1]
