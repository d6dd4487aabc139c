"""When each token is spoken: dynamic time warping over a decoder's cross-attention.

The method is that of OpenAI Whisper's ``timing.py``, computed as CTranslate2's ``Whisper.align`` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.whisper.onnx.sampling import log_sum_exp
from whisper_api.engine.whisper.onnx.search import DecoderState, feed_sequence

__all__ = ["align", "align_tokens", "median_filter", "token_probabilities", "warp"]

# Exchanges that bring the median of seven values to place 3 (Devillard, "Fast median search", 1998).
_MEDIAN_OF_7 = (
    *((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6)),
    *((2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)),
)
_HALF_WIDTH = 3
# Rows that are filtered at once: seven shifted copies of them stay in a processor's cache.
_FILTERED_ROWS = 16

# The encoder's second convolution has a stride of 2.
FRAMES_PER_POSITION = 2

Floats = NDArray[np.float32]
Path = tuple[NDArray[np.int64], NDArray[np.int64]]


def align(
    state: DecoderState, start: Sequence[int], text: Sequence[int], *, no_timestamps: int, eot: int, frames: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Feed a text that is known and find when it is spoken.

    Args:
        state: the decoder over the window.
        start: the start sequence: ``<|startoftranscript|>``, language, task.
        text: text tokens.
        no_timestamps: the token before the text.
        eot: the token after the text.
        frames: of audio before the padding begins, 100 a second.

    Returns:
        The path's tokens and positions, as :func:`align_tokens` gives them, and each text token's probability, as
        :func:`token_probabilities` does.
    """
    logits = feed_sequence(state, [*start, no_timestamps, *text, eot])
    tokens, positions = align_tokens(state.attention, start_length=len(start), frames=frames)
    return tokens, positions, token_probabilities(logits, text, start_length=len(start), eot=eot)


def token_probabilities(logits: Floats, text: Sequence[int], *, start_length: int, eot: int) -> NDArray[np.float64]:
    """How probable each token of a text is after those before it, among text tokens alone.

    Args:
        logits: float32, shape (tokens, vocabulary): of the start sequence, ``<|notimestamps|>``, the text and the end.
        text: text tokens.
        start_length: tokens in the start sequence.
        eot: ``<|endoftext|>``; text tokens are below it.

    Returns:
        float64, shape (text tokens,).
    """
    scratch = np.empty(eot, np.float32)
    # The row of a token holds the logits of the one that follows it.
    rows = logits[start_length : start_length + len(text), :eot]
    logs = [
        float(row[token]) - log_sum_exp(row, float(row.max()), scratch) for row, token in zip(rows, text, strict=True)
    ]
    return np.exp(np.array(logs, np.float64))


def align_tokens(attention: Floats, *, start_length: int, frames: int) -> Path:
    """Find the monotonic path of a text through a window.

    CTranslate2 takes raw attention scores, cuts them to the frames of speech, and applies its softmax to what is left.
    Here attention comes as probabilities over all positions; a softmax over some of the scores is the softmax over all
    of them, cut to these and divided by its new sum.

    Args:
        attention: float32, shape (heads, tokens, positions): probabilities, for the start sequence,
            ``<|notimestamps|>``, the text and the end of text.
        start_length: tokens in the start sequence.
        frames: of audio before the padding begins, 100 a second; a position is two of them.

    Returns:
        int64, shape (path,) each: tokens, counted from the text's first one, the number of text tokens standing for the
        end of text, and positions. Both are empty for less than one position.
    """
    positions = min(frames // FRAMES_PER_POSITION, attention.shape[2])
    if positions == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    weights = attention[:, :, :positions].copy()
    sums = weights.sum(axis=2, keepdims=True)
    weights /= np.where(sums > 0, sums, 1)
    weights -= weights.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.square(weights).mean(axis=1, keepdims=True))
    # Where no token differs from the others there is nothing to tell, and nothing to divide by.
    weights /= np.where(deviation > 0, deviation, 1)
    # A token is spoken where the decoder looks when it is about to write it, which is in the row before the token's.
    spoken = np.ascontiguousarray(weights[:, start_length:-1])
    return warp(-median_filter(spoken).mean(axis=0, dtype=np.float64))


def median_filter(values: Floats) -> Floats:
    """The median of each value and its three neighbours on both sides along the last axis.

    The axis is reflected at its ends. Fewer than four values are returned as they are.

    Args:
        values: float32, shape (..., length).
    """
    length = values.shape[-1]
    if length <= _HALF_WIDTH:
        return values
    rows = values.reshape(-1, length)
    filtered = np.empty_like(rows)
    spare = np.empty((_FILTERED_ROWS, length), np.float32)
    for begin in range(0, len(rows), _FILTERED_ROWS):
        padded = np.pad(rows[begin : begin + _FILTERED_ROWS], ((0, 0), (_HALF_WIDTH, _HALF_WIDTH)), mode="reflect")
        window = [padded[:, shift : shift + length].copy() for shift in range(2 * _HALF_WIDTH + 1)]
        lower = spare[: len(padded)]
        for low, high in _MEDIAN_OF_7:
            np.minimum(window[low], window[high], out=lower)
            np.maximum(window[low], window[high], out=window[high])
            window[low], lower = lower, window[low]
        filtered[begin : begin + len(padded)] = window[_HALF_WIDTH]
    return filtered.reshape(values.shape)


def warp(cost: NDArray[np.float64]) -> Path:
    """The cheapest way from the first to the last corner, each step going on in one of the axes or in both.

    Args:
        cost: float64, shape (rows, columns): of each place on the way.

    Returns:
        Rows and columns on the way: int64, shape (path,) each.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for row in range(rows):
        above = total[row]
        entered = np.minimum(above[1:], above[:-1])
        # Within a row, total[j] = cost[j] + min(entered[j], total[j - 1]). Less the row's running sum of costs, that is
        # the running minimum of what it cost to enter, which needs no loop.
        run = np.cumsum(cost[row])
        total[row + 1, 1:] = run + np.minimum.accumulate(entered - (run - cost[row]))
    both, down, along = total[:-1, :-1], total[:-1, 1:], total[1:, :-1]
    moves = np.full(cost.shape, _ALONG, np.uint8)
    moves[(down < both) & (down < along)] = _DOWN
    moves[(both <= down) & (both < along)] = _BOTH
    # At the borders there is one way only, and with that the path ends even if the costs are no numbers.
    moves[0], moves[1:, 0] = _ALONG, _DOWN
    return _trace(moves.tobytes(), rows, columns)


_BOTH, _DOWN, _ALONG = range(3)


def _trace(moves: bytes, rows: int, columns: int) -> Path:
    row, column = rows - 1, columns - 1
    path = [(row, column)]
    while row or column:
        move = moves[row * columns + column]
        row -= move != _ALONG
        column -= move != _DOWN
        path.append((row, column))
    path.reverse()
    tokens, positions = np.array(path, np.int64).T
    return tokens, positions
