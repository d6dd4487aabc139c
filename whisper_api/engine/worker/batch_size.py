"""The size of batches: the best size, measured while the models warm up, and the size that fits into memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from whisper_api.engine.worker.device_errors import is_out_of_memory
from whisper_api.engine.worker.fair_queue import BatchOperation

__all__ = ["BatchLimits", "choose_batch_size"]

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# Full batches after which a lowered limit doubles, and the most batches that a limit waits which was lowered again.
GOOD_BATCHES = 32
MOST_GOOD_BATCHES = 1024


def choose_batch_size(
    run: Callable[[int], object],
    sizes: Sequence[int] = SIZES,
    tolerance: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The smallest batch size whose throughput is close to the best. A larger batch only delays other jobs.

    Each size runs twice, the first time as a warm-up. The sweep ends when a batch does not fit into memory, or when a
    larger batch no longer increases the throughput.

    Args:
        run: runs one batch of so many items, and returns after its end.
        sizes: the sizes to try, in rising order.
        tolerance: accepted loss, as a fraction of the best number of items per second.
        clock: returns seconds.

    Returns:
        One of the sizes; the first size when no batch fits into memory.

    Raises:
        ValueError: ``sizes`` is empty.
        Exception: an error of ``run`` other than one about memory.
    """
    if not sizes:
        raise ValueError("there are no sizes to choose from")
    speeds: dict[int, float] = {}
    for size in sizes:
        try:
            run(size)
            begun = clock()
            run(size)
            seconds = clock() - begun
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.info("a batch of %d does not fit into memory", size)
            break
        speeds[size] = size / max(seconds, 1e-9)
        log.debug("batches of %d: %.1f items a second", size, speeds[size])
        if speeds[size] < (1.0 - tolerance) * max(speeds.values()):
            break
    enough = (1.0 - tolerance) * max(speeds.values(), default=0.0)
    return next((size for size, speed in speeds.items() if speed >= enough), sizes[0])


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
