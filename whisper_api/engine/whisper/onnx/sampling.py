"""Picks tokens from a decoder's logits: the best ones, or random ones.

This runs between two steps of the decoder, on one thread, over some fifty thousand logits a row, so nothing here sorts
or copies a whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenPicker", "language_probabilities", "log_sum_exp"]

# The vocabulary is searched in so many groups of tokens. The best tokens are in the groups with the highest maxima, so
# a partial sort sees this many maxima and the few tokens behind them, and not the vocabulary.
GROUPS = 512

Floats = NDArray[np.float32]


def log_sum_exp(row: Floats, peak: float, scratch: Floats) -> float:
    """Logarithm of the sum of exponentials: what to take from a logit to get its log probability.

    Args:
        row: float32, shape (tokens,); tokens at minus infinity do not count.
        peak: the row's maximum.
        scratch: float32, shape (tokens,): overwritten with the exponentials of ``row - peak``.
    """
    np.subtract(row, np.float32(peak), out=scratch)
    np.exp(scratch, out=scratch)
    return peak + float(np.log(np.add.reduce(scratch)))


def language_probabilities(logits: Floats, token_ids: Sequence[int]) -> NDArray[np.float64]:
    """How probable each language is, from the logits that follow ``<|startoftranscript|>``.

    Args:
        logits: float32, shape (vocabulary,).
        token_ids: the languages' tokens.

    Returns:
        float64, shape (languages,), in the order of token_ids: a softmax over these tokens alone.
    """
    chosen = logits[np.asarray(token_ids, np.int64)].astype(np.float64)
    weights = np.exp(chosen - chosen.max())
    return np.asarray(weights / weights.sum(), np.float64)


class TokenPicker:
    """Picks tokens from rows of logits. It keeps its work space, so it serves one decoding at a time.

    Args:
        vocabulary: number of tokens.
    """

    def __init__(self, vocabulary: int) -> None:
        self._groups = min(GROUPS, vocabulary)
        # Token t is in group t % groups. The last tokens fill only some of the groups.
        self._full = vocabulary // self._groups * self._groups
        self._members = np.arange(0, vocabulary, self._groups)
        self._scratch = np.empty(vocabulary, np.float32)

    def best(
        self, logits: Floats, scores: NDArray[np.float64], count: int
    ) -> tuple[list[int], list[int], NDArray[np.float64]]:
        """The best continuations of several hypotheses.

        Args:
            logits: float32, shape (rows, vocabulary): of each hypothesis; tokens at minus infinity are not taken.
            scores: float64, shape (rows,): each hypothesis's log probability so far.
            count: how many to give, over all rows.

        Returns:
            Rows, tokens and scores with the token's log probability added, the best first.
        """
        vocabulary = logits.shape[1]
        maxima = self._group_maxima(logits)
        normalizers = [
            log_sum_exp(row, float(peak), self._scratch) for row, peak in zip(logits, maxima.max(axis=1), strict=True)
        ]
        offsets = scores - normalizers
        flat = (maxima + offsets[:, None]).ravel()
        row, group = np.divmod(_highest(flat, count), self._groups)
        tokens = group[:, None] + self._members
        beyond = tokens >= vocabulary
        tokens[beyond] = 0
        totals = logits[row[:, None], tokens] + offsets[row, None]
        totals[beyond] = -np.inf
        totals = totals.ravel()
        chosen = _highest(totals, count)
        chosen = chosen[np.argsort(-totals[chosen], kind="stable")]
        return row[chosen // len(self._members)].tolist(), tokens.ravel()[chosen].tolist(), totals[chosen]

    def sample(
        self, row: Floats, temperature: float, count: int, rng: np.random.Generator
    ) -> tuple[list[int], list[float]]:
        """Independent draws from one hypothesis's next token.

        Args:
            row: float32, shape (vocabulary,): logits; tokens at minus infinity are not drawn.
            temperature: logits are divided by it; 0 takes the most probable token.
            count: how many draws.
            rng: for the draws.

        Returns:
            Tokens, and their log probabilities at temperature 1.
        """
        best = int(row.argmax())
        peak = float(row[best])
        normalizer = log_sum_exp(row, peak, self._scratch)
        if temperature == 0:
            return [best] * count, [peak - normalizer] * count
        weights = self._scratch
        np.subtract(row, np.float32(peak), out=weights)
        np.multiply(weights, np.float32(1 / temperature), out=weights)
        np.exp(weights, out=weights)
        # First a run of tokens by its weight, then a token in it: a running sum over all tokens takes too long.
        runs = np.cumsum(np.add.reduceat(weights, self._members), dtype=np.float64)
        tokens = []
        for of_run, of_token in rng.random((count, 2)):
            run = int(self._members[runs.searchsorted(of_run * runs[-1], side="right")])
            within = np.cumsum(weights[run : run + self._groups], dtype=np.float64)
            tokens.append(run + int(within.searchsorted(of_token * within[-1], side="right")))
        return tokens, [float(row[token]) - normalizer for token in tokens]

    def _group_maxima(self, logits: Floats) -> Floats:
        maxima = np.empty((len(logits), self._groups), np.float32)
        for row, out in zip(logits, maxima, strict=True):
            np.maximum.reduce(row[: self._full].reshape(-1, self._groups), axis=0, out=out)
            rest = row[self._full :]
            np.maximum(out[: len(rest)], rest, out=out[: len(rest)])
        return maxima


def _highest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Where the highest values are, in no order."""
    if count >= len(values):
        return np.arange(len(values))
    return np.argpartition(values, len(values) - count)[len(values) - count :]
