"""Cancels the jobs of revoked keys, waiting or running."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from whisper_api.errors import StorageError
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.running import RunningJobs
from whisper_api.schema import JobState
from whisper_api.store.jobs import JobStore

__all__ = ["REASON", "Revocations"]

log = logging.getLogger("whisper_api.jobs")

REASON = "The key that submitted this job was revoked"
# The command line revokes keys in another process, so only the database tells of it.
POLL_SECONDS = 2.0


class Revocations:
    """Cancels the jobs of revoked keys. Running jobs end too, since nobody may fetch their results.

    Args:
        store: of the keys and jobs.
        queue: the waiting jobs.
        running: the running jobs.
        on_canceled: called with the id of a canceled job that no worker runs. A worker cleans up after its own job.
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
        """Start a thread that looks for revoked keys from time to time."""
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
        job_ids = self._store.jobs_of_revoked_keys()
        # The waiting jobs first: the end of a running one would let the next of them start.
        for job_id in job_ids:
            # No worker cleans up after a job that was canceled while it waited.
            if self._canceled(job_id, "Queued"):
                self._queue.remove(job_id)
                self._on_canceled(job_id)
        for job_id in job_ids:
            if self._canceled(job_id, "Processing"):
                running = self._running.get(job_id)
                if running is None:
                    self._on_canceled(job_id)
                else:
                    self._running.ask(running, "cancel")

    def _canceled(self, job_id: str, state: JobState) -> bool:
        if not self._store.cancel(job_id, time.time(), states=(state,), reason=REASON):
            return False
        log.warning("job canceled: its key was revoked", extra={"job_id": job_id})
        return True

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
