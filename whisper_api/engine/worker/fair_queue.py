"""Which work items run next: start-time fair queueing over jobs, and batches of items that can share one.

Every item carries a start tag on a virtual clock that advances with the work its job was given, so a short job that
arrives behind a long one rides in the next batch (Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996).
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

__all__ = ["Batch", "BatchOperation", "FairQueue", "WorkItem", "exclusive_key", "merged"]

# While other jobs wait that could share a batch, one job gets at most this part of it.
MAX_SHARE = 0.75
# Items that cost nothing would let one job go before all others for ever.
MIN_COST = 1e-3


class BatchOperation(Protocol):
    """What a batch runs. A frozen dataclass: two items share a batch when their operations are equal.

    It may have two more members, which :func:`merged` and :func:`exclusive_key` look for:

    * ``merged(self, other)``: the operation that can run items of both in one batch, for example the longer of two
      padded lengths; None where they cannot share. It must take the inputs of both.
    * ``exclusive: Hashable | None``: no two batches with the same key run at once.
    """

    @property
    def max_items(self) -> int:
        """The most items in one batch."""

    @property
    def max_cost(self) -> float:
        """The most cost in one batch, in seconds of audio; ``math.inf`` for no bound. A single item may exceed it."""

    @property
    def memory_key(self) -> Hashable:
        """What a limit learned from running out of memory is remembered under."""

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the model on a batch, on one of the worker's threads.

        After an error it may be called again with the same inputs in smaller batches, so it must not change them.

        Returns:
            One result for each input, in order. A result that is an ``Again`` is not the end of its item.
        """


def merged(first: BatchOperation, second: BatchOperation) -> BatchOperation | None:
    """The operation that runs items of both, None where they cannot share a batch."""
    if first == second:
        return first
    merge = getattr(first, "merged", None)
    return None if merge is None else merge(second)


def exclusive_key(operation: BatchOperation) -> Hashable | None:
    """What the operation must have to itself while it runs; None for nothing."""
    key: Hashable | None = getattr(operation, "exclusive", None)
    return key


@dataclass(eq=False, slots=True)
class WorkItem:
    """One input on its way through the worker.

    Attributes:
        job: whose turn it takes.
        operation: what runs it.
        input: what the operation takes.
        cost: seconds of audio.
        tag: where it stands on the virtual clock.
        turn: who goes first of those with the same tag.
        future: of the result.
        started: whether it has run, so that its future cannot be cancelled any more.
        alone: whether no other batch may run beside it, since it did not fit into memory with one.
        dropped: whether its job was forgotten while it ran.
        ahead: whether it goes before what else its job waits for.
    """

    job: Hashable
    operation: BatchOperation
    input: Any
    cost: float
    tag: float
    turn: int
    future: Future[Any] = field(default_factory=Future)
    started: bool = False
    alone: bool = False
    dropped: bool = False
    ahead: bool = False


ORDER = attrgetter("tag", "turn")


@dataclass(eq=False, slots=True)
class Batch:
    """Items that run at once.

    Attributes:
        operation: that runs them: their own, or the one that theirs were merged into.
        items: in the order of their tags, those of the leader's operation first.
    """

    operation: BatchOperation
    items: list[WorkItem]


@dataclass(eq=False, slots=True)
class _JobQueue:
    items: list[WorkItem] = field(default_factory=list)
    finish_tag: float = 0.0

    def add(self, item: WorkItem) -> None:
        """Add an item at its tag; those that go ahead then share out the job's first tags among themselves."""
        insort(self.items, item, key=ORDER)
        if any(each.ahead for each in self.items):
            places = [ORDER(each) for each in self.items]
            self.items.sort(key=lambda each: not each.ahead)
            for each, (tag, turn) in zip(self.items, places, strict=True):
                each.tag, each.turn = tag, turn


class FairQueue:
    """The items that wait. Not safe for threads: its owner locks it."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, _JobQueue] = {}
        self._virtual_time = 0.0
        self._turns = itertools.count()

    def __bool__(self) -> bool:
        return any(queue.items for queue in self._jobs.values())

    def push(
        self, job: Hashable, operation: BatchOperation, input: Any, cost: float, *, ahead: bool = False
    ) -> WorkItem:
        """Add an item at the end of its job's queue, or ahead of it.

        One that goes ahead takes the place of the first that does not, which takes that of the second, and so on: other
        jobs wait no longer for it.
        """
        queue = self._jobs.setdefault(job, _JobQueue())
        tag = max(self._virtual_time, queue.finish_tag)
        queue.finish_tag = tag + max(cost, MIN_COST)
        item = WorkItem(job, operation, input, cost, tag, next(self._turns), ahead=ahead)
        queue.add(item)
        return item

    def put_back(self, item: WorkItem, done: float = 0.0) -> None:
        """Return an item that is not finished to the head of its job's queue, behind others with the same tag.

        Args:
            item: as it was taken.
            done: how much of its cost was done; its tag advances by so much. With more than that, later items of its
                job go before the rest of it.
        """
        item.tag += done
        item.turn = next(self._turns)
        self._jobs.setdefault(item.job, _JobQueue()).add(item)

    def forget(self, job: Hashable) -> list[WorkItem]:
        """Drop a job and its place on the virtual clock.

        Returns:
            Its items that waited.
        """
        queue = self._jobs.pop(job, None)
        return queue.items if queue else []

    def clear(self) -> list[WorkItem]:
        """Drop all jobs.

        Returns:
            The items that waited.
        """
        waiting = [item for queue in self._jobs.values() for item in queue.items]
        self._jobs.clear()
        return waiting

    def choose(
        self, item_limit: Callable[[BatchOperation], int], blocked: Callable[[BatchOperation], bool]
    ) -> Batch | None:
        """The batch that is next: the item with the least tag, and those that can share its batch.

        Args:
            item_limit: how many items of an operation one batch may hold.
            blocked: whether an operation cannot run now.

        Returns:
            The batch, whose items still wait until they are removed; None when nothing can run now.
        """
        waiting = [item for queue in self._jobs.values() for item in queue.items if not blocked(item.operation)]
        if not waiting:
            return None
        leader = min(waiting, key=ORDER)
        if leader.alone or item_limit(leader.operation) == 1:
            return Batch(leader.operation, [leader])
        sharing = sorted((item for item in waiting if not item.alone), key=ORDER)
        candidates = [item for item in sharing if item.operation == leader.operation]
        if len(candidates) < item_limit(leader.operation):
            taken = set(map(id, candidates))
            candidates += [
                item
                for item in sharing
                if id(item) not in taken and merged(leader.operation, item.operation) is not None
            ]
        return _fill(candidates, item_limit)

    def remove(self, batch: Batch) -> None:
        """Take the items of a batch out of the queue, and advance the virtual clock to its leader."""
        self._virtual_time = max(self._virtual_time, batch.items[0].tag)
        taken = set(map(id, batch.items))
        for job in {item.job for item in batch.items}:
            queue = self._jobs[job]
            queue.items = [item for item in queue.items if id(item) not in taken]


def _fill(candidates: Sequence[WorkItem], item_limit: Callable[[BatchOperation], int]) -> Batch:
    """A batch of the candidates, of which the first is always in it."""
    leader = candidates[0]
    limit = item_limit(leader.operation)
    shared = any(item.job != leader.job for item in candidates)
    share = max(1, math.ceil(limit * MAX_SHARE)) if shared else limit
    filling = _Filling(leader, item_limit)
    per_job = Counter({leader.job: 1})
    held_back: list[WorkItem] = []
    for item in candidates[1:]:
        if per_job[item.job] >= share:
            held_back.append(item)
        elif filling.add(item):
            per_job[item.job] += 1
    # The others' items did not fill the batch: what was held back for them need not stay behind.
    for item in held_back:
        filling.add(item)
    return filling.batch


class _Filling:
    """A batch while it is filled, within its limits."""

    def __init__(self, leader: WorkItem, item_limit: Callable[[BatchOperation], int]) -> None:
        self.batch = Batch(leader.operation, [leader])
        self._item_limit = item_limit
        self._sum = self._largest = leader.cost
        self._mixed = False

    def add(self, item: WorkItem) -> bool:
        """Add an item if it fits.

        Returns:
            Whether it did.
        """
        batch = self.batch
        same = item.operation == batch.operation
        operation = batch.operation if same else merged(batch.operation, item.operation)
        count = len(batch.items) + 1
        if operation is None or count > self._item_limit(operation):
            return False
        mixed = self._mixed or not same
        largest = max(self._largest, item.cost)
        # Items of several operations are padded to the longest.
        if (count * largest if mixed else self._sum + item.cost) > operation.max_cost:
            return False
        batch.items.append(item)
        batch.operation = operation
        self._sum, self._largest, self._mixed = self._sum + item.cost, largest, mixed
        return True
