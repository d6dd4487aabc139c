"""Picks the best tokens, or random tokens, from a decoder's logits.

This code runs between two steps of the decoder, on one thread, over more than fifty thousand logits a row. So it never
sorts or copies a whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Number of token groups. The best tokens are in the groups with the highest maxima, so a partial sort reads only the
# maxima and the tokens of a few groups.
GROUPS = 512

Floats = NDArray[np.float32]


def log_sum_exp(row: Floats, peak: float, scratch: Floats) -> float:
    """The logarithm of the sum of exponentials. A logit less this value is a log probability.

    Args:
        row: float32, shape (tokens,): logits; minus infinity excludes a token.
        peak: the row's maximum.
        scratch: float32, shape (tokens,): overwritten with the exponentials of ``row - peak``.
    """
    np.subtract(row, np.float32(peak), out=scratch)
    np.exp(scratch, out=scratch)
    return peak + float(np.log(np.add.reduce(scratch)))


def language_probabilities(logits: Floats, token_ids: Sequence[int]) -> NDArray[np.float64]:
    """The probability of each language.

    Args:
        logits: float32, shape (vocabulary,): logits after ``<|startoftranscript|>``.
        token_ids: the languages' tokens.

    Returns:
        float64, shape (languages,), in the order of ``token_ids``: a softmax over these tokens alone.
    """
    chosen = logits[np.asarray(token_ids, np.int64)].astype(np.float64)
    weights = np.exp(chosen - chosen.max())
    return np.asarray(weights / weights.sum(), np.float64)


class TokenPicker:
    """Picks tokens from rows of logits. It reuses its buffers, so only one decoding at a time may use it.

    Args:
        vocabulary: number of tokens.
    """

    def __init__(self, vocabulary: int) -> None:
        self._groups = min(GROUPS, vocabulary)
        # Token t belongs to group t % groups. The last tokens are in only some of the groups.
        self._full = vocabulary // self._groups * self._groups
        self._members = np.arange(0, vocabulary, self._groups)
        self._scratch = np.empty(vocabulary, np.float32)

    def best(
        self, logits: Floats, scores: NDArray[np.float64], count: int
    ) -> tuple[list[int], list[int], NDArray[np.float64]]:
        """The best continuations of several hypotheses.

        Args:
            logits: float32, shape (rows, vocabulary): logits after each hypothesis; minus infinity excludes a token.
            scores: float64, shape (rows,): log probability of each hypothesis.
            count: number of continuations, over all rows.

        Returns:
            Rows, tokens, and scores with the log probabilities of the tokens added, the best first.
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
        """Draw the next token of one hypothesis, several times independently.

        Args:
            row: float32, shape (vocabulary,): logits; minus infinity excludes a token.
            temperature: divisor of the logits; 0 takes the most probable token.
            count: number of draws.
            rng: the random generator of the draws.

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
        # Draw a run of tokens by its weight, then a token in the run: a cumulative sum over all tokens takes too long.
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
    """Indices of the highest values, unordered."""
    if count >= len(values):
        return np.arange(len(values))
    return np.argpartition(values, len(values) - count)[len(values) - count :]
