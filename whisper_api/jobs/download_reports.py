"""Reports downloads of models to the jobs that wait for a model, and to the status page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whisper_api.errors import Canceled, EngineClosed

if TYPE_CHECKING:
    from whisper_api.engine.models.download import DownloadProgress


@dataclass(frozen=True, eq=False)
class _Watch:
    """A thread that may download models.

    Attributes:
        cancel: stops the downloads of this thread.
        on_download: called when any download makes progress.
    """

    cancel: threading.Event
    on_download: Callable[[], None]


class DownloadReports:
    """Passes the progress of downloads on, and stops the downloads of a canceled job. Thread-safe."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._watches: set[_Watch] = set()
        self._activity = ""
        self._closed = False

    @property
    def activity(self) -> str:
        """The download that runs now, with its share; empty when there is none."""
        with self._lock:
            return self._activity

    def close(self) -> None:
        """Stop all downloads with :class:`~whisper_api.errors.EngineClosed`."""
        with self._lock:
            self._closed = True

    @contextmanager
    def watched(
        self, cancel: threading.Event, on_download: Callable[[], None] = lambda: None
    ) -> Iterator[Callable[[], None]]:
        """While open, report downloads to this thread's job.

        Args:
            cancel: stops the downloads that this thread begins.
            on_download: called when any download makes progress, because other jobs may wait for the same model.

        Yields:
            A function that raises Canceled or EngineClosed when the downloads are to stop; for any thread.
        """
        watch = _Watch(cancel, on_download)
        self._here.watch = watch
        with self._lock:
            self._watches.add(watch)
        try:
            yield lambda: self._check(watch)
        finally:
            self._here.watch = None
            with self._lock:
                self._watches.discard(watch)
                self._activity = ""

    def report(self, download: DownloadProgress) -> None:
        """Report the progress of a download that this thread runs.

        Raises:
            Canceled: this thread's job was canceled.
            EngineClosed: the downloads were stopped.
        """
        share = f" ({download.done / download.total:.0%})" if download.total else ""
        with self._lock:
            watches = list(self._watches)
            self._activity = f"fetching {download.name}{share}"
        self._check(getattr(self._here, "watch", None))
        for watch in watches:
            watch.on_download()

    def _check(self, watch: _Watch | None) -> None:
        with self._lock:
            closed = self._closed
        if closed:
            raise EngineClosed("the executor was closed while a model was fetched")
        if watch is not None and watch.cancel.is_set():
            raise Canceled("the job was canceled")
