"""The sound with which ``whisper-api doctor`` tries the stages."""

from __future__ import annotations

import importlib.util
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.schema import SAMPLE_RATE

__all__ = ["SOUND_SECONDS", "as_wav", "speech"]

SOUND_SECONDS = 4.0
# Second of pyannote.audio's sample call from which both people speak.
SAMPLE_BEGIN = 7.0


def speech() -> NDArray[np.float32]:
    """A few seconds of the telephone call in pyannote.audio's package; without that file, a synthetic vowel.

    Returns:
        float32, shape (samples,), mono, 16 kHz.
    """
    spec = importlib.util.find_spec("pyannote")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "audio" / "sample" / "sample.wav"
        if path.is_file():
            with wave.open(str(path)) as call:
                call.setpos(int(SAMPLE_BEGIN * SAMPLE_RATE))
                data = call.readframes(int(SOUND_SECONDS * SAMPLE_RATE))
            return (np.frombuffer(data, "<i2") / 32768).astype(np.float32)
    seconds = np.arange(int(SOUND_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 120 * n * seconds) / n for n in range(1, 20)) * np.sin(2 * np.pi * seconds) ** 2
    return (0.2 * np.asarray(voice)).astype(np.float32)


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
