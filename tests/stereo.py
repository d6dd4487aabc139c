"""WAV files of several channels, for tests."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Signal", "leaked", "wav"]

Signal = np.ndarray[Any, np.dtype[np.float32]]
RATE = 16_000


def wav(channels: Sequence[Signal]) -> bytes:
    """A file of 16 bits and 16 kHz.

    Args:
        channels: float32 of full scale -1 to 1, all of the same length.
    """
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(len(channels))
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        samples = np.clip(np.stack(channels, axis=1), -1.0, 32767 / 32768)
        writer.writeframes(np.round(32768 * samples).astype("<i2").tobytes())
    return file.getvalue()


def leaked(sound: Signal, decibels: float, delay: float) -> Signal:
    """The sound as crosstalk.

    Args:
        sound: shape (samples,), 16 kHz.
        decibels: change of the level.
        delay: seconds.
    """
    samples = round(delay * RATE)
    later = np.concatenate([np.zeros(samples, np.float32), sound[: len(sound) - samples]])
    return later * np.float32(10 ** (decibels / 20))
