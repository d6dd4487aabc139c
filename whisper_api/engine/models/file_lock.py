"""A lock among all processes of this machine that a canceled job need not go on waiting for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold a file's lock while the context is open.

    Args:
        path: the file; made when it is not there.
        check: called often while another process or thread holds the lock; what it raises ends the wait.

    Raises:
        OSError: the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    waits = False
    while True:
        check()
        try:
            lock.acquire(timeout=POLL_SECONDS)
            break
        except Timeout:
            if not waits:
                log.info("waiting for another job or process, which holds %s", path)
            waits = True
    try:
        yield
    finally:
        lock.release()
