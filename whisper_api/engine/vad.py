"""Voice activity detection: finds speech, and cuts it into windows of at most 30 s for Whisper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.level import loud_seconds, raise_quiet_speech
from whisper_api.engine.context import JobContext
from whisper_api.engine.options import ResolvedOptions
from whisper_api.engine.silero import SILERO_FRAME, silero_probabilities
from whisper_api.engine.silero_again import heard_again
from whisper_api.schema import SAMPLE_RATE

WINDOW_SECONDS = 30.0
# In a longer silence inside a window Whisper tends to invent text, and silence costs as much time as speech.
MAX_SILENCE_SECONDS = 4.0

# Shorter speech is a click.
LEAST_SPEECH_SECONDS = 0.05
# The peak of digital silence: -80 dBFS, or three steps of 16 bits.
DITHER = 1e-4
# Sound in which no speech is found is worth a second look and a warning from this length on.
LOUD_SECONDS = 2.0

PYANNOTE_WINDOW = 5.0
PYANNOTE_STEP = 2.5

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """A part of the audio, in samples at 16 kHz; ``end`` is the first sample after it."""

    start: int
    end: int

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / SAMPLE_RATE


@dataclass(frozen=True)
class SpeechFrames:
    """Probability of speech over time.

    Attributes:
        probabilities: float32, shape (frames,).
        step: samples between two frames.
    """

    probabilities: Floats
    step: int


@dataclass(frozen=True)
class Detection:
    """The windows to transcribe, and the speech in them.

    Attributes:
        windows: at most 30 s each, in order, not overlapping; they cover all speech.
        speech: the spans of speech, in order; empty when voice activity detection is off.
        silero: Silero's probabilities; None if another detector was asked for.
        frames: the probabilities of speech; None when voice activity detection is off.
    """

    windows: list[Span]
    speech: list[Span]
    silero: SpeechFrames | None = None
    frames: SpeechFrames | None = None

    def raised(self, audio: Floats, *, shared: bool) -> Floats:
        """The audio with its quiet speech raised; see :func:`raise_quiet_speech`."""
        windows, speech = ([(span.start, span.end) for span in spans] for spans in (self.windows, self.speech))
        return raise_quiet_speech(audio, windows, speech, shared=shared)


def detect(ctx: JobContext, audio: Floats) -> Detection:
    """Find the windows to transcribe, and the speech in them.

    Where Silero finds no speech in loud sound, pyannote's model searches too, because it finds song. A warning names
    loud sound in which neither finds speech.

    Args:
        ctx: the job; its options name the detector and the thresholds.
        audio: float32, shape (samples,), mono, 16 kHz.
    """
    options = ctx.options
    if options.vad == "none":
        everything = [Span(0, len(audio))] if len(audio) else []
        flat = SpeechFrames(np.ones(1 + len(audio) // SILERO_FRAME, np.float32), SILERO_FRAME)
        found = windows(everything, flat, audio)
        # Whisper invents words for silence.
        return Detection([w for w in found if np.abs(audio[w.start : w.end]).max() > DITHER], [])
    frames = silero_frames(ctx, audio) if options.vad == "silero" else pyannote_frames(ctx, audio)
    silero = frames if options.vad == "silero" else None
    spans = speech_spans(frames, options, len(audio))
    loud = loud_seconds(audio) if not spans else 0.0
    if loud >= LOUD_SECONDS and silero is not None:
        try:
            frames = pyannote_frames(ctx, audio)
        except Exception as error:
            ctx.continue_without("song was not looked for", error)
        else:
            spans = speech_spans(frames, options, len(audio))
    if loud >= LOUD_SECONDS and not spans:
        ctx.warn(f"no speech was found, though {loud:.1f} s of sound are loud; vad=none transcribes them all the same")
    return Detection(windows(spans, frames, audio), spans, silero, frames)


def speech_spans(frames: SpeechFrames, options: ResolvedOptions, samples: int) -> list[Span]:
    """Find speech with hysteresis: the onset begins a span, enough silence below the offset ends it. Pad the spans.

    Args:
        frames: the probabilities.
        options: ``vad_onset``, ``vad_offset``, ``vad_min_silence`` and ``vad_padding``. Padding takes at most half of a
            pause, so that spans never overlap.
        samples: length of the audio.
    """
    probabilities = frames.probabilities
    speech = np.flatnonzero(probabilities >= options.vad_offset)
    if not len(speech):
        return []
    # Runs of frames above the offset, separated by silence that is long enough.
    gap = max(1, math.ceil(options.vad_min_silence * SAMPLE_RATE / frames.step))
    breaks = np.flatnonzero(np.diff(speech) > gap)
    first = speech[np.r_[0, breaks + 1]]
    last = speech[np.r_[breaks, len(speech) - 1]]
    found: list[Span] = []
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        loud = np.flatnonzero(probabilities[begin : end + 1] >= options.vad_onset)
        if len(loud):
            found.append(Span((begin + int(loud[0])) * frames.step, min(samples, (end + 1) * frames.step)))
    found = [span for span in found if span.seconds >= LEAST_SPEECH_SECONDS]
    return _padded(found, round(options.vad_padding * SAMPLE_RATE), samples)


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


def windows(spans: Sequence[Span], frames: SpeechFrames, audio: Floats, seconds: float = WINDOW_SECONDS) -> list[Span]:
    """Merge spans of speech into windows of at most ``seconds``, and cut longer spans at pauses.

    Args:
        spans: in order, not overlapping.
        frames: probabilities of speech; a pause has low ones.
        audio: shape (samples,), mono, 16 kHz; a pause is quiet.
        seconds: longest window.
    """
    longest = round(seconds * SAMPLE_RATE)
    silence = round(MAX_SILENCE_SECONDS * SAMPLE_RATE)
    merged: list[Span] = []
    for span in spans:
        for piece in _cut(span, frames, audio, longest):
            last = merged[-1] if merged else None
            if last and piece.end - last.start <= longest and piece.start - last.end <= silence:
                merged[-1] = Span(last.start, piece.end)
            else:
                merged.append(piece)
    return merged


def cut_at_pauses(span: Span, audio: Floats, seconds: float) -> list[Span]:
    """Cut a span where it is quiet into pieces of at most so many seconds.

    Args:
        span: a part of the audio.
        audio: shape (samples,), mono, 16 kHz.
        seconds: longest piece.
    """
    piece = audio[span.start : span.end]
    flat = SpeechFrames(np.ones(len(piece) // SILERO_FRAME + 1, np.float32), SILERO_FRAME)
    found = windows([Span(0, len(piece))], flat, piece, seconds=seconds)
    return [Span(span.start + each.start, span.start + each.end) for each in found]


def _cut(span: Span, frames: SpeechFrames, audio: Floats, longest: int) -> Iterator[Span]:
    while span.end - span.start > longest:
        # In the second half, because a short window lacks context and takes as long as one of 30 s.
        at = _pause(span.start + longest // 2, span.start + longest, frames, audio)
        yield Span(span.start, at)
        span = Span(at, span.end)
    yield span


def _pause(begin: int, end: int, frames: SpeechFrames, audio: Floats) -> int:
    """The sample between two samples with the lowest sum of speech probability and loudness."""
    step = frames.step
    first, last = begin // step, max(begin // step + 1, min(end // step, len(frames.probabilities)))
    probabilities = frames.probabilities[first:last].astype(np.float64)
    piece = audio[first * step : last * step]
    piece = np.pad(piece, (0, len(probabilities) * step - len(piece))).reshape(len(probabilities), step)
    decibels = 10 * np.log10(np.mean(np.square(piece, dtype=np.float64), axis=1) + 1e-10)
    loudness = (decibels - decibels.min()) / max(float(np.ptp(decibels)), 1.0)
    # Smoothed over three frames (0.1 s), because a closed consonant is as quiet as a pause, but shorter.
    score = np.convolve(np.pad(probabilities + loudness, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    return min(end, max(begin, (first + int(np.argmin(score))) * step + step // 2))


def silero_frames(ctx: JobContext, audio: Floats) -> SpeechFrames:
    """Speech probabilities of Silero VAD, the ONNX model that faster-whisper ships, one for each 32 ms.

    The model is small, so it runs on the CPU, in the thread of the job and in threads beside it.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.
    """
    probabilities = silero_probabilities(audio, ctx.progress)
    return SpeechFrames(heard_again(audio, probabilities, lambda: ctx.progress(1.0)), SILERO_FRAME)


def pyannote_frames(ctx: JobContext, audio: Floats) -> SpeechFrames:
    """Speech probabilities of the pyannote segmentation model that whisperx ships, one for each 16.9 ms.

    Windows of 5 s overlap by half, and overlapping frames are averaged. pyannote.audio lets windows overlap by nine
    tenths, which takes five times as long and changes 3.6 % of the frames.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: the model cannot be used.
    """
    from whisper_api.engine.diarize.segmentation import (
        FRAME_STEP,
        SegmentationSource,
        SegmentWindows,
        frame_count,
        whole_window,
    )

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
                yield operation, whole_window(piece, size), PYANNOTE_WINDOW

        for index, window in enumerate(ctx.run(items(), window=64)):
            ctx.progress(index / count)
            at = round(index * hop / step)
            # Speech is where the most active local speaker speaks.
            total[at : at + frames] += window.max(axis=-1)
            weight[at : at + frames] += 1
    probabilities = (total / np.maximum(weight, 1)).astype(np.float32)
    return SpeechFrames(probabilities[: -(-len(audio) // step)], step)
