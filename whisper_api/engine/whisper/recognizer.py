"""Speech recognition: windows of speech in, text out."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.languages import AUTO, RELATED_LANGUAGE, nearest_language
from whisper_api.engine.vad import WINDOW_SECONDS, Activity, Span, windows
from whisper_api.engine.whisper.model import (
    FRAMES_PER_SECOND,
    MAX_FRAMES,
    DecodedTokens,
    DecodeSettings,
    Row,
    Whisper,
)
from whisper_api.engine.whisper.tokens import token_logprobs
from whisper_api.engine.whisper.word_times import LEAD_SECONDS, words_of
from whisper_api.errors import InvalidOption
from whisper_api.schema import SAMPLE_RATE, Segment

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

    from whisper_api.engine.context import JobContext
    from whisper_api.engine.worker.worker import BatchOperation

__all__ = ["Batching", "Recognizer"]


# A window is padded to its length and a margin, not to 30 s: the encoder's time grows faster than the length. Without a
# margin the decoder does not find the end and repeats itself (seen in 7 of 7 clips; at 3 s in none); at 5 s the word
# errors are those of 30 s.
MARGIN_SECONDS = 5.0

# When a decoding has failed: OpenAI Whisper's thresholds and temperatures.
MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
NO_SPEECH_PROB = 0.6
TEMPERATURE_STEP = 0.2
FALLBACK_BEAM_SIZE = 5

# The language is judged on so many windows, spread over the recording: the first words are often a name or music.
LANGUAGE_WINDOWS = 3
# A language that was asked for is doubted when another one is this likely and it is less likely than that.
DOUBT_ABOVE, DOUBT_BELOW = 0.9, 0.02

# A window that hit the token cap without repeating itself is cut in two, down to this length.
MIN_SPLIT_SECONDS = 4.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Batching:
    """What goes into one batch.

    Attributes:
        max_items: windows.
        max_cost: seconds of padded audio.
        bucket_seconds: padded lengths are rounded up to a multiple of this, since equal lengths share a batch best.
        lanes: batches that run at once.
    """

    max_items: int
    max_cost: float
    bucket_seconds: float
    lanes: int

    @property
    def window(self) -> int:
        """Windows in flight: a batch more than run keeps the lanes busy; still more, and a failed window's next try
        would wait."""
        return (self.lanes + 1) * max(1, min(self.max_items, int(min(self.max_cost, 1e6) // WINDOW_SECONDS)))


@dataclass(frozen=True, eq=False)
class _Window:
    """One window on its way through recognition."""

    span: Span
    frames: int
    encoded: NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class _Attempt:
    decoded: DecodedTokens
    text: str
    compression_ratio: float
    temperature: float

    @property
    def flags(self) -> tuple[str, ...]:
        """Why this text should be doubted."""
        flags = []
        if self.compression_ratio > MAX_COMPRESSION_RATIO:
            flags.append("repetitive")
        if self.decoded.avg_logprob < MIN_AVG_LOGPROB:
            flags.append("low_confidence")
        if self.decoded.capped:
            flags.append("truncated")
        return tuple(flags)

    @property
    def is_silence(self) -> bool:
        """Nobody speaks: the decoder says so, and what it wrote all the same it does not believe."""
        return self.decoded.no_speech_prob > NO_SPEECH_PROB and self.decoded.avg_logprob < MIN_AVG_LOGPROB


class Recognizer:
    """The recognition of one job.

    Args:
        ctx: the job.
        whisper: the leased model.
        model_name: of the model, for what is known of it.
        audio: float32, shape (samples,), 16 kHz.
        spans: the windows to decode, of at most 30 s.
        batching: the size of batches on this device.

    Attributes:
        whisper: the model.
    """

    def __init__(
        self,
        ctx: JobContext,
        whisper: Whisper,
        model_name: str,
        audio: Floats,
        spans: Sequence[Span],
        batching: Batching,
    ) -> None:
        self._ctx = ctx
        self.whisper = whisper
        self._lead = LEAD_SECONDS.get(model_name, 0.0)
        self._audio = audio
        self._batching = batching
        self._windows = [_Window(span, self.padded_frames(span.seconds)) for span in spans]

    def detect_language(self, asked: str) -> tuple[str, dict[str, float]]:
        """Which language is spoken, whatever was asked for.

        Args:
            asked: a language code, or ``auto``: what is taken when nobody speaks.

        Returns:
            The likeliest code, and the probability of each, the likeliest first; empty when nobody speaks.
        """
        if not self._windows:
            self._ctx.warn("the language was not detected, because nobody speaks")
            return ("en" if asked == "auto" else asked), {}
        if not self.whisper.multilingual:
            self._ctx.warn("the model knows English only: it cannot tell languages apart")
            return "en", {"en": 1.0}
        heard = self._encode_and_detect(LANGUAGE_WINDOWS)
        probabilities = {code: round(heard[code], 4) for code in sorted(heard, key=lambda code: (-heard[code], code))}
        return next(iter(probabilities)), probabilities

    def resolve_language(self, asked: str) -> tuple[str, float | None]:
        """The language to transcribe in.

        Args:
            asked: a language code, or ``auto``.

        Returns:
            The code, and its probability where it was judged.

        Raises:
            InvalidOption: the model knows neither the language nor a related one.
        """
        if not self.whisper.multilingual:
            if asked not in ("auto", "en"):
                self._ctx.warn(f"the model knows English only: transcribed as English, not as {asked!r}")
            return "en", None
        if asked != AUTO and asked not in self.whisper.languages:
            known = sorted(self.whisper.languages)
            related = nearest_language(asked, known, RELATED_LANGUAGE)
            if related is None:
                raise InvalidOption("language", f"this model does not know {asked!r}; it knows {', '.join(known)}")
            # Cantonese came with large-v3: the models before it write it as Chinese.
            self._ctx.warn(f"the model does not know {asked!r}: transcribed as {related!r}, the nearest that it knows")
            asked = related
        if not self._windows:
            return ("en" if asked == "auto" else asked), None
        try:
            heard = self._encode_and_detect(LANGUAGE_WINDOWS if asked == "auto" else 1)
        except Exception as error:
            if asked == "auto":
                raise
            self._ctx.continue_without(f"it was not checked whether the audio is in {asked!r}", error)
            return asked, None
        best = max(heard, key=lambda code: heard[code])
        if asked == "auto":
            return best, round(heard[best], 4)
        if best != asked and heard[best] >= DOUBT_ABOVE and heard.get(asked, 0.0) < DOUBT_BELOW:
            self._ctx.warn(
                f"the audio sounds like {best!r} (probability {heard[best]:.2f}), but was transcribed as {asked!r} as "
                "asked; use language 'auto' to have it detected"
            )
        return asked, None

    def transcribe(
        self, language: str, *, word_times: bool, on_window: Callable[[float], None] | None = None
    ) -> Generator[Segment, None, None]:
        """Decode all windows; those that wait are dropped when it is closed.

        Args:
            language: code.
            word_times: whether to take word times from cross-attention.
            on_window: called with the seconds of speech that are done.

        Yields:
            One segment for each window in which somebody speaks, in order; its id is its place.
        """
        decoder = _Decoder(self, language, word_times)
        done, number, doubtful = 0.0, 0, 0
        results = self._ctx.run(decoder.items(self._windows), window=self._batching.window, ahead=1)
        for window, decoded in zip(self._windows, results, strict=True):
            for piece, attempt in decoder.settle(window, decoder.attempt(decoded, decoder.first_temperature)):
                segment = decoder.segment(number, piece, attempt)
                if segment is not None:
                    yield segment
                    number += 1
                    doubtful += bool(segment.flags)
            done += window.span.seconds
            if on_window is not None:
                on_window(done)
        if doubtful:
            self._ctx.warn(
                f"{doubtful} of {number} windows stay doubtful after every attempt; their segments have flags"
            )

    def _encode_and_detect(self, count: int) -> dict[str, float]:
        """Probability of each language: the mean over some windows by length. Their encodings are kept."""
        total = len(self._windows)
        chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
        items = (
            (
                self.whisper.encode_and_detect(window.frames, self._batching.max_items, self._batching.max_cost),
                self.samples(window.span),
                window.frames / FRAMES_PER_SECOND,
            )
            for window in (self._windows[index] for index in chosen)
        )
        sums: dict[str, float] = {}
        weight = 0.0
        for index, (encoded, languages) in zip(chosen, self._ctx.run(items, ahead=count), strict=True):
            window = self._windows[index]
            self._windows[index] = replace(window, encoded=encoded)
            weight += window.span.seconds
            for code, probability in languages.items():
                sums[code] = sums.get(code, 0.0) + probability * window.span.seconds
        return {code: value / weight for code, value in sums.items()}

    def padded_frames(self, seconds: float) -> int:
        """How many frames a window of so many seconds is padded to."""
        bucket = self._batching.bucket_seconds
        padded = math.ceil((seconds + MARGIN_SECONDS) / bucket) * bucket
        return min(MAX_FRAMES, round(padded * FRAMES_PER_SECOND))

    def samples(self, span: Span) -> Floats:
        """The audio of a span."""
        return self._audio[span.start : span.end]


class _Decoder:
    """Decodes windows in one language, and again where that failed."""

    def __init__(self, job: Recognizer, language: str, word_times: bool) -> None:
        self._job = job
        self._ctx = job._ctx
        self._whisper = job.whisper
        options = self._ctx.options
        self._tokenizer = self._whisper.tokenizer(language, options.task)
        self._written = self._whisper.tokenizer(options.written_language(language), options.task)
        self._prompt = prompt_tokens(self._tokenizer, options.prompt, options.hotwords)
        suppress = self._whisper.non_speech_tokens
        if options.suppress_numerals:
            suppress = tuple(sorted({*suppress, *self._whisper.numeral_tokens}))
        self._suppress = suppress
        start = tuple(self._tokenizer.sot_sequence)
        self._align_from = start if word_times else None
        self._logprobs_from = start if options.logprobs else None
        self.first_temperature = options.temperature
        self._beam_size = options.beam_size or FALLBACK_BEAM_SIZE

    def items(self, pending: Sequence[_Window]) -> Iterator[tuple[BatchOperation, Row, float]]:
        """Work items of the first attempt on each window."""
        for number, window in enumerate(pending):
            following = len(pending) - 1 - number
            # The first window's text is waited for.
            alone = number == 0
            yield self._item(window, self._beam_size, self.first_temperature, following, alone=alone)

    def _item(
        self, window: _Window, beam_size: int, temperature: float, following: int = 0, *, alone: bool = False
    ) -> tuple[BatchOperation, Row, float]:
        settings = DecodeSettings(
            window.frames,
            prompt_length=len(self._prompt),
            beam_size=beam_size,
            temperature=temperature,
            suppress=self._suppress,
            encoded=window.encoded is not None,
            align_from=self._align_from,
            logprobs_from=self._logprobs_from,
        )
        batching = self._job._batching
        operation = self._whisper.decode(settings, batching.max_items, batching.max_cost)
        value = window.encoded if window.encoded is not None else self._job.samples(window.span)
        row = Row(value, self._prompt, math.ceil(window.span.seconds * FRAMES_PER_SECOND), following, alone)
        return operation, row, window.frames / FRAMES_PER_SECOND

    def attempt(self, decoded: DecodedTokens, temperature: float) -> _Attempt:
        text = self._tokenizer.decode(list(decoded.tokens)).strip()
        return _Attempt(decoded, text, compression_ratio(text), temperature)

    def settle(self, window: _Window, first: _Attempt) -> Iterator[tuple[_Window, _Attempt]]:
        """Decode again until it is good, and give what is kept: usually the window itself, sometimes its halves."""
        attempts = [first]
        while attempts[-1].flags and not attempts[-1].is_silence:
            step = self._next_attempt(window, len(attempts))
            if step is None:
                break
            again, beam_size, temperature = step
            (decoded,) = self._ctx.run([self._item(again, beam_size, temperature)])
            attempts.append(self.attempt(decoded, temperature))
        best = attempts[-1]
        if best.flags and not best.is_silence:
            unrepetitive = [a for a in attempts if a.compression_ratio <= MAX_COMPRESSION_RATIO]
            best = max(unrepetitive or attempts, key=lambda a: a.decoded.avg_logprob)
        if best.flags == ("truncated",) and window.span.seconds >= 2 * MIN_SPLIT_SECONDS:
            # Not a loop but more text than a decoding may hold: what follows the cap must not be lost.
            for half in self._halves(window):
                (decoded,) = self._ctx.run([self._item(half, self._beam_size, self.first_temperature)])
                yield from self.settle(half, self.attempt(decoded, self.first_temperature))
            return
        yield window, best

    def _next_attempt(self, window: _Window, number: int) -> tuple[_Window, int, float] | None:
        """What to try after ``number`` failed attempts: first beam search on 30 s, then rising temperatures."""
        whole = replace(window, frames=MAX_FRAMES, encoded=None)
        beam_size = max(self._beam_size, FALLBACK_BEAM_SIZE)
        ladder = [(whole, beam_size, 0.0)] if self.first_temperature == 0 else []
        if self.first_temperature == 0 and window.frames == MAX_FRAMES and self._beam_size >= FALLBACK_BEAM_SIZE:
            ladder = []  # that was the first attempt
        steps = round((1.0 - self.first_temperature) / TEMPERATURE_STEP)
        ladder += [(whole, 1, round(self.first_temperature + i * TEMPERATURE_STEP, 2)) for i in range(1, steps + 1)]
        return ladder[number - 1] if number <= len(ladder) else None

    def _halves(self, window: _Window) -> list[_Window]:
        piece = self._job._audio[window.span.start : window.span.end]
        flat = Activity(np.ones(len(piece) // 512 + 1, np.float32), 512)
        halves = windows([Span(0, len(piece))], flat, piece, seconds=len(piece) / SAMPLE_RATE * 0.67)
        start = window.span.start
        return [_Window(Span(start + h.start, start + h.end), self._job.padded_frames(h.seconds)) for h in halves]

    def segment(self, number: int, window: _Window, attempt: _Attempt) -> Segment | None:
        """The attempt as a segment; None when nobody speaks in it."""
        if attempt.is_silence or not attempt.text:
            return None
        words: tuple[Any, ...] = ()
        span, decoded = window.span, attempt.decoded
        start, end = span.start / SAMPLE_RATE, span.end / SAMPLE_RATE
        if decoded.attention is not None:
            audio = self._job._audio[span.start : span.end]
            words = tuple(
                words_of(decoded.attention, decoded.tokens, self._written, audio, offset=start, lead=self._job._lead)
            )
        return Segment(
            id=number,
            start=round(start, 3),
            end=round(end, 3),
            text=attempt.text,
            words=words,
            avg_logprob=round(decoded.avg_logprob, 4),
            compression_ratio=round(attempt.compression_ratio, 3),
            no_speech_prob=round(decoded.no_speech_prob, 4),
            temperature=attempt.temperature,
            flags=attempt.flags,
            seek=round(start * FRAMES_PER_SECOND),
            tokens=decoded.tokens,
            logprobs=token_logprobs(decoded.tokens, decoded.logprobs, self._whisper.token_bytes)
            if self._logprobs_from is not None
            else (),
        )


def compression_ratio(text: str) -> float:
    """Bytes of the text over its bytes under zlib: high when it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def prompt_tokens(tokenizer: Tokenizer, prompt: str | None, hotwords: str | None) -> tuple[int, ...]:
    """Hotwords, then the prompt's end, then the task: at most half of the text context before the task."""
    room = 448 // 2 - 5
    before: list[int] = []
    if hotwords and hotwords.strip():
        before = tokenizer.encode(" " + hotwords.strip())[: room // 2 if prompt else room]
    if prompt and prompt.strip():
        before += tokenizer.encode(" " + prompt.strip())[-(room - len(before)) :]
    start = [tokenizer.sot_prev, *before] if before else []
    return (*start, *tokenizer.sot_sequence, tokenizer.no_timestamps)
