"""Where jobs stand, put together from their rows and from what is known of those that wait and run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone

from whisper_api.jobs.estimates import Estimates
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.running import ProgressSnapshot, RunningJobs
from whisper_api.schema import JobStatus
from whisper_api.store.jobs import Job

__all__ = ["Statuses"]


class Statuses:
    """Looks at the queue and the running jobs; asks neither the disk nor the database. Safe to use from any thread.

    Args:
        queue, running, estimates: the service's.
        taken: the job, if any, that has left the queue and does not run yet.
    """

    def __init__(self, queue: JobQueue, running: RunningJobs, estimates: Estimates, taken: set[str]) -> None:
        self._queue = queue
        self._running = running
        self._estimates = estimates
        self._taken = taken

    def of(self, job: Job) -> JobStatus:
        """Where one job stands."""
        position = eta = None
        live = self._running.live()
        if job.state == "Queued":
            position = self.position(job.job_id)
            eta = self._estimates.of_queued(job.job_id, self._order(), live)
        elif job.state == "Processing" and job.job_id in live:
            eta = self._estimates.of_running(job.job_id, live[job.job_id])
        return _status(job, live, position, eta)

    def of_all(self, jobs: list[Job]) -> list[JobStatus]:
        """Where several jobs stand, the queue looked at once. Without estimates."""
        positions, live = self.positions(), self._running.live()
        return [
            _status(job, live, positions.get(job.job_id, 1) if job.state == "Queued" else None, None) for job in jobs
        ]

    def position(self, job_id: str) -> int:
        """A waiting job's place: 1 for the next, with several slots the batch it falls in."""
        position = self._queue.position(job_id)
        # What is not in the queue, though it waits, is about to start.
        return 1 if position is None else self._batch(position)

    def positions(self) -> dict[str, int]:
        """The places of all jobs in the queue."""
        return {job_id: self._batch(position) for job_id, position in self._queue.positions().items()}

    def _batch(self, position: int) -> int:
        return math.ceil((position + len(self._taken)) / self._running.slots)

    def _order(self) -> list[str]:
        return [*self._taken.copy(), *self._queue.positions()]


def _status(job: Job, live: Mapping[str, ProgressSnapshot], position: int | None, eta: float | None) -> JobStatus:
    running = live.get(job.job_id) if job.state == "Processing" else None
    completed = job.state == "Completed"
    progress = 1.0 if completed else running.progress.fraction if running else None
    if progress is None and job.state in ("Queued", "Processing"):
        progress = 0.0
    return JobStatus(
        job_id=job.job_id,
        status=job.state,
        queue_position=position,
        created_at=_rfc3339(job.created_at),
        started_at=None if job.started_at is None else _rfc3339(job.started_at),
        finished_at=None if job.finished_at is None else _rfc3339(job.finished_at),
        progress=progress,
        stage="done" if completed else running.progress.stage if running else None,
        eta_seconds=None if eta is None else round(eta, 1),
        audio_seconds=job.audio_seconds,
        error=job.error if job.state in ("Failed", "Canceled") else None,
        warnings=job.warnings,
        file_name=job.file_name,
        metadata=job.metadata,
        result_gone=completed and not job.has_result,
    )


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
