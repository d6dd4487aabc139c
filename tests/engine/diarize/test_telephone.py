"""A voice over a telephone is known by what it lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.diarize.embed_speaker import is_over_telephone, telephone_band

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
    assert is_over_telephone(telephone_band(voice))
    assert not is_over_telephone(voice[:100])
    assert len(telephone_band(voice[:0])) == 0
    # Only the frequencies in the band stay.
    np.testing.assert_allclose(telephone_band(telephone_band(voice)), telephone_band(voice), atol=1e-5)
