"""Lets a batch use the cores of idle lanes.

On a CPU each lane runs its batches on its own cores, so that lanes never wait for each other. A batch that runs alone
leaves the other cores idle: it may use them, too. The threads sleep while they wait, because the lanes' next batches
need the cores.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["batch_threads", "using"]

_local = threading.local()


def batch_threads(usual: int) -> int:
    """The number of threads that the batch on this thread may use.

    Args:
        usual: the number outside of a batch, and of a batch beside others.
    """
    threads: int = getattr(_local, "threads", usual)
    return threads


@contextmanager
def using(threads: int, usual: int) -> Iterator[None]:
    """The context of a batch that may use so many threads; torch uses them from this thread on.

    Args:
        threads: the number of threads.
        usual: the number after this context.
    """
    # Another thread may be importing torch: then the module is there without its functions.
    set_torch_threads = getattr(sys.modules.get("torch"), "set_num_threads", _ignore)
    _local.threads = threads
    # In torch, the number belongs to the calling thread.
    set_torch_threads(threads)
    try:
        yield
    finally:
        del _local.threads
        set_torch_threads(usual)


def _ignore(threads: int) -> None:
    """Takes the place of torch's function before torch is imported."""
