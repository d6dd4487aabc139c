"""The run of a batch, and the recovery from its errors.

A batch that does not fit into memory runs again, then in halves; a single item runs after idle models were unloaded,
then without batches beside it. After any other error, each item runs alone, so that only the item at fault fails. An
error that kills the device ends all work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from whisper_api.engine.worker import fork
from whisper_api.engine.worker.device import GPU_LANES, release_cached_memory
from whisper_api.engine.worker.device_errors import DeviceFault, ErrorKind, clear_frames, first_line, kind_of
from whisper_api.engine.worker.fair_queue import Again, BatchOperation, WorkItem
from whisper_api.engine.worker.statistics import WorkerCounts
from whisper_api.errors import OutOfMemory

log = logging.getLogger(__name__)

# Runs of a batch that does not fit into memory before it is halved. After an allocation has failed, CTranslate2 may
# report the same error again at the next call, once in each lane of a GPU, and only the last run decides.
ATTEMPTS = 1 + GPU_LANES
# Full batches after which a lowered limit doubles, and the most batches that a limit waits which was lowered again.
GOOD_BATCHES = 32
MOST_GOOD_BATCHES = 1024


@dataclass(slots=True)
class _Limit:
    """A limit that was learned from an error.

    Attributes:
        items: largest number of items in a batch.
        good: full batches since the limit was set.
        patience: full batches until it doubles.
        raised: whether it was doubled since it was last lowered.
    """

    items: int
    good: int = 0
    patience: int = GOOD_BATCHES
    raised: bool = False


class BatchLimits:
    """The batch sizes that fit into memory, learned by the operations' ``memory_key``. Thread-safe.

    A lowered limit doubles after a number of full batches, because the memory that was missing may have been another
    job's. If the doubled limit is too large again, the next attempt comes later.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: dict[Hashable, _Limit] = {}

    def limit(self, operation: BatchOperation) -> int:
        """The largest batch of an operation: its ``max_items``, lowered after it ran out of memory."""
        learned = self._limits.get(operation.memory_key)
        return max(1, operation.max_items if learned is None else min(operation.max_items, learned.items))

    def lower(self, operation: BatchOperation, items: int) -> int:
        """Lower an operation's limit after a batch of so many items did not fit.

        Two lanes that run out of memory at once lower it once.

        Returns:
            The limit.
        """
        with self._lock:
            limit = self._limits.setdefault(operation.memory_key, _Limit(items))
            if limit.raised:
                limit.patience = min(2 * limit.patience, MOST_GOOD_BATCHES)
            limit.items, limit.good, limit.raised = max(1, min(limit.items, items // 2)), 0, False
            return limit.items

    def succeeded(self, operation: BatchOperation, items: int) -> None:
        """Note that a batch of so many items fitted."""
        if not self._limits:
            return
        with self._lock:
            key = operation.memory_key
            limit = self._limits.get(key)
            if limit is None or items < limit.items:
                return
            limit.good += 1
            if limit.good < limit.patience:
                return
            limit.items, limit.good, limit.raised = 2 * limit.items, 0, True
            log.info("batches of %s may have %d items again", type(operation).__name__, limit.items)


@dataclass(eq=False)
class BatchRunner:
    """Runs batches until each item has its result or its error. Any lane may call it.

    Args:
        lanes: number of batches that may run at once.
        on_out_of_memory: frees memory for a single item, and returns whether it freed any.
        probe: raises the device's own error.
        fault: takes the report that the device is lost.
        put_back: puts an item back into the queue; takes the part of its cost that is done, in seconds of audio.
        counts: counts the batches that do not fit into memory.

    Attributes:
        limits: the sizes of batches that fit into memory.
    """

    lanes: int
    on_out_of_memory: Callable[[], bool]
    probe: Callable[[], None]
    fault: DeviceFault
    put_back: Callable[[WorkItem, float], None]
    counts: WorkerCounts
    limits: BatchLimits = field(default_factory=BatchLimits)
    # Guards the counter.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, operation: BatchOperation, items: Sequence[WorkItem]) -> None:
        """Run items in a batch, or in several when the operation's limit is lower.

        Args:
            operation: the items' operation, or the operation that theirs were merged into.
            items: the items. Each gets its result or error, or returns to the queue.
        """
        limit = self.limits.limit(operation)
        if len(items) > limit:
            for start in range(0, len(items), limit):
                self.run(operation, items[start : start + limit])
            return
        kind: ErrorKind = "other"
        for _ in range(ATTEMPTS):
            results, error, kind = self._attempt(operation, items)
            if error is None:
                self.limits.succeeded(operation, len(items))
                for item, result in zip(items, results, strict=True):
                    self._finish(operation, item, result)
                return
            if kind != "memory":
                break
            with self._lock:
                self.counts.out_of_memory += 1
            log.warning(
                "out of memory with %d items of %s: %s", len(items), type(operation).__name__, first_line(error)
            )
            release_cached_memory()
        assert error is not None
        self._recover(operation, items, error, kind)

    def _attempt(
        self, operation: BatchOperation, items: Sequence[WorkItem]
    ) -> tuple[Sequence[Any], BaseException | None, ErrorKind]:
        """Run a batch.

        Returns:
            Its results; or the error, and what the error means. The frames of the error hold nothing any more, unless
            the device is lost.
        """
        failure: BaseException
        try:
            results = operation.run([item.input for item in items])
            if len(results) != len(items):
                raise RuntimeError(f"{type(operation).__name__} gave {len(results)} results for {len(items)} inputs")
        except BaseException as error:
            failure = error
        else:
            return results, None, "other"
        kind = self._kind(failure)
        if kind == "sticky":
            # The destructors of what the frames hold would abort the process, see DeviceFault.report().
            fork.keep_for_ever(failure)
            return (), failure, kind
        # Outside of the handler, so that neither the interpreter nor a frame holds the tensors of the failed batch.
        clear_frames(failure)
        # Without this method's own frame, which holds the error.
        return (), failure.with_traceback(failure.__traceback__ and failure.__traceback__.tb_next), kind

    def _kind(self, error: BaseException) -> ErrorKind:
        """What an error means. The device itself is asked, because an error may only follow from an earlier one."""
        kind = kind_of(error)
        if kind != "sticky":
            try:
                self.probe()
            except Exception as own:
                if kind_of(own) == "sticky":
                    error.__cause__ = own
                    return "sticky"
        return kind

    def _finish(self, operation: BatchOperation, item: WorkItem, result: Any) -> None:
        if isinstance(result, Again):
            item.operation, item.input = result.operation or operation, result.input
            self.put_back(item, result.done)
        else:
            item.settle(result)

    def _recover(
        self, operation: BatchOperation, items: Sequence[WorkItem], error: BaseException, kind: ErrorKind
    ) -> None:
        if kind == "sticky":
            for item in items:
                item.fail(self.fault.report(error))
        elif kind == "memory" and len(items) > 1:
            limit = self.limits.lower(operation, len(items))
            log.warning("batches of %s now have at most %d items", type(operation).__name__, limit)
            self.run(operation, items)
        elif kind == "memory":
            self._recover_alone(operation, items[0], error)
        elif len(items) > 1 and isinstance(error, Exception):
            # One input may be at fault: run each item alone, so that only that item fails.
            for item in items:
                self.run(operation, [item])
        else:
            for item in items:
                item.fail(error)

    def _recover_alone(self, operation: BatchOperation, item: WorkItem, error: BaseException) -> None:
        """Retry an item that does not fit into memory: first after freeing memory, then without parallel batches."""
        kind: ErrorKind = "memory"
        if self.on_out_of_memory():
            release_cached_memory()
            results, second, kind = self._attempt(operation, [item])
            if second is None:
                self._finish(operation, item, results[0])
                return
            error = second
        if kind != "memory":
            self._recover(operation, [item], error, kind)
        elif self.lanes > 1 and not item.alone:
            item.alone = True
            self.put_back(item, 0.0)
        else:
            name, text = type(operation).__name__, first_line(error)
            failure = OutOfMemory(f"one work item of {name} does not fit into memory: {text}")
            failure.__cause__ = error
            item.fail(failure)
