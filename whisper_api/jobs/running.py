"""The jobs that run now: how far each is, how to stop it, and how many may run at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from whisper_api.schema import Progress

__all__ = ["ProgressSnapshot", "RunningJob", "RunningJobs"]

# Why a running job was asked to stop.
Reason = Literal["", "stop", "cancel"]


@dataclass(frozen=True)
class ProgressSnapshot:
    """How far a job is, at one moment.

    Attributes:
        progress: what it said last.
        stage_seconds: since when it has been in that stage.
        idle_seconds: since when it has said nothing.
        trouble: why its outcome cannot be written; empty when all is well.
    """

    progress: Progress
    stage_seconds: float
    idle_seconds: float
    trouble: str


@dataclass(eq=False)
class RunningJob:
    """One job that runs. Made and changed by :class:`RunningJobs`.

    Attributes:
        job_id: which.
        cancel: set to stop it within one work item.
        ended: set when it has left, its outcome written and its audio gone.
    """

    job_id: str
    alone: bool
    progress: Progress
    stage_since: float
    heard_of: float
    cancel: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    reason: Reason = ""
    trouble: str = ""


class RunningJobs:
    """The semaphore that counts active jobs, and what is known of each.

    A job under suspicion runs alone: it enters when all others have left, and nobody enters before it has left.

    Args:
        slots: how many jobs may run at a time.
        clock: seconds, monotonic.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by _changed, and with it the fields of each RunningJob:
        self._jobs: dict[str, RunningJob] = {}
        self._closed = False

    def wait_for_room(self) -> bool:
        """Wait until one more job could run.

        Returns:
            False once no more jobs may start.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(alone=False))
            return not self._closed

    def enter(self, job_id: str, *, alone: bool) -> RunningJob | None:
        """Take a slot, or all of them, waiting for it.

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
        """Keep what a job says of itself.

        Returns:
            Whether it says something new; never for a job that has left.
        """
        with self._changed:
            if self._jobs.get(running.job_id) is not running:
                return False
            before, now = running.progress, self._clock()
            running.heard_of = now
            running.progress = progress
            if progress.stage != before.stage:
                running.stage_since = now
            return progress != before

    def note_trouble(self, running: RunningJob, trouble: str) -> None:
        """Keep why a job's outcome cannot be written. It counts as heard of."""
        with self._changed:
            running.trouble = trouble
            running.heard_of = self._clock()

    def ask(self, running: RunningJob, reason: Literal["stop", "cancel"]) -> None:
        """Ask a job to stop. That its caller wants it canceled outweighs that the service stops."""
        with self._changed:
            if running.reason != "cancel":
                running.reason = reason
            running.cancel.set()

    def reason(self, running: RunningJob) -> Reason:
        """Why a job was asked to stop; empty when it was not."""
        with self._changed:
            return running.reason

    def get(self, job_id: str) -> RunningJob | None:
        """A job, when it runs."""
        with self._changed:
            return self._jobs.get(job_id)

    def all(self) -> list[RunningJob]:
        """All jobs that run."""
        with self._changed:
            return list(self._jobs.values())

    def live(self) -> dict[str, ProgressSnapshot]:
        """How far all jobs are."""
        with self._changed:
            now = self._clock()
            return {
                each.job_id: ProgressSnapshot(each.progress, now - each.stage_since, now - each.heard_of, each.trouble)
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
            Whether that is so.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def _has_room(self, alone: bool) -> bool:
        if alone:
            return not self._jobs
        return len(self._jobs) < self.slots and not any(each.alone for each in self._jobs.values())
