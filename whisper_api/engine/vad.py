"""Voice activity detection: where somebody speaks, and the windows of at most 30 s that speech is decoded in."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.errors import InvalidOption
from whisper_api.schema import SAMPLE_RATE, TranscriptionOptions

if TYPE_CHECKING:
    from whisper_api.engine.context import JobContext

__all__ = ["Activity", "Span", "VadSettings", "detect", "stretches", "windows"]

WINDOW_SECONDS = 30.0
# A longer silence than this inside one window gives Whisper room to invent text, and costs as much as speech.
MAX_SILENCE_SECONDS = 4.0

SILERO_FRAME = 512
SILERO_CONTEXT = 64
# Frames given to Silero at once: 64 s of audio, so that its memory does not grow with the file.
SILERO_BLOCK = 2000
# Frames of digital silence that it hears before and after sound: one second.
SILERO_REACH = 31

PYANNOTE_WINDOW = 5.0
PYANNOTE_STEP = 2.5

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """A stretch of audio, in samples at 16 kHz; ``end`` is the first sample that is not in it."""

    start: int
    end: int

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / SAMPLE_RATE


@dataclass(frozen=True)
class Activity:
    """How likely speech is over time.

    Attributes:
        probabilities: float32, shape (frames,), from 0 to 1.
        step: samples between two frames.
    """

    probabilities: Floats
    step: int


@dataclass(frozen=True)
class VadSettings:
    """When speech begins and ends.

    Attributes:
        onset: speech begins at a frame with at least this probability.
        offset: it goes on while frames have at least this probability.
        min_silence: seconds below ``offset`` that end it.
        padding: seconds kept before and after; half a pause at most, so that stretches never overlap.
        min_speech: stretches shorter than this many seconds are noise.
    """

    onset: float
    offset: float
    min_silence: float
    padding: float
    min_speech: float = 0.05


# Padding and minimum silence were chosen on speech with reference texts: 0.3 s each gave the fewest word errors with
# Whisper base; without padding, first consonants are lost.
DEFAULTS = {
    "silero": VadSettings(onset=0.5, offset=0.35, min_silence=0.3, padding=0.3),
    "pyannote": VadSettings(onset=0.5, offset=0.363, min_silence=0.3, padding=0.2),
    "none": VadSettings(onset=0.5, offset=0.363, min_silence=0.3, padding=0.0),
}


def settings_of(options: TranscriptionOptions) -> VadSettings:
    """The settings for these options, defaults filled in.

    Raises:
        InvalidOption: ``vad_offset`` is above ``vad_onset``.
    """
    default = DEFAULTS[options.vad]
    onset = default.onset if options.vad_onset is None else options.vad_onset
    offset = options.vad_offset
    if offset is None:
        # An onset below the default's offset must not make speech that ends before it begins.
        offset = min(default.offset, onset)
    elif offset > onset:
        raise InvalidOption("vad_offset", f"{offset} is above vad_onset ({onset}); speech would end before it begins")
    return VadSettings(
        onset=onset,
        offset=offset,
        min_silence=default.min_silence if options.vad_min_silence is None else options.vad_min_silence,
        padding=default.padding if options.vad_padding is None else options.vad_padding,
    )


def detect(ctx: JobContext, audio: Floats) -> list[Span]:
    """Find the windows to decode.

    Args:
        ctx: the job; its options name the method and the thresholds.
        audio: float32, shape (samples,), mono, 16 kHz.

    Returns:
        Windows of at most 30 s that cover all speech, in order; empty when nobody speaks.
    """
    settings = settings_of(ctx.options)
    if ctx.options.vad == "none":
        spans = [Span(0, len(audio))] if len(audio) else []
        return windows(spans, Activity(np.ones(1 + len(audio) // SILERO_FRAME, np.float32), SILERO_FRAME), audio)
    activity = _silero(ctx, audio) if ctx.options.vad == "silero" else _pyannote(ctx, audio)
    return windows(stretches(activity, settings, len(audio)), activity, audio)


def stretches(activity: Activity, settings: VadSettings, samples: int) -> list[Span]:
    """Speech, by hysteresis: begun above ``onset``, ended by ``min_silence`` below ``offset``, then padded.

    Args:
        activity: the probabilities.
        settings: the thresholds.
        samples: length of the audio.
    """
    probabilities = activity.probabilities
    heard = np.flatnonzero(probabilities >= settings.offset)
    if not len(heard):
        return []
    # Runs of frames above the offset, cut where the silence between them is long enough.
    gap = max(1, math.ceil(settings.min_silence * SAMPLE_RATE / activity.step))
    breaks = np.flatnonzero(np.diff(heard) > gap)
    first = heard[np.r_[0, breaks + 1]]
    last = heard[np.r_[breaks, len(heard) - 1]]
    found: list[Span] = []
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        loud = np.flatnonzero(probabilities[begin : end + 1] >= settings.onset)
        if len(loud):
            found.append(Span((begin + int(loud[0])) * activity.step, min(samples, (end + 1) * activity.step)))
    found = [span for span in found if span.seconds >= settings.min_speech]
    return _padded(found, round(settings.padding * SAMPLE_RATE), samples)


def _padded(spans: list[Span], padding: int, samples: int) -> list[Span]:
    padded = []
    for index, span in enumerate(spans):
        before = spans[index - 1].end if index else -span.start
        after = spans[index + 1].start if index + 1 < len(spans) else 2 * samples - span.end
        padded.append(
            Span(
                max(0, span.start - min(padding, (span.start - before) // 2)),
                min(samples, span.end + min(padding, (after - span.end) // 2)),
            )
        )
    return padded


def windows(spans: Sequence[Span], activity: Activity, audio: Floats, seconds: float = WINDOW_SECONDS) -> list[Span]:
    """Merge stretches of speech into windows of at most ``seconds``, and cut those that are longer at their pauses.

    Args:
        spans: in order, not overlapping.
        activity: where to look for a pause.
        audio: where to look for one when the probabilities show none.
        seconds: the longest window.
    """
    longest = round(seconds * SAMPLE_RATE)
    silence = round(MAX_SILENCE_SECONDS * SAMPLE_RATE)
    merged: list[Span] = []
    for span in spans:
        for piece in _cut(span, activity, audio, longest):
            last = merged[-1] if merged else None
            if last and piece.end - last.start <= longest and piece.start - last.end <= silence:
                merged[-1] = Span(last.start, piece.end)
            else:
                merged.append(piece)
    return merged


def _cut(span: Span, activity: Activity, audio: Floats, longest: int) -> Iterator[Span]:
    while span.end - span.start > longest:
        # Not before the middle: short windows lack context, and their padding costs time.
        at = _pause(span.start + longest // 2, span.start + longest, activity, audio)
        yield Span(span.start, at)
        span = Span(at, span.end)
    yield span


def _pause(begin: int, end: int, activity: Activity, audio: Floats) -> int:
    """The sample between two bounds at which it is quietest: by probability first, then by loudness."""
    step = activity.step
    first, last = begin // step, max(begin // step + 1, min(end // step, len(activity.probabilities)))
    probabilities = activity.probabilities[first:last].astype(np.float64)
    piece = audio[first * step : last * step]
    piece = np.pad(piece, (0, len(probabilities) * step - len(piece))).reshape(len(probabilities), step)
    decibels = 10 * np.log10(np.mean(np.square(piece, dtype=np.float64), axis=1) + 1e-10)
    loudness = (decibels - decibels.min()) / max(float(np.ptp(decibels)), 1.0)
    # Smoothed over three frames (0.1 s): a closed consonant is as quiet as a pause, but shorter.
    score = np.convolve(np.pad(probabilities + loudness, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    return min(end, max(begin, (first + int(np.argmin(score))) * step + step // 2))


@functools.lru_cache(maxsize=1)
def _silero_session() -> Any:
    from faster_whisper.vad import get_vad_model

    return get_vad_model().session


def _silero(ctx: JobContext, audio: Floats) -> Activity:
    """Speech probabilities of Silero VAD, the ONNX model that faster-whisper ships, one for each 32 ms.

    Runs in the job's own thread: the model is small, runs on the CPU, and keeps no state between calls.
    """
    session = _silero_session()
    frames = -(-len(audio) // SILERO_FRAME)
    probabilities = np.zeros(frames, np.float32)
    h = c = np.zeros((1, 1, 128), np.float32)
    context: Floats = np.zeros((1, SILERO_CONTEXT), np.float32)
    for first in range(0, frames, SILERO_BLOCK):
        ctx.progress(first / frames)
        block = audio[first * SILERO_FRAME : (first + SILERO_BLOCK) * SILERO_FRAME]
        block = np.pad(block, (0, -len(block) % SILERO_FRAME)).reshape(-1, SILERO_FRAME)
        # Each frame is heard with the last samples of the one before it.
        before = np.concatenate([context, block[:-1, -SILERO_CONTEXT:]])
        context = block[-1:, -SILERO_CONTEXT:]
        near = _near_sound(block)
        if near.any():
            heard = np.concatenate([before, block], axis=1)[near]
            output, h, c = session.run(None, {"input": heard, "h": h, "c": c})
            probabilities[first : first + len(block)][near] = np.asarray(output).reshape(-1)
    return Activity(probabilities, SILERO_FRAME)


def _near_sound(frames: Floats) -> NDArray[np.bool_]:
    """Which frames, of shape (frames, samples), are less than a second of digital silence away from sound.

    The model is not given the others. A small file can hold hours of them, and in minutes of digital silence the model
    grows deaf: after 200 s of it, it misses a sixth of the speech that follows.
    """
    reach = np.ones(2 * SILERO_REACH + 1, np.float32)
    near = np.convolve(frames.any(axis=1).astype(np.float32), reach)[SILERO_REACH : SILERO_REACH + len(frames)]
    return np.asarray(near > 0.5, np.bool_)


def _pyannote(ctx: JobContext, audio: Floats) -> Activity:
    """Speech probabilities of the pyannote segmentation model that whisperx ships, one for each 16.9 ms.

    Windows of 5 s overlap by half, and overlapping frames are averaged; that moves 3.6 % of the frames against the
    nine tenths of overlap that pyannote.audio uses, at a fifth of the time.
    """
    from whisper_api.engine.diarize.segmentation import FRAME_STEP, SegmentationSource, SegmentWindows, frame_count

    size, hop = round(PYANNOTE_WINDOW * SAMPLE_RATE), round(PYANNOTE_STEP * SAMPLE_RATE)
    step = round(FRAME_STEP * SAMPLE_RATE)
    count = 1 + max(0, -(-(len(audio) - size) // hop))
    frames = frame_count(size)
    total = np.zeros(((count - 1) * hop + size) // step + 1, np.float32)
    weight = np.zeros_like(total)
    path = ctx.fetch_model("segmentation").path
    source = SegmentationSource(str(path), ctx.device.torch_name)
    with ctx.lease(source) as model:
        operation = SegmentWindows(model, ctx.device.torch_name)

        def items() -> Iterator[tuple[SegmentWindows, Floats, float]]:
            for index in range(count):
                piece = audio[index * hop : index * hop + size]
                yield operation, np.pad(piece, (0, size - len(piece))), PYANNOTE_WINDOW

        for index, activity in enumerate(ctx.run(items(), window=64)):
            ctx.progress(index / count)
            at = round(index * hop / step)
            # Somebody speaks when any of the local speakers does.
            total[at : at + frames] += activity.max(axis=-1)
            weight[at : at + frames] += 1
    probabilities = (total / np.maximum(weight, 1)).astype(np.float32)
    return Activity(probabilities[: -(-len(audio) // step)], step)
