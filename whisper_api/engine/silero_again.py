"""Hears parts of a recording a second time, with a new state of Silero, where the first pass may have missed speech.

The first pass goes from the beginning to the end. After a long pause in noise its state gives the speech that follows
a lower probability, and beside a loud voice it misses a much quieter one. Each of these parts is heard again by itself;
the higher probability counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.level import LEVEL_FRAME, frame_levels, loud_level
from whisper_api.engine.silero import fresh_probabilities

# Least probability of a frame that may be speech.
MAYBE_SPEECH = 0.35

# What follows a pause of at least 10 s is heard again for 10 s, from four frames before the first that may be speech.
PAUSE = 313
AFTER_PAUSE = 313
LEAD = 4

# Sound between speech is heard again, raised to GAP_LEVEL, if it is this much quieter than the speech beside it, louder
# than LEAST_LEVEL, and no steady noise. Distant voices below that level give text that is wrong.
# The first and last frames of a gap have the loud voice's echo.
LEAST_GAP = 31
MOST_GAP = 313
EDGE = 4
QUIETER = 20.0
GAP_LEVEL = -26.0
MOST_GAIN = 40.0
LEAST_LEVEL = -60.0
LEAST_DYNAMICS = 10.0

Floats = NDArray[np.float32]


def heard_again(audio: Floats, probabilities: Floats, progress: Callable[[], None] = lambda: None) -> Floats:
    """The probabilities of speech, with those of a second pass where that one hears more.

    Args:
        audio: float32, shape (samples,), mono, 16 kHz.
        probabilities: of the first pass, shape (frames,), one for each :data:`LEVEL_FRAME` samples.
        progress: called before each part; its error ends the work.
    """
    speech = np.flatnonzero(probabilities >= MAYBE_SPEECH)
    if not len(speech):
        return probabilities
    found = probabilities.copy()
    for begin, end, gain in (*_after_pauses(speech, len(found)), *_quiet_gaps(audio, speech)):
        progress()
        found[begin:end] = np.maximum(found[begin:end], fresh_probabilities(audio, begin, end, gain))
    return found


def _after_pauses(speech: NDArray[np.intp], frames: int) -> Iterator[tuple[int, int, float]]:
    """First frame, end and factor of what follows each long pause."""
    for first in speech[np.diff(speech, prepend=-1) > PAUSE].tolist():
        yield first - LEAD, min(frames, first + AFTER_PAUSE), 1.0


def _quiet_gaps(audio: Floats, speech: NDArray[np.intp]) -> Iterator[tuple[int, int, float]]:
    """First frame, end and factor of each stretch of quiet, varied sound beside much louder speech."""
    for place in np.flatnonzero(np.diff(speech) > LEAST_GAP + 2 * EDGE).tolist():
        before, after = int(speech[place]) + 1, int(speech[place + 1])
        beside = [max(0, before - PAUSE // 4), min(after + PAUSE // 4, -(-len(audio) // LEVEL_FRAME))]
        around = max(_loud(audio, beside[0], before), _loud(audio, after, beside[1]))
        for begin in range(before + EDGE, after - EDGE, MOST_GAP):
            end = min(begin + MOST_GAP, after - EDGE)
            levels = frame_levels(audio[begin * LEVEL_FRAME : end * LEVEL_FRAME])
            level = loud_level(levels)
            lively = level - float(np.percentile(levels, 20)) >= LEAST_DYNAMICS
            if lively and LEAST_LEVEL < level < around - QUIETER:
                yield begin, end, float(10 ** (min(max(0.0, GAP_LEVEL - level), MOST_GAIN) / 20))


def _loud(audio: Floats, begin: int, end: int) -> float:
    return loud_level(frame_levels(audio[begin * LEVEL_FRAME : end * LEVEL_FRAME]))
