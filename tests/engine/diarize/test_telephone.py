"""A voice over a telephone is known by what it lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.diarize.embed_speaker import BAND, FILL, is_over_telephone, telephone_band

RATE = 16_000


def test_a_telephone_is_known_by_what_it_lacks(sample_call: Path) -> None:
    call = decode(sample_call).audio
    assert is_over_telephone(call)
    assert is_over_telephone(0.01 * call)
    time = np.arange(10 * RATE)
    # Every other second hisses, as an "s" does.
    hiss = np.random.default_rng(0).normal(0, 0.1, len(time))
    voice = np.where(time // RATE % 2, hiss, np.sin(0.1 * time)).astype(np.float32)
    assert not is_over_telephone(voice)
    spectrum = np.fft.rfft(voice)
    spectrum[np.fft.rfftfreq(len(voice), 1 / RATE) > BAND[1]] = 0
    assert is_over_telephone(np.fft.irfft(spectrum, len(voice)).astype(np.float32))
    assert not is_over_telephone(voice[:100])
    assert len(telephone_band(voice[:0])) == 0


def test_the_band_stays_and_faint_noise_takes_the_place_of_the_rest(sample_call: Path) -> None:
    call = decode(sample_call).audio
    for audio in (call, 0.01 * call, np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)):
        before, after = (np.fft.rfft(each) for each in (audio, telephone_band(audio)))
        frequencies = np.fft.rfftfreq(len(audio), 1 / RATE)
        inside = (frequencies >= BAND[0]) & (frequencies <= BAND[1])
        strongest = np.abs(before).max()
        np.testing.assert_allclose(after[inside] / strongest, before[inside] / strongest, atol=1e-3)
        power = [np.square(np.abs(after[part])).sum() for part in (inside, ~inside)]
        assert 10 * np.log10(power[1] / power[0]) == pytest.approx(-FILL, abs=0.1)
        np.testing.assert_array_equal(telephone_band(audio), telephone_band(audio))
    assert not telephone_band(np.zeros(RATE, np.float32)).any()
