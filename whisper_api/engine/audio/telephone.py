"""The band of a telephone: whether a voice was heard in it, and what another recording of the voice has in it.

A telephone takes a voice's sound above 4 kHz away. Embeddings of one voice with and without it differ as much as those
of two people. So where only one of two recordings was made over a telephone, both are compared in the band. Different
telephones then hardly matter.
"""

from __future__ import annotations

import numpy as np

from whisper_api.engine.audio.track import Samples
from whisper_api.schema import SAMPLE_RATE

__all__ = ["is_over_telephone", "telephone_band"]

# The band of a telephone (ITU-T G.712), and what it takes away, in Hz.
BAND = (300.0, 3400.0)
ABOVE = (4500.0, 7500.0)
# Frames of 32 ms within so many decibels of the loudest are speech.
FRAME = 512
QUIETEST = 30.0
# In the sharpest hundredth of its frames, such as those of an "s", speech has much power above the band: at least
# -15 dB of that in the band in 18 recordings, one of them of 1961. In two calls it has -46 dB, and with the noise of
# mu-law -36 dB.
SHARPEST, MOST_ABOVE = 99, -25.0


def telephone_band(audio: Samples) -> Samples:
    """Remove the frequencies of a recording that a telephone does not transmit.

    Nothing else of a telephone is imitated: with the noise of mu-law, all voices have more in common.

    Args:
        audio: float32, shape (samples,), mono, 16 kHz.
    """
    if not len(audio):
        return audio
    frequencies = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    inside = (frequencies >= BAND[0]) & (frequencies <= BAND[1])
    found: Samples = np.fft.irfft(np.fft.rfft(audio) * inside, len(audio)).astype(np.float32)
    return found


def is_over_telephone(audio: Samples) -> bool:
    """Whether a voice lacks what a telephone takes away.

    Args:
        audio: float32, shape (samples,), mono, 16 kHz: mostly speech, at least some seconds.
    """
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME)
    if not len(frames):
        return False
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)))
    frequencies = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE)
    within, above = (
        power[:, (frequencies >= low) & (frequencies <= high)].sum(axis=1) + 1e-12 for low, high in (BAND, ABOVE)
    )
    loudness = 10 * np.log10(within + above)
    loud = loudness >= loudness.max() - QUIETEST
    return bool(np.percentile(10 * np.log10(above / within)[loud], SHARPEST) < MOST_ABOVE)
