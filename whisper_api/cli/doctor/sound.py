"""The sound with which ``whisper-api doctor`` tries the stages."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.schema import SAMPLE_RATE

SOUND_SECONDS = 4.0


def as_wav(samples: NDArray[np.floating[Any]]) -> bytes:
    """A WAV file of 16-bit samples.

    Args:
        samples: shape (samples,), mono, 16 kHz, from -1 to 1.
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
