"""Common sound of channels: copies, silence, and the crosstalk of one voice in the channel of another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stereo import Signal, leaked

from whisper_api.engine.audio.crosstalk import CROSSTALK_MARGIN, Comparison, Leak, compare, without_crosstalk

RATE = 16_000
SECONDS = 12
ROOM = 10 ** (-70 / 20)


def voice(seed: int, begin: float = 0.0, end: float = SECONDS, level: float = -22.0) -> Signal:
    """Syllables of coloured noise between two times, at a level in dBFS."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.standard_normal(SECONDS * RATE), np.hanning(6), mode="same")
    time = np.arange(SECONDS * RATE) / RATE
    syllables = np.clip(np.sin(2 * np.pi * (3 + seed % 3) * time + seed), 0, None)
    sound = noise * syllables * ((time >= begin) & (time < end))
    return np.asarray(sound / np.sqrt(np.mean(sound[sound != 0] ** 2)) * 10 ** (level / 20), np.float32)


def room(seed: int) -> Signal:
    return (ROOM * np.random.default_rng(1000 + seed).standard_normal(SECONDS * RATE)).astype(np.float32)


def level(sound: Signal) -> float:
    return float(10 * np.log10(np.mean(np.square(sound, dtype=np.float64)) + 1e-12))


@settings(max_examples=12)
@given(
    st.lists(st.sampled_from(["voice", "silent", "copy", "inverted", "quieter"]), min_size=2, max_size=8),
    st.integers(0, 100),
)
def test_each_channel_without_a_sound_of_its_own_is_named(kinds: list[str], seed: int) -> None:
    channels: list[Signal] = []
    original: int | None = None
    for number, kind in enumerate(kinds):
        if kind == "silent":
            channels.append(np.zeros(SECONDS * RATE, np.float32))
        elif kind == "voice" or original is None:
            original = number if original is None else original
            channels.append(voice(seed + number, level=-20.0 - number) + room(number))
        else:
            factor = {"copy": 1.0, "inverted": -1.0, "quieter": 0.4}[kind]
            channels.append(np.float32(factor) * channels[original])
    found = compare(channels)
    copies = [number for number, kind in enumerate(kinds) if kind in ("copy", "inverted", "quieter")]
    copies = [number for number in copies if number != original]
    assert found.silent == tuple(number for number, kind in enumerate(kinds) if kind == "silent")
    assert found.copies == dict.fromkeys(copies, original)
    assert found.inverted == {number for number in copies if kinds[number] == "inverted"}
    assert not found.alike
    assert not found.leaks
    assert not found.mingled


@pytest.mark.parametrize("quieter", [0.0, -35.0])
def test_quiet_recordings_are_compared_as_loud_ones(quieter: float) -> None:
    factor = np.float32(10 ** (quieter / 20))
    left, right = voice(1, 0, 6), voice(2, 6, 12)
    channels = [factor * (left + leaked(right, -20.0, 0.01)), factor * (right + leaked(left, -20.0, 0.01))]
    found = compare(channels)
    assert not found.copies
    assert {(leak.source, leak.target) for leak in found.leaks} == {(0, 1), (1, 0)}
    assert compare([channels[0], channels[0]]).copies == {1: 0}


def test_a_word_on_one_channel_makes_it_no_copy() -> None:
    both = voice(1) + room(1)
    other = both + voice(2, 7.0, 7.3)
    assert not compare([both, other]).copies
    # Rounding to 16 bits, and a lossy codec, change little everywhere.
    rounded = (np.round(both * 32768) / 32768).astype(np.float32)
    assert compare([both, rounded]).copies == {1: 0}


@pytest.mark.parametrize("decibels", [-15.0, -20.0, -35.0])
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.35])
def test_crosstalk_is_found_with_its_level_and_delay(decibels: float, delay: float) -> None:
    left, right = voice(1, 0, 6), voice(2, 6, 12)
    found = compare([left + room(1), right + leaked(left, decibels, delay) + room(2)])
    (leak,) = found.leaks
    assert (leak.source, leak.target, leak.delay) == (0, 1, round(delay * RATE))
    assert leak.decibels == pytest.approx(decibels, abs=4.0)
    assert found.mingled


def test_only_crosstalk_is_silenced() -> None:
    """A voice that is the margin above the crosstalk stays, though the source speaks at the same time."""
    left, right = voice(1, 0, 9), voice(2, 6, 12, level=-22.0 - 25.0 + CROSSTALK_MARGIN + 8.0)
    channels = [left + room(1), right + leaked(left, -25.0, 0.01) + room(2)]
    before = [channel.copy() for channel in channels]
    without_crosstalk(channels, compare(channels).leaks)
    np.testing.assert_array_equal(channels[0], before[0])
    assert not channels[1][: round(5.5 * RATE)].any()
    kept = np.abs(channels[1][6 * RATE : 12 * RATE]) > 0
    assert kept[np.abs(right[6 * RATE : 12 * RATE]) > 0.25 * np.abs(right).max()].mean() > 0.97


def test_what_no_other_channel_hears_is_not_changed() -> None:
    channels = [voice(1) + room(1), voice(2, level=-50.0) + room(2)]
    before = [channel.copy() for channel in channels]
    found = compare(channels)
    without_crosstalk(channels, found.leaks)
    assert found == Comparison()
    np.testing.assert_array_equal(channels, before)


def test_two_microphones_in_one_room_hear_the_same_voices() -> None:
    left, right = voice(1, 0, 6), voice(2, 6, 12)
    near = left + leaked(right, -1.0, 0.004)
    far = leaked(left, -1.5, 0.005) + right
    assert compare([near + room(1), far + room(2)]).alike == {1: 0}


def test_voices_that_are_panned_are_separated_by_who_is_louder() -> None:
    left, right = voice(1, 0, 6), voice(2, 6, 12)
    channels = [left + leaked(right, -8.0, 0.0) + room(1), right + leaked(left, -8.0, 0.0) + room(2)]
    without_crosstalk(channels, compare(channels).leaks)
    assert level(channels[0][7 * RATE : 11 * RATE]) < -80
    assert level(channels[1][1 * RATE : 5 * RATE]) < -80
    assert level(channels[0][1 * RATE : 5 * RATE]) == pytest.approx(level(left[1 * RATE : 5 * RATE]), abs=1.0)


def test_a_short_recording_can_be_compared() -> None:
    tiny = voice(1)[:100]
    assert compare([tiny, tiny]).copies == {1: 0}
    without_crosstalk([tiny, tiny * 2], [Leak(0, 1, -20.0, 320)])
