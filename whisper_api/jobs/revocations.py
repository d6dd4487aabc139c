"""Cancels the jobs of keys that were revoked or have expired, and deletes their vocabularies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from whisper_api.job_values import JobState
from whisper_api.jobs.parts import Parts
from whisper_api.store.jobs import JobStore

log = logging.getLogger("whisper_api.jobs")

REASON = "The key that submitted this job was revoked"
EXPIRED = "The key that submitted this job has expired"
# The command line revokes keys in another process, so this process learns of it from the database only.
POLL_SECONDS = 2.0


def end_revoked(parts: Parts, on_canceled: Callable[[str], None]) -> None:
    """Revoke expired keys, cancel all unfinished jobs of revoked keys, and delete the vocabularies of these keys.

    Running jobs end too, because no caller may fetch their results.

    Args:
        parts: the parts of the service.
        on_canceled: called with the id of a canceled job that no worker runs. A worker cleans up after its own job.

    Raises:
        StorageError: the database cannot be used; the next call goes on.
    """
    store = parts.store
    store.expire_keys(time.time())
    jobs = {job_id: EXPIRED if expired else REASON for job_id, expired in store.jobs_of_revoked_keys()}
    # Waiting jobs first, because the end of a running job would let the next waiting job start.
    for job_id, reason in jobs.items():
        if _canceled(store, job_id, "Queued", reason):
            parts.queue.remove(job_id)
            on_canceled(job_id)
    for job_id, reason in jobs.items():
        running = parts.running.get(job_id)
        worked = 0.0 if running is None else parts.running.worked(running)
        if _canceled(store, job_id, "Processing", reason, worked):
            if running is None:
                on_canceled(job_id)
            else:
                parts.running.ask(running, "cancel")
    store.delete_vocabularies_of_revoked_keys()


def _canceled(store: JobStore, job_id: str, state: JobState, reason: str, worked: float = 0.0) -> bool:
    if not store.cancel(job_id, time.time(), states=(state,), reason=reason, compute_seconds=worked):
        return False
    log.warning("job canceled: its key was revoked or has expired", extra={"job_id": job_id})
    return True
