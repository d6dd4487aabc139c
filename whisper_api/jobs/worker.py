"""Worker: takes jobs from the queue, runs them one after the other, and writes down what became of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from whisper_api.errors import Canceled, EngineClosed, StorageError, WhisperApiError
from whisper_api.jobs.estimates import Estimates
from whisper_api.jobs.events import EventBus
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.feed import Feed
from whisper_api.jobs.model_downloads import ModelDownloads
from whisper_api.jobs.outcomes import (
    AUDIO_NAME,
    Completed,
    Failed,
    Outcome,
    PutBack,
    WasCanceled,
    event_of,
    failure_of,
    remove_upload,
)
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.running import RunningJob, RunningJobs
from whisper_api.schema import (
    JobCompletedEvent,
    JobEvent,
    JobProgressEvent,
    JobSegmentEvent,
    PartialSegments,
    Progress,
    result_segment,
)
from whisper_api.store.jobs import Job, JobStore

__all__ = ["Worker", "WorkerDeps"]

log = logging.getLogger("whisper_api.jobs")

T = TypeVar("T")

TAKE_SECONDS = 1.0
# A worker whose loop fails for a reason nobody thought of goes on after so long.
PAUSE_SECONDS = 1.0


class _Stopping(Exception):
    """The service stops, so that nothing is waited for any more."""


@dataclass(frozen=True, kw_only=True)
class WorkerDeps:
    """What all workers of a service share.

    Attributes:
        store, queue, executor, downloads, running, events, feed, estimates: the service's.
        uploads_dir: holds a directory for each job, named by its id.
        moved: called when places in the queue have changed.
        completed: called when a job has its result.
        max_attempts: how often a job is tried that ends the process or the engine.
        retry_seconds: between two attempts to write what the disk would not take.
        stopping: set when nothing may be waited for any more.
        turn: held by the worker that takes the next job, so that jobs start in the order of the queue.
        taken: the job, one at most, that has left the queue and does not run yet.
    """

    store: JobStore
    queue: JobQueue
    executor: Executor
    downloads: ModelDownloads
    running: RunningJobs
    events: EventBus
    feed: Feed
    estimates: Estimates
    uploads_dir: Path
    moved: Callable[[], None]
    completed: Callable[[], None]
    max_attempts: int
    retry_seconds: float
    stopping: threading.Event
    turn: threading.Lock
    taken: set[str]


class Worker:
    """Runs one job at a time. There are as many workers as jobs may run at a time.

    Args:
        deps: what it shares with the others.
    """

    def __init__(self, deps: WorkerDeps) -> None:
        self._deps = deps

    def loop(self) -> None:
        """Run jobs until the service stops. For a thread of its own."""
        while self._deps.running.wait_for_room():
            self._run_guarded()

    def run_once(self, timeout: float = TAKE_SECONDS) -> bool:
        """Take a job, claim it, run it, write down what became of it.

        Args:
            timeout: seconds to wait for a job.

        Returns:
            Whether there was one.
        """
        next_job = self._next(timeout)
        if next_job is None:
            return False
        job, running = next_job
        try:
            event = self._finish(job, running, self._execute(job, running))
        finally:
            self._deps.running.leave(running)
        # Only now: whoever hears of the end finds nothing of the job that still runs.
        if event is not None:
            self._deps.feed.publish(event)
        return True

    def _run_guarded(self) -> None:
        try:
            self.run_once()
        except BaseException:
            log.critical("a worker has failed; it goes on", exc_info=True)
            self._deps.stopping.wait(PAUSE_SECONDS)

    def _next(self, timeout: float) -> tuple[Job, RunningJob] | None:
        deps = self._deps
        with deps.turn:
            if not deps.running.wait_for_room():
                return None
            job_id = deps.queue.take(timeout)
            if job_id is None:
                return None
            deps.taken.add(job_id)
            try:
                return self._enter_and_claim(job_id)
            except _Stopping:
                return None
            finally:
                deps.taken.discard(job_id)
                deps.moved()

    def _enter_and_claim(self, job_id: str) -> tuple[Job, RunningJob] | None:
        """In this order: a job that waits for others to leave must not be found Processing after a crash of theirs."""
        deps = self._deps
        job = self._patiently(lambda: deps.store.get(job_id))
        if job is None or job.state != "Queued":
            deps.downloads.failure(job_id)
            return None
        if deps.downloads.hold_back(job):
            return None
        running = deps.running.enter(job_id, alone=job.attempts > 0)
        if running is None:
            return None
        claimed = None
        try:
            claimed = self._patiently(lambda: self._claim(job_id))
        finally:
            if claimed is None:
                deps.running.leave(running)
        if claimed is None:
            return None
        log.info("job started", extra={"job_id": job_id, "waited_seconds": _rounded(time.time() - job.created_at)})
        deps.feed.publish(event_of(claimed))
        return claimed, running

    def _claim(self, job_id: str) -> Job | None:
        store, taken = self._deps.store, self._deps.taken
        # Before it is seen to run: from then on it must not count among those that wait.
        taken.discard(job_id)
        try:
            # Should an error have come after a claim was on the disk: nobody else claims what this worker has taken.
            job = store.claim(job_id, time.time()) or store.get(job_id)
        except StorageError:
            taken.add(job_id)
            raise
        return job if job is not None and job.state == "Processing" else None

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do something with the database as soon as it can be used.

        Raises:
            _Stopping: the service stops.
        """
        stopping = self._deps.stopping
        while True:
            if stopping.is_set():
                raise _Stopping
            try:
                return action()
            except StorageError as error:
                log.error("no job can be started: %s", error)
            stopping.wait(self._deps.retry_seconds)

    def _execute(self, job: Job, running: RunningJob) -> Outcome:
        audio = self._deps.uploads_dir / job.job_id / AUDIO_NAME
        if not audio.is_file():
            return Failed("", "its audio is no longer on the server's disk")
        try:
            if (failure := self._deps.downloads.failure(job.job_id)) is not None:
                raise failure
            return Completed(
                self._deps.executor.run(
                    job,
                    audio,
                    on_progress=lambda progress: self._heard(running, progress),
                    on_partial=lambda stretch: self._read(running, stretch),
                    cancel=running.cancel,
                )
            )
        except BaseException as error:
            # No more is kept of it than the outcome needs: its frames may hold the audio.
            return self._outcome_of(error, job, running)

    def _heard(self, running: RunningJob, progress: Progress) -> None:
        deps, job_id = self._deps, running.job_id
        if not deps.running.note(running, progress):
            return
        live = deps.running.live().get(job_id)
        eta = deps.estimates.of_running(job_id, live) if live is not None else None
        deps.feed.publish(
            JobProgressEvent(job_id=job_id, progress=progress.fraction, stage=progress.stage, eta_seconds=_rounded(eta))
        )

    def _read(self, running: RunningJob, stretch: PartialSegments) -> None:
        if self._deps.running.get(running.job_id) is not running:
            return
        segments = (replace(result_segment(segment), id=number) for number, segment in enumerate(stretch.segments))
        self._deps.feed.publish(
            JobSegmentEvent(
                job_id=running.job_id, index=stretch.index, aligned=stretch.aligned, segments=tuple(segments)
            )
        )

    def _outcome_of(self, error: BaseException, job: Job, running: RunningJob) -> Outcome:
        about = {"job_id": job.job_id}
        reason = self._deps.running.reason(running)
        if isinstance(error, (Canceled, EngineClosed)):
            if reason == "cancel":
                return WasCanceled()
            if reason == "stop" or self._deps.stopping.is_set():
                return PutBack(counted=False)
        if isinstance(error, EngineClosed):
            log.error("the engine has failed under a job", exc_info=error, extra=about)
            if job.attempts + 1 < self._deps.max_attempts:
                return PutBack(counted=True)
            failure = f"the engine failed in attempt {job.attempts + 1} at this job: it is not tried again"
            return Failed("EngineClosed", f"{failure} (MAX_JOB_ATTEMPTS)")
        if not isinstance(error, WhisperApiError):
            log.error("a job has ended with an error", exc_info=error, extra=about)
        else:
            log.debug("a job has ended with an error", exc_info=error, extra=about)
        return failure_of(error)

    def _finish(self, job: Job, running: RunningJob, outcome: Outcome) -> JobEvent | None:
        """Write the outcome down, as often as it takes: a result is not lost to a disk that is full for a while.

        Returns:
            What is to be told of it.
        """
        deps, about = self._deps, {"job_id": job.job_id}
        while True:
            if deps.running.reason(running) == "cancel":
                outcome = WasCanceled()
            try:
                event = self._commit(job, outcome)
                break
            except StorageError as error:
                log.error("the outcome of a job cannot be written: %s", error, extra=about)
                deps.running.note_trouble(running, str(error))
                if deps.stopping.is_set():
                    log.error("the outcome of a job is lost: it runs again after the next start", extra=about)
                    return None
                deps.stopping.wait(deps.retry_seconds)
            except Exception as error:
                if isinstance(outcome, Failed):
                    raise
                # What cannot be stored for a reason of its own never will be.
                log.error("the outcome of a job cannot be stored", exc_info=error, extra=about)
                outcome = failure_of(error)
        if not isinstance(outcome, PutBack):
            remove_upload(deps.uploads_dir, job.job_id)
        return event

    def _commit(self, job: Job, outcome: Outcome) -> JobEvent | None:
        """Write the outcome. May be repeated when it raises.

        Returns:
            What is to be told of it.

        Raises:
            StorageError: it cannot be written now.
        """
        store, job_id, now = self._deps.store, job.job_id, time.time()
        figures = {"job_id": job_id, "seconds": _rounded(now - (job.started_at or now))}
        match outcome:
            case Completed(transcript):
                if store.complete(job_id, transcript, now, self._deps.estimates.rates_of(transcript)):
                    log.info("job completed", extra={**figures, "audio_seconds": _rounded(transcript.duration)})
                    self._deps.completed()
                    self._deps.estimates.forget(job_id)
                    self._deps.estimates.learned()
                    # Nobody else can have ended it, so its row need not be read again.
                    return JobCompletedEvent(job_id=job_id)
            case Failed(error_name, error):
                if store.fail(job_id, error_name, error, now):
                    log.warning("job failed", extra={**figures, "error": error_name})
            case WasCanceled():
                if store.cancel(job_id, now, states=("Processing",)):
                    log.info("job canceled", extra=figures)
            case PutBack(counted):
                if store.requeue(job_id, counted=counted, last=counted):
                    log.info("job requeued", extra=figures)
        return self._settle(job_id)

    def _settle(self, job_id: str) -> JobEvent | None:
        """Do what follows from the state that a job is in now: its caller may have ended it before this worker."""
        deps = self._deps
        job = deps.store.get(job_id)
        if job is None:
            return None
        if job.state != "Queued":
            deps.estimates.forget(job_id)
            return event_of(job)
        # Before another worker can take it, and tell that it runs.
        deps.feed.publish(event_of(job))
        if not deps.stopping.is_set():
            deps.queue.put(job_id, reserved=False)
            deps.moved()
        return None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
