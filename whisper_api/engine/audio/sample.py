"""A few seconds of speech that every installation has, to try models with."""

from __future__ import annotations

import importlib.util
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisper_api.schema import SAMPLE_RATE

# Second of pyannote.audio's sample call from which both people speak.
SAMPLE_BEGIN = 7.0


def speech(seconds: float) -> NDArray[np.float32]:
    """A part of the telephone call in pyannote.audio's package; without that file, a synthetic vowel.

    Args:
        seconds: its length, at most 20.

    Returns:
        float32, shape (samples,), mono, 16 kHz.
    """
    spec = importlib.util.find_spec("pyannote")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "audio" / "sample" / "sample.wav"
        if path.is_file():
            with wave.open(str(path)) as call:
                call.setpos(int(SAMPLE_BEGIN * SAMPLE_RATE))
                data = call.readframes(int(seconds * SAMPLE_RATE))
            return (np.frombuffer(data, "<i2") / 32768).astype(np.float32)
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 120 * n * times) / n for n in range(1, 20)) * np.sin(2 * np.pi * times) ** 2
    return (0.2 * np.asarray(voice)).astype(np.float32)
