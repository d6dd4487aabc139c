"""Measures the best batch size of a device while the models warm up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from whisper_api.engine.worker.worker import is_out_of_memory

__all__ = ["choose_batch_size"]

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64)


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
