"""A download in a thread of its own, watched by the thread that waits for it, which can leave at any moment."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.errors import Canceled

if TYPE_CHECKING:
    from whisper_api.engine.models.download import DownloadProgress

__all__ = ["DownloadWatch", "Report", "watched"]

T = TypeVar("T")

# How often the waiting thread looks whether its job was canceled.
POLL_SECONDS = 0.1
# How long a download that is stopped may take to end, until it is left alone. pip is ended within this time; a
# connection on which nothing comes is left to its thread until that has waited long enough.
STOP_SECONDS = 0.5

Report = Callable[["DownloadProgress"], None]


class DownloadWatch:
    """How far a download is, told to the thread that waits for it; and, the other way, whether to go on.

    The downloading thread calls the object with a :class:`DownloadProgress`, or calls :meth:`check`. Both raise
    :class:`~whisper_api.errors.Canceled` once :meth:`stop` was called.

    Args:
        report: the waiting thread's function for progress; None for none.
    """

    def __init__(self, report: Report | None = None) -> None:
        self._report = report
        # A deque, since appending to it and popping from it are atomic.
        self._newest: deque[DownloadProgress] = deque(maxlen=1)
        self._stopped = threading.Event()

    def __call__(self, progress: DownloadProgress) -> None:
        self.check()
        self._newest.append(progress)

    def check(self) -> None:
        """Stop here when nobody waits for the download any more.

        Raises:
            Canceled: that is so.
        """
        if self._stopped.is_set():
            raise Canceled("nobody waits for this download any more")

    def pass_on(self) -> None:
        """Report the newest progress, if there is any since the last call; called by the waiting thread."""
        if not self._newest:
            return
        newest = self._newest.popleft()
        if self._report is not None:
            self._report(newest)

    def stop(self) -> None:
        """Let the download end at its next step."""
        self._stopped.set()


def watched(
    name: str, fetch: Callable[[DownloadWatch], T], report: Report | None, check: Callable[[], None] | None
) -> T:
    """Fetch something in another thread, and look from this one whether it is still wanted.

    Args:
        name: of what is fetched.
        fetch: called in the other thread.
        report: told in this thread how far it is; what it raises ends the fetch.
        check: called in this thread ten times a second; what it raises ends the fetch.

    Returns:
        What ``fetch`` gives.
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
