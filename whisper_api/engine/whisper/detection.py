"""Finds the language that is spoken in a recording, and warns where another one is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.context import JobContext
from whisper_api.engine.vad import Span, cut_at_pauses
from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, POSITIONS_PER_SECOND, Detected, DetectionInput, Whisper
from whisper_api.engine.whisper.window import Batching, Window
from whisper_api.schema import SAMPLE_RATE

# A part of a window alone is padded by this much: less than for decoding, since only one token is read.
MARGIN_SECONDS = 1.0
# Speech in which another language is looked for.
STRETCH_SECONDS = 10.0
# Of windows with about the same speech, the first is asked: its text is wanted first.
SIMILAR_SPEECH = 0.8
# Another language than the transcript's is clear when it is at least this likely and the transcript's at most that.
DOUBT_ABOVE, DOUBT_BELOW = 0.9, 0.02
# And it is likely between these.
LIKELY_ABOVE, LIKELY_BELOW = 0.5, 0.2
# When so much of the speech is in another language, the caller has named the wrong one.
MOSTLY = 0.8
# Shorter speech is often taken for another language.
LEAST_CLEAR_SECONDS = 4.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LanguageDetector:
    """Detects the languages of windows.

    Attributes:
        ctx: the job.
        whisper: the leased model.
        audio: float32, shape (samples,), mono, 16 kHz.
        batching: the size of batches on this device.
    """

    ctx: JobContext
    whisper: Whisper
    audio: Floats
    batching: Batching

    def windows(
        self, windows: Sequence[Window], parts: Sequence[Sequence[Span]] | None = None, *, ahead: int = 0
    ) -> Generator[Detected, None, None]:
        """The languages of windows, in order.

        Args:
            windows: the windows.
            parts: for each window, spans inside it whose languages are detected too.
            ahead: number of windows that run before all other items of this job.
        """
        items = (
            (
                self.whisper.encode_and_detect(window.frames, self.batching.max_items, self.batching.max_cost),
                DetectionInput(
                    self.audio[window.span.start : window.span.end],
                    tuple(_positions(part, window) for part in (parts[number] if parts is not None else ())),
                ),
                window.frames / FRAMES_PER_SECOND,
            )
            for number, window in enumerate(windows)
        )
        yield from self.ctx.run(items, ahead=ahead)

    def alone(self, spans: Sequence[Span]) -> Generator[dict[str, float], None, None]:
        """The languages of spans, in order, each heard without what is around it."""
        for detected in self.windows([Window(span, self.frames_alone(span.seconds)) for span in spans]):
            yield detected.languages

    def frames_alone(self, seconds: float) -> int:
        """The number of mel frames to hear a span of this length alone: whole seconds, so that spans share batches."""
        return min(self.batching.padded_frames(seconds), FRAMES_PER_SECOND * round(seconds + MARGIN_SECONDS + 0.5))


def _positions(part: Span, window: Window) -> tuple[int, int]:
    """The encoder's positions of a part of a window; at least one."""
    samples = SAMPLE_RATE // POSITIONS_PER_SECOND
    first = (part.start - window.span.start) // samples
    return first, max(first + 1, (part.end - window.span.start) // samples)


def speech_parts(window: Span, speech: Sequence[Span], audio: Floats, seconds: float) -> list[Span]:
    """The speech of a window in parts of at most so many seconds, cut at pauses.

    Args:
        window: the window.
        speech: the spans of speech of the recording, in order; empty if they are not known.
        audio: float32, shape (samples,), mono, 16 kHz.
        seconds: longest part.
    """
    inside = [Span(max(s.start, window.start), min(s.end, window.end)) for s in speech] if speech else [window]
    return [part for span in inside if span.end > span.start for part in cut_at_pauses(span, audio, seconds)]


def speech_stretches(window: Span, speech: Sequence[Span], audio: Floats) -> list[Span]:
    """The speech of a window in stretches of about ten seconds; empty when there is one only.

    Args:
        window: the window.
        speech: the spans of speech of the recording, in order; empty if they are not known.
        audio: float32, shape (samples,), mono, 16 kHz.
    """
    longest = round(STRETCH_SECONDS * SAMPLE_RATE)
    found: list[Span] = []
    for part in speech_parts(window, speech, audio, STRETCH_SECONDS):
        if found and part.end - found[-1].start <= longest:
            found[-1] = Span(found[-1].start, part.end)
        else:
            found.append(part)
    return found if len(found) > 1 else []


def spread(windows: Sequence[Window], count: int) -> list[int]:
    """Indices of windows that are spread evenly over the speech of a recording.

    Args:
        windows: the windows of the recording.
        count: number of windows to choose.

    Returns:
        One index from each of ``count`` parts of the recording with about the same speech: a window with much of it.
    """
    if len(windows) <= count:
        return list(range(len(windows)))
    speech = np.array([window.speech_seconds for window in windows])
    part = ((np.cumsum(speech) - speech / 2) / speech.sum() * count).astype(int)
    chosen = []
    for number in range(count):
        inside = np.flatnonzero(part == number)
        if len(inside):
            chosen.append(int(inside[np.argmax(speech[inside] >= SIMILAR_SPEECH * speech[inside].max())]))
    return chosen


def differ(whole: Mapping[str, float], stretches: Sequence[tuple[Span, Mapping[str, float]]]) -> bool:
    """Whether a stretch of a window sounds like another language than the whole window."""
    best = max(whole, key=lambda code: whole[code])
    return any(
        span.seconds >= LEAST_CLEAR_SECONDS and found[best] < LIKELY_BELOW and max(found.values()) >= LIKELY_ABOVE
        for span, found in stretches
    )


def mean_languages(seconds: Sequence[float], languages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean probability of each language, weighted by speech and certainty.

    Music or noise has no certain language, so it counts for little.

    Args:
        seconds: the speech in each place; at least one place.
        languages: language code to probability, for each place.
    """
    sums: dict[str, float] = {}
    total = 0.0
    for length, found in zip(seconds, languages, strict=True):
        weight = length * max(found.values())
        total += weight
        for code, probability in found.items():
            sums[code] = sums.get(code, 0.0) + weight * probability
    return {code: value / total for code, value in sums.items()}


def clearly_other(languages: Mapping[str, float], used: str) -> str | None:
    """The language that is clearly spoken instead of the one that is used; None without one."""
    best = max(languages, key=lambda code: languages[code])
    clear = best != used and languages[best] >= DOUBT_ABOVE and languages.get(used, 0.0) < DOUBT_BELOW
    return best if clear else None


class Disagreement:
    """Collects the speech that is clearly in another language than its transcript.

    Args:
        language: code of the transcript's language.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._found: dict[str, list[tuple[Span, float, float]]] = {}

    def doubted(self, languages: Mapping[str, float]) -> bool:
        """Whether another language is likely, though not clear, in a window."""
        best = max(languages, key=lambda code: languages[code], default=self.language)
        return (
            best != self.language
            and languages[best] >= LIKELY_ABOVE
            and languages.get(self.language, 0.0) < LIKELY_BELOW
        )

    def add(self, span: Span, seconds: float, languages: Mapping[str, float]) -> bool:
        """Take note of a span when its language clearly is another one. Returns whether it is.

        Args:
            span: the place.
            seconds: the speech in it.
            languages: language code to probability.
        """
        if seconds < LEAST_CLEAR_SECONDS or not languages or self.language not in languages:
            return False
        other = clearly_other(languages, self.language)
        if other is not None:
            self._found.setdefault(other, []).append((span, seconds, languages[other]))
        return other is not None

    def warn(
        self, ctx: JobContext, speech: float, *, asked: bool, elapsed: Callable[[float], float] = lambda time: time
    ) -> None:
        """Warn about what was found.

        Args:
            ctx: the job.
            speech: seconds of speech in the recording.
            asked: whether the caller named the language.
            elapsed: turns a time in the audio into a time in the recording.
        """
        for other, found in self._found.items():
            seconds = sum(each for _, each, _ in found)
            if asked and seconds >= MOSTLY * speech:
                probability = sum(each * likely for _, each, likely in found) / seconds
                ctx.warn(
                    f"the audio sounds like {other!r} (probability {probability:.2f}), but was transcribed as "
                    f"{self.language!r} as asked; use language 'auto' to have it detected"
                )
            else:
                minutes, seconds_in = divmod(elapsed(found[0][0].start / SAMPLE_RATE), 60)
                first = f"{int(minutes)}:{seconds_in:04.1f}"
                ctx.warn(
                    f"{seconds:.1f} s of the speech, first at {first}, sound like {other!r}, but "
                    f"were transcribed as {self.language!r}; language 'multi' transcribes each part in its own "
                    "language"
                )
