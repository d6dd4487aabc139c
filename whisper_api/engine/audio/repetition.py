"""Finds sound that repeats itself exactly: a recorded announcement in a loop, a test recording, a ring tone."""

from __future__ import annotations

import numpy as np

from whisper_api.engine.audio.track import Samples
from whisper_api.schema import SAMPLE_RATE

__all__ = ["repetition_period"]

# Shorter periods are tones.
SHORTEST_SECONDS = 0.3
# A sound heard less often is no loop.
LEAST_TIMES = 3
# Correlation of the sound with itself, one period later. A loop has 1; through a codec or a room, less. In the shared
# recordings of speech no window has more than 0.4.
LEAST_CORRELATION = 0.8


def repetition_period(audio: Samples) -> int | None:
    """The period with which the sound repeats itself from the beginning to the end.

    Args:
        audio: float32, shape (samples,), mono, 16 kHz.

    Returns:
        Samples; None for sound that does not repeat itself exactly, as speech never does.
    """
    count = len(audio)
    first, last = round(SHORTEST_SECONDS * SAMPLE_RATE), count // LEAST_TIMES
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    if first >= last or not energy[-1]:
        return None
    spectrum = np.fft.rfft(audio, 2 * count)
    products = np.fft.irfft(np.square(np.abs(spectrum)))[first : last + 1]
    lags = np.arange(first, last + 1)
    # The energies of the two parts that are compared: all but the last period, and all but the first.
    norms = np.sqrt(energy[count - lags] * (energy[-1] - energy[lags]))
    correlation = products / np.maximum(norms, 1e-9 * energy[-1])
    best = float(correlation.max())
    if best < LEAST_CORRELATION:
        return None
    # A multiple of the period correlates as well, so the first peak counts.
    return first + int(np.argmax(correlation >= best - 0.01 * best))
