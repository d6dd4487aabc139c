"""Recovers the jobs that were running when the process ended, or when its device failed.

A job may be to blame: its audio, its size, or a defect in a model. Therefore attempts are counted. From its second
attempt on, a job runs alone, and after ``MAX_JOB_ATTEMPTS`` it is Failed.
"""

from __future__ import annotations

import logging

from whisper_api.jobs.outcomes import Failed, PutBack
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job

log = logging.getLogger("whisper_api.jobs")

# After this number of attempts a job waits behind all others, so that no other job waits for one that ends the process.
ATTEMPTS_AT_POSITION = 2


def after_crash(job: Job, max_attempts: int, what: str) -> PutBack | Failed:
    """What becomes of a job under which something broke that all jobs share.

    Args:
        job: the job, as it was claimed.
        max_attempts: number of attempts at a job.
        what: what broke, for people: "the server ended".
    """
    attempts = job.attempts + 1
    if attempts < max_attempts:
        return PutBack(counted=True, last=attempts >= ATTEMPTS_AT_POSITION)
    return Failed("", f"{what} {attempts} times while this job ran: it is not tried again (MAX_JOB_ATTEMPTS)")


def recover(store: JobStore, max_attempts: int, now: float) -> list[Job]:
    """Put the running jobs back into the queue, or fail those that were tried too often.

    If the process ends during the recovery, the next start repeats it: each job is put back together with its count.

    Args:
        store: the store of the jobs.
        max_attempts: number of attempts at a job.
        now: seconds since 1970.

    Returns:
        The failed jobs, as they were before.
    """
    failed = []
    for job in store.in_state("Processing"):
        about = {"job_id": job.job_id}
        match after_crash(job, max_attempts, "the server ended"):
            case PutBack(counted, last):
                store.requeue(job.job_id, counted=counted, last=last)
                log.warning("job requeued after attempt %d of %d", job.attempts + 1, max_attempts, extra=about)
            case Failed(error_name, reason):
                store.fail(job.job_id, error_name, reason, now)
                failed.append(job)
                log.error("job failed: %s", reason, extra=about)
    return failed
