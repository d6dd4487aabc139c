"""The one thread that runs models on a device, fairly over all active jobs.

Job threads submit work items and wait for their futures. The worker picks items by start-time fair queueing (Goyal,
Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996): every item carries a start tag on a virtual clock that
advances with the work its job was given, so a short job that arrives behind a long one rides in the next batch. Items
whose operations are equal share a batch.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Protocol

from whisper_api.errors import EngineClosed, OutOfMemory

__all__ = ["GpuWorker", "Operation", "is_out_of_memory"]

log = logging.getLogger(__name__)

# While other jobs wait for the same operation, one job gets at most this share of a batch.
MAX_SHARE = 0.75


class Operation(Protocol):
    """What a batch runs. A frozen dataclass: two items share a batch when their operations are equal."""

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
        """Run the model on a batch, on the worker's thread.

        Returns:
            One result for each input, in order.
        """


@dataclass(eq=False, slots=True)
class _WorkItem:
    job: Hashable
    operation: Operation
    input: Any
    cost: float
    tag: float
    future: Future[Any] = field(default_factory=Future)


@dataclass(eq=False, slots=True)
class _JobQueue:
    items: deque[_WorkItem] = field(default_factory=deque)
    finish_tag: float = 0.0


class GpuWorker:
    """One thread, one device.

    Args:
        name: of the thread, for logs.
        on_out_of_memory: called when even a single item does not fit; frees what it can and returns whether that was
            anything, in which case the item is tried once more.
    """

    def __init__(self, name: str = "gpu-worker", on_out_of_memory: Callable[[], bool] = lambda: False) -> None:
        self._on_out_of_memory = on_out_of_memory
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Guarded by _lock:
        self._jobs: dict[Hashable, _JobQueue] = {}
        self._virtual_time = 0.0
        self._closed = False
        # Touched by the worker's thread only:
        self._item_limits: dict[Hashable, int] = {}
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Hashable, operation: Operation, input: Any, cost: float) -> Future[Any]:
        """Queue one work item.

        Args:
            job: whose turn it takes.
            operation: what to run; must be hashable and equal to that of the items it may share a batch with.
            input: whatever ``operation.run`` takes.
            cost: how much work this is, in seconds of audio.

        Returns:
            A future of the item's result. Cancelling it before its batch starts drops the item.

        Raises:
            EngineClosed: the worker was closed.
        """
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed")
            queue = self._jobs.setdefault(job, _JobQueue())
            tag = max(self._virtual_time, queue.finish_tag)
            queue.finish_tag = tag + max(cost, 1e-3)
            item = _WorkItem(job, operation, input, cost, tag)
            queue.items.append(item)
            self._changed.notify()
        return item.future

    def forget(self, job: Hashable) -> None:
        """Drop a job: its queued items are cancelled and its place on the virtual clock is given up."""
        with self._lock:
            queue = self._jobs.pop(job, None)
        for item in queue.items if queue else ():
            item.future.cancel()

    def close(self) -> None:
        """Finish the batch that runs, fail everything queued with EngineClosed, and end the thread."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            waiting = [item for queue in self._jobs.values() for item in queue.items]
            self._jobs.clear()
            self._changed.notify()
        for item in waiting:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(EngineClosed("the engine was closed while this job ran"))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def item_limit(self, operation: Operation) -> int:
        """How many items of this operation a batch may hold, with what was learned from running out of memory."""
        return max(1, min(operation.max_items, self._item_limits.get(operation.memory_key, operation.max_items)))

    def _loop(self) -> None:
        try:
            self._serve()
        except BaseException:
            # Not an operation's error, which goes to its future: job threads must not wait for a thread that is gone.
            log.critical("the worker's thread has failed", exc_info=True)
            self.close()
            raise

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not any(queue.items for queue in self._jobs.values()):
                    self._changed.wait()
                if self._closed:
                    return
                batch = self._take_batch()
            # A canceled item must not be run, and after this call its future cannot be cancelled any more.
            batch = [item for item in batch if item.future.set_running_or_notify_cancel()]
            if batch:
                self._run(batch[0].operation, batch)
            # Without this the last batch's inputs and results would stay alive until the next one.
            del batch

    def _take_batch(self) -> list[_WorkItem]:
        """Remove and return the next batch. Called with the lock held and at least one item waiting."""
        leader = min((queue.items[0] for queue in self._jobs.values() if queue.items), key=lambda item: item.tag)
        self._virtual_time = max(self._virtual_time, leader.tag)
        candidates = sorted(
            (i for queue in self._jobs.values() for i in queue.items if i.operation == leader.operation),
            key=lambda item: item.tag,
        )
        limit = self.item_limit(leader.operation)
        shared = any(item.job != leader.job for item in candidates)
        share = max(1, math.ceil(limit * MAX_SHARE)) if shared and limit > 1 else limit
        batch = self._fill(candidates, limit, share, leader.operation.max_cost)
        taken = set(map(id, batch))
        for job in {item.job for item in batch}:
            queue = self._jobs[job]
            queue.items = deque(item for item in queue.items if id(item) not in taken)
        return batch

    @staticmethod
    def _fill(candidates: list[_WorkItem], limit: int, share: int, max_cost: float) -> list[_WorkItem]:
        batch: list[_WorkItem] = []
        held_back: list[_WorkItem] = []
        per_job: dict[Hashable, int] = {}
        cost = 0.0
        for item in candidates:
            if per_job.get(item.job, 0) >= share:
                held_back.append(item)
                continue
            if batch and (len(batch) >= limit or cost + item.cost > max_cost):
                return batch
            batch.append(item)
            cost += item.cost
            per_job[item.job] = per_job.get(item.job, 0) + 1
        # The others' items did not fill the batch: what was held back for them need not stay behind.
        for item in held_back:
            if len(batch) >= limit or cost + item.cost > max_cost:
                break
            batch.append(item)
            cost += item.cost
        return batch

    def _run(self, operation: Operation, batch: list[_WorkItem]) -> None:
        limit = self.item_limit(operation)
        if len(batch) > limit:
            for start in range(0, len(batch), limit):
                self._run(operation, batch[start : start + limit])
            return
        try:
            results = operation.run([item.input for item in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{type(operation).__name__} gave {len(results)} results for {len(batch)} inputs")
        except BaseException as error:
            self._recover(operation, batch, error)
            return
        for item, result in zip(batch, results, strict=True):
            _settle(item.future, result)

    def _recover(self, operation: Operation, batch: list[_WorkItem], error: BaseException) -> None:
        if is_out_of_memory(error):
            if len(batch) > 1:
                limit = max(1, len(batch) // 2)
                self._item_limits[operation.memory_key] = limit
                log.warning("out of memory with %d items of %s: at most %d from now on", len(batch), operation, limit)
                _release_cached_memory()
                self._run(operation, batch)
                return
            if self._on_out_of_memory():
                _release_cached_memory()
                try:
                    _settle(batch[0].future, operation.run([batch[0].input])[0])
                    return
                except BaseException as second:
                    error = second
            if is_out_of_memory(error):
                failure = OutOfMemory(f"one work item of {type(operation).__name__} does not fit into memory")
                failure.__cause__ = error
                error = failure
        elif len(batch) > 1 and isinstance(error, Exception):
            # One job's input may be at fault: run each alone, so that only the guilty one fails.
            for item in batch:
                self._run(operation, [item])
            return
        for item in batch:
            _fail(item.future, error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, from torch, CTranslate2 or Python, says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "failed to allocate" in text)


def _release_cached_memory() -> None:
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _settle(future: Future[Any], result: Any) -> None:
    try:
        future.set_result(result)
    except InvalidStateError:
        log.debug("a result came for a work item that had been settled already")


def _fail(future: Future[Any], error: BaseException) -> None:
    try:
        future.set_exception(error)
    except InvalidStateError:
        log.debug("an error came for a work item that had been settled already")
