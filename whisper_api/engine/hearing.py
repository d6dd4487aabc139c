"""Finds what there is to recognize: the windows of speech in the mix, or in each channel by itself.

Separate channels lie one after the other in one array, with silence between. So recognition, alignment and batches
treat the channels as one long recording; :meth:`Heard.placed` gives its segments their channel and their own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from whisper_api.engine import vad
from whisper_api.engine.audio.crosstalk import Comparison, compare, without_crosstalk
from whisper_api.engine.audio.decode import Decoded
from whisper_api.engine.audio.level import without_offset
from whisper_api.engine.audio.track import AudioMemory, Samples, end_to_end
from whisper_api.engine.context import JobContext
from whisper_api.engine.vad import Detection, Span, SpeechFrames
from whisper_api.schema import SAMPLE_RATE, Redaction, Segment, Turn

# ``auto`` separates channels of which two have this much speech, in seconds. Where they have any sound in common, at
# most half of the speech may be at the same time, and crosstalk at most -10 dB.
AUTO_SPEECH_SECONDS = 1.0
AUTO_OVERLAP = 0.5
AUTO_CROSSTALK = -10.0
CENTISECONDS = 100


@dataclass(frozen=True)
class Heard:
    """What there is to recognize.

    Attributes:
        audio: float32, shape (samples,), mono, 16 kHz: the mix, or the channels one after the other.
        windows: the windows to transcribe, in order of their time in the recording.
        speech: the spans of speech, in order of their place in ``audio``.
        silero: Silero's probabilities, if they are known.
        frames: the probabilities of speech by which the windows were found; None without voice activity detection.
        channels: number of each channel in ``audio``, counted from 0; empty for the mix.
        spacing: whole seconds from the beginning of one channel to that of the next.
    """

    audio: Samples
    windows: list[Span]
    speech: list[Span]
    silero: SpeechFrames | None = None
    frames: SpeechFrames | None = None
    channels: tuple[int, ...] = ()
    spacing: int = 0

    def placed(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
        """Give segments of ``audio`` their channel, and their time in the recording."""
        if not self.channels:
            return tuple(segments)
        return tuple(self._placed(segment) for segment in segments)

    def _placed(self, segment: Segment) -> Segment:
        if segment.seek is None:
            raise ValueError("a segment has no window")
        place = segment.seek // (CENTISECONDS * self.spacing)
        channel, offset = self.channels[place], place * self.spacing
        words = tuple(
            replace(word, start=_earlier(word.start, offset), end=_earlier(word.end, offset), channel=channel)
            for word in segment.words
        )
        return replace(
            segment,
            start=_earlier(segment.start, offset),
            end=_earlier(segment.end, offset),
            words=words,
            seek=segment.seek - CENTISECONDS * offset,
            channel=channel,
        )

    def elapsed(self, time: float) -> float:
        """The time in the recording of a time in ``audio``, in seconds."""
        return _earlier(time, int(time // self.spacing) * self.spacing) if self.channels else time

    def placed_redactions(self, redactions: Sequence[Redaction]) -> tuple[Redaction, ...]:
        """Give redactions of ``audio`` their channel, and their time in the recording."""
        placed = (replace(each, **self._place(each)) for each in redactions)
        return tuple(sorted(placed, key=lambda each: (each.start, each.end)) if self.channels else redactions)

    def placed_turns(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """Give turns of ``audio``, of which each lies in one channel, their channel and their time in the recording."""
        placed = (Turn(speaker=turn.speaker, **self._place(turn)) for turn in turns)
        return tuple(sorted(placed, key=lambda turn: (turn.start, turn.end)) if self.channels else turns)

    def _place(self, part: Turn | Redaction) -> dict[str, Any]:
        """The channel of a part of ``audio`` that lies in one channel, and its times in the recording."""
        place = int(part.start // self.spacing)
        start, end = (_earlier(time, place * self.spacing) for time in (part.start, part.end))
        return {"start": start, "end": end, "channel": self.channels[place]}

    def voices(self, seconds: float) -> dict[int, Samples]:
        """The speech of each channel that has any.

        Args:
            seconds: at most so many of each channel.
        """
        found: dict[int, list[Samples]] = {}
        left = dict.fromkeys(self.channels, round(seconds * SAMPLE_RATE))
        for span in self.speech or self.windows:
            channel = self.channels[span.start // (self.spacing * SAMPLE_RATE)]
            if left[channel] > 0:
                found.setdefault(channel, []).append(self.audio[span.start : min(span.end, span.start + left[channel])])
                left[channel] -= span.end - span.start
        return {channel: np.concatenate(pieces) for channel, pieces in found.items()}


def _earlier(time: float, offset: int) -> float:
    # The sum of a large offset and a time has fewer digits than the time.
    return round(time - offset, 6)


def hear(ctx: JobContext, decoded: Decoded, memory: AudioMemory) -> Heard:
    """Find the windows to transcribe, in the mix or in each channel, as the option ``channels`` says.

    A warning names each channel that is not recognized by itself.

    Args:
        ctx: the job.
        decoded: the audio; its samples are changed, unless they are the caller's own.
        memory: the budget of decoded audio.
    """
    wanted = ctx.options.channels
    if wanted != "mix":
        before = len(ctx.warnings)
        separate = _separate(ctx, decoded, memory) if decoded.separate else None
        if separate is not None:
            return separate
        if wanted == "auto":
            # The warnings about the attempt to separate the channels do not apply to the mix.
            ctx.warnings[before:] = decoded.mix_warnings
        elif not decoded.separate:
            ctx.warn("the channels were not separated: the recording has one channel")
    audio = without_offset(decoded.audio, shared=decoded.shared)
    found = vad.detect(ctx, audio)
    audio = found.raised(audio, shared=decoded.shared and audio is decoded.audio)
    return Heard(audio, found.windows, found.speech, found.silero, found.frames)


def _separate(ctx: JobContext, decoded: Decoded, memory: AudioMemory) -> Heard | None:
    """The channels one after the other; None where the mix is better."""
    auto = ctx.options.channels == "auto"
    channels = [without_offset(channel, shared=False) for channel in decoded.separate]
    common = compare(channels, ctx.check)
    _warn_of_channels(ctx, common)
    kept = [number for number in range(len(channels)) if number not in (*common.silent, *common.copies, *common.alike)]
    if not kept or (len(kept) == 1 and (auto or common.copies or common.alike)):
        # One sound on several channels may have several speakers, as a recording with one channel has.
        ctx.warn("the channels were not separated: they do not have different voices")
        return None
    if auto and any(leak.decibels > AUTO_CROSSTALK for leak in common.leaks):
        return None
    without_crosstalk(channels, common.leaks)
    for leak in common.leaks:
        ctx.warn(
            f"channel {leak.target} has crosstalk of channel {leak.source} (counted from 0) at {leak.decibels:.0f} dB: "
            "what is only crosstalk was left out"
        )
    found: dict[int, Detection] = {}
    for place, number in enumerate(kept):
        with ctx.within(place / len(kept), (place + 1) / len(kept)):
            found[number] = vad.detect(ctx, channels[number])
    if auto and not _have_voices([each.speech for each in found.values()], mingled=common.mingled):
        return None
    for number in kept:
        if not found[number].windows:
            ctx.warn(f"channel {number} has no speech (counted from 0)")
        found[number].raised(channels[number], shared=False)
    spacing = len(decoded.audio) // SAMPLE_RATE + 2
    audio = end_to_end([channels[number] for number in kept], spacing * SAMPLE_RATE, memory)
    step = spacing * SAMPLE_RATE
    windows = [_moved(span, place * step) for place, number in enumerate(kept) for span in found[number].windows]
    speech = [_moved(span, place * step) for place, number in enumerate(kept) for span in found[number].speech]
    windows.sort(key=lambda span: (span.start % step, span.start))
    silero = _joined([found[number].silero for number in kept], step)
    frames = _joined([found[number].frames for number in kept], step)
    return Heard(audio, windows, speech, silero, frames, tuple(kept), spacing)


def _joined(parts: Sequence[SpeechFrames | None], samples: int) -> SpeechFrames | None:
    """The frames of channels that lie one after the other, of so many samples each; None where some are not known."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.step for part in known}) != 1:
        return None
    frames, step = known[0].probabilities, known[0].step
    at = np.arange(0, len(parts) * samples, step)
    place, within = np.divmod(at, samples)
    joined = np.zeros(len(at), frames.dtype)
    for number, part in enumerate(known):
        inside = (place == number) & (within // step < len(part.probabilities))
        joined[inside] = part.probabilities[within[inside] // step]
    return SpeechFrames(joined, step)


def _moved(span: Span, samples: int) -> Span:
    return Span(span.start + samples, span.end + samples)


def _warn_of_channels(ctx: JobContext, common: Comparison) -> None:
    for number in common.silent:
        ctx.warn(f"channel {number} is silent (counted from 0)")
    for number, other in common.copies.items():
        if number in common.inverted:
            ctx.warn(
                f"channel {number} is channel {other} phase-inverted (counted from 0): it was not recognized again"
            )
        else:
            ctx.warn(f"channel {number} has the sound of channel {other} (counted from 0): it was not recognized again")
    for number, other in common.alike.items():
        ctx.warn(f"channel {number} has the voices of channel {other} (counted from 0): it was not recognized again")


def _have_voices(speech: Sequence[Sequence[Span]], *, mingled: bool) -> bool:
    """Whether several channels have speech of their own."""
    lengths = [sum(span.seconds for span in spans) for spans in speech]
    voiced = [spans for spans, seconds in zip(speech, lengths, strict=True) if seconds >= AUTO_SPEECH_SECONDS]
    if len(voiced) < 2 or not mingled:
        return len(voiced) >= 2
    edges = sorted((at, step) for spans in voiced for span in spans for at, step in ((span.start, 1), (span.end, -1)))
    speaking = together = since = 0
    for at, step in edges:
        together += (at - since) if speaking > 1 else 0
        speaking, since = speaking + step, at
    shortest = min(seconds for seconds in lengths if seconds >= AUTO_SPEECH_SECONDS)
    return together <= AUTO_OVERLAP * shortest * SAMPLE_RATE
