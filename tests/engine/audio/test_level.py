"""Offset and level: what is ordinary stays as it is; quiet speech is raised, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.audio.level import LEVEL_FRAME, hearing_gains, raise_quiet_speech, without_offset

RATE = 16_000

Signal = NDArray[np.float32]


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Signal:
    return decode(sample_call).audio


def at_level(seconds: float, level: float, seed: int = 0) -> Signal:
    return np.random.default_rng(seed).normal(0, 10 ** (level / 20), round(seconds * RATE)).astype(np.float32)


def decibels(audio: Signal) -> float:
    return float(10 * np.log10(np.mean(np.square(audio))))


def test_a_small_offset_stays(call: Signal) -> None:
    for audio in (call, call + np.float32(0.005), np.zeros(RATE, np.float32), at_level(3, -40)):
        assert without_offset(audio, shared=True) is audio


def test_a_large_offset_is_taken_off(call: Signal) -> None:
    quiet = call * np.float32(0.01)
    for offset in (0.1, -0.9):
        found = without_offset(quiet + np.float32(offset), shared=False)
        np.testing.assert_allclose(found, quiet, atol=2e-3)
        assert abs(found.mean()) < 1e-5


def test_an_offset_that_jumps_is_taken_off_on_both_sides() -> None:
    audio = at_level(150, -40)
    shifted = audio.copy()
    shifted[: 90 * RATE] += 0.3
    shifted[90 * RATE :] -= 0.2
    found = without_offset(shifted.copy(), shared=False)
    around = slice(90 * RATE - RATE, 90 * RATE + RATE)
    assert np.abs(np.delete(found - audio, np.arange(around.start, around.stop))).max() < 1e-3


def test_the_callers_array_is_never_changed(call: Signal) -> None:
    quiet = call * np.float32(0.003) + np.float32(0.1)
    before = quiet.copy()
    level = without_offset(quiet, shared=True)
    np.testing.assert_array_equal(quiet, before)
    kept = level.copy()
    raised = raise_quiet_speech(level, [(0, len(level))], [(7 * RATE, 20 * RATE)], shared=True)
    np.testing.assert_array_equal(level, kept)
    assert not np.array_equal(raised, level)


def test_ordinary_recordings_are_heard_as_they_are(call: Signal) -> None:
    pause = at_level(10, -70)
    assert hearing_gains(call) is None
    assert hearing_gains(call * np.float32(0.3)) is None
    assert hearing_gains(np.zeros(20 * RATE, np.float32)) is None
    # A pause between louder stretches is a pause.
    assert hearing_gains(np.concatenate([call, pause, call])) is None


def test_quiet_stretches_are_heard_louder_but_not_without_bound() -> None:
    audio = np.concatenate([at_level(40, -20), at_level(60, -58), at_level(40, -95)])
    audio *= np.where(np.arange(len(audio)) % RATE < RATE // 2, 1.0, 0.1).astype(np.float32)
    gains = hearing_gains(audio)
    assert gains is not None
    by_second = gains[np.arange(140) * RATE // LEVEL_FRAME]
    assert (by_second[:50] == 1.0).all()
    assert 20 * np.log10(by_second[65]) == pytest.approx(13.0, abs=0.5)
    assert 20 * np.log10(by_second[130]) == pytest.approx(30.0, abs=0.5)


def test_steady_noise_is_not_heard_louder() -> None:
    assert hearing_gains(at_level(60, -58)) is None


def test_ordinary_speech_is_not_raised(call: Signal) -> None:
    windows, speech = [(6 * RATE, len(call))], [(6 * RATE + 500, 14 * RATE), (15 * RATE, len(call))]
    assert raise_quiet_speech(call, windows, speech, shared=True) is call


def test_a_quiet_voice_beside_a_loud_one_is_raised_and_its_pauses_are_not() -> None:
    noise = at_level(30, -65)
    audio = noise.copy()
    loud, quiet = (2 * RATE, 10 * RATE), (14 * RATE, 22 * RATE)
    audio[slice(*loud)] += at_level(8, -15, seed=1)
    audio[slice(*quiet)] += at_level(8, -45, seed=2)
    before = audio.copy()
    raised = raise_quiet_speech(audio, [(2 * RATE, 22 * RATE)], [loud, quiet], shared=False)
    np.testing.assert_array_equal(raised[: 13 * RATE], before[: 13 * RATE])
    np.testing.assert_array_equal(raised[23 * RATE :], before[23 * RATE :])
    assert decibels(raised[16 * RATE : 21 * RATE]) == pytest.approx(-26.0, abs=1.5)


def test_the_gain_of_quiet_speech_is_bounded_and_no_sample_passes_full_scale() -> None:
    audio = at_level(20, -80)
    raised = raise_quiet_speech(audio.copy(), [(0, len(audio))], [(0, len(audio))], shared=False)
    assert decibels(raised) == pytest.approx(-50.0, abs=0.5)
