"""Worker: takes jobs from the queue, runs them one after the other, and stores their outcomes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from msgspec.structs import replace

from whisper_api.errors import Canceled, DeviceLost, EngineClosed, EngineLost, StorageError, WhisperApiError
from whisper_api.job_values import JobCompletedEvent, JobEvent, JobProgressEvent, JobSegmentEvent, result_segment
from whisper_api.jobs import outcomes
from whisper_api.jobs.events import event_of
from whisper_api.jobs.model_downloads import WaitsForModel
from whisper_api.jobs.parts import Parts
from whisper_api.jobs.retention import remove_upload
from whisper_api.jobs.running import RunningJob
from whisper_api.jobs.traces import end_trace, start_trace
from whisper_api.jobs.usage import model_label
from whisper_api.schema import PartialSegments, Progress
from whisper_api.store.rows import Job
from whisper_api.voices import VoiceEmbedding

log = logging.getLogger("whisper_api.jobs")

T = TypeVar("T")

TAKE_SECONDS = 1.0
# Pause of a worker after an unexpected error.
PAUSE_SECONDS = 1.0


class _Stopping(Exception):
    """The service stops, so the worker must not wait any longer."""


class Worker:
    """Runs one job at a time. A service has as many workers as jobs may run at a time.

    Args:
        parts: shared with the other workers.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def loop(self) -> None:
        """Run jobs until the service stops."""
        while self._parts.running.wait_for_room():
            self._run_guarded()

    def _run_guarded(self) -> None:
        try:
            self._run_next()
        except BaseException:
            log.critical("a worker has failed; it goes on", exc_info=True)
            self._parts.stopping.wait(PAUSE_SECONDS)

    def _run_next(self) -> None:
        """Take a job, claim it, run it and store its outcome."""
        next_job = self._next()
        if next_job is None:
            return
        job, running = next_job
        parts = self._parts
        try:
            outcome = self._execute(job, running)
            event = self._finish(job, running, outcome)
        finally:
            parts.running.leave(running)
        # Last, so that no watcher learns of the end while a part of the job still runs.
        if event is not None:
            parts.events.publish(event)
        if parts.tracing.on:
            end_trace(parts.tracing, parts.executor, job, outcome, event)

    def _next(self) -> tuple[Job, RunningJob] | None:
        parts = self._parts
        with parts.turn:
            if not parts.running.wait_for_room():
                return None
            job_id = parts.queue.take(TAKE_SECONDS)
            if job_id is None:
                return None
            try:
                return self._enter_and_claim(job_id)
            except _Stopping:
                return None
            finally:
                parts.queue.started(job_id)
                parts.events.update_positions()

    def _enter_and_claim(self, job_id: str) -> tuple[Job, RunningJob] | None:
        """Wait for a slot, then claim: a job that waits for a slot must not be found Processing after a crash."""
        parts = self._parts
        job = self._until_stored(lambda: parts.store.get(job_id))
        if job is None or job.state != "Queued":
            parts.downloads.forget(job_id)
            return None
        if parts.downloads.hold_back(job):
            return None
        running = parts.running.enter(job_id, alone=job.attempts > 0 and not parts.executor.isolates)
        if running is None:
            return None
        claimed = None
        try:
            claimed = self._until_stored(lambda: self._claim(job_id))
        finally:
            if claimed is None:
                parts.running.leave(running)
        if claimed is None:
            return None
        if parts.tracing.on:
            start_trace(parts.tracing, parts.store, claimed)
        waited = time.time() - job.created_at
        log.info("job started", extra={"job_id": job_id, "waited_seconds": _rounded(waited)})
        if job.attempts == 0:
            parts.metrics.job_started(waited)
        parts.events.publish(event_of(claimed))
        return claimed, running

    def _claim(self, job_id: str) -> Job | None:
        store, queue = self._parts.store, self._parts.queue
        # Before the claim, so that a job whose status is Processing never counts as waiting.
        queue.started(job_id)
        try:
            # An earlier attempt may have failed after the claim was on the disk. No other worker claims this job.
            job = store.claim(job_id, time.time()) or store.get(job_id)
        except StorageError:
            queue.not_started(job_id)
            raise
        return job if job is not None and job.state == "Processing" else None

    def _until_stored(self, action: Callable[[], T]) -> T:
        """Repeat an action on the database until the database can be used.

        Raises:
            _Stopping: the service stops.
        """
        stopping = self._parts.stopping
        while True:
            if stopping.is_set():
                raise _Stopping
            try:
                return action()
            except StorageError as error:
                log.error("no job can be started: %s", error)
            stopping.wait(self._parts.retry_seconds)

    def _execute(self, job: Job, running: RunningJob) -> outcomes.Outcome:
        audio = self._parts.settings.config.tmp_dir / job.job_id / outcomes.AUDIO_NAME
        if not audio.is_file():
            return outcomes.Failed("", "its audio is no longer on the server's disk")
        try:
            if (failure := self._parts.downloads.failure(job)) is not None:
                raise failure
            return outcomes.Completed(
                self._parts.executor.run(
                    job,
                    audio,
                    on_progress=lambda progress: self._publish_progress(running, progress),
                    on_partial=lambda partial: self._publish_partial(running, partial),
                    on_missing_model=lambda name: self._parts.downloads.require(job, name),
                    cancel=running.cancel,
                    voices=self._voices(job),
                )
            )
        except BaseException as error:
            # Only the outcome is kept, because the frames of the error may hold the audio.
            return self._outcome_of(error, job, running)

    def _voices(self, job: Job) -> dict[str, VoiceEmbedding]:
        """The voices to look for. They are read now, because the owner may have deleted one since the submission."""
        if not job.options.identify:
            return {}
        return {speaker.name: speaker.voice for speaker in self._parts.store.speakers(job.owner)}

    def _publish_progress(self, running: RunningJob, progress: Progress) -> None:
        parts, job_id = self._parts, running.job_id
        if not parts.running.note(running, progress):
            return
        parts.tracing.job_stage(job_id, progress.stage)
        snapshot = parts.running.snapshots().get(job_id)
        eta = parts.estimates.of_running(job_id, snapshot) if snapshot is not None else None
        parts.events.publish(
            JobProgressEvent(job_id=job_id, progress=progress.fraction, stage=progress.stage, eta_seconds=_rounded(eta))
        )

    def _publish_partial(self, running: RunningJob, partial: PartialSegments) -> None:
        if self._parts.running.get(running.job_id) is not running:
            return
        segments = (replace(result_segment(segment), id=number) for number, segment in enumerate(partial.segments))
        self._parts.events.publish(
            JobSegmentEvent(
                job_id=running.job_id, index=partial.index, aligned=partial.aligned, segments=tuple(segments)
            )
        )

    def _outcome_of(self, error: BaseException, job: Job, running: RunningJob) -> outcomes.Outcome:
        about = {"job_id": job.job_id}
        reason = self._parts.running.reason(running)
        if isinstance(error, DeviceLost):
            # First, so that no worker takes the job again in this process.
            self._parts.on_device_lost(error)
            return outcomes.after_crash(job, self._parts.settings.config.max_job_attempts, "the device failed")
        if isinstance(error, (Canceled, EngineClosed)):
            if reason == "cancel":
                return outcomes.WasCanceled()
            if reason == "stop" or self._parts.stopping.is_set():
                return outcomes.PutBack(counted=False)
        if isinstance(error, WaitsForModel):
            return outcomes.PutBack(counted=False)
        if isinstance(error, EngineLost):
            log.error("a job has lost its engine: %s", error, extra=about)
            return outcomes.after_crash(job, self._parts.settings.config.max_job_attempts, "the engine's process ended")
        if isinstance(error, EngineClosed):
            log.error("the engine has failed under a job", exc_info=error, extra=about)
            if job.attempts + 1 < self._parts.settings.config.max_job_attempts:
                return outcomes.PutBack(counted=True, last=True)
            failure = f"the engine failed in attempt {job.attempts + 1} at this job: it is not tried again"
            return outcomes.Failed("EngineClosed", f"{failure} (MAX_JOB_ATTEMPTS)")
        if not isinstance(error, WhisperApiError):
            log.error("a job has ended with an error", exc_info=error, extra=about)
        else:
            log.debug("a job has ended with an error", exc_info=error, extra=about)
        return outcomes.failure_of(error)

    def _finish(self, job: Job, running: RunningJob, outcome: outcomes.Outcome) -> JobEvent | None:
        """Store the outcome, repeatedly if the disk is full for a while, so that no result is lost.

        Returns:
            The event to publish, if any.
        """
        parts, about = self._parts, {"job_id": job.job_id}
        # Before the pauses of a full disk.
        worked = parts.running.worked(running)
        while True:
            if parts.running.reason(running) == "cancel":
                outcome = outcomes.WasCanceled()
            try:
                event = self._commit(job, outcome, worked)
                break
            except StorageError as error:
                log.error("the outcome of a job cannot be written: %s", error, extra=about)
                parts.running.note_write_error(running, str(error))
                if parts.stopping.is_set():
                    log.error("the outcome of a job is lost: it runs again after the next start", extra=about)
                    return None
                parts.stopping.wait(parts.retry_seconds)
            except Exception as error:
                if isinstance(outcome, outcomes.Failed):
                    raise
                # The database works: storing this outcome would fail again.
                log.error("the outcome of a job cannot be stored", exc_info=error, extra=about)
                outcome = outcomes.failure_of(error)
        if not isinstance(outcome, outcomes.PutBack):
            remove_upload(parts.settings.config.tmp_dir, job.job_id)
        return event

    def _commit(self, job: Job, outcome: outcomes.Outcome, worked: float) -> JobEvent | None:
        """Store the outcome. May be repeated after an error.

        Args:
            job: the job, as it was claimed.
            outcome: the outcome.
            worked: seconds of work for a job without a transcript, whose timings say it.

        Returns:
            The event to publish, if any.

        Raises:
            StorageError: the database cannot be written now.
        """
        store, job_id, now = self._parts.store, job.job_id, time.time()
        metrics, seconds = self._parts.metrics, now - (job.started_at or now)
        figures = {"job_id": job_id, "seconds": _rounded(seconds)}
        match outcome:
            case outcomes.Completed(transcript):
                if store.complete(job_id, transcript, now, self._parts.estimates.rates_of(transcript)):
                    log.info("job completed", extra={**figures, "audio_seconds": _rounded(transcript.duration)})
                    metrics.job_completed(
                        model_label(transcript.model), transcript.timings, transcript.duration, seconds
                    )
                    self._parts.preload.succeeded()
                    self._parts.estimates.forget(job_id)
                    self._parts.downloads.forget(job_id)
                    self._parts.estimates.learned()
                    # No other thread can have ended the job, so its row need not be read again.
                    return JobCompletedEvent(job_id=job_id)
            case outcomes.Failed(error_name, error):
                if store.fail(job_id, error_name, error, now, worked):
                    log.warning("job failed", extra={**figures, "error": error_name})
                    metrics.job_ended("failed")
            case outcomes.WasCanceled():
                if store.cancel(job_id, now, states=("Processing",), compute_seconds=worked):
                    log.info("job canceled", extra=figures)
                    metrics.job_ended("canceled")
            case outcomes.PutBack(counted, last):
                if store.requeue(job_id, counted=counted, last=last):
                    log.info("job requeued", extra=figures)
                    metrics.job_ended("requeued")
                return self._settle(job_id, first=not last)
        return self._settle(job_id)

    def _settle(self, job_id: str, *, first: bool = False) -> JobEvent | None:
        """Act on the state that a job has now: it may have been canceled before this worker stored the outcome.

        Args:
            job_id: id of the job.
            first: whether a job that waits again goes before the others.
        """
        parts = self._parts
        job = parts.store.get(job_id)
        if job is None:
            return None
        if job.state != "Queued":
            parts.estimates.forget(job_id)
            parts.downloads.forget(job_id)
            return event_of(job)
        # Before another worker can take the job and publish that it runs.
        parts.events.publish(event_of(job))
        parts.tracing.job_waits(job_id)
        if not parts.stopping.is_set():
            parts.queue.put(job_id, reserved=False, first=first)
            parts.events.update_positions()
        return None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
