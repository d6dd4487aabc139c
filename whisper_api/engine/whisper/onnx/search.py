"""Whisper's search for the text of one window: beam search, greedy search and sampling, with any decoder.

The beam search is that of CTranslate2 (``src/decoding.cc`` and ``src/models/whisper.cc`` of OpenNMT/CTranslate2) with a
length penalty of 1, so that both give the same text; see :class:`_Beams`. The decoder's cache only grows. Each
hypothesis has a mask of the entries of its own tokens, so no entry is copied when beams are reordered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.whisper.onnx.sampling import TokenPicker, language_probabilities, log_sum_exp

Floats = NDArray[np.float32]
Feed = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]
"""Tokens, positions and visible entries: the arguments of :meth:`DecoderState.feed`."""


class DecoderState(Protocol):
    """Whisper's decoder over one window, with a cache of the keys and values of all fed tokens."""

    @property
    def length(self) -> int:
        """Number of cache entries."""

    def feed(
        self, tokens: NDArray[np.int64], positions: NDArray[np.int64], visible: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Run tokens through the decoder in one call; row ``r`` becomes cache entry ``length + r``.

        Args:
            tokens: int64, shape (rows,).
            positions: int64, shape (rows,): position of each token in its text.
            visible: bool, shape (rows, length + rows): whether a row attends to an entry. A row attends to itself.

        Returns:
            Raw logits: float32, shape (rows, vocabulary), contiguous. The caller may overwrite them.
        """

    @property
    def attention(self) -> NDArray[np.float32]:
        """Cross-attention probabilities of the last feed: float32, shape (alignment heads, rows, positions)."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Special tokens of a model, and tokens that a text must not contain.

    Attributes:
        sot, eot: ``<|startoftranscript|>`` and ``<|endoftext|>``.
        no_speech: ``<|nospeech|>``, in old models ``<|nocaptions|>``.
        suppress: tokens that a text never contains.
        blank: tokens that a text does not begin with: a single space, and the end of text.
        languages: the tokens of the languages; empty in English-only models.
    """

    sot: int
    eot: int
    no_speech: int
    suppress: tuple[int, ...]
    blank: tuple[int, ...]
    languages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The text that a decoding found.

    Attributes:
        tokens: tokens without the end of text.
        score: sum of the log probabilities of the tokens and of the end of text, divided by the number of tokens
            without the end of text.
        no_speech_prob: probability of the no-speech token after ``<|startoftranscript|>``.
        capped: whether the text has the largest allowed number of tokens.
        logprobs: natural logarithm of each token's probability, given the tokens before, among the allowed tokens.
        languages: probability of each of :attr:`TokenRules.languages` after ``<|startoftranscript|>``.
    """

    tokens: tuple[int, ...]
    score: float
    no_speech_prob: float
    capped: bool
    logprobs: tuple[float, ...]
    languages: tuple[float, ...] = ()


def feed_sequence(state: DecoderState, tokens: Sequence[int]) -> Floats:
    """Feed a new text. Each token attends to the text's earlier tokens, and to no older cache entry.

    Args:
        state: the decoder over the window.
        tokens: the text, from its first token.

    Returns:
        Raw logits: float32, shape (tokens, vocabulary).
    """
    return state.feed(*sequence_feed(state.length, tokens))


def sequence_feed(length: int, tokens: Sequence[int]) -> Feed:
    """The arguments of :meth:`DecoderState.feed` for a new text.

    Args:
        length: number of cache entries before the feed.
        tokens: the text, from its first token.
    """
    count = len(tokens)
    visible = np.zeros((count, length + count), np.bool_)
    visible[:, length:] = np.tri(count, dtype=np.bool_)
    return np.array(tokens, np.int64), np.arange(count, dtype=np.int64), visible


class Decoding:
    """The decoding of one window in single steps, so that a thread can do other work between two steps.

    Args:
        state: the decoder over the window. The decoding does not attend to earlier entries of its cache.
        prompt: all tokens before the text.
        rules: the special tokens and the forbidden tokens.
        beam_size: number of beams at temperature 0; 1 is greedy search.
        temperature: 0 searches for the most probable text; a higher temperature samples texts.
        best_of: number of sampled texts; the text with the best score is kept.
        max_new_tokens: largest number of tokens in the text, at least 1.
        rng: the random generator of sampling.

    Raises:
        ValueError: the prompt does not contain ``<|startoftranscript|>``.
    """

    def __init__(
        self,
        state: DecoderState,
        prompt: Sequence[int],
        *,
        rules: TokenRules,
        beam_size: int,
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
        self._languages: tuple[float, ...] = ()
        self._search: _Beams | _Samples
        if temperature == 0 and beam_size > 1:
            self._search = _Beams(rules.eot, max_new_tokens, beam_size)
        else:
            count = best_of if temperature > 0 else 1
            self._search = _Samples(rules.eot, max_new_tokens, count, temperature, rng)
        # The tokens of the next feed, all at the same position, and the row of each token's predecessor in the last
        # feed.
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._position = len(self._prompt)
        # The cache entries that each row of the last feed attended to; None before the prompt was fed.
        self._visible: NDArray[np.bool_] | None = None
        # The same for the feed that next_feed() returned last.
        self._feeding = np.zeros((0, 0), np.bool_)

    def next_feed(self) -> Feed:
        """The arguments of the next :meth:`DecoderState.feed`. The decoding must not be finished."""
        if self._visible is None:
            return sequence_feed(self._state.length, self._prompt)
        rows, length = len(self._tokens), self._visible.shape[1]
        visible = np.zeros((rows, length + rows), np.bool_)
        visible[:, :length] = self._visible[self._parents]
        np.fill_diagonal(visible[:, length:], True)
        self._feeding = visible
        return np.array(self._tokens, np.int64), np.full(rows, self._position, np.int64), visible

    def accept(self, logits: Floats) -> None:
        """Continue the search with the logits of the last feed.

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
        score = _score((tokens, totals))
        return Hypothesis(tokens, score, self._no_speech_prob, capped, tuple(logprobs), self._languages)

    @property
    def finished(self) -> bool:
        """Whether the search has ended."""
        return self._visible is not None and not self._tokens

    def _after_prompt(self, logits: Floats) -> Floats:
        before = self._state.length - len(self._prompt)
        self._visible = (np.arange(before + len(self._prompt)) >= before)[None]
        start = logits[self._sot_index]
        normalizer = log_sum_exp(start, float(start.max()), np.empty_like(start))
        self._no_speech_prob = math.exp(float(start[self._rules.no_speech]) - normalizer)
        if self._rules.languages:
            self._languages = tuple(language_probabilities(start, self._rules.languages).tolist())
        first = logits[-1:]
        first[:, list(self._rules.blank)] = -np.inf
        return first


# Tokens of a text, and the cumulative log probability after each token, including the end of text.
_Text = tuple[tuple[int, ...], tuple[float, ...]]


class _Beams:
    """CTranslate2's beam search.

    Each step takes twice as many candidates as beams. A candidate of the best half with an end of text is finished, and
    the best unfinished candidate of the other half replaces it. The search ends with as many finished texts
    as beams, or at the last step, where all candidates of the best half count as finished.
    """

    def __init__(self, eot: int, max_new_tokens: int, beam_size: int) -> None:
        self._eot = eot
        self._steps_left = max_new_tokens
        self._beam_size = beam_size
        self._texts: list[_Text] = [((), ())]
        self._scores: NDArray[np.float64] = np.zeros(1)
        self._picker: TokenPicker | None = None
        self.finished: list[_Text] = []

    def step(self, logits: Floats) -> tuple[list[int], list[int]]:
        """Continue the beams.

        Args:
            logits: float32, shape (beams, vocabulary): logits after each beam.

        Returns:
            The parent row and the next token of each new beam; both are empty at the end of the search.
        """
        self._picker = self._picker or TokenPicker(logits.shape[1])
        rows, tokens, scores = self._picker.best(logits, self._scores, 2 * self._beam_size)
        self._steps_left -= 1
        last = self._steps_left == 0
        replacements = (index for index in range(self._beam_size, len(tokens)) if tokens[index] != self._eot)
        kept = []
        for index in range(min(self._beam_size, len(tokens))):
            ends = tokens[index] == self._eot
            if ends or last:
                self.finished.append(self._extended(rows[index], () if ends else (tokens[index],), scores[index]))
                kept.append(next(replacements, index))
            else:
                kept.append(index)
        if last or len(self.finished) >= self._beam_size:
            return [], []
        self._texts = [self._extended(rows[index], (tokens[index],), scores[index]) for index in kept]
        self._scores = scores[kept]
        return [rows[index] for index in kept], [tokens[index] for index in kept]

    def _extended(self, row: int, tokens: tuple[int, ...], score: float) -> _Text:
        text, totals = self._texts[row]
        return text + tokens, (*totals, float(score))


class _Samples:
    """Independent texts: several sampled texts, or the single text of greedy search."""

    def __init__(self, eot: int, max_new_tokens: int, count: int, temperature: float, rng: np.random.Generator) -> None:
        self._eot = eot
        self._steps_left = max_new_tokens
        self._count = count
        self._temperature = temperature
        self._rng = rng
        self._unfinished: list[_Text] = [((), ())]
        self._picker: TokenPicker | None = None
        self.finished: list[_Text] = []

    def step(self, logits: Floats) -> tuple[list[int], list[int]]:
        """Continue the texts; arguments and return values are those of :meth:`_Beams.step`."""
        self._picker = self._picker or TokenPicker(logits.shape[1])
        self._steps_left -= 1
        unfinished: list[_Text] = []
        parents = []
        for row, (text, totals) in enumerate(self._unfinished):
            tokens, log_probabilities = self._picker.sample(logits[row], self._temperature, self._count, self._rng)
            for token, log_probability in zip(tokens, log_probabilities, strict=True):
                extended = (
                    text if token == self._eot else (*text, token),
                    (*totals, (totals[-1] if totals else 0.0) + log_probability),
                )
                if token == self._eot or self._steps_left == 0:
                    self.finished.append(extended)
                else:
                    unfinished.append(extended)
                    parents.append(row)
        self._unfinished = unfinished
        self._count = 1  # only the first step branches
        return parents, [text[-1] for text, _ in unfinished]


def _score(text: _Text) -> float:
    tokens, totals = text
    return totals[-1] / len(tokens) if tokens else -math.inf
