"""Compares the channels of a recording: which carry the same sound, and which hear the voice of another (crosstalk).

A copy is found by what is left of a channel when another one is subtracted. Crosstalk is found by the phase correlation
of two channels (Knapp and Carter, "The Generalized Correlation Method for Estimation of Time Delay", 1976), which also
gives its delay. Two independent voices have no peak in it, however loud they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.level import LEVEL_FRAME, SILENCE, frame_levels
from whisper_api.engine.audio.track import Samples
from whisper_api.schema import SAMPLE_RATE

# Power of a channel that carries sound: -80 dBFS in some block, as in the mix.
LEAST_POWER = 1e-8
# Two channels are copies when one is the other by the same factor everywhere: in each block, less than 2 % of the power
# is left after the subtraction, or 40 dB less than in the loudest block. A single short word on one of them is more.
BLOCK = SAMPLE_RATE // 2
LEAST_LEFT = 0.02
LEAST_LEFT_SHARE = 1e-4

# Windows that are searched for crosstalk, spread over the recording, and how far below the loudest they may be, in dB.
WINDOW = 2 * SAMPLE_RATE
MOST_WINDOWS = 48
MOST_BELOW = 25.0
# Crosstalk is measured in the frames of a window that are at most this far below the loudest one.
FRAMES_BELOW = 12.0
# Crosstalk comes up to 0.4 s later: as far as an echo of a telephone line. Speech is between 200 and 4000 Hz.
MOST_DELAY_SECONDS = 0.4
MOST_DELAY = round(MOST_DELAY_SECONDS * SAMPLE_RATE)
BAND = (200.0, 4000.0)
# Peak of the phase correlation beside its mean square root. In 235 pairs of windows, independent voices had up to 12,
# and 99 % of them less than 8.8. Crosstalk has 30 to 80; in a room that echoes from 8, but always with the same delay.
# So a high peak is enough, or lower ones with the same delay in several windows.
SURE_PEAK = 20.0
CLEAR_PEAK, CLEAR_WINDOWS = 10.0, 2
LEAST_PEAK, LEAST_WINDOWS = 7.0, 3
SAME_DELAY = SAMPLE_RATE // 500
# The source of crosstalk is at least this much louder, in dB. Channels that differ by less in most windows carry the
# same voices: two microphones in one room, or music.
LEAST_DIFFERENCE = 3.0
ALIKE_SHARE = 0.75

# A frame is a channel's own speech when it is this much louder than the crosstalk, in dB. Beside such frames, half of
# it is enough.
CROSSTALK_MARGIN = 6.0
# The source is heard for up to two frames longer, since rooms echo, and one earlier, since delays are not whole frames.
REACH = (2, 1)
# Speech of a channel's own has four such frames (0.13 s) at least, gaps of up to six, and keeps five more around it.
OWN_FRAMES = 4
OWN_GAP = 6
OWN_MARGIN = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Leak:
    """Crosstalk: the voice of one channel is heard on another.

    Attributes:
        source, target: numbers of the channels, counted from 0.
        decibels: level in the target beside that in the source; below 0.
        delay: samples by which the target is later.
    """

    source: int
    target: int
    decibels: float
    delay: int


@dataclass(frozen=True)
class Comparison:
    """What the channels of a recording have in common. Channels are counted from 0.

    Attributes:
        silent: channels without sound.
        copies: channel to the earlier one that has the same sound, but for the level.
        inverted: those of the copies that are phase-inverted.
        alike: channel to the earlier one that carries the same voices at about the same level.
        leaks: crosstalk between the others.
        mingled: whether two of the others have any sound in common.
    """

    silent: tuple[int, ...] = ()
    copies: dict[int, int] = field(default_factory=dict)
    inverted: frozenset[int] = frozenset()
    alike: dict[int, int] = field(default_factory=dict)
    leaks: tuple[Leak, ...] = ()
    mingled: bool = False


def compare(channels: Sequence[Samples], check: Callable[[], None] = lambda: None) -> Comparison:
    """Compare the channels of a recording.

    Args:
        channels: float32, each of shape (samples,), 16 kHz, without an offset.
        check: called between blocks; may raise.
    """
    products = _block_products(channels, check)
    silent = tuple(np.flatnonzero(products.diagonal(axis1=1, axis2=2).max(axis=0) < LEAST_POWER).tolist())
    copies: dict[int, int] = {}
    for first, second in itertools.combinations(range(len(channels)), 2):
        if not {first, second} & {*silent, *copies} and _are_copies(products, first, second):
            copies[second] = first
    inverted = frozenset(second for second, first in copies.items() if products[:, first, second].sum() < 0)
    distinct = [number for number in range(len(channels)) if number not in silent and number not in copies]
    if len(distinct) < 2:
        return Comparison(silent, copies, inverted)
    loudness = {number: frame_levels(channels[number]) for number in distinct}
    pairs = _search(channels, loudness, check)
    alike: dict[int, int] = {}
    for (first, second), peaks in pairs.items():
        if not {first, second} & set(alike) and _are_alike(peaks):
            alike[second] = first
    others = {pair: peaks for pair, peaks in pairs.items() if not set(pair) & set(alike)}
    leaks = [leak for pair, peaks in others.items() for leak in _leaks(pair, peaks, loudness)]
    mingled = any(_common(peaks, sign) for peaks in others.values() for sign in (1, -1))
    return Comparison(silent, copies, inverted, alike, tuple(leaks), mingled)


def without_crosstalk(channels: Sequence[Samples], leaks: Sequence[Leak]) -> None:
    """Silence what is only crosstalk, in place.

    Args:
        channels: as in :func:`compare`.
        leaks: from :func:`compare` for these channels.
    """
    loudness = {number: frame_levels(channels[number]) for leak in leaks for number in (leak.source, leak.target)}
    for target in sorted({leak.target for leak in leaks}):
        # Decibels above the crosstalk, in parts of the margin.
        above = np.full(len(loudness[target]), np.inf)
        for leak in leaks:
            if leak.target == target:
                louder = loudness[target] - _heard(loudness[leak.source], leak)
                above = np.minimum(above, louder / min(CROSSTALK_MARGIN, -leak.decibels))
        _silence(channels[target], _own_speech(above))


def _block_products(channels: Sequence[Samples], check: Callable[[], None]) -> Floats:
    """The mean products of each pair of channels in each block, shape (blocks, channels, channels)."""
    found = []
    for number, start in enumerate(range(0, len(channels[0]), BLOCK)):
        if number % 256 == 0:
            check()
        block = np.stack([channel[start : start + BLOCK] for channel in channels])
        found.append(block @ block.T / block.shape[1])
    return np.array(found, np.float64)


def _are_copies(products: Floats, first: int, second: int) -> bool:
    power, other, both = products[:, first, first], products[:, second, second], products[:, first, second]
    factor = both.sum() / power.sum()
    left = other - 2 * factor * both + factor * factor * power
    return not np.any((left > LEAST_LEFT * other) & (left > LEAST_LEFT_SHARE * other.max()))


@dataclass(frozen=True)
class _Peak:
    """The phase correlation of two channels in one window.

    Attributes:
        start: first sample of the window.
        difference: level of the first channel beside that of the second, in dB.
        delay: samples by which the second channel is later.
        height: of the peak, beside the mean square root.
    """

    start: int
    difference: float
    delay: int
    height: float


def _search(
    channels: Sequence[Samples], loudness: dict[int, Floats], check: Callable[[], None]
) -> dict[tuple[int, int], list[_Peak]]:
    """Look for common sound of each pair of channels, in windows over the whole recording."""
    frames = WINDOW // LEVEL_FRAME
    loudest = np.max(list(loudness.values()), axis=0)
    padded = np.pad(loudest, (0, -len(loudest) % frames), constant_values=SILENCE).reshape(-1, frames)
    window_levels = np.percentile(padded, 80, axis=1)
    starts = np.flatnonzero(window_levels > window_levels.max() - MOST_BELOW) * frames * LEVEL_FRAME
    if len(starts) > MOST_WINDOWS:
        starts = starts[np.linspace(0, len(starts) - 1, MOST_WINDOWS).round().astype(int)]
    found: dict[tuple[int, int], list[_Peak]] = {pair: [] for pair in itertools.combinations(loudness, 2)}
    frequencies = np.fft.rfftfreq(2 * WINDOW, 1 / SAMPLE_RATE)
    band = (frequencies >= BAND[0]) & (frequencies <= BAND[1])
    for start in starts.tolist():
        check()
        spectra, power = {}, {}
        for number in loudness:
            piece = channels[number][start : start + WINDOW]
            power[number] = float(np.mean(np.square(piece, dtype=np.float64))) + 1e-15
            spectrum = np.fft.rfft(piece, 2 * WINDOW)
            spectra[number] = np.where(band, spectrum / np.maximum(np.abs(spectrum), 1e-9), 0.0)
        for (first, second), peaks in found.items():
            difference = 10 * float(np.log10(power[first] / power[second]))
            correlation = np.abs(np.fft.irfft(np.conj(spectra[first]) * spectra[second]))
            near = np.r_[correlation[-MOST_DELAY:], correlation[: MOST_DELAY + 1]]
            at = int(near.argmax())
            height = float(near[at] / max(float(np.sqrt(np.mean(np.square(near)))), 1e-30))
            peaks.append(_Peak(start, difference, at - MOST_DELAY, height))
    return found


def _are_alike(peaks: Sequence[_Peak]) -> bool:
    alike = sum(peak.height > CLEAR_PEAK and abs(peak.difference) < LEAST_DIFFERENCE for peak in peaks)
    return bool(peaks) and alike >= ALIKE_SHARE * len(peaks)


def _common(peaks: Sequence[_Peak], sign: int) -> list[_Peak]:
    """The windows in which both channels have the same sound with the same delay.

    Args:
        peaks: of all windows.
        sign: 1 for the windows in which the first channel is louder, -1 for the others.
    """
    louder = [peak for peak in peaks if (peak.difference >= 0) == (sign > 0)]
    high = sorted((peak for peak in louder if peak.height > LEAST_PEAK), key=lambda peak: peak.delay)
    delays = np.array([peak.delay for peak in high])
    if not high:
        return []
    ends = np.searchsorted(delays, delays + SAME_DELAY, side="right")
    first = int((ends - np.arange(len(high))).argmax())
    found = high[first : ends[first]]
    enough = max(peak.height for peak in found) > SURE_PEAK or len(found) >= LEAST_WINDOWS
    return found if enough or sum(peak.height > CLEAR_PEAK for peak in found) >= CLEAR_WINDOWS else []


def _leaks(pair: tuple[int, int], peaks: Sequence[_Peak], loudness: dict[int, Floats]) -> list[Leak]:
    """The crosstalk between two channels, in each direction."""
    found = []
    for source, target, sign in ((*pair, 1), (*pair[::-1], -1)):
        common = [peak for peak in _common(peaks, sign) if sign * peak.difference >= LEAST_DIFFERENCE]
        if not common:
            continue
        delay = int(np.median([sign * peak.delay for peak in common]))
        later = _shifted(loudness[source], round(delay / LEVEL_FRAME))
        differences = []
        for peak in common:
            frames = slice(peak.start // LEVEL_FRAME, (peak.start + WINDOW) // LEVEL_FRAME)
            loud = later[frames] >= later[frames].max() - FRAMES_BELOW
            power = [float(np.sum(10 ** (levels[frames][loud] / 10))) for levels in (later, loudness[target])]
            differences.append(10 * float(np.log10(power[1] / max(power[0], 1e-15))))
        # In some of the windows the target has a voice of its own.
        decibels = min(float(np.percentile(differences, 20)), -LEAST_DIFFERENCE)
        found.append(Leak(source, target, decibels, delay))
    return found


def _heard(source: Floats, leak: Leak) -> Floats:
    """The level at which the frames of a source are heard on the target of its crosstalk."""
    shift = round(leak.delay / LEVEL_FRAME)
    later, earlier = REACH
    return np.asarray(
        np.max([_shifted(source, shift + by) for by in range(-earlier, later + 1)], axis=0) + leak.decibels
    )


def _shifted(values: Floats, by: int) -> Floats:
    """Values that come later by a number of frames."""
    shifted = np.full(len(values), -np.inf)
    if by >= 0:
        shifted[by:] = values[: len(values) - by]
    else:
        shifted[:by] = values[-by:]
    return shifted


def _own_speech(above: Floats) -> NDArray[np.bool_]:
    """Frames of a channel's own speech: short gaps are closed, single loud frames dropped, and borders widened.

    Args:
        above: how much louder than the crosstalk each frame is, where 1 is surely speech.
    """
    kept = np.zeros(len(above), bool)
    frames = np.flatnonzero(above > 0.5)
    if not len(frames):
        return kept
    sure = np.r_[0, np.cumsum(above[frames] > 1.0)]
    breaks = np.flatnonzero(np.diff(frames) > OWN_GAP)
    for first, last in zip(np.r_[0, breaks + 1].tolist(), np.r_[breaks, len(frames) - 1].tolist(), strict=True):
        if sure[last + 1] - sure[first] >= OWN_FRAMES:
            kept[max(0, frames[first] - OWN_MARGIN) : frames[last] + 1 + OWN_MARGIN] = True
    return kept


def _silence(channel: Samples, kept: NDArray[np.bool_]) -> None:
    """Silence the frames that are not kept. The level changes over a frame."""
    gains = kept.astype(np.float32)
    size = 2000
    for first in range(0, len(kept), size):
        part = gains[max(0, first - 1) : first + size + 1]
        if part.all():
            continue
        start = first * LEVEL_FRAME
        piece = channel[start : (first + size) * LEVEL_FRAME]
        centres = (np.arange(len(part)) + 0.5 - (first > 0)) * LEVEL_FRAME
        piece *= np.interp(np.arange(len(piece)), centres, part).astype(np.float32)
