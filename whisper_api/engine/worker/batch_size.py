"""Which batch size a device is best used with: a short measurement while the models warm up."""

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
    """The smallest batch that is nearly as fast as the best one: a larger one only makes the others wait.

    Each size runs twice, the first time only to warm up. The sweep ends where memory does, or where more items in a
    batch no longer make more items per second.

    Args:
        run: runs one batch of so many items, to its end.
        sizes: to try, rising.
        tolerance: how much slower than the best one it may be, as a fraction of its items per second.
        clock: seconds.

    Returns:
        One of the sizes; the first one if not even that fits into memory.

    Raises:
        ValueError: there are no sizes.
        Exception: whatever ``run`` raises, but for running out of memory.
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
