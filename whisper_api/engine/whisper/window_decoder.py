"""Decodes one window of speech at a time into text, and retries it until its text is good."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.track import Samples
from whisper_api.engine.context import JobContext
from whisper_api.engine.invented import InventedText
from whisper_api.engine.vad import WINDOW_SECONDS, Span, cut_at_pauses
from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, MAX_FRAMES, DecodedTokens, DecodeSettings, Row, Whisper
from whisper_api.engine.whisper.prompt import LOGPROB_MARGIN, Prompts, copied_runs, has_term, is_heard, may_be_leaked
from whisper_api.engine.whisper.resemblance import plain_words
from whisper_api.engine.whisper.tokens import token_logprobs
from whisper_api.engine.whisper.window import (
    MAX_COMPRESSION_RATIO,
    SPARSE_PIECE_SECONDS,
    SPARSE_TOKENS,
    Attempt,
    Batching,
    Window,
    compression_ratio,
)
from whisper_api.engine.whisper.word_times import words_of
from whisper_api.engine.worker.fair_queue import BatchOperation
from whisper_api.schema import SAMPLE_RATE, Segment, TokenLogprob

# A decoding that failed is retried at the temperatures of OpenAI's Whisper.
TEMPERATURE_STEP = 0.2
FALLBACK_BEAM_SIZE = 5

# A window that reaches the token cap without repeating itself is split in two; its halves are at least this long.
MIN_SPLIT_SECONDS = 4.0

# A window whose sound repeats itself, and in which somebody speaks for at least this part of it, is cut after whole
# periods of together so many seconds: too short for the decoder to get into a loop.
LOOP_VOICED = 0.5
LOOP_PIECE_SECONDS = 2.0

Floats = NDArray[np.float32]


class WindowDecoder:
    """Decodes windows in one language, and retries failed ones.

    Args:
        ctx: the job.
        whisper: the leased model.
        audio: float32, shape (samples,), mono, 16 kHz.
        batching: the size of batches on this device.
        language: code of the spoken language.
        lead: seconds by which the model's cross-attention runs ahead of the voice; None for no word times.
        invented: judges invented text; None to keep it.
        prompted: whether to give the decoder the job's prompt and hotwords.
        only_numbers: whether only windows with digits or symbols get word times.

    Attributes:
        untimed: number of segments whose words should have times, and have none because the model gives no attention.
    """

    def __init__(
        self,
        ctx: JobContext,
        whisper: Whisper,
        audio: Floats,
        batching: Batching,
        language: str,
        lead: float | None,
        invented: InventedText | None = None,
        *,
        prompted: bool = True,
        only_numbers: bool = False,
    ) -> None:
        self._ctx = ctx
        self._whisper = whisper
        self._audio = audio
        self._batching = batching
        self._lead = lead
        self.untimed = 0
        self._invented = invented
        options = self._ctx.options
        self._tokenizer = self._whisper.tokenizer(language, options.task)
        self._written = self._whisper.tokenizer(options.written_language(language), options.task)
        self._prompts = Prompts(self._tokenizer)
        if prompted:
            self._prompts = Prompts(self._tokenizer, options.prompt, options.hotwords, options.vocabulary or ())
        if warning := self._prompts.vocabulary.warning:
            ctx.warn(warning)
        suppress = self._whisper.non_speech_tokens
        if options.suppress_numerals:
            suppress = tuple(sorted({*suppress, *self._whisper.numeral_tokens}))
        self._suppress = suppress
        start = tuple(self._tokenizer.sot_sequence)
        self._align_from = start if lead is not None else None
        self._align_tokens = whisper.unspelled_tokens if only_numbers else None
        self._logprobs_from = start if options.logprobs or self._prompts.vocabulary.terms else None
        self._keeps_logprobs = options.logprobs
        # Only windows with a prompt or a vocabulary are decoded again although their text is good.
        self._may_repeat = self._prompts.job != self._prompts.bare or bool(self._prompts.vocabulary.terms)
        self.first_temperature = options.temperature
        self._beam_size = options.beam_size

    def first_item(self, window: Window, following: int, *, alone: bool) -> tuple[BatchOperation, Row, float]:
        """The work item of the first attempt on a window.

        Args:
            window: the window.
            following: number of later windows of the same recording.
            alone: whether to decode the window in its own batch.
        """
        return self._item(window, self._prompts.job, self._beam_size, self.first_temperature, following, alone=alone)

    def _item(
        self,
        window: Window,
        prompt: tuple[int, ...],
        beam_size: int,
        temperature: float,
        following: int = 0,
        *,
        alone: bool = False,
        again: bool = False,
    ) -> tuple[BatchOperation, Row, float]:
        settings = DecodeSettings(
            window.frames,
            prompt_length=len(prompt),
            beam_size=beam_size,
            temperature=temperature,
            suppress=self._suppress,
            encoded=window.encoded is not None,
            align_from=self._align_from,
            align_tokens=self._align_tokens,
            logprobs_from=self._logprobs_from,
            keep_encoded=self._whisper.keeps_encoded and (again or self._may_repeat),
        )
        operation = self._whisper.decode(settings, self._batching.max_items, self._batching.max_cost)
        value = window.encoded if window.encoded is not None else self._audio[window.span.start : window.span.end]
        row = Row(value, prompt, math.ceil(window.span.seconds * FRAMES_PER_SECOND), following, alone)
        return operation, row, window.frames / FRAMES_PER_SECOND

    def attempt(self, decoded: DecodedTokens, temperature: float) -> Attempt:
        text = self._tokenizer.decode(list(decoded.tokens)).strip()
        return Attempt(decoded, text, compression_ratio(text), temperature)

    def settle(self, window: Window, first: Attempt) -> Iterator[tuple[Window, Attempt]]:
        """Retry until an attempt is good. Yields the window with its best attempt, or its pieces with theirs.

        Text that the prompt brought, and not the audio, is replaced by what the window has without a prompt.
        """
        if first.flags and self._is_hopeless(window, first):
            yield window, first
            return
        for piece, attempt in self._settled(window, first, self._prompts.job):
            for each, kept in self._without_leak(piece, attempt):
                yield from self._with_terms(each, kept)

    def _with_terms(self, window: Window, draft: Attempt) -> Iterator[tuple[Window, Attempt]]:
        """Decode again with the terms that sound like the text. Yields that text if it has one of them."""
        terms = [] if draft.is_silence else self._prompts.terms_like(draft.decoded)
        if terms:
            prompt = self._prompts.with_terms(terms, alone=draft.leaked)
            again = [
                (piece, replace(each, leaked=draft.leaked))
                for piece, each in self._decoded_again([self._as_encoded(window, draft)], prompt)
            ]
            text = " ".join(each.text for _, each in again)
            runs = copied_runs(text, [*plain_words(" ".join(terms)), "", *self._prompts.words])
            no_speech = max(each.decoded.no_speech_prob for _, each in again)
            if (
                any(has_term(text, term) for term in terms)
                and all(set(each.flags) <= set(draft.flags) for _, each in again)
                and min(each.decoded.avg_logprob for _, each in again) >= draft.decoded.avg_logprob - LOGPROB_MARGIN
                and (is_heard(runs, draft.text) or not may_be_leaked(text, runs, no_speech))
            ):
                yield from again
                return
        yield window, draft

    def _as_encoded(self, window: Window, attempt: Attempt) -> Window:
        """The window with the encoder's output of an attempt that was made on the window as it is padded."""
        encoded = attempt.decoded.encoded
        same = encoded is not None and 2 * len(encoded) == window.frames
        return replace(window, encoded=encoded) if same else window

    def _without_leak(self, window: Window, attempt: Attempt) -> Iterator[tuple[Window, Attempt]]:
        runs = copied_runs(attempt.text, self._prompts.words) if self._prompts.job != self._prompts.bare else []
        if may_be_leaked(attempt.text, runs, attempt.decoded.no_speech_prob):
            plain = list(self._decoded_again([self._as_encoded(window, attempt)], self._prompts.bare))
            if not is_heard(runs, " ".join(each.text for _, each in plain if not each.is_silence)):
                # Text that counts as silence would not have come out.
                yield from ((piece, replace(each, leaked=not attempt.is_silence)) for piece, each in plain)
                return
        yield window, attempt

    def _settled(self, window: Window, first: Attempt, prompt: tuple[int, ...]) -> Iterator[tuple[Window, Attempt]]:
        attempts = [first]
        # All further attempts are on the same padded window.
        encoded = first.decoded.encoded if window.frames == MAX_FRAMES else None
        while attempts[-1].flags and not attempts[-1].is_silence:
            step = self._next_attempt(window, len(attempts))
            if step is None:
                break
            again, beam_size, temperature = step
            again = replace(again, encoded=encoded)
            (decoded,) = self._ctx.run([self._item(again, prompt, beam_size, temperature, again=True)])
            encoded = decoded.encoded
            attempts.append(self.attempt(decoded, temperature))
        best = attempts[-1]
        if best.flags and not best.is_silence:
            unrepetitive = [a for a in attempts if a.compression_ratio <= MAX_COMPRESSION_RATIO]
            best = max(unrepetitive or attempts, key=lambda a: a.decoded.avg_logprob)
        if "repetitive" in first.flags and best.flags and (loop := self._loop(window, prompt)):
            yield from loop
            return
        if best.flags == ("truncated",) and window.span.seconds >= 2 * MIN_SPLIT_SECONDS:
            # The window has more text than one decoding may hold. Decode its halves, so that no text is lost.
            yield from self._decoded_again(self._pieces(window, window.span.seconds * 0.67), prompt)
            return
        if window.is_sparse(best):
            # Whisper sometimes ends the text of a window early. Shorter pieces give the missing text.
            pieces = list(self._decoded_again(self._pieces(window, SPARSE_PIECE_SECONDS), prompt))
            tokens = sum(len(each.decoded.tokens) for _, each in pieces if not each.flags)
            invented = any("repetitive" in each.flags for _, each in pieces)
            if not invented and tokens >= max(2 * len(best.decoded.tokens), SPARSE_TOKENS * window.voiced / 2):
                yield from pieces
                return
            best = replace(best, sparse=True)
        yield window, best

    def _loop(self, window: Window, prompt: tuple[int, ...]) -> list[tuple[Window, Attempt]]:
        """The pieces of a window whose sound repeats itself, such as an announcement in a loop; empty for others.

        The decoder takes the same words again and again for a failure of its own. Each piece alone shows whether the
        words are spoken.
        """
        if window.voiced < LOOP_VOICED * window.span.seconds:
            return []
        period = repetition_period(self._audio[window.span.start : window.span.end])
        if period is None:
            return []
        size = period * max(1, round(LOOP_PIECE_SECONDS * SAMPLE_RATE / period))
        spans = [
            Span(start, min(start + size, window.span.end)) for start in range(window.span.start, window.span.end, size)
        ]
        found = list(
            self._attempts([Window(span, self._batching.padded_frames(span.seconds)) for span in spans], prompt)
        )
        whole = [attempt for piece, attempt in found if piece.span.end - piece.span.start == size]
        if not whole or any(attempt.is_silence or attempt.flags for attempt in whole):
            return []
        # The last piece may be a part of a period, in which other words are heard.
        said = set(plain_words(" ".join(attempt.text for attempt in whole)))
        return [(piece, attempt) for piece, attempt in found if said.issuperset(plain_words(attempt.text))]

    def _is_hopeless(self, window: Window, attempt: Attempt) -> bool:
        start, end, decoded = window.span.start / SAMPLE_RATE, window.span.end / SAMPLE_RATE, attempt.decoded
        return self._invented is not None and self._invented.is_hopeless(
            start, end, decoded.no_speech_prob, decoded.avg_logprob
        )

    def _decoded_again(self, pieces: Sequence[Window], prompt: tuple[int, ...]) -> Iterator[tuple[Window, Attempt]]:
        for piece in pieces:
            (decoded,) = self._ctx.run([self._item(piece, prompt, self._beam_size, self.first_temperature)])
            yield from self._settled(piece, self.attempt(decoded, self.first_temperature), prompt)

    def once(self, spans: Sequence[Span], seconds: float = WINDOW_SECONDS) -> Iterator[tuple[Window, Attempt]]:
        """Decode stretches once. Those of more than so many seconds are cut at their pauses into pieces."""
        stretches = [Window(span, self._batching.padded_frames(span.seconds)) for span in spans]
        pieces = [piece for stretch in stretches for piece in self._pieces(stretch, seconds)]
        yield from self._attempts(pieces, self._prompts.job)

    def _attempts(self, pieces: Sequence[Window], prompt: tuple[int, ...]) -> Iterator[tuple[Window, Attempt]]:
        """The first attempt on each window."""
        items = (self._item(piece, prompt, self._beam_size, self.first_temperature) for piece in pieces)
        results = self._ctx.run(items, window=self._batching.window)
        for piece, decoded in zip(pieces, results, strict=True):
            yield piece, self.attempt(decoded, self.first_temperature)

    def _next_attempt(self, window: Window, number: int) -> tuple[Window, int, float] | None:
        """The next try after ``number`` failed attempts: beam search on 30 s, then rising temperatures."""
        whole = replace(window, frames=MAX_FRAMES, encoded=None)
        beam_size = max(self._beam_size, FALLBACK_BEAM_SIZE)
        ladder = [(whole, beam_size, 0.0)] if self.first_temperature == 0 else []
        if self.first_temperature == 0 and window.frames == MAX_FRAMES and self._beam_size >= FALLBACK_BEAM_SIZE:
            ladder = []  # that was the first attempt
        steps = round((1.0 - self.first_temperature) / TEMPERATURE_STEP)
        ladder += [(whole, 1, round(self.first_temperature + i * TEMPERATURE_STEP, 2)) for i in range(1, steps + 1)]
        return ladder[number - 1] if number <= len(ladder) else None

    def _pieces(self, window: Window, seconds: float) -> list[Window]:
        """Cut a window at its pauses into pieces of at most so many seconds."""
        pieces = cut_at_pauses(window.span, self._audio, seconds)
        return [Window(piece, self._batching.padded_frames(piece.seconds)) for piece in pieces]

    def segment(self, number: int, window: Window, attempt: Attempt) -> Segment | None:
        """The attempt as a segment; None without speech."""
        if attempt.is_silence or not attempt.text:
            return None
        words: tuple[Any, ...] = ()
        span, decoded = window.span, attempt.decoded
        start, end = span.start / SAMPLE_RATE, span.end / SAMPLE_RATE
        if decoded.attention is not None and self._lead is not None:
            audio = self._audio[span.start : span.end]
            words = tuple(
                words_of(decoded.attention, decoded.tokens, self._written, audio, offset=start, lead=self._lead)
            )
        elif self._lead is not None and decoded.tokens and self._align_tokens is None:
            self.untimed += 1
        logprobs: tuple[TokenLogprob, ...] = ()
        if decoded.logprobs and self._keeps_logprobs:
            logprobs = token_logprobs(decoded.tokens, decoded.logprobs, self._whisper.token_bytes)
        elif self._keeps_logprobs and decoded.tokens:
            self._ctx.warn("some text has no log probabilities, because of an error, which is in the log")
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
            logprobs=logprobs,
        )


# Shorter periods are tones.
SHORTEST_SECONDS = 0.3
# A sound heard less often is no loop.
LEAST_TIMES = 3
# Correlation of the sound with itself, one period later. A loop has 1; through a codec or a room, less. In the shared
# recordings of speech no window has more than 0.4.
LEAST_CORRELATION = 0.8


def repetition_period(audio: Samples) -> int | None:
    """The period with which the sound repeats itself from the beginning to the end.

    Args:
        audio: float32, shape (samples,), mono, 16 kHz.

    Returns:
        Samples; None for sound that does not repeat itself exactly, as speech never does.
    """
    count = len(audio)
    first, last = round(SHORTEST_SECONDS * SAMPLE_RATE), count // LEAST_TIMES
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    if first >= last or not energy[-1]:
        return None
    spectrum = np.fft.rfft(audio, 2 * count)
    products = np.fft.irfft(np.square(np.abs(spectrum)))[first : last + 1]
    lags = np.arange(first, last + 1)
    # The energies of the two parts that are compared: all but the last period, and all but the first.
    norms = np.sqrt(energy[count - lags] * (energy[-1] - energy[lags]))
    correlation = products / np.maximum(norms, 1e-9 * energy[-1])
    best = float(correlation.max())
    if best < LEAST_CORRELATION:
        return None
    # A multiple of the period correlates as well, so the first peak counts.
    return first + int(np.argmax(correlation >= best - 0.01 * best))
