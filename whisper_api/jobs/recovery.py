"""Puts the jobs back into the queue that were running when the process ended without doing so.

Such a job may have ended the process: by its audio, its size, or a defect in a model. So attempts are counted. From its
second attempt on, a job runs alone, and after ``MAX_JOB_ATTEMPTS`` it is Failed.
"""

from __future__ import annotations

import logging

from whisper_api.store.jobs import JobStore

__all__ = ["recover"]

log = logging.getLogger("whisper_api.jobs")

# After so many attempts a job waits behind all others, so that none of them waits for a job that ends the process.
ATTEMPTS_IN_PLACE = 2


def recover(store: JobStore, max_attempts: int, now: float) -> list[str]:
    """Put back what was running, or fail the jobs that were tried too often.

    When the process ends in the middle, this can be repeated: each job is put back together with its count.

    Args:
        store: the jobs.
        max_attempts: how often a job is tried.
        now: seconds since 1970.

    Returns:
        The ids of the jobs that failed.
    """
    failed = []
    for job in store.in_state("Processing"):
        attempts, about = job.attempts + 1, {"job_id": job.job_id}
        if attempts < max_attempts:
            store.requeue(job.job_id, counted=True, last=attempts >= ATTEMPTS_IN_PLACE)
            log.warning("job requeued after attempt %d of %d", attempts, max_attempts, extra=about)
        else:
            reason = f"the server ended {attempts} times while this job ran: it is not tried again (MAX_JOB_ATTEMPTS)"
            store.fail(job.job_id, "", reason, now)
            failed.append(job.job_id)
            log.error("job failed: %s", reason, extra=about)
    return failed
