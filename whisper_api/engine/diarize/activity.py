"""From the segmentation of overlapping windows to the speakers of each frame, and from frames to turns.

A frame is one of the segmentation's, 16.9 ms long; a feature frame is one of the embedding's, 10 ms long.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from whisper_api.engine.diarize.clustering import best_path
from whisper_api.engine.diarize.embedding import HOP
from whisper_api.engine.diarize.segmentation import FRAME_START, FRAME_STEP
from whisper_api.schema import SAMPLE_RATE

# Probabilities, averaged over windows and models, above which anybody speaks and above which two people speak. 0.45 to
# 0.5 and 0.4 to 0.5 gave nearly the same error rate.
SPEECH = 0.5
OVERLAP = 0.45
# Weights of the second model for speech and for overlap. It has shorter windows, each normalized by itself, so it hears
# quiet speakers better, and overlap worse.
SECOND_WEIGHTS = (0.7, 0.3)
# Frames that a turn begins earlier and ends later beside a pause of so many seconds: voices rise and fade, and the
# probability of soft speech reaches SPEECH too late. Pauses of 0.5 to 2 seconds gave nearly the same error rate.
PAUSE = 1.0
EARLY_FRAMES = 2
LATE_FRAMES = 4
# Probability above which a local speaker is active.
ACTIVE = 0.5
CHANGE_COST = 0.02
"""Cost of one change of speaker, in seconds times similarity; 0.01 to 0.04 gave nearly the same error rate."""
# From this much overlapping speech on, two people speak even if only one of them ever speaks alone.
SECOND_VOICE = 1.0
# Pauses in seconds that a stretch of one local speaker may hold; 0 to 0.3 gave nearly the same error rate.
STRETCH_PAUSE = 0.2
# A local speaker of a short recording is a speaker if the voice is alone for this long.
ALONE_SECONDS = 1.0
_HOP_SECONDS = HOP / SAMPLE_RATE
# Frames whose scores are computed at a time: nine minutes, 260 kB for each speaker.
SCORE_BLOCK = 1 << 15

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def window_starts(samples: int, window: float, step: float) -> list[int]:
    """First samples of the windows that cover a recording; the last window may reach beyond its end.

    Args:
        samples: length of the recording.
        window: seconds of a window.
        step: seconds between the starts of windows.
    """
    length, hop = round(window * SAMPLE_RATE), round(step * SAMPLE_RATE)
    return [0, *range(hop, samples - length + hop, hop)]


@dataclass(frozen=True)
class SpeakerSpans:
    """Short spans in which one speaker speaks alone, as far as the segmentation can tell. Each gets an embedding.

    Attributes:
        times: (spans,) centres in seconds.
        first: (spans,) number of the feature frame that column 0 of ``frames`` stands for.
        frames: (spans, columns) whether a feature frame belongs to the span.
    """

    times: Floats
    first: npt.NDArray[np.int64]
    frames: Mask

    @property
    def seconds(self) -> Floats:
        """(spans,) seconds of speech in each span."""
        return np.asarray(self.frames.sum(axis=1) * _HOP_SECONDS, dtype=np.float64)

    def frames_of(self, index: int) -> npt.NDArray[np.int64]:
        """Numbers of the feature frames of one span."""
        return np.asarray(np.flatnonzero(self.frames[index]) + self.first[index], dtype=np.int64)


@dataclass(frozen=True)
class SpeakerActivity:
    """Output of the segmentation model for a recording.

    Attributes:
        windows: (windows, frames, local speakers) probabilities; the order of local speakers differs between windows.
        starts: first sample of each window.
        samples: length of the recording.
        window: seconds of a window.
        second: output of another model, which also decides where people speak, but not who speaks.
    """

    windows: npt.NDArray[np.float16]
    starts: list[int]
    samples: int
    window: float
    second: SpeakerActivity | None = None

    @cached_property
    def levels(self) -> npt.NDArray[np.float32]:
        """(frames, 2) probabilities that at least one and that at least two people speak, averaged over windows.

        They do not depend on which local speaker speaks, so the speakers of windows need not be matched.
        """
        _, frames, _ = self.windows.shape
        first = np.round(np.array(self.starts) / SAMPLE_RATE / FRAME_STEP).astype(np.int64)
        total = np.zeros((int(first[-1]) + frames, 2), dtype=np.float32)
        count = np.zeros(len(total), dtype=np.float32)
        for start, window in zip(first, self.windows, strict=True):
            total[start : start + frames] += np.sort(window.astype(np.float32), axis=1)[:, :-3:-1]
            count[start : start + frames] += 1
        inside = int(np.ceil(self.samples / SAMPLE_RATE / FRAME_STEP))
        levels: npt.NDArray[np.float32] = (total / np.maximum(count, 1)[:, None])[:inside].astype(np.float32)
        if self.second is not None:
            # The models have their missed speech and their false alarms at different times.
            both = min(len(levels), len(self.second.levels))
            weights = np.array(SECOND_WEIGHTS, dtype=np.float32)
            levels[:both] += weights * (self.second.levels[:both] - levels[:both])
        return levels

    @property
    def local_speaker_count(self) -> int:
        """The number of speakers that the model tells apart, when one window holds the whole recording; else 1.

        Each of them speaks alone for a second: a few embeddings of a short recording say less about its speakers.
        """
        if len(self.windows) > 1:
            return 1
        active = self.windows[0] > ACTIVE
        alone = active & (active.sum(axis=1, keepdims=True) == 1)
        return max(1, int((alone.sum(axis=0) * FRAME_STEP >= ALONE_SECONDS).sum()))

    @cached_property
    def speech(self) -> Mask:
        """(frames,) whether anybody speaks."""
        speech: Mask = self.levels[:, 0] > SPEECH
        edges = np.flatnonzero(np.diff(np.pad(speech.astype(np.int8), 1)))
        starts, ends = edges[::2], edges[1::2]
        # Before the first and after the last turn, the pause counts as long.
        long = np.pad((starts[1:] - ends[:-1]) * FRAME_STEP >= PAUSE, 1, constant_values=True)
        for start in starts[long[: len(starts)]]:
            speech[max(0, start - EARLY_FRAMES) : start] = True
        for end in ends[long[len(long) - len(ends) :]]:
            speech[end : end + LATE_FRAMES] = True
        return speech

    @property
    def overlap(self) -> Mask:
        """(frames,) whether two people speak at once."""
        return (self.levels[:, 1] > OVERLAP) & self.speech

    @property
    def times(self) -> Floats:
        """(frames,) centres in seconds."""
        return np.asarray(FRAME_START + FRAME_STEP * (np.arange(len(self.levels)) + 0.5), dtype=np.float64)

    def speech_features(self) -> npt.NDArray[np.float32]:
        """(feature frames,) 1 where anybody speaks, else 0."""
        times = np.arange(1 + self.samples // HOP) * _HOP_SECONDS
        if self.samples == 0:
            return np.zeros(1, dtype=np.float32)
        index = np.floor((times - FRAME_START) / FRAME_STEP).astype(np.int64)
        return np.asarray(self.speech[np.clip(index, 0, len(self.levels) - 1)], dtype=np.float32)

    def spans(self, length: float, step: float, min_seconds: float) -> SpeakerSpans:
        """Cut the recording into spans of one speaker each.

        The local speaker who is active at the centre owns the span: its frames are those at most half the length away
        in which that speaker speaks alone. So no span reaches over a change of speaker that the segmentation has found,
        and a change that it has missed affects only the spans around it.

        Args:
            length: seconds from end to end.
            step: seconds between centres.
            min_seconds: spans with less speech are left out.
        """
        count = 1 + self.samples // HOP
        half = round(length / 2 / _HOP_SECONDS)
        centres = np.arange(0, count, round(step / _HOP_SECONDS))
        nearest = self._nearest_windows(centres)
        offsets = np.arange(-half, half)
        kept, masks = [], []
        for number, centre in enumerate(centres):
            mask = self._alone(int(nearest[number]), int(centre), offsets)
            mask &= (centre + offsets >= 0) & (centre + offsets < count)
            if mask.sum() * _HOP_SECONDS >= min_seconds - 1e-9:
                kept.append(number)
                masks.append(mask)
        frames = np.array(masks, dtype=np.bool_).reshape(len(masks), len(offsets))
        return SpeakerSpans(np.asarray(centres[kept] * _HOP_SECONDS, dtype=np.float64), centres[kept] - half, frames)

    def stretches(self) -> npt.NDArray[np.int64]:
        """(feature frames,) numbers of stretches in which one local speaker speaks alone; 0 for the first.

        A frame outside of every stretch has the number of the nearest. A speaker may have many stretches, but a stretch
        has one speaker, as far as the segmentation can tell.
        """
        frames = np.arange(1 + self.samples // HOP)
        active = self._local_speakers(frames)
        alone = np.flatnonzero(active.sum(axis=1) == 1)
        if len(alone) == 0:
            return np.zeros(len(frames), dtype=np.int64)
        speaker = active[alone].argmax(axis=1)
        pause = np.diff(alone, prepend=alone[0]) - 1 > round(STRETCH_PAUSE / _HOP_SECONDS)
        numbers = np.cumsum(pause | (np.diff(speaker, prepend=speaker[0]) != 0))
        return np.asarray(numbers[np.searchsorted((alone[1:] + alone[:-1]) / 2, frames)], dtype=np.int64)

    def _local_speakers(self, frames: npt.NDArray[np.int64]) -> Mask:
        """(feature frames, local speakers) who is active in the nearest window, in the order of the window before."""
        found = np.zeros((len(frames), self.windows.shape[2]), dtype=np.bool_)
        borders = np.searchsorted(self._nearest_windows(frames), np.arange(len(self.windows) + 1))
        before: npt.NDArray[np.float32] | None = None
        for number, start in enumerate(self.starts):
            window = self.windows[number].astype(np.float32)
            if before is not None:
                shared = before[round((start - self.starts[number - 1]) / SAMPLE_RATE / FRAME_STEP) :]
                alike = shared.T @ window[: len(shared)]
                orders = itertools.permutations(range(len(alike)))
                window = window[:, max(orders, key=lambda order: float(alike[range(len(alike)), order].sum()))]
            before = window
            part = slice(borders[number], borders[number + 1])
            times = frames[part] * _HOP_SECONDS - start / SAMPLE_RATE - FRAME_START
            found[part] = window[np.clip(np.floor(times / FRAME_STEP).astype(np.int64), 0, len(window) - 1)] > ACTIVE
        return found

    def _nearest_windows(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Number of the window whose middle is nearest to each feature frame."""
        middles = np.array(self.starts) / SAMPLE_RATE + self.window / 2
        return np.asarray(np.searchsorted((middles[1:] + middles[:-1]) / 2, frames * _HOP_SECONDS), dtype=np.int64)

    def _alone(self, number: int, centre: int, offsets: npt.NDArray[np.int64]) -> Mask:
        window = self.windows[number]
        times = (centre + offsets) * _HOP_SECONDS - self.starts[number] / SAMPLE_RATE - FRAME_START
        index = np.clip(np.floor(times / FRAME_STEP).astype(np.int64), 0, len(window) - 1)
        middle = int(index[len(offsets) // 2])
        around = window[max(0, middle - 3) : middle + 4].astype(np.float32).mean(axis=0)
        active = window[index] > ACTIVE
        speaker = around.argmax() if around.max() >= ACTIVE else active.sum(axis=0).argmax()
        alone: Mask = active[:, speaker] & (active.sum(axis=1) == 1)
        return alone


def frame_speakers(
    activity: SpeakerActivity, spans: SpeakerSpans, similarity: Floats, *, two_voices: bool = True
) -> npt.NDArray[np.int32]:
    """Give each frame of speech to the speaker that its spans resemble most, and frames of overlap to two speakers.

    Where only one speaker was found but the segmentation hears two at once, the second voice is speaker 1.

    Args:
        activity: where anybody speaks, and where two people do.
        spans: of this recording; at least one.
        similarity: (spans, speakers).
        two_voices: whether there may be more than one speaker.

    Returns:
        (frames, 2) numbers of the first and the second speaker; -1 for none.
    """
    speech = np.flatnonzero(activity.speech)
    found = np.full((len(activity.levels), 2), -1, dtype=np.int32)
    if similarity.shape[1] == 1:
        found[speech, 0] = 0
        if two_voices and activity.overlap.sum() * FRAME_STEP >= SECOND_VOICE:
            found[activity.overlap, 1] = 1
        return found
    path = best_path(_speech_scores(activity, spans, similarity), CHANGE_COST)
    found[speech, 0] = path
    # The second speaker is the one whose turn is nearest in time.
    begins = np.flatnonzero(np.diff(path, prepend=-1) != 0)
    if len(begins) > 1:
        run = np.searchsorted(begins, np.arange(len(path)), side="right") - 1
        ends = np.append(begins[1:], len(path)) - 1
        before = np.where(run > 0, speech - speech[ends[np.maximum(run - 1, 0)]], np.iinfo(np.int64).max)
        following = np.minimum(run + 1, len(begins) - 1)
        after = np.where(run < len(begins) - 1, speech[begins[following]] - speech, np.iinfo(np.int64).max)
        other = np.where(before <= after, path[begins[np.maximum(run - 1, 0)]], path[begins[following]])
        both = activity.overlap[speech]
        found[speech[both], 1] = other[both]
    return found


def without_overlap(speakers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """One speaker for each frame: where two people overlap while the speaker changes, the one who goes on.

    Args:
        speakers: (frames, 2) from :func:`frame_speakers`.

    Returns:
        (frames, 1) numbers of speakers; -1 for none.
    """
    first = speakers[:, 0].copy()
    both = np.diff(np.pad((speakers[:, 1] >= 0).astype(np.int8), 1))
    for start, end in zip(np.flatnonzero(both == 1), np.flatnonzero(both == -1), strict=True):
        following = speakers[end, 0] if end < len(speakers) else -1
        if following >= 0 and following in speakers[start:end]:
            first[start:end] = following
    return first[:, None]


def _speech_scores(activity: SpeakerActivity, spans: SpeakerSpans, similarity: Floats) -> Iterator[Floats]:
    """Scores of the frames of speech, (frames, speakers), in blocks: for all of 12 hours they would take gigabytes.

    A score is the mean similarity of the spans that a frame belongs to, else it is interpolated between spans.
    """
    times, speech = activity.times, activity.speech
    seconds, columns = spans.seconds, spans.frames.shape[1]
    features = np.minimum(np.round(times * 100).astype(np.int64), int(spans.first.max()) + columns - 1)
    for start in range(0, len(times), SCORE_BLOCK):
        block = slice(start, start + SCORE_BLOCK)
        wanted = speech[block]
        if not wanted.any():
            continue
        at = times[block][wanted]
        scores = np.stack([np.interp(at, spans.times, column) for column in similarity.T], axis=1)
        index = features[block][wanted]
        # Sums begin one span before the block, so that spans that reach into it fit.
        origin = int(index[0]) - columns
        total = np.zeros((int(index[-1]) + columns - origin, similarity.shape[1]))
        weight = np.zeros(len(total))
        near = np.searchsorted(spans.first, (origin, index[-1]), side="right")
        for number in range(near[0], near[1]):
            frames = spans.frames[number] * seconds[number]
            stretch = slice(spans.first[number] - origin, spans.first[number] - origin + columns)
            total[stretch] += np.outer(frames, similarity[number])
            weight[stretch] += frames
        inside = weight[index - origin] > 0
        covered = index[inside] - origin
        scores[inside] = total[covered] / weight[covered, None]
        yield scores * FRAME_STEP


def turns_of(activity: SpeakerActivity, speakers: npt.NDArray[np.int32]) -> list[tuple[float, float, int]]:
    """The uninterrupted runs of frames of each speaker: start and end in seconds, and number of the speaker.

    Args:
        activity: of the recording; no turn ends after it.
        speakers: (frames, 2) from :func:`frame_speakers`.
    """
    duration = activity.samples / SAMPLE_RATE
    borders = FRAME_START + FRAME_STEP * np.arange(len(speakers) + 1)
    turns = []
    for speaker in range(int(speakers.max(initial=-1)) + 1):
        active = (speakers == speaker).any(axis=1)
        changes = np.flatnonzero(np.diff(np.pad(active.astype(np.int8), 1)))
        for first, last in zip(changes[::2], changes[1::2], strict=True):
            start, end = float(borders[first]), min(float(borders[last]), duration)
            if end > start:
                turns.append((start, end, speaker))
    return turns
