"""Waits for downloads and file locks. A canceled job can end such a wait at any moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from whisper_api.engine.models.download import DownloadProgress
from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.errors import Canceled

log = logging.getLogger(__name__)

T = TypeVar("T")

# Interval at which a waiting thread checks whether its job was canceled.
POLL_SECONDS = 0.1
# Longest wait for a stopped download. pip ends within this time. A thread that reads from a silent connection is left
# behind and ends at its own timeout.
STOP_SECONDS = 0.5

Report = Callable[["DownloadProgress"], None]


class DownloadWatch:
    """Carries progress from a downloading thread to the waiting thread, and a stop request in the other direction.

    The downloading thread calls the object with a :class:`DownloadProgress`, or calls :meth:`check`.

    Attributes:
        newest: the newest progress; None before the first.
        stopped: set by the waiting thread; both calls then raise :class:`~whisper_api.errors.Canceled`.
    """

    def __init__(self) -> None:
        self.newest: DownloadProgress | None = None
        self.stopped = False

    def __call__(self, progress: DownloadProgress) -> None:
        self.check()
        self.newest = progress

    def check(self) -> None:
        """Raise :class:`~whisper_api.errors.Canceled` when the waiting thread has stopped the download."""
        if self.stopped:
            raise Canceled("the job that waited for this download was canceled")


def watched(
    name: str, fetch: Callable[[DownloadWatch], T], report: Report | None, check: Callable[[], None] | None
) -> T:
    """Download in another thread, so that this thread can stop waiting at any moment.

    Args:
        name: the model's name, for the thread's name.
        fetch: downloads; called in the other thread.
        report: called with progress in this thread; its errors stop the download.
        check: called in this thread ten times a second; its errors stop the download.

    Returns:
        The return value of ``fetch``.
    """
    watch = DownloadWatch()
    reported: DownloadProgress | None = None
    fetching = BackgroundTask(f"fetch {name}", lambda: fetch(watch))
    try:
        ended = False
        while not ended:
            ended = fetching.wait(POLL_SECONDS)
            newest = watch.newest
            if report is not None and newest is not None and newest is not reported:
                report(newest)
                reported = newest
            if check is not None and not ended:
                check()
    except BaseException:
        watch.stopped = True
        fetching.wait(STOP_SECONDS)
        raise
    return fetching.result()


@contextmanager
def locked(path: Path, check: Callable[[], None] | None) -> Iterator[None]:
    """Hold a lock that excludes all other processes of this machine.

    Args:
        path: the lock file; created when missing.
        check: called often while another process or thread holds the lock; its errors end the wait. None for no wait.

    Raises:
        OSError: the file cannot be written; or TimeoutError when another process or thread holds the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    waited = False
    while not lock.is_locked:
        if check is not None:
            check()
        try:
            lock.acquire(timeout=POLL_SECONDS)
        except Timeout:
            if check is None:
                raise
            if not waited:
                log.info("waiting for another job or process, which holds %s", path)
            waited = True
    try:
        yield
    finally:
        lock.release()
