"""Whisper's decoding over any decoder: beam search, greedy search and sampling for one window.

Beam search is CTranslate2's (``src/decoding.cc`` and ``src/models/whisper.cc`` of OpenNMT/CTranslate2), with a length
penalty of 1, so that both give the same text: see :class:`_Beams`. The decoder's cache is only ever appended to. A
hypothesis knows which entries it descends from and sees no others, so nothing is copied when beams change places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.whisper.onnx.sampling import TokenPicker, log_sum_exp

__all__ = ["DecoderState", "Decoding", "Feed", "Hypothesis", "TokenRules", "feed_sequence"]

Floats = NDArray[np.float32]
Feed = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]
"""Tokens, positions and visible entries: the arguments of :meth:`DecoderState.feed`."""


class DecoderState(Protocol):
    """Whisper's decoder over one window, with the keys and values of all tokens that it has been fed."""

    @property
    def length(self) -> int:
        """Number of cache entries."""
        ...

    def feed(
        self, tokens: NDArray[np.int64], positions: NDArray[np.int64], visible: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Run tokens through the decoder at once; row r becomes cache entry ``length + r``.

        Args:
            tokens: int64, shape (rows,).
            positions: int64, shape (rows,): where in the text each token stands.
            visible: bool, shape (rows, length + rows): whether a row attends to an entry, itself included.

        Returns:
            Raw logits: float32, shape (rows, vocabulary), contiguous. The caller may overwrite them.
        """
        ...

    @property
    def attention(self) -> NDArray[np.float32]:
        """Of the last feed: cross-attention probabilities, float32, shape (alignment heads, rows, positions)."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a model's tokens mean for decoding.

    Attributes:
        sot, eot: ``<|startoftranscript|>`` and ``<|endoftext|>``.
        no_speech: ``<|nospeech|>``, in old models ``<|nocaptions|>``.
        suppress: tokens that are never taken.
        blank: tokens that are not taken first: a space alone, and the end of text.
    """

    sot: int
    eot: int
    no_speech: int
    suppress: tuple[int, ...]
    blank: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a decoding gave.

    Attributes:
        tokens: without the end of text.
        score: the sum of the tokens' log probabilities, the end of text's included, divided by the number of tokens,
            the end of text not counted.
        no_speech_prob: probability of the no-speech token where the transcript starts.
        capped: whether it has as many tokens as were allowed.
        logprobs: natural logarithm of each token's probability, given those before it, among the tokens that were
            allowed there.
    """

    tokens: tuple[int, ...]
    score: float
    no_speech_prob: float
    capped: bool
    logprobs: tuple[float, ...]


def feed_sequence(state: DecoderState, tokens: Sequence[int]) -> Floats:
    """Feed a text from its first token on, each token attending to those before it and to no older cache entry.

    Returns:
        Raw logits: float32, shape (tokens, vocabulary).
    """
    return state.feed(*sequence_feed(state.length, tokens))


def sequence_feed(length: int, tokens: Sequence[int]) -> Feed:
    """What :func:`feed_sequence` feeds to a state whose cache has so many entries."""
    count = len(tokens)
    visible = np.zeros((count, length + count), np.bool_)
    visible[:, length:] = np.tri(count, dtype=np.bool_)
    return np.array(tokens, np.int64), np.arange(count, dtype=np.int64), visible


class Decoding:
    """The decoding of one window, a step at a time, so that a thread can do other work in between.

    Args:
        state: the decoder over the window. Entries that are in its cache already are not attended to.
        prompt: tokens up to and including the last one before the text.
        rules: which tokens may be taken.
        beam_size: hypotheses in beam search; 1 is greedy search. Only at temperature 0.
        patience: beam search ends when it has ``beam_size * patience`` finished hypotheses.
        temperature: 0 searches for the most probable text; above, texts are sampled.
        best_of: texts to sample, of which the one with the best score is kept.
        max_new_tokens: the most tokens to give, at least 1.
        rng: for sampling.

    Raises:
        ValueError: the prompt does not hold ``<|startoftranscript|>``.
    """

    def __init__(
        self,
        state: DecoderState,
        prompt: Sequence[int],
        *,
        rules: TokenRules,
        beam_size: int,
        patience: float = 1.0,
        temperature: float,
        best_of: int,
        max_new_tokens: int,
        rng: np.random.Generator,
    ) -> None:
        self._state = state
        self._prompt = tuple(prompt)
        self._sot_index = self._prompt.index(rules.sot)
        self._rules = rules
        self._suppress = np.array(sorted(set(rules.suppress)), np.int64)
        self._max_new_tokens = max_new_tokens
        self._no_speech_prob = math.nan
        self._search: _Beams | _Samples
        if temperature == 0 and beam_size > 1:
            self._search = _Beams(rules.eot, max_new_tokens, beam_size, patience)
        else:
            count = best_of if temperature > 0 else 1
            self._search = _Samples(rules.eot, max_new_tokens, count, temperature, rng)
        # What is fed next: tokens, all at the same position, and for each the row of the last feed it comes after.
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._position = len(self._prompt)
        # Which cache entries each row of the last feed attended to; none before the prompt is fed.
        self._visible: NDArray[np.bool_] | None = None
        # The same for the feed that was given last.
        self._feeding = np.zeros((0, 0), np.bool_)

    def advance(self, steps: int) -> bool:
        """Run at most so many steps of the decoder; the prompt is one.

        Returns:
            Whether the decoding is finished.
        """
        for _ in range(steps):
            if self.finished:
                break
            self.take(self._state.feed(*self.next_feed()))
        return self.finished

    def next_feed(self) -> Feed:
        """What the state is to be fed next. The decoding must not be finished."""
        if self._visible is None:
            return sequence_feed(self._state.length, self._prompt)
        rows, length = len(self._tokens), self._visible.shape[1]
        visible = np.zeros((rows, length + rows), np.bool_)
        visible[:, :length] = self._visible[self._parents]
        np.fill_diagonal(visible[:, length:], True)
        self._feeding = visible
        return np.array(self._tokens, np.int64), np.full(rows, self._position, np.int64), visible

    def take(self, logits: Floats) -> None:
        """Go on from what the last feed gave.

        Args:
            logits: float32, shape (rows, vocabulary); overwritten.
        """
        if self._visible is None:
            logits = self._after_prompt(logits)
        else:
            self._visible = self._feeding
            self._position += 1
        logits[:, self._suppress] = -np.inf
        self._parents, self._tokens = self._search.step(logits)

    def result(self) -> Hypothesis:
        """The best text.

        Raises:
            RuntimeError: the decoding is not finished.
        """
        if not self.finished:
            raise RuntimeError("the decoding is not finished")
        tokens, totals = max(self._search.finished, key=_score)
        logprobs = np.diff(totals[: len(tokens)], prepend=0.0).tolist()
        capped = len(tokens) >= self._max_new_tokens
        return Hypothesis(tokens, _score((tokens, totals)), self._no_speech_prob, capped, tuple(logprobs))

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to feed."""
        return self._visible is not None and not self._tokens

    def _after_prompt(self, logits: Floats) -> Floats:
        before = self._state.length - len(self._prompt)
        self._visible = (np.arange(before + len(self._prompt)) >= before)[None]
        start = logits[self._sot_index]
        normalizer = log_sum_exp(start, float(start.max()), np.empty_like(start))
        self._no_speech_prob = math.exp(float(start[self._rules.no_speech]) - normalizer)
        first = logits[-1:]
        first[:, list(self._rules.blank)] = -np.inf
        return first


# Tokens, and after each of them, the end of text included, the sum of the log probabilities up to there.
_Text = tuple[tuple[int, ...], tuple[float, ...]]


class _Beams:
    """CTranslate2's beam search.

    Each step takes twice as many candidates as there are beams. Of the best half, those that end are set aside as
    finished, and the best of the other half that go on take their places. The search ends with
    ``beam_size * patience`` finished texts, or at the last step, where all of the best half count as finished.
    """

    def __init__(self, eot: int, max_new_tokens: int, beam_size: int, patience: float) -> None:
        self._eot = eot
        self._steps_left = max_new_tokens
        self._beam_size = beam_size
        self._enough = math.floor(beam_size * patience + 0.5)
        self._texts: list[_Text] = [((), ())]
        self._scores: NDArray[np.float64] = np.zeros(1)
        self._picker: TokenPicker | None = None
        self.finished: list[_Text] = []

    def step(self, logits: Floats) -> tuple[list[int], list[int]]:
        """Take the logits after each beam; give rows and the tokens to feed after them, none when all is done."""
        self._picker = self._picker or TokenPicker(logits.shape[1])
        rows, tokens, scores = self._picker.best(logits, self._scores, 2 * self._beam_size)
        self._steps_left -= 1
        last = self._steps_left == 0
        others = (place for place in range(self._beam_size, len(tokens)) if tokens[place] != self._eot)
        kept = []
        for place in range(min(self._beam_size, len(tokens))):
            ends = tokens[place] == self._eot
            if ends or last:
                self.finished.append(self._grown(rows[place], () if ends else (tokens[place],), scores[place]))
                kept.append(next(others, place))
            else:
                kept.append(place)
        if last or len(self.finished) >= self._enough:
            return [], []
        self._texts = [self._grown(rows[place], (tokens[place],), scores[place]) for place in kept]
        self._scores = scores[kept]
        return [rows[place] for place in kept], [tokens[place] for place in kept]

    def _grown(self, row: int, tokens: tuple[int, ...], score: float) -> _Text:
        text, totals = self._texts[row]
        return text + tokens, (*totals, float(score))


class _Samples:
    """Texts that grow independently of each other: several random ones, or the one of greedy search."""

    def __init__(self, eot: int, max_new_tokens: int, count: int, temperature: float, rng: np.random.Generator) -> None:
        self._eot = eot
        self._steps_left = max_new_tokens
        self._count = count
        self._temperature = temperature
        self._rng = rng
        self._growing: list[_Text] = [((), ())]
        self._picker: TokenPicker | None = None
        self.finished: list[_Text] = []

    def step(self, logits: Floats) -> tuple[list[int], list[int]]:
        """Take the logits after each text; give rows and the tokens to feed after them, none when all is done."""
        self._picker = self._picker or TokenPicker(logits.shape[1])
        self._steps_left -= 1
        growing: list[_Text] = []
        parents = []
        for row, (text, totals) in enumerate(self._growing):
            tokens, log_probabilities = self._picker.sample(logits[row], self._temperature, self._count, self._rng)
            for token, log_probability in zip(tokens, log_probabilities, strict=True):
                grown = (
                    text if token == self._eot else (*text, token),
                    (*totals, (totals[-1] if totals else 0.0) + log_probability),
                )
                if token == self._eot or self._steps_left == 0:
                    self.finished.append(grown)
                else:
                    growing.append(grown)
                    parents.append(row)
        self._growing = growing
        self._count = 1  # only the first step branches
        return parents, [text[-1] for text, _ in growing]


def _score(text: _Text) -> float:
    tokens, totals = text
    return totals[-1] / len(tokens) if tokens else -math.inf
