"""Sound that repeats itself has a period, also in some noise; speech and noise have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.whisper.window_decoder import repetition_period

RATE = 16_000
Floats = np.ndarray[Any, np.dtype[np.float32]]


def noise(seconds: float, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.35, 4.0), st.floats(3.1, 7.0), st.integers(0, 9), st.floats(0.0, 0.3))
def test_a_loop_has_its_period(seconds: float, times: float, seed: int, added: float) -> None:
    period = round(seconds * RATE)
    loop = np.resize(noise(seconds, seed)[:period], round(times * period))
    assert repetition_period(loop + np.float32(added) * noise(len(loop) / RATE, 10)[: len(loop)]) == period


@pytest.mark.parametrize("seconds", [0.0, 0.5, 2.0, 30.0])
def test_noise_and_silence_have_no_period(seconds: float) -> None:
    assert repetition_period(noise(seconds)) is None
    assert repetition_period(np.zeros(round(seconds * RATE), np.float32)) is None


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Floats:
    return decode(sample_call).audio


def test_speech_has_no_period(call: Floats) -> None:
    for start in range(6 * RATE, len(call) - 4 * RATE, 4 * RATE):
        assert repetition_period(call[start : start + 4 * RATE]) is None
    # Said twice is no loop.
    assert repetition_period(np.tile(call[7 * RATE : 9 * RATE], 2)) is None
    assert repetition_period(np.tile(call[7 * RATE : 9 * RATE], 4)) == 2 * RATE
