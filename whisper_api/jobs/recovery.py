"""Recovers the jobs that were running when the process ended.

A job may have ended the process: by its audio, its size, or a defect in a model. Therefore attempts are counted. From
its second attempt on, a job runs alone, and after ``MAX_JOB_ATTEMPTS`` it is Failed.
"""

from __future__ import annotations

import logging

from whisper_api.store.jobs import JobStore

__all__ = ["recover"]

log = logging.getLogger("whisper_api.jobs")

# After this number of attempts a job waits behind all others, so that no other job waits for one that ends the process.
ATTEMPTS_AT_POSITION = 2


def recover(store: JobStore, max_attempts: int, now: float) -> list[str]:
    """Put the running jobs back into the queue, or fail those that were tried too often.

    If the process ends during the recovery, the next start repeats it: each job is put back together with its count.

    Args:
        store: the store of the jobs.
        max_attempts: number of attempts at a job.
        now: seconds since 1970.

    Returns:
        The ids of the failed jobs.
    """
    failed = []
    for job in store.in_state("Processing"):
        attempts, about = job.attempts + 1, {"job_id": job.job_id}
        if attempts < max_attempts:
            store.requeue(job.job_id, counted=True, last=attempts >= ATTEMPTS_AT_POSITION)
            log.warning("job requeued after attempt %d of %d", attempts, max_attempts, extra=about)
        else:
            reason = f"the server ended {attempts} times while this job ran: it is not tried again (MAX_JOB_ATTEMPTS)"
            store.fail(job.job_id, "", reason, now)
            failed.append(job.job_id)
            log.error("job failed: %s", reason, extra=about)
    return failed
