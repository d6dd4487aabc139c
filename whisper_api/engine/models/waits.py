"""Waits for downloads and file locks. A canceled job can end such a wait at any moment."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
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

    The downloading thread calls the object with a :class:`DownloadProgress`, or calls :meth:`check`. After
    :meth:`stop`, both raise :class:`~whisper_api.errors.Canceled`.

    Args:
        report: called with progress in the waiting thread; None for no reports.
    """

    def __init__(self, report: Report | None = None) -> None:
        self._report = report
        # A deque, because appending to it and popping from it are atomic.
        self._newest: deque[DownloadProgress] = deque(maxlen=1)
        self._stopped = threading.Event()

    def __call__(self, progress: DownloadProgress) -> None:
        self.check()
        self._newest.append(progress)

    def check(self) -> None:
        """Raise :class:`~whisper_api.errors.Canceled` after :meth:`stop`."""
        if self._stopped.is_set():
            raise Canceled("the job that waited for this download was canceled")

    def pass_on(self) -> None:
        """Report the newest progress since the last call; called by the waiting thread."""
        if not self._newest:
            return
        newest = self._newest.popleft()
        if self._report is not None:
            self._report(newest)

    def stop(self) -> None:
        """Request that the download ends at its next step."""
        self._stopped.set()


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
    watch = DownloadWatch(report)
    fetching = BackgroundTask(f"fetch {name}", lambda: fetch(watch))
    try:
        while not fetching.wait(POLL_SECONDS):
            watch.pass_on()
            if check is not None:
                check()
        watch.pass_on()
    except BaseException:
        watch.stop()
        fetching.wait(STOP_SECONDS)
        raise
    return fetching.result()


class Busy(Exception):
    """Another thread or process holds a lock."""


def once() -> Callable[[], None]:
    """A check for :func:`locked` that ends the wait with :class:`Busy` after the first attempt."""
    attempts = itertools.count()

    def check() -> None:
        if next(attempts):
            raise Busy("another thread or process holds it")

    return check


@contextmanager
def locked(path: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that excludes all other processes of this machine.

    Args:
        path: the lock file; created when missing.
        check: called often while another process or thread holds the lock; its errors end the wait.

    Raises:
        OSError: the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    logged = False
    while True:
        check()
        try:
            lock.acquire(timeout=POLL_SECONDS)
            break
        except Timeout:
            if not logged:
                log.info("waiting for another job or process, which holds %s", path)
            logged = True
    try:
        yield
    finally:
        lock.release()
