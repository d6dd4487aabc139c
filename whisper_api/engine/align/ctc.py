"""Forced alignment of a text's characters with the frames of a CTC model, by the Viterbi path through a trellis.

CTC is from Graves et al., "Connectionist Temporal Classification" (2006). The trellis is that of "CTC-Segmentation"
(Kürzinger et al., 2020) in the form of PyTorch's tutorial on forced alignment, which WhisperX uses: a frame either
stays at the current character, with the blank's probability, or moves to the next character, with that character's
probability. All sums are float32 and in WhisperX's order, so that ties are resolved alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

# Number of frames that are computed together: these rows of the trellis stay in the processor's cache.
CHUNK = 64


@dataclass(frozen=True)
class CtcPath:
    """The frames of each token.

    Attributes:
        start: int64, shape (tokens,): first frame of each token.
        end: int64, shape (tokens,): frame after the token's last, which is the next token's start.
        log_probs: float32, shape (end[-1] - start[0],): log probability of each frame on the path: the token's in its
            first frame, the blank's in its other frames.
    """

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float32]


def best_path(emission: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], blank: int) -> CtcPath | None:
    """Align tokens with frames.

    Args:
        emission: float32, shape (frames, labels): log probabilities.
        tokens: int64, shape (tokens,): labels of the text's characters, at least one.
        blank: the label of the blank.

    Returns:
        The best path; None when the tokens outnumber the frames.
    """
    moves, reached = _trellis(emission, tokens, blank)
    frames, count = moves.shape
    end = int(np.argmax(reached))
    start = np.empty(count, np.int64)
    # Backwards: a token begins at the last move in its column before the next token's start. A search in the column's
    # bytes finds this move.
    columns = moves.T.tobytes()
    limit = end
    for token in range(count - 1, -1, -1):
        limit = columns.rfind(b"\x01", token * frames, token * frames + limit) - token * frames
        if limit < 0:
            return None
        start[token] = limit
    first = int(start[0])
    log_probs = emission[first:end, blank].copy()
    log_probs[start - first] = emission[start, tokens]
    return CtcPath(start, np.append(start[1:], end), log_probs)


def _trellis(
    emission: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], blank: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Compute the trellis. Arguments are those of :func:`best_path`.

    Returns:
        moves: bool, shape (frames, tokens): whether the best path that has emitted ``j + 1`` tokens after frame ``t``
            moves to the last of them in that frame.
        reached: float32, shape (frames + 1,): score of the best path that has emitted all tokens after so many frames.
    """
    frames, count = len(emission), len(tokens)
    before = np.empty(frames + 1, np.float32)  # column 0: no token emitted
    before[0] = 0.0
    # Sums in double precision, rounded once, as torch.cumsum computes them.
    before[1:] = np.cumsum(emission[:, blank], dtype=np.float64)
    before[-count:] = np.inf
    moves = np.empty((frames, count), np.bool_)
    reached = np.empty(frames + 1, np.float32)

    rows = np.empty((CHUNK + 1, count + 1), np.float32)
    body = rows[:, 1:]
    rows[0] = -np.inf
    rows[0, 0] = before[0]
    reached[0] = rows[0, count]
    gathered = np.empty((CHUNK, count), np.float32)
    stayed = np.empty((CHUNK, count), np.float32)
    blanks = np.empty(CHUNK, np.float32)
    # The views are made once, because making them for each frame takes as long as the sums. The view of the blank is a
    # scalar array, which NumPy adds without a broadcast.
    views = [
        (body[i], rows[i, :-1], body[i + 1], gathered[i], stayed[i], blanks[i, ...]) for i in range(min(CHUNK, frames))
    ]
    add, maximum = np.add, np.maximum
    for first in range(0, frames, CHUNK):
        size = min(CHUNK, frames - first)
        last = first + size
        np.take(emission[first:last], tokens, axis=1, out=gathered[:size], mode="clip")
        blanks[:size] = emission[first:last, blank]
        rows[1 : size + 1, 0] = before[first + 1 : last + 1]
        for here, left, there, move, stay, scalar in views[:size]:
            add(here, scalar, out=stay)
            add(left, move, out=there)
            maximum(stay, there, out=there)
        np.greater(body[1 : size + 1], stayed[:size], out=moves[first:last])
        reached[first + 1 : last + 1] = rows[1 : size + 1, count]
        rows[0] = rows[size]
    return moves, reached


def mean_scores(path: CtcPath) -> list[float]:
    """The mean probability of each token's frames, from 0 to 1, unrounded."""
    import torch

    # NumPy's exp differs from torch's in the last bit, which can change a rounded score.
    probabilities: list[float] = torch.from_numpy(path.log_probs).exp().tolist()
    borders = [*(path.start - path.start[0]).tolist(), len(probabilities)]
    return [sum(probabilities[first:last]) / (last - first) for first, last in pairwise(borders)]
