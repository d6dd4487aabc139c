"""Start-time fair queueing of work items over jobs, and the choice of items that share a batch.

The algorithm is that of Goyal, Vin and Cheng, "Start-time Fair Queueing" (SIGCOMM 1996). Every item has a start tag on
a virtual clock, and a job's tags advance by the cost of its items. So an item of a short job that arrives behind a long
job joins the next batch.
"""

from __future__ import annotations

import itertools
import logging
import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

log = logging.getLogger(__name__)

# A job's largest share of a batch while items of other jobs could join the batch.
MAX_SHARE = 0.75
# A job whose items cost nothing would run before all other jobs for ever.
MIN_COST = 1e-3


class BatchOperation(Protocol):
    """The operation of a batch. Implementations are frozen dataclasses: items with equal operations can share a batch.

    An implementation may have the method ``merged(self, other)``, which :func:`merged` calls: it returns the operation
    that runs items of both operations in one batch, for example the longer of two padded lengths; None when they cannot
    share a batch.
    """

    @property
    def max_items(self) -> int:
        """Largest number of items in a batch."""

    @property
    def max_cost(self) -> float:
        """Largest cost of a batch, in seconds of audio; ``math.inf`` for no limit. A single item may exceed it."""

    @property
    def memory_key(self) -> Hashable:
        """Key of the batch size that the worker learns from out-of-memory errors."""

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the model on a batch, in one of the worker's threads.

        After an error, the worker calls this method again with the same inputs in smaller batches, so implementations
        must not change the inputs.

        Returns:
            One result for each input, in order. An ``Again`` puts the item back into the queue.
        """


@dataclass(frozen=True, eq=False, slots=True)
class Again:
    """The result of an operation for an unfinished item. The item returns to the queue, so other items may run first.

    Attributes:
        input: the item's input for the next run.
        done: the part of the item's cost that this run did, in seconds of audio. The item's start tag advances by it:
            with 0 the item alternates with items of the same tag, and with more than its cost, later items of the same
            job run first.
        operation: the operation of the next run; None for the same operation.
    """

    input: Any
    done: float = 0.0
    operation: BatchOperation | None = None


def merged(first: BatchOperation, second: BatchOperation) -> BatchOperation | None:
    """The operation that runs items of both operations in one batch; None when they cannot share a batch.

    Args:
        first: the operation whose ``merged`` decides.
        second: any other operation.
    """
    if first == second:
        return first
    merge = getattr(first, "merged", None)
    return None if merge is None else merge(second)


@dataclass(eq=False, slots=True)
class WorkItem:
    """One input of an operation, while it waits or runs.

    Attributes:
        job: the job that the item belongs to.
        operation: the operation that runs the item.
        input: the operation's input.
        cost: amount of work, in seconds of audio.
        tag: the start tag on the virtual clock.
        turn: decides the order of items with the same tag.
        future: future of the result.
        started: whether the item has been in a batch; its future can then no longer be cancelled.
        alone: whether the item needs the device without parallel batches, since it ran out of memory with them.
        dropped: whether its job was forgotten while the item ran.
        ahead: whether the item runs before the job's other waiting items.
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

    def settle(self, result: Any) -> None:
        """Set the result of the future, unless it is done."""
        try:
            self.future.set_result(result)
        except InvalidStateError:
            log.debug("a work item got a result after its future was done")

    def fail(self, error: BaseException) -> None:
        """Set the error of the future, unless it is done."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            log.debug("a work item got an error after its future was done")


ORDER = attrgetter("tag", "turn")


@dataclass(eq=False, slots=True)
class Batch:
    """Items that run together.

    Attributes:
        operation: the items' operation, or the operation that theirs were merged into.
        items: the items in the order of their tags, items of the leader's operation first.
    """

    operation: BatchOperation
    items: list[WorkItem]


@dataclass(eq=False, slots=True)
class _JobQueue:
    items: list[WorkItem] = field(default_factory=list)
    finish_tag: float = 0.0

    def add(self, item: WorkItem) -> None:
        """Insert an item by its tag. If the job has priority items, they get the job's first tags."""
        insort(self.items, item, key=ORDER)
        if any(each.ahead for each in self.items):
            tags = [ORDER(each) for each in self.items]
            self.items.sort(key=lambda each: not each.ahead)
            for each, (tag, turn) in zip(self.items, tags, strict=True):
                each.tag, each.turn = tag, turn


class FairQueue:
    """The waiting items. Not thread-safe: the owner holds a lock."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, _JobQueue] = {}
        self._virtual_time = 0.0
        self._turns = itertools.count()

    def __bool__(self) -> bool:
        return any(queue.items for queue in self._jobs.values())

    def holds_only(self, job: Hashable) -> bool:
        """Whether no other job has a waiting item."""
        return all(each == job or not queue.items for each, queue in self._jobs.items())

    def push(
        self, job: Hashable, operation: BatchOperation, input: Any, cost: float, *, ahead: bool = False
    ) -> WorkItem:
        """Add an item at the end of its job's queue, or before the job's ordinary items.

        A priority item takes the tag of the first ordinary item, and the tags of the others move back by one, so other
        jobs wait no longer.

        Args:
            job: the job that the item belongs to.
            operation: the operation that runs the item.
            input: the operation's input.
            cost: amount of work, in seconds of audio.
            ahead: True for a priority item.
        """
        queue = self._jobs.setdefault(job, _JobQueue())
        tag = max(self._virtual_time, queue.finish_tag)
        queue.finish_tag = tag + max(cost, MIN_COST)
        item = WorkItem(job, operation, input, cost, tag, next(self._turns), ahead=ahead)
        queue.add(item)
        return item

    def put_back(self, item: WorkItem, done: float = 0.0) -> None:
        """Return an unfinished item to its job's queue, behind items of other jobs with the same tag.

        Args:
            item: an item of a removed batch.
            done: the part of the item's cost that was done; the item's tag advances by it. With more than the item's
                cost, later items of the job run first.
        """
        item.tag += done
        item.turn = next(self._turns)
        self._jobs.setdefault(item.job, _JobQueue()).add(item)

    def forget(self, job: Hashable) -> list[WorkItem]:
        """Remove a job with its tags.

        Returns:
            The job's waiting items.
        """
        queue = self._jobs.pop(job, None)
        return queue.items if queue else []

    def clear(self) -> list[WorkItem]:
        """Remove all jobs.

        Returns:
            The waiting items.
        """
        waiting = [item for queue in self._jobs.values() for item in queue.items]
        self._jobs.clear()
        return waiting

    def choose(self, item_limit: Callable[[BatchOperation], int]) -> Batch | None:
        """The next batch: the item with the least tag, and items that can share its batch.

        Args:
            item_limit: returns the largest number of items in a batch of an operation.

        Returns:
            The batch, whose items stay in the queue until :meth:`remove`; None when no item waits.
        """
        waiting = [item for queue in self._jobs.values() for item in queue.items]
        if not waiting:
            return None
        leader = min(waiting, key=ORDER)
        if leader.alone or item_limit(leader.operation) == 1:
            return Batch(leader.operation, [leader])
        sharing = sorted((item for item in waiting if not item.alone), key=ORDER)
        candidates = [item for item in sharing if item.operation == leader.operation]
        if len(candidates) < item_limit(leader.operation):
            chosen = set(map(id, candidates))
            candidates += [
                item
                for item in sharing
                if id(item) not in chosen and merged(leader.operation, item.operation) is not None
            ]
        return _fill(candidates, item_limit)

    def remove(self, batch: Batch) -> None:
        """Remove the items of a batch from the queue, and advance the virtual clock to the tag of the first item."""
        self._virtual_time = max(self._virtual_time, batch.items[0].tag)
        removed = set(map(id, batch.items))
        for job in {item.job for item in batch.items}:
            queue = self._jobs[job]
            queue.items = [item for item in queue.items if id(item) not in removed]


def _fill(candidates: Sequence[WorkItem], item_limit: Callable[[BatchOperation], int]) -> Batch:
    """Fill a batch with candidates; the first candidate is always in it."""
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
    # Items of other jobs did not fill the batch, so items over the job's share can join.
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
        """Add an item if it fits, and return whether it did."""
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
