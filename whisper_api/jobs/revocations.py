"""Cancels the jobs of keys that were revoked or have expired, and deletes their vocabularies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from whisper_api.errors import StorageError
from whisper_api.job_values import JobState
from whisper_api.jobs.periodic import Periodic
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.running import RunningJobs
from whisper_api.store.jobs import JobStore

log = logging.getLogger("whisper_api.jobs")

REASON = "The key that submitted this job was revoked"
EXPIRED = "The key that submitted this job has expired"
# The command line revokes keys in another process, so this process learns of it from the database only.
POLL_SECONDS = 2.0


class Revocations:
    """Revokes the keys that have expired, cancels the jobs of revoked keys, and deletes their vocabularies.

    Running jobs end too, because no caller may fetch their results.

    Args:
        store: the store of keys and jobs.
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
        self._periodic = Periodic("revocations", self._try)

    def start(self) -> None:
        """Start a thread that looks for revoked keys from time to time."""
        self._periodic.start(POLL_SECONDS)

    def close(self) -> None:
        """End the thread."""
        self._periodic.close()

    def check(self) -> None:
        """Revoke expired keys, cancel all unfinished jobs of revoked keys, and delete the vocabularies of these keys.

        Raises:
            StorageError: the database cannot be used; the next call goes on.
        """
        self._store.expire_keys(time.time())
        jobs = {job_id: EXPIRED if expired else REASON for job_id, expired in self._store.jobs_of_revoked_keys()}
        # Waiting jobs first, because the end of a running job would let the next waiting job start.
        for job_id, reason in jobs.items():
            # This method cleans up after a job that waited; a worker only cleans up after its own job.
            if self._canceled(job_id, "Queued", reason):
                self._queue.remove(job_id)
                self._on_canceled(job_id)
        for job_id, reason in jobs.items():
            running = self._running.get(job_id)
            worked = 0.0 if running is None else self._running.worked(running)
            if self._canceled(job_id, "Processing", reason, worked):
                if running is None:
                    self._on_canceled(job_id)
                else:
                    self._running.ask(running, "cancel")
        self._store.delete_vocabularies_of_revoked_keys()

    def _canceled(self, job_id: str, state: JobState, reason: str, worked: float = 0.0) -> bool:
        if not self._store.cancel(job_id, time.time(), states=(state,), reason=reason, compute_seconds=worked):
            return False
        log.warning("job canceled: its key was revoked or has expired", extra={"job_id": job_id})
        return True

    def _try(self) -> None:
        try:
            self.check()
        except StorageError as error:
            log.error("jobs of revoked keys could not be canceled: %s", error)
        except Exception:
            log.exception("jobs of revoked keys could not be canceled")
