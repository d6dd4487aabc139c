"""Clustering of speaker embeddings: how many speakers there are, and the centroid of each.

A fixed distance threshold does not work: the distance between two speakers moves with the channel, the noise and the
length of the spans. The *gap* between how similar two clusters are within themselves and how similar they are to each
other moves far less. So this is agglomerative clustering with average linkage that merges two clusters while their gap
is small. Similarity is the cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClusteringOptions:
    """Thresholds of the clustering.

    Attributes:
        max_gap: two clusters with a smaller gap are merged.
        small_gap: the gap of a cluster of n spans is divided by 1 + small_gap / sqrt(n), because the similarities of
            few spans scatter.
        initial_distance: cosine distance (average linkage) up to which spans are merged without looking at gaps.
        min_seconds: spans with less speech are too unreliable to form a cluster.
        min_separation: seconds between spans that share no audio; closer spans are similar whoever speaks.
        duplicate_similarity: a pair of spans above this similarity is the same sound twice, and is ignored.
        min_spans: a smaller cluster is not a speaker, unless it stands apart.
        min_apart_spans: a cluster of so many spans stands apart if all its gaps to speakers reach ``apart`` times
            ``max_gap``: somebody who says little, in a voice that nobody else has.
        apart: see ``min_apart_spans``.
    """

    max_gap: float = 0.115
    small_gap: float = 2.0
    initial_distance: float = 0.45
    min_seconds: float = 1.0
    min_separation: float = 2.0
    duplicate_similarity: float = 0.9
    min_spans: int = 4
    min_apart_spans: int = 3
    apart: float = 2.0


@dataclass(frozen=True)
class SpeakerBounds:
    """The least and the largest number of speakers to find."""

    minimum: int = 1
    maximum: int = 1000


# When two clusters are compared, the higher inner similarity is capped at the lower one plus this value. Otherwise a
# small cluster of nearly equal spans would have a gap to every other cluster.
_INNER_SPREAD = 0.1
# Inner similarity of a cluster without two separate spans: the average of one speaker.
_INNER_DEFAULT = 0.65
# Spans in one run of scipy's linkage (ten minutes), and the largest number of initial clusters: memory and time grow
# with the squares of both.
_BLOCK = 1200
_MAX_CLUSTERS = 1500
# Pairs of spans whose similarities are computed at a time, in several float64 arrays of 32 MB each: 256 rows for up to
# two hours of speech, fewer for more.
_ROWS = 256
PAIRS = 1 << 22
_ROUNDS = 5


def find_speakers(
    embeddings: npt.NDArray[np.floating],
    times: Floats,
    seconds: Floats,
    bounds: SpeakerBounds = SpeakerBounds(),
    options: ClusteringOptions = ClusteringOptions(),
    check: Callable[[], None] = lambda: None,
) -> Floats:
    """Cluster spans by speaker.

    Memory grows linearly with the number of spans, plus the square of the number of initial clusters.

    Args:
        embeddings: (spans, dimension), each of length 1; at least one.
        times: (spans,) centres in seconds, ascending.
        seconds: (spans,) seconds of speech in each span.
        bounds: how many speakers there may be. There are fewer when there are not enough spans.
        options: the thresholds.
        check: called often, because hours of speech take minutes; an exception of it ends the clustering.

    Returns:
        (speakers, dimension) centroids, each of length 1.
    """
    reliable = seconds >= min(options.min_seconds, float(seconds.max()))
    if reliable.sum() < bounds.minimum:
        reliable[:] = True
    x, t, w = embeddings[reliable].astype(np.float64), times[reliable], seconds[reliable]
    labels: Ints = np.zeros(len(x), dtype=np.int64)
    if bounds.maximum > 1:
        # Smaller initial clusters when there are fewer than the speakers asked for; at last every span is one.
        for distance in (options.initial_distance, options.initial_distance / 2, 0.0):
            fewest = bounds.minimum if distance == 0 else 1
            labels = _Clusters(x, t, w, distance, options, check).merge(bounds, fewest)
            if labels.max() + 1 >= bounds.minimum:
                break
    return _refined(x, w, labels)


def _refined(x: Floats, w: Floats, labels: Ints) -> Floats:
    """Centroids after a few rounds of k-means, which also assign the spans without a speaker (-1)."""
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


class _Clusters:
    """Clusters that are merged. Each pair keeps the sum of its spans' similarities, since merging adds these sums."""

    def __init__(
        self, x: Floats, t: Floats, w: Floats, distance: float, options: ClusteringOptions, check: Callable[[], None]
    ) -> None:
        self.options = options
        self.of_span = _initial_clusters(x, distance, check)
        self.count = int(self.of_span.max()) + 1
        self.similarity, self.weight, duplicates = _pair_sums(x, t, w, self.of_span, self.count, options, check)
        # A sound that is repeated counts once.
        self.size = np.bincount(self.of_span[~duplicates], minlength=self.count)
        self.into = np.arange(self.count)
        self.alive = np.ones(self.count, dtype=np.bool_)

    def merge(self, bounds: SpeakerBounds, fewest: int) -> Ints:
        """Merge clusters while their gaps are small, but not below ``fewest``.

        Returns:
            (spans,) number of the speaker, -1 for spans of clusters that are too small.
        """
        gaps = np.stack([self._gaps(i) for i in range(self.count)])
        while self.alive.sum() > fewest:
            speakers = self._speakers()
            open_gaps = gaps
            if len(speakers) <= bounds.minimum:
                open_gaps = gaps.copy()
                open_gaps[np.ix_(speakers, speakers)] = np.inf
            a, b = divmod(int(open_gaps.argmin()), self.count)
            gap = open_gaps[a, b]
            if not np.isfinite(gap) or (gap > self.options.max_gap and len(speakers) <= bounds.maximum):
                break
            self._join(a, b)
            gaps[b], gaps[:, b] = np.inf, np.inf
            gaps[a] = gaps[:, a] = self._gaps(a)
        by_size = np.argsort(-np.where(self.alive, self.size, -1), kind="stable")
        count = max(len(self._speakers()), min(bounds.minimum, int(self.alive.sum())), 1)
        speakers = by_size[:count].tolist()
        for cluster in by_size[count : int(self.alive.sum())].tolist():
            if len(speakers) < bounds.maximum and self._stands_apart(gaps[cluster, speakers], self.size[cluster]):
                speakers.append(cluster)
        numbers = np.full(self.count, -1)
        numbers[speakers] = np.arange(len(speakers))
        return np.asarray(numbers[self.into[self.of_span]])

    def _stands_apart(self, gaps: Floats, size: int) -> bool:
        return size >= self.options.min_apart_spans and bool(gaps.min() >= self.options.apart * self.options.max_gap)

    def _speakers(self) -> Ints:
        return np.flatnonzero(self.alive & (self.size >= self.options.min_spans))

    def _gaps(self, i: int) -> Floats:
        inner = _mean(np.diag(self.similarity), np.diag(self.weight))
        low = np.fmin(inner[i], inner)
        high = np.minimum(np.fmax(inner[i], inner), low + _INNER_SPREAD)
        within = np.nan_to_num((low + high) / 2, nan=_INNER_DEFAULT)
        across = _mean(self.similarity[i], self.weight[i])
        gaps = within - np.where(np.isnan(across), within, across)
        fewest = np.maximum(np.minimum(self.size[i], self.size), 1)
        gaps = np.where(gaps > 0, gaps / (1 + self.options.small_gap / np.sqrt(fewest)), gaps)
        gaps[~self.alive] = np.inf
        gaps[i] = np.inf
        return np.asarray(gaps)

    def _join(self, a: int, b: int) -> None:
        for sums in (self.similarity, self.weight):
            sums[a] += sums[b]
            sums[:, a] += sums[:, b]
        self.size[a] += self.size[b]
        self.alive[b] = False
        self.into[self.into == b] = a


def _mean(sums: Floats, weights: Floats) -> Floats:
    return np.where(weights > 1e-6, sums / np.maximum(weights, 1e-6), np.nan)


def _initial_clusters(x: Floats, distance: float, check: Callable[[], None]) -> Ints:
    """Average linkage within blocks of ten minutes, because its memory grows with the square of their length."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    most = max(1, _MAX_CLUSTERS * _BLOCK // max(_BLOCK, len(x)))
    labels: Ints = np.zeros(len(x), dtype=np.int64)
    count = 0
    for start in range(0, len(x), _BLOCK):
        check()
        block = x[start : start + _BLOCK]
        of_block = np.zeros(len(block), dtype=np.int64)
        if len(block) > 1:
            distances = np.clip(1 - block @ block.T, 0, 2)
            np.fill_diagonal(distances, 0)
            tree = linkage(squareform(distances, checks=False), "average")
            of_block = fcluster(tree, distance, "distance") - 1
            if of_block.max() >= most:
                of_block = fcluster(tree, most, "maxclust") - 1
        labels[start : start + _BLOCK] = of_block + count
        count += int(of_block.max()) + 1
    return labels


def _pair_sums(
    x: Floats, t: Floats, w: Floats, labels: Ints, count: int, options: ClusteringOptions, check: Callable[[], None]
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """For each pair of clusters the weighted sum of similarities and the sum of weights; (spans,) which are repeats."""
    order = np.argsort(labels, kind="stable")
    x, t, w, labels = x[order], t[order], w[order], labels[order]
    bounds = np.searchsorted(labels, np.arange(count))
    similarity, weight = np.zeros((count, count)), np.zeros((count, count))
    duplicates = np.zeros(len(x), dtype=np.bool_)
    step = max(1, min(_ROWS, PAIRS // len(x)))
    for start in range(0, len(x), step):
        check()
        rows = slice(start, start + step)
        cosine = x[rows] @ x.T
        later = t[rows, None] - t
        far = np.abs(later) >= options.min_separation - 1e-6
        duplicates[order[rows]] = ((cosine >= options.duplicate_similarity + 0.05) & far & (later > 0)).any(axis=1)
        weights = np.outer(w[rows], w) * (far & (cosine < options.duplicate_similarity))
        np.add.at(similarity, labels[rows], np.add.reduceat(weights * cosine, bounds, axis=1))
        np.add.at(weight, labels[rows], np.add.reduceat(weights, bounds, axis=1))
    return similarity, weight, duplicates


def best_path(blocks: Iterable[Floats], change_cost: float) -> Ints:
    """The sequence of speakers with the highest total score, less a cost for each change of speaker (Viterbi, 1967).

    Args:
        blocks: scores of consecutive frames, each (frames, speakers). A block is not needed after the next one is read.
        change_cost: in the unit of the scores.

    Returns:
        (frames of all blocks,) numbers of speakers.
    """
    leaders: list[npt.NDArray[np.int32]] = []
    changes: list[npt.NDArray[np.uint8]] = []
    best: Floats | None = None
    for scores in blocks:
        leader_of = np.zeros(len(scores), dtype=np.int32)
        changed = np.zeros(scores.shape, dtype=np.bool_)
        for frame, row in enumerate(scores):
            if best is None:
                best = row.copy()
                continue
            leader = int(best.argmax())
            after_change = best[leader] - change_cost
            # Every speaker was either the same one before, or the leader.
            leader_of[frame], changed[frame] = leader, best < after_change
            best = np.maximum(best, after_change) + row
        leaders.append(leader_of)
        # A bit for each speaker and frame: hours with many speakers fit into memory.
        changes.append(np.packbits(changed, axis=1))
    if best is None:
        return np.zeros(0, dtype=np.int64)
    path: list[Ints] = []
    speaker = int(best.argmax())
    for leader_of, packed in zip(reversed(leaders), reversed(changes), strict=True):
        changed = np.unpackbits(packed, axis=1, count=len(best)).astype(np.bool_)
        part = np.empty(len(leader_of), dtype=np.int64)
        for frame in range(len(leader_of) - 1, -1, -1):
            part[frame] = speaker
            if changed[frame, speaker]:
                speaker = int(leader_of[frame])
        path.append(part)
    return np.concatenate(path[::-1])
