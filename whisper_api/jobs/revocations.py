"""What becomes of the jobs of a key that was revoked: they end, whether they wait or run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from whisper_api.errors import StorageError
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.running import RunningJobs
from whisper_api.store.jobs import JobStore

__all__ = ["REASON", "Revocations"]

log = logging.getLogger("whisper_api.jobs")

REASON = "The key that submitted this job was revoked"
# The command line revokes keys in a process of its own, so the database is the only place to learn of it.
POLL_SECONDS = 2.0


class Revocations:
    """Cancels the jobs of revoked keys. Nobody may fetch their results any more, so running ones end too.

    Args:
        store: knows keys and jobs.
        queue: the jobs that wait.
        running: the jobs that run.
        on_canceled: called with the id of a job that waited and was canceled. Of one that ran, its worker tells.
    """

    def __init__(
        self, store: JobStore, queue: JobQueue, running: RunningJobs, on_canceled: Callable[[str], None]
    ) -> None:
        self._store = store
        self._queue = queue
        self._running = running
        self._on_canceled = on_canceled
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look for revoked keys from time to time, in a thread of its own."""
        self._thread = threading.Thread(target=self._loop, name="revocations", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Cancel all jobs of revoked keys that have not ended.

        Raises:
            StorageError: the database cannot be used; the next call goes on.
        """
        for job_id in self._store.jobs_of_revoked_keys():
            # Two steps: a job that was canceled while it waited is run by no worker, which would tell of its end.
            if self._store.cancel(job_id, time.time(), states=("Queued",), reason=REASON):
                self._queue.remove(job_id)
                self._on_canceled(job_id)
            elif self._store.cancel(job_id, time.time(), states=("Processing",), reason=REASON):
                running = self._running.get(job_id)
                if running is None:
                    self._on_canceled(job_id)
                else:
                    self._running.ask(running, "cancel")
            else:
                continue
            log.warning("job canceled: its key was revoked", extra={"job_id": job_id})

    def _loop(self) -> None:
        while not self._closing.wait(POLL_SECONDS):
            self._try()

    def _try(self) -> None:
        try:
            self.check()
        except StorageError as error:
            log.error("jobs of revoked keys could not be canceled: %s", error)
        except Exception:
            log.exception("jobs of revoked keys could not be canceled")
