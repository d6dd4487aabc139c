"""The running jobs: their progress, how to stop them, and how many may run at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from whisper_api.schema import Progress

# Stages that are no work for the job.
WITHOUT_WORK = frozenset(("queue", "download", "load", "done"))
# Why a running job was asked to stop.
Reason = Literal["", "stop", "cancel"]


@dataclass(frozen=True)
class ProgressSnapshot:
    """The progress of a job at one moment.

    Attributes:
        progress: the last reported progress.
        stage_seconds: time since the stage began.
        idle_seconds: time since the last report.
        write_error: the reason why the job's outcome cannot be stored; empty when it can.
    """

    progress: Progress
    stage_seconds: float
    idle_seconds: float
    write_error: str


@dataclass(eq=False)
class RunningJob:
    """A running job, made and changed by :class:`RunningJobs`.

    Attributes:
        job_id: id of the job.
        alone: whether no other job may run at the same time.
        progress: the last reported progress.
        stage_since: when the stage began.
        reported_at: time of the last report.
        worked: seconds of the stages that have ended, without the loading of models.
        cancel: set to stop the job within one work item.
        ended: set when the job has left: its outcome is stored and its audio removed.
        reason: why the job was asked to stop.
        write_error: why the job's outcome cannot be stored.
    """

    job_id: str
    alone: bool
    progress: Progress
    stage_since: float
    reported_at: float
    worked: float = 0.0
    cancel: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    reason: Reason = ""
    write_error: str = ""


class RunningJobs:
    """Counts and limits the running jobs, and holds the progress of each.

    A job that may have crashed the server runs alone: it enters when all others have left, and no job enters before it
    has left.

    Args:
        slots: number of jobs that may run at a time.
        clock: returns monotonic seconds.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by _changed, and with it the fields of each RunningJob:
        self._slots = slots
        self._jobs: dict[str, RunningJob] = {}
        self._closed = False

    def resize(self, slots: int) -> None:
        """Change how many jobs may run at a time. Jobs that run go on.

        Args:
            slots: number of jobs.
        """
        with self._changed:
            self._slots = slots
            self._changed.notify_all()

    def wait_for_room(self) -> bool:
        """Wait until another job could run.

        Returns:
            False once no more jobs may start.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(alone=False))
            return not self._closed

    def enter(self, job_id: str, *, alone: bool) -> RunningJob | None:
        """Wait for a free slot, or for all slots, and take it.

        Args:
            job_id: id of the job.
            alone: whether no other job may run at the same time.

        Returns:
            None once no more jobs may start.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(alone))
            if self._closed:
                return None
            now = self._clock()
            running = self._jobs[job_id] = RunningJob(job_id, alone, Progress(0.0, "load"), now, now)
            return running

    def leave(self, running: RunningJob) -> None:
        """Give the slot back."""
        with self._changed:
            if self._jobs.get(running.job_id) is running:
                del self._jobs[running.job_id]
            running.ended.set()
            self._changed.notify_all()

    def note(self, running: RunningJob, progress: Progress) -> bool:
        """Record the progress of a job.

        Args:
            running: the job.
            progress: its progress.

        Returns:
            Whether the progress differs from the last one; False for a job that has left.
        """
        with self._changed:
            if self._jobs.get(running.job_id) is not running:
                return False
            before, now = running.progress, self._clock()
            running.reported_at = now
            running.progress = progress
            if progress.stage != before.stage:
                running.worked += _work(running, before.stage, now)
                running.stage_since = now
            return progress != before

    def worked(self, running: RunningJob) -> float:
        """Seconds that a job has run, without the loading of models, which serves later jobs too."""
        with self._changed:
            return running.worked + _work(running, running.progress.stage, self._clock())

    def note_write_error(self, running: RunningJob, error: str) -> None:
        """Record why a job's outcome cannot be stored. The job does not count as stalled then.

        Args:
            running: the job.
            error: the reason.
        """
        with self._changed:
            running.write_error = error
            running.reported_at = self._clock()

    def ask(self, running: RunningJob, reason: Literal["stop", "cancel"]) -> None:
        """Ask a job to stop. A cancellation by the caller takes precedence over a stop of the service.

        Args:
            running: the job.
            reason: why the job has to stop.
        """
        with self._changed:
            if running.reason != "cancel":
                running.reason = reason
            running.cancel.set()

    def reason(self, running: RunningJob) -> Reason:
        """Why a job was asked to stop; empty when it was not."""
        with self._changed:
            return running.reason

    def get(self, job_id: str) -> RunningJob | None:
        """A running job; None when it does not run."""
        with self._changed:
            return self._jobs.get(job_id)

    def all(self) -> list[RunningJob]:
        """All running jobs."""
        with self._changed:
            return list(self._jobs.values())

    def snapshots(self) -> dict[str, ProgressSnapshot]:
        """The progress of all running jobs, by job id."""
        with self._changed:
            now = self._clock()
            return {
                each.job_id: ProgressSnapshot(
                    each.progress, now - each.stage_since, now - each.reported_at, each.write_error
                )
                for each in self._jobs.values()
            }

    def close(self) -> None:
        """Let no more jobs start."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_until_empty(self, timeout: float) -> bool:
        """Wait until no job runs.

        Args:
            timeout: seconds.

        Returns:
            Whether no job runs.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def _has_room(self, alone: bool) -> bool:
        if alone:
            return not self._jobs and self._slots > 0
        return len(self._jobs) < self._slots and not any(each.alone for each in self._jobs.values())


def _work(running: RunningJob, stage: str, now: float) -> float:
    """The work of a stage that ends now."""
    return 0.0 if stage in WITHOUT_WORK else now - running.stage_since
