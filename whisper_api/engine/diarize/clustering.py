"""How many people speak, and what each sounds like: clustering of speaker embeddings.

A distance below which two voices are one does not exist: it moves with the channel, the noise and the length of the
spans. What moves far less is the *gap* between how similar two clusters are within themselves and how similar they are
to each other, so clusters are merged as long as that gap is small (agglomerative clustering with average linkage, its
stopping rule relative to the clusters). Similarity is the cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Bounds", "ClusteringOptions", "Voices", "assign_frames", "find_voices"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClusteringOptions:
    """What decides when two clusters are one voice.

    Attributes:
        gap: clusters closer than this are merged. Any value from 0.14 to 0.22 gives nearly the same error rate.
        alike: cosine distance (average linkage) up to which spans are merged without looking at gaps.
        clear_seconds: spans with less speech say too little to found a cluster.
        apart: seconds from which spans share no audio; closer ones are alike whoever speaks.
        same_recording: a pair above this similarity is the same sound twice and no evidence about a voice.
        least_spans: a smaller cluster is no voice.
    """

    gap: float = 0.16
    alike: float = 0.5
    clear_seconds: float = 1.0
    apart: float = 2.0
    same_recording: float = 0.8
    least_spans: int = 4


@dataclass(frozen=True)
class Bounds:
    """How many voices there may be."""

    least: int = 1
    most: int = 1000

    @property
    def exact(self) -> bool:
        """Whether the number is given."""
        return self.least == self.most


# One cluster's inner similarity may exceed the other's by so much: a small cluster of near-identical spans is no reason
# to see a gap.
_INNER_SPREAD = 0.1
# Inner similarity that is assumed of clusters without two spans that are apart: that of one voice on average.
_INNER_DEFAULT = 0.5
# Spans that are clustered at once (ten minutes), and most small clusters in all: memory and time are squares of these.
_BLOCK = 1200
_MOST_CLUSTERS = 1500
# Pairs of spans whose similarities are computed at once, in several float64 arrays of 32 MB each: 256 rows for up to
# two hours of speech, fewer for more.
_ROWS = 256
_PAIRS = 1 << 22
_ROUNDS = 5


@dataclass(frozen=True)
class Voices:
    """The voices found.

    Attributes:
        centroids: (voices, dimension), each of length 1.
    """

    centroids: Floats

    def __len__(self) -> int:
        return len(self.centroids)

    def similarities(self, embeddings: npt.NDArray[np.floating]) -> Floats:
        """(spans, voices) cosine of each embedding with each voice."""
        return np.asarray(embeddings @ self.centroids.T, dtype=np.float64)


def find_voices(
    embeddings: npt.NDArray[np.floating],
    times: Floats,
    seconds: Floats,
    bounds: Bounds = Bounds(),
    options: ClusteringOptions = ClusteringOptions(),
    check: Callable[[], None] = lambda: None,
) -> Voices:
    """Cluster spans into voices.

    Memory is linear in the number of spans, plus a square of the number of small clusters that spans are first put in.

    Args:
        embeddings: (spans, dimension), each of length 1; at least one.
        times: (spans,) seconds, their centres, ascending.
        seconds: (spans,) how much speech each is of.
        bounds: how many voices there may be. Fewer come out when there are not enough spans.
        options: see there.
        check: called now and then, since hours of speech take minutes; what it raises ends the clustering.
    """
    clear = seconds >= min(options.clear_seconds, float(seconds.max()))
    if clear.sum() < bounds.least:
        clear[:] = True
    x, t, w = embeddings[clear].astype(np.float64), times[clear], seconds[clear]
    labels: npt.NDArray[np.int64] = np.zeros(len(x), dtype=np.int64)
    if bounds.most > 1:
        # For more voices than there are distinct clusters, look closer; in the end a single span will do.
        for alike in (options.alike, options.alike / 2, 0.0):
            labels = _Merging(x, t, w, alike, options, check).run(bounds, fewest=bounds.least if alike == 0 else 1)
            if labels.max() + 1 >= bounds.least:
                break
    return Voices(_refined(x, w, labels))


def _refined(x: Floats, w: Floats, labels: Ints) -> Floats:
    """Centroids after spans have moved to the nearest one a few times, left-over spans (-1) included."""
    count = int(labels.max()) + 1
    centroids = _centroids(x, w, labels, count)
    for _ in range(_ROUNDS):
        nearest = (x @ centroids.T).argmax(axis=1)
        if len(np.unique(nearest)) < count:
            break
        moved = _centroids(x, w, nearest, count)
        if np.allclose(moved, centroids, atol=1e-4):
            break
        centroids = moved
    return centroids


def _centroids(x: Floats, w: Floats, labels: Ints, count: int) -> Floats:
    sums = np.stack([(x[labels == k] * w[labels == k, None]).sum(axis=0) for k in range(count)])
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))


class _Merging:
    """Clusters, and for each pair of them the sum of their spans' similarities: when clusters merge, sums add."""

    def __init__(
        self, x: Floats, t: Floats, w: Floats, alike: float, options: ClusteringOptions, check: Callable[[], None]
    ) -> None:
        self.options = options
        self.of_span = _small_clusters(x, alike, check)
        self.count = int(self.of_span.max()) + 1
        self.similarity, self.weight, repeats = _pair_sums(x, t, w, self.of_span, self.count, options, check)
        # The same sound again and again is one piece of evidence, however often it comes.
        self.size = np.bincount(self.of_span[~repeats], minlength=self.count)
        self.into = np.arange(self.count)
        self.alive = np.ones(self.count, dtype=np.bool_)

    def run(self, bounds: Bounds, fewest: int = 1) -> Ints:
        """Merge, down to ``fewest`` clusters at most; the labels of the spans, -1 for those in no voice."""
        gaps = np.stack([self._gaps(i) for i in range(self.count)])
        while self.alive.sum() > fewest:
            voices = self._voices()
            open_gaps = gaps
            if len(voices) <= bounds.least:
                open_gaps = gaps.copy()
                open_gaps[np.ix_(voices, voices)] = np.inf
            a, b = divmod(int(open_gaps.argmin()), self.count)
            gap = open_gaps[a, b]
            if not np.isfinite(gap) or (gap > self.options.gap and len(voices) <= bounds.most):
                break
            self._merge(a, b)
            gaps[b], gaps[:, b] = np.inf, np.inf
            gaps[a] = gaps[:, a] = self._gaps(a)
        return self._labels(bounds)

    def _voices(self) -> Ints:
        return np.flatnonzero(self.alive & (self.size >= self.options.least_spans))

    def _labels(self, bounds: Bounds) -> Ints:
        by_size = np.argsort(-np.where(self.alive, self.size, -1), kind="stable")
        wanted = max(len(self._voices()), min(bounds.least, int(self.alive.sum())), 1)
        number = np.full(self.count, -1)
        number[by_size[:wanted]] = np.arange(wanted)
        return np.asarray(number[self.into[self.of_span]])

    def _gaps(self, i: int) -> Floats:
        inner = _mean(np.diag(self.similarity), np.diag(self.weight))
        low = np.fmin(inner[i], inner)
        high = np.minimum(np.fmax(inner[i], inner), low + _INNER_SPREAD)
        within = np.nan_to_num((low + high) / 2, nan=_INNER_DEFAULT)
        across = _mean(self.similarity[i], self.weight[i])
        gaps = within - np.where(np.isnan(across), within, across)
        gaps[~self.alive] = np.inf
        gaps[i] = np.inf
        return np.asarray(gaps)

    def _merge(self, a: int, b: int) -> None:
        for sums in (self.similarity, self.weight):
            sums[a] += sums[b]
            sums[:, a] += sums[:, b]
        self.size[a] += self.size[b]
        self.alive[b] = False
        self.into[self.into == b] = a


def _mean(sums: Floats, weights: Floats) -> Floats:
    return np.where(weights > 1e-6, sums / np.maximum(weights, 1e-6), np.nan)


def _small_clusters(x: Floats, alike: float, check: Callable[[], None]) -> Ints:
    """Average linkage within stretches of ten minutes: across longer ones it would need the square of their length."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    most = max(1, _MOST_CLUSTERS * _BLOCK // max(_BLOCK, len(x)))
    labels: npt.NDArray[np.int64] = np.zeros(len(x), dtype=np.int64)
    begun = 0
    for start in range(0, len(x), _BLOCK):
        check()
        block = x[start : start + _BLOCK]
        own = np.zeros(len(block), dtype=np.int64)
        if len(block) > 1:
            distances = np.clip(1 - block @ block.T, 0, 2)
            np.fill_diagonal(distances, 0)
            tree = linkage(squareform(distances, checks=False), "average")
            own = fcluster(tree, alike, "distance") - 1
            if own.max() >= most:
                own = fcluster(tree, most, "maxclust") - 1
        labels[start : start + _BLOCK] = own + begun
        begun += int(own.max()) + 1
    return labels


def _pair_sums(
    x: Floats,
    t: Floats,
    w: Floats,
    labels: Ints,
    count: int,
    options: ClusteringOptions,
    check: Callable[[], None],
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """By pairs of clusters, sums of similarity and of weight over pairs of spans; and which spans repeat another."""
    order = np.argsort(labels, kind="stable")
    x, t, w, labels = x[order], t[order], w[order], labels[order]
    bounds = np.searchsorted(labels, np.arange(count))
    similarity, weight = np.zeros((count, count)), np.zeros((count, count))
    repeats = np.zeros(len(x), dtype=np.bool_)
    step = max(1, min(_ROWS, _PAIRS // len(x)))
    for start in range(0, len(x), step):
        check()
        rows = slice(start, start + step)
        cosine = x[rows] @ x.T
        later = t[rows, None] - t
        far = np.abs(later) >= options.apart - 1e-6
        repeats[order[rows]] = ((cosine >= options.same_recording + 0.05) & far & (later > 0)).any(axis=1)
        weights = np.outer(w[rows], w) * (far & (cosine < options.same_recording))
        np.add.at(similarity, labels[rows], np.add.reduceat(weights * cosine, bounds, axis=1))
        np.add.at(weight, labels[rows], np.add.reduceat(weights, bounds, axis=1))
    return similarity, weight, repeats


def assign_frames(scores: Floats, change_cost: float) -> Ints:
    """The sequence of voices of highest total score, each change of voice costing so much (Viterbi, 1967).

    Args:
        scores: (frames, voices).
        change_cost: in the unit of the scores.

    Returns:
        (frames,) numbers of voices.
    """
    frames, voices = scores.shape
    if voices == 1 or frames == 0:
        return np.zeros(frames, dtype=np.int64)
    best = scores[0].copy()
    came_from = np.empty((frames, voices), dtype=np.int16)
    stay = np.arange(voices, dtype=np.int16)
    for frame in range(1, frames):
        leader = int(best.argmax())
        changed = best[leader] - change_cost
        came_from[frame] = np.where(best >= changed, stay, leader)
        best = np.maximum(best, changed) + scores[frame]
    path = np.empty(frames, dtype=np.int64)
    path[-1] = best.argmax()
    for frame in range(frames - 1, 0, -1):
        path[frame - 1] = came_from[frame, path[frame]]
    return path
