"""Clustering: how many voices, whatever the channel, the noise, the length and the repetition."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.engine.diarize import clustering
from whisper_api.engine.diarize.clustering import ClusteringOptions, SpeakerBounds, best_path, find_speakers

Floats = npt.NDArray[np.float64]
DIMENSION = 192
ANY = SpeakerBounds()


def conversation(
    voices: int, turns: int, *, noise: float = 0.85, channel: float = 0.0, seed: int = 0
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Embeddings of spans, the times of the spans, and the index of the voice of each.

    Args:
        voices: how many people speak.
        turns: how many turns they take in all.
        noise: of a span against its voice; 0.85 gives spans of one voice a similarity of 0.58.
        channel: weight of the part that all voices have in common.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)

    def unit(shape: tuple[int, ...]) -> Floats:
        drawn = rng.standard_normal(shape)
        return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))

    who = np.concatenate([np.full(8, turn % voices) for turn in range(turns)])
    drawn = unit((voices, DIMENSION))[who] + channel * unit((DIMENSION,)) + noise * unit((len(who), DIMENSION))
    return normed(drawn), np.arange(len(who), dtype=np.float64) * 2.0, np.asarray(who, dtype=np.int64)


def normed(x: Floats) -> Floats:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float64)


def found_in(x: Floats, t: Floats, bounds: SpeakerBounds = ANY, **options: Any) -> int:
    return len(find_speakers(x, t, np.full(len(x), 2.0), bounds, ClusteringOptions(**options)))


@pytest.mark.parametrize("voices", [1, 2, 3, 6])
@pytest.mark.parametrize("channel", [0.0, 0.4, 0.7])
@pytest.mark.parametrize("noise", [0.6, 0.85, 1.0])
def test_the_number_of_voices_is_found_whatever_the_channel_and_the_noise(
    voices: int, channel: float, noise: float
) -> None:
    x, t, who = conversation(voices, 6 * voices, noise=noise, channel=channel)
    result = find_speakers(x, t, np.full(len(x), 2.0))
    assert len(result) == voices
    nearest = (x @ result.T).argmax(axis=1)
    assert len(set(zip(nearest.tolist(), who.tolist(), strict=True))) == voices


@pytest.mark.parametrize("gap", [0.06, 0.08, 0.1])
def test_the_number_does_not_hang_on_the_gap(gap: float) -> None:
    for voices in (1, 2, 4):
        x, t, _ = conversation(voices, 24, channel=0.3)
        assert found_in(x, t, max_gap=gap) == voices


def test_a_small_cluster_needs_a_wider_gap() -> None:
    x, t, _ = conversation(2, 3, noise=0.9, channel=0.7)
    assert found_in(x, t, min_spans=2, max_gap=0.03, initial_distance=0.0, small_gap=0.0) > 1
    assert found_in(x, t, min_spans=2, max_gap=0.03, initial_distance=0.0, small_gap=50.0) == 1


def test_repeating_a_recording_invents_no_voice() -> None:
    x, t, _ = conversation(2, 6, seed=3)
    # Two spans that resemble nothing: a second of laughter, again in each repetition.
    x[10:12] = conversation(1, 1, noise=0.3, seed=9)[0][:2]
    once = found_in(x, t)
    rng = np.random.default_rng(0)
    many = normed(np.concatenate([x] * 20) + 0.005 * rng.standard_normal((20 * len(x), DIMENSION)))
    assert once == found_in(many, np.arange(len(many), dtype=np.float64) * 2.0) == 2


@pytest.mark.parametrize(("spans", "channel", "voices"), [(2, 0.0, 1), (3, 0.0, 2), (3, 0.7, 1), (4, 0.7, 2)])
def test_few_spans_are_a_voice_if_they_stand_apart_or_if_it_is_asked_for(
    spans: int, channel: float, voices: int
) -> None:
    x, t, _ = conversation(2, 2, channel=channel, noise=0.7)
    x, t = x[: 8 + spans], t[: 8 + spans]
    assert found_in(x, t) == voices
    assert found_in(x, t, SpeakerBounds(2, 2)) == 2
    assert found_in(x, t, SpeakerBounds(1, 1)) == 1
    # A cluster that stands apart does not exceed the bound, whatever its gap.
    assert found_in(x, t, SpeakerBounds(maximum=1), apart=0.0) == 1


@pytest.mark.parametrize("wanted", [1, 2, 3, 5, 8])
def test_a_given_number_is_kept(wanted: int) -> None:
    x, t, _ = conversation(3, 12)
    assert found_in(x, t, SpeakerBounds(wanted, wanted)) == wanted


def test_bounds_are_kept_and_change_nothing_within_them() -> None:
    x, t, _ = conversation(3, 12)
    assert found_in(x, t, SpeakerBounds(minimum=5)) == 5
    assert found_in(x, t, SpeakerBounds(maximum=2)) == 2
    assert found_in(x, t, SpeakerBounds(2, 6)) == 3


def test_more_voices_than_spans_gives_one_for_each_span() -> None:
    x, t, _ = conversation(2, 2)
    assert found_in(x[:3], t[:3], SpeakerBounds(5, 5)) == 3
    assert found_in(x[:1], t[:1]) == 1


def test_two_voices_that_differ_are_the_two_when_two_are_asked_for() -> None:
    x, t, who = conversation(2, 8, noise=1.0, channel=0.7)
    result = find_speakers(x, t, np.full(len(x), 2.0), SpeakerBounds(2, 2))
    agree = (x @ result.T).argmax(axis=1) == who
    assert agree.all() or not agree.any()


def test_a_long_recording_is_clustered_in_blocks() -> None:
    x, t, _ = conversation(5, 400, channel=0.3)
    assert len(x) > 2400
    assert found_in(x, t) == 5


small = st.integers(1, 3).flatmap(
    lambda voices: st.lists(st.lists(st.integers(0, 9), min_size=voices, max_size=voices), min_size=1, max_size=6)
)


@given(small, st.integers(0, 12))
def test_the_sequence_of_voices_is_the_best_there_is(rows: list[list[int]], cost: int) -> None:
    scores = np.array(rows, dtype=np.float64)

    def value(path: tuple[int, ...]) -> float:
        changes = sum(a != b for a, b in itertools.pairwise(path))
        return float(sum(scores[i, v] for i, v in enumerate(path)) - cost * changes)

    best = max(value(path) for path in itertools.product(range(scores.shape[1]), repeat=len(scores)))
    assert value(tuple(best_path([scores[:2], scores[2:]], cost).tolist())) == best


def test_memory_for_the_pairs_of_spans_is_bounded_and_clustering_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The square of these spans alone is 290 MB in each of several arrays."""
    x, t, _ = conversation(3, 750, noise=0.65)
    monkeypatch.setattr(clustering, "PAIRS", 1 << 18)
    tracemalloc.start()
    try:
        assert len(find_speakers(x, t, np.full(len(x), 2.0))) == 3
        assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_speakers(x, t, np.full(len(x), 2.0), check=check)
