"""The level of a recording: removes a constant offset, and raises speech that is too quiet.

Silero misses speech below -50 dBFS. Whisper misses speech on a large offset, and a voice that is 30 dB below another
voice in its window. Recordings within the normal range stay as they are, to the last bit.

Levels are in dBFS: the mean power of a frame, where a full-scale square wave has 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.track import Samples
from whisper_api.schema import SAMPLE_RATE

# Samples of a frame whose level is measured: 32 ms, as in Silero.
LEVEL_FRAME = 512
# Frames that are measured at a time, and the level of digital silence.
BLOCK = 2000
SILENCE = -120.0

# An offset below half of the level of the loud parts has no effect on recognition.
LEAST_OFFSET = 0.5
# The offset is the mean of this many samples on both sides: a quarter of a second.
OFFSET_REACH = SAMPLE_RATE // 4
OFFSET_BLOCK = 1 << 20

# Voice activity detection gets stretches of 10 s below HEARING_BELOW raised to HEARING_LEVEL. Silero sometimes takes
# louder noise for speech, and steady noise too, which is therefore never raised: its loud and quiet frames are less
# than LEAST_DYNAMICS dB apart.
HEARING_STRETCH = 313
HEARING_BELOW = -50.0
HEARING_LEVEL = -45.0
LEAST_DYNAMICS = 6.0

# Speech is raised that is below -38 dBFS, or 24 dB below the loudest speech of its window.
QUIET_SPEECH = -38.0
QUIET_RELATIVE = 24.0
RAISED_TO = -26.0
RAISED_RELATIVE = 14.0
MOST_GAIN = 30.0
# The level of speech is that of its loudest frame within 0.75 s; the gain changes over 0.3 s.
SYLLABLES = 24
GAIN_FRAMES = 9

Levels = NDArray[np.float64]


def without_offset(audio: Samples, *, shared: bool) -> Samples:
    """Remove an offset (direct current) that is large compared with the sound.

    Args:
        audio: float32, shape (samples,), 16 kHz.
        shared: whether the array is the caller's own; if not, its samples are changed in place.

    Returns:
        The same array, or a copy of a shared one.
    """
    seconds = [audio[start : start + SAMPLE_RATE] for start in range(0, len(audio), SAMPLE_RATE)]
    offsets = np.array([second.mean(dtype=np.float64) for second in seconds])
    loudness = np.array([second.std(dtype=np.float64) for second in seconds])
    if np.sqrt(np.mean(np.square(offsets))) <= LEAST_OFFSET * np.percentile(loudness, 95):
        return audio
    result = np.empty_like(audio) if shared else audio
    before = audio[:0].copy()
    for start in range(0, len(audio), OFFSET_BLOCK):
        end = min(len(audio), start + OFFSET_BLOCK)
        piece = np.concatenate([before, audio[start : end + OFFSET_REACH]])
        sums = np.r_[0.0, np.cumsum(piece, dtype=np.float64)]
        at = np.arange(len(before), len(before) + end - start)
        low, high = np.maximum(at - OFFSET_REACH, 0), np.minimum(at + OFFSET_REACH + 1, len(piece))
        before = piece[max(0, at[-1] + 1 - OFFSET_REACH) : at[-1] + 1]
        result[start:end] = piece[at] - (sums[high] - sums[low]) / (high - low)
    return result


def hearing_gains(audio: Samples) -> Samples | None:
    """The gain of each frame for voice activity detection.

    Args:
        audio: float32, shape (samples,), 16 kHz.

    Returns:
        Factors of shape (frames,), one for each :data:`LEVEL_FRAME` samples; None where all are 1.
    """
    levels = frame_levels(audio)
    stretches = [levels[start : start + HEARING_STRETCH] for start in range(0, len(levels), HEARING_STRETCH)]
    loud = np.array([loud_level(stretch) for stretch in stretches])
    padded = np.pad(loud, 1, constant_values=SILENCE)
    # A stretch between louder ones is a pause.
    around = np.maximum(np.maximum(padded[:-2], padded[2:]), loud)
    lively = (
        np.array([loud_level(stretch) - float(np.percentile(stretch, 20)) for stretch in stretches]) >= LEAST_DYNAMICS
    )
    quiet = (around < HEARING_BELOW) & lively
    decibels = np.where(quiet, np.clip(HEARING_LEVEL - around, 0.0, MOST_GAIN), 0.0)
    if not decibels.any():
        return None
    gains: Samples = (10 ** (np.repeat(decibels, HEARING_STRETCH)[: len(levels)] / 20)).astype(np.float32)
    return gains


def raise_quiet_speech(
    audio: Samples, windows: Sequence[tuple[int, int]], speech: Sequence[tuple[int, int]], *, shared: bool
) -> Samples:
    """Raise the quiet speech of each window, and nothing else: Whisper would invent words for raised noise.

    Args:
        audio: float32, shape (samples,), 16 kHz.
        windows: first sample and end of each window, in order.
        speech: first sample and end of each stretch of speech, in order; all are inside windows.
        shared: whether the array is the caller's own; if not, its samples are changed in place.

    Returns:
        The same array, or a copy of a shared one if anything is quiet.
    """
    first = 0
    for start, end in windows:
        levels = frame_levels(audio[start:end])
        voiced = np.zeros(len(levels), bool)
        while first < len(speech) and speech[first][1] <= start:
            first += 1
        for begin, stop in speech[first:]:
            if begin >= end:
                break
            voiced[max(0, begin - start) // LEVEL_FRAME : -(-(stop - start) // LEVEL_FRAME)] = True
        gain = _raising(levels, voiced)
        if gain.any():
            if shared:
                audio, shared = audio.copy(), False
            centres = (np.arange(len(gain)) + 0.5) * LEVEL_FRAME
            decibels = np.interp(np.arange(end - start), centres, gain)
            audio[start:end] *= (10 ** (decibels / 20)).astype(np.float32)
    return audio


def loud_seconds(audio: Samples) -> float:
    """Seconds of sound above :data:`QUIET_SPEECH`."""
    return float(np.count_nonzero(frame_levels(audio) > QUIET_SPEECH)) * LEVEL_FRAME / SAMPLE_RATE


def _raising(levels: Levels, voiced: NDArray[np.bool_]) -> Levels:
    """The gain of each frame of a window in dB."""
    if not voiced.any():
        return np.zeros(len(levels))
    padded = np.pad(np.where(voiced, levels, SILENCE), SYLLABLES, constant_values=SILENCE)
    level = np.lib.stride_tricks.sliding_window_view(padded, 2 * SYLLABLES + 1).max(axis=1)
    loudest = loud_level(levels[voiced])
    quiet = voiced & (level < max(QUIET_SPEECH, loudest - QUIET_RELATIVE))
    gain = np.where(quiet, np.clip(max(RAISED_TO, loudest - RAISED_RELATIVE) - level, 0.0, MOST_GAIN), 0.0)
    if not gain.any():
        return gain
    return np.convolve(np.pad(gain, GAIN_FRAMES // 2, mode="edge"), np.full(GAIN_FRAMES, 1 / GAIN_FRAMES), mode="valid")


def frame_levels(audio: Samples) -> Levels:
    """The level of each frame, shape (frames,)."""
    levels = np.empty(-(-len(audio) // LEVEL_FRAME))
    for first in range(0, len(levels), BLOCK):
        block = audio[first * LEVEL_FRAME : (first + BLOCK) * LEVEL_FRAME]
        block = np.pad(block, (0, -len(block) % LEVEL_FRAME)).reshape(-1, LEVEL_FRAME)
        power = np.einsum("ij,ij->i", block, block) / LEVEL_FRAME
        levels[first : first + BLOCK] = 10 * np.log10(np.maximum(power, 10 ** (SILENCE / 10)))
    return levels


def loud_level(levels: Levels) -> float:
    """The level of the loud frames; :data:`SILENCE` without sound."""
    sounding = levels[levels > SILENCE]
    return float(np.percentile(sounding, 95)) if len(sounding) else SILENCE
