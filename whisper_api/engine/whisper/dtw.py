"""The times of tokens: dynamic time warping (DTW) over a decoder's cross-attention.

The method is that of OpenAI Whisper's ``timing.py``, and the results are those of CTranslate2's ``Whisper.align``. DTW
is from Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word recognition" (1978).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.whisper.onnx.sampling import log_sum_exp
from whisper_api.engine.whisper.onnx.search import DecoderState, feed_sequence

# Compare-and-exchange steps that move the median of seven values to index 3 (Devillard, "Fast median search", 1998).
_MEDIAN_OF_7 = (
    *((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6)),
    *((2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)),
)
_HALF_WIDTH = 3
# Number of rows that are filtered together: seven shifted copies of them stay in a processor's cache.
_FILTERED_ROWS = 16

# The encoder's second convolution has a stride of 2.
FRAMES_PER_POSITION = 2

Floats = NDArray[np.float32]
Path = tuple[NDArray[np.int64], NDArray[np.int64]]


def align(
    state: DecoderState, start: Sequence[int], text: Sequence[int], *, no_timestamps: int, eot: int, frames: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Feed a known text to the decoder, and align it with the window.

    Args:
        state: the decoder over the window.
        start: the start sequence: ``<|startoftranscript|>``, language, task.
        text: text tokens.
        no_timestamps: the token ``<|notimestamps|>``, which precedes the text.
        eot: the token ``<|endoftext|>``, which follows the text.
        frames: frames of audio before the padding, 100 a second.

    Returns:
        Tokens and positions of the path, as from :func:`align_tokens`, and the probability of each text token, as from
        :func:`token_probabilities`.
    """
    logits = feed_sequence(state, [*start, no_timestamps, *text, eot])
    tokens, positions = align_tokens(state.attention, start_length=len(start), frames=frames)
    return tokens, positions, token_probabilities(logits, text, start_length=len(start), eot=eot)


def token_probabilities(logits: Floats, text: Sequence[int], *, start_length: int, eot: int) -> NDArray[np.float64]:
    """The probability of each token of a text, given the tokens before, among text tokens alone.

    Args:
        logits: float32, shape (tokens, vocabulary): logits after each token of the start sequence,
            ``<|notimestamps|>``, the text and the end of text.
        text: text tokens.
        start_length: number of tokens in the start sequence.
        eot: the token ``<|endoftext|>``; text tokens have smaller ids.

    Returns:
        float64, shape (text tokens,).
    """
    scratch = np.empty(eot, np.float32)
    # The row of a token contains the logits of the next token.
    rows = logits[start_length : start_length + len(text), :eot]
    logs = [
        float(row[token]) - log_sum_exp(row, float(row.max()), scratch) for row, token in zip(rows, text, strict=True)
    ]
    return np.exp(np.array(logs, np.float64))


def align_tokens(attention: Floats, *, start_length: int, frames: int) -> Path:
    """Find the monotonic path of a text through a window.

    CTranslate2 cuts raw attention scores to the frames of speech before its softmax. Here the softmax over all
    positions is already applied. Its part for the frames of speech, divided by the part's sum, is the same softmax.

    Args:
        attention: float32, shape (heads, tokens, positions): attention probabilities for the start sequence,
            ``<|notimestamps|>``, the text and the end of text.
        start_length: number of tokens in the start sequence.
        frames: frames of audio before the padding, 100 a second; a position is two frames.

    Returns:
        int64, shape (path,) each: index of the text token (the number of text tokens for the end of text), and
        position. Both are empty when the frames give no position.
    """
    positions = min(frames // FRAMES_PER_POSITION, attention.shape[2])
    if positions == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    weights = attention[:, :, :positions].copy()
    sums = weights.sum(axis=2, keepdims=True)
    weights /= np.where(sums > 0, sums, 1)
    weights -= weights.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.square(weights).mean(axis=1, keepdims=True))
    # A position that all tokens attend to alike has deviation 0: it carries no information, and stays 0.
    weights /= np.where(deviation > 0, deviation, 1)
    # The decoder attends to a token's audio when it predicts the token, which is in the row of the token before.
    predicting = np.ascontiguousarray(weights[:, start_length:-1])
    return warp(-median_filter(predicting).mean(axis=0, dtype=np.float64))


def median_filter(values: Floats) -> Floats:
    """The median of each value and its three neighbours on both sides, along the last axis.

    The axis is reflected at its ends. An axis of fewer than four values is returned unchanged.

    Args:
        values: float32, shape (..., length).
    """
    length = values.shape[-1]
    if length <= _HALF_WIDTH:
        return values
    rows = values.reshape(-1, length)
    filtered = np.empty_like(rows)
    buffer = np.empty((_FILTERED_ROWS, length), np.float32)
    for begin in range(0, len(rows), _FILTERED_ROWS):
        padded = np.pad(rows[begin : begin + _FILTERED_ROWS], ((0, 0), (_HALF_WIDTH, _HALF_WIDTH)), mode="reflect")
        window = [padded[:, shift : shift + length].copy() for shift in range(2 * _HALF_WIDTH + 1)]
        lower = buffer[: len(padded)]
        for low, high in _MEDIAN_OF_7:
            np.minimum(window[low], window[high], out=lower)
            np.maximum(window[low], window[high], out=window[high])
            window[low], lower = lower, window[low]
        filtered[begin : begin + len(padded)] = window[_HALF_WIDTH]
    return filtered.reshape(values.shape)


def warp(cost: NDArray[np.float64]) -> Path:
    """The cheapest path from the first to the last cell, where each step advances one axis or both (DTW).

    Args:
        cost: float64, shape (rows, columns): cost of each cell.

    Returns:
        Rows and columns of the path: int64, shape (path,) each.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for row in range(rows):
        above = total[row]
        entered = np.minimum(above[1:], above[:-1])
        # Within a row, total[j] = cost[j] + min(entered[j], total[j - 1]). After subtraction of the row's cumulative
        # costs, this recurrence is a cumulative minimum, which NumPy computes without a Python loop.
        run = np.cumsum(cost[row])
        total[row + 1, 1:] = run + np.minimum.accumulate(entered - (run - cost[row]))
    both, down, along = total[:-1, :-1], total[:-1, 1:], total[1:, :-1]
    moves = np.full(cost.shape, _ALONG, np.uint8)
    moves[(down < both) & (down < along)] = _DOWN
    moves[(both <= down) & (both < along)] = _BOTH
    # At the borders only one move is possible. Setting it makes the path end even when costs are NaN.
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
