"""Speech recognition: decodes windows of speech into text."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.languages import AUTO, RELATED_LANGUAGE, nearest_language
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, Whisper
from whisper_api.engine.whisper.window_decoder import (
    PROMPT_LEAK,
    SPARSE_VOICED_SECONDS,
    Batching,
    Window,
    WindowDecoder,
)
from whisper_api.engine.whisper.word_times import LEAD_SECONDS
from whisper_api.errors import InvalidOption
from whisper_api.schema import SAMPLE_RATE, Segment

if TYPE_CHECKING:
    from whisper_api.engine.context import JobContext

__all__ = ["Recognizer"]

# The language is detected on windows spread over the recording: the first words are often a name or music.
LANGUAGE_WINDOWS = 3
# Warn about the requested language when another one is at least this likely and the requested one at most that.
DOUBT_ABOVE, DOUBT_BELOW = 0.9, 0.02

Floats = NDArray[np.float32]


class Recognizer:
    """Speech recognition for one job.

    Args:
        ctx: the job.
        whisper: the leased model.
        model_name: name of the model, by which the lead of its word times is known.
        audio: float32, shape (samples,), mono, 16 kHz.
        spans: the windows to decode, each at most 30 s long.
        batching: the size of batches on this device.
        speech: the spans in which somebody speaks, in order; empty if that is not known.
        doubtful: whether the windows may hold no voice at all; then text that stays doubtful is left out.
    """

    def __init__(
        self,
        ctx: JobContext,
        whisper: Whisper,
        model_name: str,
        audio: Floats,
        spans: Sequence[Span],
        batching: Batching,
        speech: Sequence[Span] = (),
        *,
        doubtful: bool = False,
    ) -> None:
        self.ctx = ctx
        self.whisper = whisper
        self._model_name = model_name
        self.audio = audio
        self.batching = batching
        self._doubtful = doubtful
        self._windows = [
            Window(span, batching.padded_frames(span.seconds), voiced=_overlap(span, speech)) for span in spans
        ]

    def detect_language(self, asked: str) -> tuple[str, dict[str, float]]:
        """Detect the spoken language.

        Args:
            asked: a language code or ``auto``; returned if there is no speech.

        Returns:
            The most probable code, and code to probability in falling order; the latter is empty without speech.
        """
        if not self._windows:
            self.ctx.warn("the language was not detected, because nobody speaks")
            return ("en" if asked == "auto" else asked), {}
        if not self.whisper.multilingual:
            self.ctx.warn("the model knows English only: it cannot tell languages apart")
            return "en", {"en": 1.0}
        found = self._encode_and_detect(LANGUAGE_WINDOWS)
        probabilities = {code: round(found[code], 4) for code in sorted(found, key=lambda code: (-found[code], code))}
        return next(iter(probabilities)), probabilities

    def resolve_language(self, asked: str) -> tuple[str, float | None]:
        """The language to transcribe in.

        Args:
            asked: a language code, or ``auto``.

        Returns:
            The code, and its probability if it was detected.

        Raises:
            InvalidOption: the model knows neither the language nor a related one.
        """
        if not self.whisper.multilingual:
            if asked not in ("auto", "en"):
                self.ctx.warn(f"the model knows English only: transcribed as English, not as {asked!r}")
            return "en", None
        if asked != AUTO and asked not in self.whisper.languages:
            known = sorted(self.whisper.languages)
            related = nearest_language(asked, known, RELATED_LANGUAGE)
            if related is None:
                raise InvalidOption("language", f"this model does not know {asked!r}; it knows {', '.join(known)}")
            # Cantonese came with large-v3; earlier models write it as Chinese.
            self.ctx.warn(f"the model does not know {asked!r}: transcribed as {related!r}, the nearest that it knows")
            asked = related
        if not self._windows:
            return ("en" if asked == "auto" else asked), None
        try:
            found = self._encode_and_detect(LANGUAGE_WINDOWS if asked == "auto" else 1)
        except Exception as error:
            if asked == "auto":
                raise
            self.ctx.continue_without(f"it was not checked whether the audio is in {asked!r}", error)
            return asked, None
        best = max(found, key=lambda code: found[code])
        if asked == "auto":
            return best, round(found[best], 4)
        if best != asked and found[best] >= DOUBT_ABOVE and found.get(asked, 0.0) < DOUBT_BELOW:
            self.ctx.warn(
                f"the audio sounds like {best!r} (probability {found[best]:.2f}), but was transcribed as {asked!r} as "
                "asked; use language 'auto' to have it detected"
            )
        return asked, None

    def transcribe(
        self, language: str, *, word_times: bool, on_window: Callable[[float], None] | None = None
    ) -> Generator[Segment, None, None]:
        """Decode all windows. Closing the generator drops the windows that wait.

        Args:
            language: code of the spoken language.
            word_times: whether to take word times from cross-attention.
            on_window: called with the seconds of speech that are decoded.

        Yields:
            One segment for each window with speech, in order, with ids 0, 1, 2 ...
        """
        lead = LEAD_SECONDS.get(self._model_name, 0.0) if word_times else None
        decoder = WindowDecoder(self.ctx, self.whisper, self.audio, self.batching, language, lead)
        done, number, doubtful, leaked, textless = 0.0, 0, 0, 0, 0.0
        results = self.ctx.run(decoder.items(self._windows), window=self.batching.window, ahead=1)
        for window, decoded in zip(self._windows, results, strict=True):
            before = number
            for piece, attempt in decoder.settle(window, decoder.attempt(decoded, decoder.first_temperature)):
                leaked += attempt.leaked
                segment = decoder.segment(number, piece, attempt)
                if segment is not None and not (self._doubtful and segment.flags):
                    yield segment
                    number += 1
                    doubtful += bool(set(segment.flags) - {PROMPT_LEAK})
            if number == before and window.voiced >= SPARSE_VOICED_SECONDS:
                textless += window.voiced
            done += window.span.seconds
            if on_window is not None:
                on_window(done)
        if textless:
            self.ctx.warn(f"{textless:.1f} s of what sounds like speech gave no text")
        if leaked:
            self.ctx.warn(
                f"the prompt's own words came out of {leaked} windows in which they were not heard; what these windows "
                "have without the prompt replaces them"
            )
        if doubtful:
            self.ctx.warn(
                f"{doubtful} of {number} windows stay doubtful after every attempt; their segments have flags"
            )

    def _encode_and_detect(self, count: int) -> dict[str, float]:
        """Probability of each language: the mean over ``count`` windows, weighted by length. Keeps their encodings."""
        total = len(self._windows)
        chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
        items = (
            (
                self.whisper.encode_and_detect(window.frames, self.batching.max_items, self.batching.max_cost),
                self.audio[window.span.start : window.span.end],
                window.frames / FRAMES_PER_SECOND,
            )
            for window in (self._windows[index] for index in chosen)
        )
        sums: dict[str, float] = {}
        weight = 0.0
        for index, (encoded, languages) in zip(chosen, self.ctx.run(items, ahead=count), strict=True):
            window = self._windows[index]
            self._windows[index] = replace(window, encoded=encoded)
            weight += window.span.seconds
            for code, probability in languages.items():
                sums[code] = sums.get(code, 0.0) + probability * window.span.seconds
        return {code: value / weight for code, value in sums.items()}


def _overlap(window: Span, speech: Sequence[Span]) -> float:
    """Seconds of speech in a window."""
    first = bisect.bisect_right(speech, window.start, key=lambda span: span.end)
    samples = 0
    for span in speech[first:]:
        if span.start >= window.end:
            break
        samples += min(span.end, window.end) - max(span.start, window.start)
    return samples / SAMPLE_RATE
