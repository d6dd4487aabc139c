"""The alignment path is the one WhisperX finds, ties included."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_api.engine.align import ctc

Emission = npt.NDArray[np.float32]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Emission, list[int], int]:
    """Log probabilities, tokens and a blank. Small integers make ties, which a random matrix never has."""
    labels = draw(st.integers(2, 6))
    frames = draw(st.integers(1, 150))
    tokens = draw(st.lists(st.integers(0, labels - 1), min_size=1, max_size=max(1, min(40, frames + 2))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["ties", "flat", "peaked"]))
    if kind == "ties":
        emission = -rng.integers(0, 3, (frames, labels)).astype(np.float32)
    elif kind == "flat":
        emission = np.full((frames, labels), -1.5, np.float32)
    else:
        logits = rng.normal(scale=5, size=(frames, labels)).astype(np.float32)
        emission = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return emission, tokens, draw(st.integers(0, labels - 1))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_the_path_is_whisperx_s(problem: tuple[Emission, list[int], int]) -> None:
    import torch
    from whisperx.alignment import backtrack, get_trellis, merge_repeats

    emission, tokens, blank = problem
    tensor = torch.from_numpy(emission)
    expected = backtrack(get_trellis(tensor, tokens, blank), tensor, tokens, blank)
    path = ctc.best_path(emission, np.array(tokens), blank)
    if expected is None:
        assert path is None
        return
    assert path is not None
    segments = merge_repeats(expected, "x" * len(tokens))
    assert path.start.tolist() == [segment.start for segment in segments]
    assert path.end.tolist() == [segment.end for segment in segments]
    assert ctc.mean_scores(path) == [segment.score for segment in segments]


@pytest.mark.parametrize("frames", [1, ctc.CHUNK - 1, ctc.CHUNK, ctc.CHUNK + 1, 3 * ctc.CHUNK])
def test_a_clear_signal_is_found_at_its_frames(frames: int) -> None:
    emission = np.full((frames, 3), -9.0, np.float32)
    emission[:, 0] = -0.01
    token_frames = sorted({0, frames // 3, frames // 2, frames - 1})
    emission[token_frames, 1] = 0.0
    emission[token_frames, 0] = -9.0
    path = ctc.best_path(emission, np.ones(len(token_frames), np.int64), 0)
    assert path is not None
    assert path.start.tolist() == token_frames
    assert path.end.tolist() == [*token_frames[1:], frames]
    assert path.log_probs[0] == 0.0


def test_more_tokens_than_frames_have_no_path() -> None:
    emission = np.full((5, 2), -0.7, np.float32)
    assert ctc.best_path(emission, np.ones(5, np.int64), 0) is not None
    assert ctc.best_path(emission, np.ones(6, np.int64), 0) is None
    assert ctc.best_path(emission, np.ones(20, np.int64), 0) is None
