"""From overlapping windows of local speakers to the frames of a recording, and from frames to turns.

Frames are those of the segmentation, 16.9 ms apart; feature frames are those of the embedding, 10 ms apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from whisper_api.engine.diarize.clustering import assign_frames
from whisper_api.engine.diarize.segmentation import FRAME_START, FRAME_STEP
from whisper_api.schema import SAMPLE_RATE

__all__ = ["STEP", "WINDOW", "Activity", "Spans", "turns_of", "who_speaks", "window_starts"]

WINDOW = 5.0
"""Seconds of a window: what the segmentation model was trained on."""
STEP = 1.0
"""Seconds between windows. Half of it doubles the work for 0.01 less error; 2.5 costs 0.02."""

# Above which level a local speaker is active, and from which one anybody is: the mean over windows of the most active
# speaker is lower where windows disagree. 0.35 to 0.45 gave the same error rate.
ACTIVE = 0.5
SPEECH = 0.4
CHANGE_COST = 0.05
"""Of one change of speaker, in seconds times similarity; 0.02 to 0.1 gave the same turns."""
_HOP = 0.01

Floats = npt.NDArray[np.float64]


def window_starts(samples: int) -> list[int]:
    """First samples of the windows that cover a recording; the last one may reach beyond its end."""
    length, step = round(WINDOW * SAMPLE_RATE), round(STEP * SAMPLE_RATE)
    return [0, *range(step, samples - length + step, step)]


@dataclass(frozen=True)
class Spans:
    """Short stretches, each by one person as far as the segmentation can tell.

    Attributes:
        times: (spans,) seconds, their centres.
        first: (spans,) number of the feature frame (10 ms) that column 0 of ``frames`` stands for.
        frames: (spans, columns) which feature frames belong to it.
    """

    times: Floats
    first: npt.NDArray[np.int64]
    frames: npt.NDArray[np.bool_]

    @property
    def seconds(self) -> Floats:
        """(spans,) how much speech each has."""
        return np.asarray(self.frames.sum(axis=1) * _HOP, dtype=np.float64)

    def frames_of(self, index: int) -> npt.NDArray[np.int64]:
        """Numbers of the feature frames of one span."""
        return np.asarray(np.flatnonzero(self.frames[index]) + self.first[index], dtype=np.int64)


@dataclass(frozen=True)
class Activity:
    """What the segmentation model gave for a recording.

    Attributes:
        windows: (windows, frames, speakers) from 0 to 1; the order of speakers differs from window to window.
        starts: first sample of each window.
        samples: length of the recording.
    """

    windows: npt.NDArray[np.float16]
    starts: list[int]
    samples: int

    @cached_property
    def levels(self) -> npt.NDArray[np.float32]:
        """(frames, 2): how sure it is that anybody speaks, and that two do, at each frame of the recording.

        The mean over the windows. Which of its local speakers it is plays no part, so windows need not be matched.
        """
        _, frames, _ = self.windows.shape
        first = self._first_frames
        total = np.zeros((int(first[-1]) + frames, 2), dtype=np.float32)
        count = np.zeros(len(total), dtype=np.float32)
        for start, window in zip(first, self.windows, strict=True):
            total[start : start + frames] += np.sort(window.astype(np.float32), axis=1)[:, :-3:-1]
            count[start : start + frames] += 1
        inside = int(np.ceil(self.samples / SAMPLE_RATE / FRAME_STEP))
        levels: npt.NDArray[np.float32] = (total / np.maximum(count, 1)[:, None])[:inside].astype(np.float32)
        return levels

    @property
    def speech(self) -> npt.NDArray[np.bool_]:
        """(frames,) whether anybody speaks."""
        return self.levels[:, 0] > SPEECH

    @property
    def overlap(self) -> npt.NDArray[np.bool_]:
        """(frames,) whether two people speak at once."""
        return self.levels[:, 1] > ACTIVE

    @property
    def times(self) -> Floats:
        """(frames,) seconds, the centre of each frame."""
        return np.asarray(FRAME_START + FRAME_STEP * (np.arange(len(self.levels)) + 0.5), dtype=np.float64)

    def speech_features(self) -> npt.NDArray[np.float32]:
        """(feature frames,) 1 where anybody speaks, else 0, at 10 ms."""
        times = np.arange(1 + self.samples // 160) * _HOP
        if self.samples == 0:
            return np.zeros(1, dtype=np.float32)
        index = np.floor((times - FRAME_START) / FRAME_STEP).astype(np.int64)
        return np.asarray(self.speech[np.clip(index, 0, len(self.levels) - 1)], dtype=np.float32)

    def spans(self, length: float, step: float, least: float) -> Spans:
        """Cut the recording into stretches of one speaker each.

        Around each centre a span takes the frames, at most half its length away, in which the local speaker who is
        active at the centre speaks alone. So it never reaches over a change of speaker that the segmentation has seen;
        one that it has not seen spoils only the spans around it.

        Args:
            length: seconds from end to end.
            step: seconds between centres.
            least: seconds of speech without which a span is left out.
        """
        count = 1 + self.samples // 160
        half = round(length / 2 / _HOP)
        middles = np.array(self.starts) / SAMPLE_RATE + WINDOW / 2
        centres = np.arange(0, count, round(step / _HOP))
        nearest = np.abs(np.clip(np.searchsorted(middles, centres * _HOP), 1, max(1, len(middles) - 1)))
        if len(middles) > 1:
            left, right = middles[nearest - 1], middles[nearest]
            nearest -= centres * _HOP - left <= right - centres * _HOP
        else:
            nearest[:] = 0
        offsets = np.arange(-half, half)
        kept, masks = [], []
        for number, centre in enumerate(centres):
            mask = self._alone(int(nearest[number]), int(centre), offsets)
            mask &= (centre + offsets >= 0) & (centre + offsets < count)
            if mask.sum() * _HOP >= least - 1e-9:
                kept.append(number)
                masks.append(mask)
        frames = np.array(masks, dtype=np.bool_).reshape(len(masks), len(offsets))
        return Spans(np.asarray(centres[kept] * _HOP, dtype=np.float64), centres[kept] - half, frames)

    def _alone(self, number: int, centre: int, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        window = self.windows[number]
        times = (centre + offsets) * _HOP - self.starts[number] / SAMPLE_RATE - FRAME_START
        index = np.clip(np.floor(times / FRAME_STEP).astype(np.int64), 0, len(window) - 1)
        middle = int(index[len(offsets) // 2])
        around = window[max(0, middle - 3) : middle + 4].astype(np.float32).mean(axis=0)
        active = window[index] > ACTIVE
        speaker = around.argmax() if around.max() >= ACTIVE else active.sum(axis=0).argmax()
        alone: npt.NDArray[np.bool_] = active[:, speaker] & (active.sum(axis=1) == 1)
        return alone

    @property
    def _first_frames(self) -> npt.NDArray[np.int64]:
        return np.round(np.array(self.starts) / SAMPLE_RATE / FRAME_STEP).astype(np.int64)


def who_speaks(activity: Activity, spans: Spans, similarity: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Give each frame of speech to the voice that its spans resemble most; overlap to two voices.

    Args:
        similarity: (spans, voices).

    Returns:
        (frames, voices).
    """
    speech = np.flatnonzero(activity.speech)
    path = assign_frames(_scores(activity, spans, similarity)[speech] * FRAME_STEP, CHANGE_COST)
    who = np.zeros((len(activity.speech), similarity.shape[1]), dtype=np.bool_)
    who[speech, path] = True
    # Where two speak at once, the second is whoever else speaks nearest in time.
    begins = np.flatnonzero(np.diff(path, prepend=-1) != 0)
    if len(begins) > 1:
        run = np.searchsorted(begins, np.arange(len(path)), side="right") - 1
        ends = np.append(begins[1:], len(path)) - 1
        before = np.where(run > 0, speech - speech[ends[np.maximum(run - 1, 0)]], np.iinfo(np.int64).max)
        following = np.minimum(run + 1, len(begins) - 1)
        after = np.where(run < len(begins) - 1, speech[begins[following]] - speech, np.iinfo(np.int64).max)
        other = np.where(before <= after, path[begins[np.maximum(run - 1, 0)]], path[begins[following]])
        both = activity.overlap[speech]
        who[speech[both], other[both]] = True
    return who


def _scores(activity: Activity, spans: Spans, similarity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(frames, voices): the mean similarity of the spans that a frame belongs to, else interpolated between spans."""
    times = activity.times
    scores = np.stack([np.interp(times, spans.times, column) for column in similarity.T], axis=1)
    columns = spans.frames.shape[1]
    count = int(spans.first.max()) + 2 * columns
    total, weight = np.zeros((count, similarity.shape[1])), np.zeros(count)
    for first, frames, seconds, row in zip(spans.first + columns, spans.frames, spans.seconds, similarity, strict=True):
        stretch = slice(first, first + columns)
        total[stretch] += np.outer(frames * seconds, row)
        weight[stretch] += frames * seconds
    index = np.minimum(np.round(times * 100).astype(np.int64) + columns, count - 1)
    inside = weight[index] > 0
    scores[inside] = total[index[inside]] / weight[index[inside], None]
    return scores


def turns_of(activity: Activity, who: npt.NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """Start and end in seconds, and voice, of each uninterrupted run of frames.

    Args:
        who: (frames, voices).
    """
    duration = activity.samples / SAMPLE_RATE
    borders = FRAME_START + FRAME_STEP * np.arange(len(who) + 1)
    turns = []
    for voice, active in enumerate(who.T):
        changes = np.flatnonzero(np.diff(np.pad(active.astype(np.int8), 1)))
        for first, last in zip(changes[::2], changes[1::2], strict=True):
            start, end = float(borders[first]), min(float(borders[last]), duration)
            if end > start:
                turns.append((start, end, voice))
    return turns
