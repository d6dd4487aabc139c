"""A second pass hears what the first one misses after a long pause and beside a loud voice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.silero import SILERO_FRAME, silero_probabilities
from whisper_api.engine.silero_again import heard_again

RATE = 16_000
ONSET = 0.5
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def speech(sample_call: Path) -> Floats:
    """Speech of the real call, in whole frames."""
    call = decode(sample_call.read_bytes()).audio[round(6.4 * RATE) :]
    return call[: len(call) // SILERO_FRAME * SILERO_FRAME]


def noise(frames: int, level: float, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 10 ** (level / 20), frames * SILERO_FRAME).astype(np.float32)


def loud_and_quiet(speech: Floats, decibels: float) -> tuple[Floats, int]:
    """The speech, half a second of room, the same speech so much quieter, and the speech again; a level of -15 dBFS.

    Returns the sound, and the frame at which the quiet voice begins.
    """
    loud = speech * np.float32(10 ** (-15 / 20) / np.percentile(np.abs(speech), 99))
    pause = noise(16, -90)
    return np.concatenate([loud, pause, loud * np.float32(10 ** (-decibels / 20)), pause, loud]), (
        len(loud) + len(pause)
    ) // SILERO_FRAME


def test_nothing_that_the_first_pass_hears_is_lost(speech: Floats) -> None:
    for audio in (np.concatenate([noise(400, -45), speech]), loud_and_quiet(speech, 35)[0]):
        once = silero_probabilities(audio)
        assert (heard_again(audio, once) >= once).all()


@pytest.mark.parametrize("decibels", [30.0, 35.0])
def test_a_voice_beside_a_much_louder_one_is_heard(speech: Floats, decibels: float) -> None:
    spoken = silero_probabilities(speech) >= ONSET
    audio, begin = loud_and_quiet(speech, decibels)
    once = silero_probabilities(audio)
    found = heard_again(audio, once)
    share = [float((each[begin : begin + len(spoken)][spoken] >= ONSET).mean()) for each in (once, found)]
    assert share[1] > share[0]
    assert share[1] > 0.85


def test_speech_after_a_long_pause_is_heard_as_if_there_were_none(speech: Floats) -> None:
    spoken = silero_probabilities(speech) >= ONSET
    for seed in range(3):
        audio = np.concatenate([noise(640, -45, seed), speech])
        found = heard_again(audio, silero_probabilities(audio))
        assert (found[640:][spoken] >= ONSET).mean() > 0.98


def test_quiet_noise_beside_speech_stays_noise(speech: Floats) -> None:
    """Steady noise, and noise in bursts, which varies as much as a voice does."""
    bursts = noise(200, -45) * np.repeat(np.tile([1.0, 0.02], 100), SILERO_FRAME).astype(np.float32)
    frames = len(speech) // SILERO_FRAME
    for pause in (noise(200, -45), bursts, np.zeros(200 * SILERO_FRAME, np.float32)):
        audio = np.concatenate([speech, pause, speech])
        found = heard_again(audio, silero_probabilities(audio))
        assert found[frames + 16 : frames + 184].max() < ONSET


def test_speech_without_long_pauses_is_heard_once(speech: Floats) -> None:
    once = silero_probabilities(speech)
    assert np.array_equal(heard_again(speech, once), once)


def test_an_error_of_progress_ends_the_work(speech: Floats) -> None:
    class CanceledError(Exception):
        pass

    def cancel() -> None:
        raise CanceledError

    audio = np.concatenate([noise(400, -45), speech])
    with pytest.raises(CanceledError):
        heard_again(audio, silero_probabilities(audio), cancel)
