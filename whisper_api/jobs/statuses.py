"""The status of a job, made of its row and of what runs now."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from whisper_api.job_values import JobStatus
from whisper_api.jobs.running import ProgressSnapshot
from whisper_api.records import made_of
from whisper_api.schema import Stage
from whisper_api.store.rows import Job


def status_of(
    job: Job,
    snapshots: Mapping[str, ProgressSnapshot],
    held: Collection[str],
    position: int | None,
    eta_seconds: float | None,
) -> JobStatus:
    """The status of a job for its owner.

    Args:
        job: the job.
        snapshots: id of each running job to its progress.
        held: ids of the jobs that wait for a model to be downloaded.
        position: position in the queue; None unless the job waits.
        eta_seconds: seconds until the job is expected to end; None when unknown.
    """
    running = snapshots.get(job.job_id) if job.state == "Processing" else None
    completed = job.state == "Completed"
    stage: Stage | None = None
    if completed:
        stage = "done"
    elif running is not None:
        stage = running.progress.stage
    elif job.state == "Queued" and job.job_id in held:
        stage = "download"
    progress = 1.0 if completed else running.progress.fraction if running else None
    if progress is None and job.state in ("Queued", "Processing"):
        progress = 0.0
    return made_of(
        job,
        JobStatus,
        status=job.state,
        queue_position=position,
        progress=progress,
        stage=stage,
        eta_seconds=None if eta_seconds is None else round(eta_seconds, 1),
        error=job.error if job.state in ("Failed", "Canceled") else None,
        result_gone=completed and not job.has_result,
    )
