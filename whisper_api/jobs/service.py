"""JobService: submit, status, result, cancel, wait, events. The one door to durable jobs."""

from __future__ import annotations

import builtins
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence

from whisper_api.config import Config
from whisper_api.errors import Draining, InvalidOption, JobIsProcessing
from whisper_api.jobs.admission import Admission
from whisper_api.jobs.estimates import Estimates
from whisper_api.jobs.events import EventBus
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.feed import Feed
from whisper_api.jobs.health import Health
from whisper_api.jobs.lifecycle import STOP_SECONDS, Lifecycle
from whisper_api.jobs.model_downloads import ModelDownloads
from whisper_api.jobs.outcomes import event_of, remove_upload
from whisper_api.jobs.preload import RETRY_SECONDS, Preload
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.reservations import Reservation, Reservations
from whisper_api.jobs.results import Results, visible_job
from whisper_api.jobs.retention import Retention
from whisper_api.jobs.revocations import Revocations
from whisper_api.jobs.running import RunningJob, RunningJobs
from whisper_api.jobs.statuses import Statuses
from whisper_api.jobs.submission import Submission
from whisper_api.jobs.worker import WorkerDeps
from whisper_api.schema import FINAL_STATES, Corrections, JobState, JobStatus, Transcript
from whisper_api.store.cursors import cursor_of, seq_of
from whisper_api.store.jobs import Job, JobStore

__all__ = ["Health", "JobService", "Reservation", "Submission"]

log = logging.getLogger("whisper_api.jobs")

MAX_PAGE = 1000
WRITE_RETRY_SECONDS = 3.0
DRAINING_RETRY_SECONDS = 10.0


class JobService:
    """Durable jobs. Every method may be called from any thread; nearly all touch the disk, so none from an event loop.

    Callers name the owner of the jobs they may see; None sees all.

    Args:
        config: limits, directories and times.
        store: the job database; for a service that is started, its ``exclusive`` was called. Closed with the service.
        executor: runs the jobs. Closed with the service.
        preload_retry_seconds: pauses after the first failure to get the executor ready, the second ...
        write_retry_seconds: between two attempts to write what the disk would not take.

    Attributes:
        events: what happens to jobs, for those who wait on an event loop.
        feed: the same, and the text of those that run, for those who come late or are away for a while.
        store, executor: as given.
    """

    def __init__(
        self,
        config: Config,
        store: JobStore,
        executor: Executor,
        *,
        preload_retry_seconds: Sequence[float] = RETRY_SECONDS,
        write_retry_seconds: float = WRITE_RETRY_SECONDS,
    ) -> None:
        self.store = store
        self.executor = executor
        self.events = EventBus()
        self._process = os.getpid()
        self._config = config
        self._uploads_dir = config.tmp_dir
        slots = config.max_concurrent_jobs if config.enable_concurrency else 1
        self._queue = JobQueue(config.max_queued_jobs)
        self._running = RunningJobs(slots)
        self._results = Results(store)
        self._estimates = Estimates(store, lambda: executor.device, executor.model_name, slots)
        self._retention = Retention(
            store,
            self._uploads_dir,
            retention_seconds=config.job_retention_hours * 3600,
            grace_seconds=config.result_grace_seconds,
        )
        self._reservations = Reservations(
            self._queue, store, self._retention, self._uploads_dir, config.max_jobs_per_key
        )
        self._admission = Admission(
            store,
            executor,
            self._reservations,
            self._running,
            self._estimates,
            self._check_not_draining,
            config.model_downloads,
        )
        preload = Preload(executor, preload_retry_seconds, lambda: self.counts() == (0, 0))
        taken: set[str] = set()
        self._statuses = Statuses(self._queue, self._running, self._estimates, taken)
        self.feed = Feed(self.events, self._statuses.positions)
        self._deps = WorkerDeps(
            store=store,
            queue=self._queue,
            executor=executor,
            downloads=ModelDownloads(executor, self._queue),
            running=self._running,
            events=self.events,
            feed=self.feed,
            estimates=self._estimates,
            uploads_dir=self._uploads_dir,
            moved=self.feed.moved,
            completed=preload.succeeded,
            max_attempts=config.max_job_attempts,
            retry_seconds=write_retry_seconds,
            stopping=threading.Event(),
            turn=threading.Lock(),
            taken=taken,
        )
        revocations = Revocations(store, self._queue, self._running, self._canceled)
        self._life = Lifecycle(config, self._deps, preload, self._retention, revocations)

    def start(self) -> None:
        """Put back what was running, remove what nobody owns, and begin to work; models are loaded meanwhile.

        Raises:
            StorageError: the database or the upload directory cannot be used.
            ForkedProcess: the service was made before this process was forked.
        """
        self.store.check_process()
        self._life.start()

    def drain(self) -> None:
        """Refuse new work from now on, and start no more jobs; those that run go on. Whoever waits is woken once."""
        self._life.drain()

    def stop(self, grace: float) -> None:
        """Drain, give the running jobs some time, and put back into the queue those that have not ended by then.

        Args:
            grace: seconds.

        Raises:
            ForkedProcess: the service was made before this process was forked.
        """
        self.store.check_process()
        self._life.stop(grace)

    def close(self) -> None:
        """Stop at once if that was not done, and free everything. Calling it twice is fine.

        In a forked process it does nothing: the service is the parent's, and goes on there.
        """
        if self._process == os.getpid():
            self._life.close()

    @property
    def hangs(self) -> bool:
        """Whether the executor is still at work though the service was closed."""
        return self._life.hangs

    def health(self) -> Health:
        """Whether jobs are worked on, and why not."""
        return self._life.health()

    def reserve(self, owner: str, *, spare: int = 0) -> Reservation:
        """Begin an upload, before it is read: ``with service.reserve(owner) as place``. Takes no place in the queue.

        Args:
            owner: for whom.
            spare: how many of the owner's jobs do not count, since this one may join them, or else they go.

        Raises:
            QueueFull, CallerLimit, Draining: not now.
            ForkedProcess: the service was made before this process was forked.
        """
        self.store.check_process()
        self._check_not_draining()
        return self._reservations.reserve(owner, spare=spare)

    def submit(self, submission: Submission, place: Reservation) -> Job:
        """Accept a job: once this returns it is on the disk, and will be run whatever happens to the process.

        Args:
            submission: what is wanted; the upload is whole, in ``place.directory``.
            place: what was reserved for it. It is used up, or on any failure given back with its directory removed.

        Returns:
            The job; the one that was there before when the owner sends the same idempotency key and content again, or
            wants to join one that is the same.

        Raises:
            UnknownModel, ModelUnavailable: it cannot be served.
            IdempotencyConflict: the owner used this idempotency key for something else.
            Draining: the service is stopping.
            StorageError: it could not be stored.
        """
        return self._admission.submit(submission, place)

    def find_submitted(self, owner: str, fingerprints: Mapping[str, str | None]) -> dict[str, Job]:
        """The jobs that idempotency keys have made before, by key.

        Args:
            owner: whose.
            fingerprints: key to the fingerprint of what came with it now.

        Raises:
            IdempotencyConflict: one came with something else then.
        """
        return self._admission.find(owner, fingerprints)

    def find_to_join(self, submission: Submission) -> Job | None:
        """The job that :meth:`submit` would join, for a submission whose upload is not there yet."""
        return self._admission.find_to_join(submission)

    def waited_for(self) -> builtins.list[Job]:
        """The jobs that have not ended and were submitted to be joined: whoever wants their results waits for them."""
        # Of all other jobs only those with an idempotency key have a fingerprint.
        unfinished = self.store.in_state("Queued", "Processing")
        return [job for job in unfinished if job.fingerprint is not None and job.idempotency_key is None]

    def status(self, job_id: str, owner: str | None) -> JobStatus:
        """Where a job stands.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
        """
        return self._statuses.of(self._job(job_id, owner))

    def list_jobs(
        self,
        owner: str | None,
        *,
        status: JobState | None = None,
        metadata_key: str | None = None,
        metadata_value: str | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> tuple[builtins.list[JobStatus], str | None]:
        """Jobs, newest first, a page at a time.

        Args:
            owner: whose; None for everybody's.
            status: only those in this state.
            metadata_key: only those that have it at the top of their metadata.
            metadata_value: only those that have this there: text, or a number, true, false or null as JSON.
            created_after: only those submitted then or later; seconds since 1970.
            created_before: only those submitted earlier; seconds since 1970.
            limit: how many at most, up to 1000.
            after: where the page before ended.

        Returns:
            The page, and what to give as ``after`` for the next one; None when this was the last.

        Raises:
            InvalidOption: a limit or ``after`` that cannot be, or a value of metadata without its key.
        """
        if metadata_value is not None and metadata_key is None:
            raise InvalidOption("metadata_value", "needs metadata_key, the name that it stands under")
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidOption("limit", f"expected a whole number from 1 to {MAX_PAGE}")
        jobs = self.store.page(
            owner=owner,
            state=status,
            metadata_key=metadata_key,
            metadata_value=metadata_value,
            created_after=created_after,
            created_before=created_before,
            limit=limit + 1,
            before_seq=None if after is None else seq_of(after),
        )
        page = jobs[:limit]
        return self._statuses.of_all(page), cursor_of(page[-1].seq) if len(jobs) > limit else None

    def result(self, job_id: str, owner: str | None) -> tuple[Job, Transcript]:
        """The transcript of a job, with what was corrected in it.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
            JobNotFinished, JobFailed, JobCanceled: it has none.
            ResultGone: it was delivered, has expired or was deleted.
        """
        return self._results.corrected(job_id, owner)

    def corrections(self, job_id: str, owner: str | None) -> Corrections:
        """What was corrected in a result.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone: as with :meth:`result`.
        """
        return self._results.corrections(job_id, owner)

    def correct(self, job_id: str, owner: str | None, corrections: Corrections) -> None:
        """Correct a result, in the place of all that was corrected before.

        Raises:
            InvalidOption: a segment, word or speaker that is not there.
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone: as with :meth:`result`.
        """
        self._results.correct(job_id, owner, corrections)

    def mark_delivered(self, job_id: str) -> None:
        """The result was sent in full to a client that was still there: unless it is to be kept, it goes soon."""
        self.store.mark_delivered(job_id, time.time())
        log.info("result delivered", extra={"job_id": job_id})

    def cancel(self, job_id: str, owner: str | None, *, force: bool = False) -> None:
        """Cancel a job that waits; remove result and files of one that has ended, and one that Failed altogether.

        Args:
            job_id: which.
            owner: whose; None for anybody's.
            force: stop it even while it runs, and return when it has stopped.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
            JobIsProcessing: it runs, and ``force`` was not given.
        """
        while True:
            job = self._job(job_id, owner)
            if job.state in FINAL_STATES:
                self._remove(job)
                return
            if job.state == "Processing" and not force:
                raise JobIsProcessing(job_id)
            running = self._running.get(job_id) if job.state == "Processing" else None
            if running is not None and self._stop_running(running):
                # It may have ended otherwise, or been put back, before it heard of this: look again.
                continue
            # A job that waits; or one whose device hangs, and what that still gives will not be taken.
            if self.store.cancel(job_id, time.time(), states=(job.state,)):
                self._queue.remove(job_id)
                self._canceled(job_id)
                return

    def counts(self, owner: str | None = None) -> tuple[int, int]:
        """How many jobs wait, and how many run.

        Args:
            owner: whose; None for everybody's.
        """
        if owner is not None:
            return self.store.unfinished_by_state(owner)
        taken = self._deps.taken
        running = sum(each.job_id not in taken for each in self._running.all())
        return len(self._queue) + len(taken), running

    def wait(self, job_id: str, owner: str | None, timeout: float | None = None) -> JobStatus:
        """Block until a job has ended.

        Args:
            job_id: which.
            owner: whose; None for anybody's.
            timeout: seconds; None for as long as it takes.

        Returns:
            Where it stands then; not ended when the time is over or the service has stopped.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            changes = self.events.changes()
            status = self.status(job_id, owner)
            left = None if deadline is None else deadline - time.monotonic()
            if status.status in FINAL_STATES or self._life.stopped or (left is not None and left <= 0):
                return status
            self.events.wait_for_change(changes, left)

    def _job(self, job_id: str, owner: str | None) -> Job:
        return visible_job(self.store, job_id, owner)

    def _check_not_draining(self) -> None:
        if self._life.draining:
            raise Draining(
                "The server is stopping and takes no new jobs: try again later",
                self._config.shutdown_grace_seconds + DRAINING_RETRY_SECONDS,
            )

    def _stop_running(self, running: RunningJob) -> bool:
        self._running.ask(running, "cancel")
        return running.ended.wait(STOP_SECONDS)

    def _canceled(self, job_id: str) -> None:
        log.info("job canceled", extra={"job_id": job_id})
        self._estimates.forget(job_id)
        remove_upload(self._uploads_dir, job_id)
        job = self.store.get(job_id)
        if job is not None:
            self.feed.publish(event_of(job))
        self.feed.moved()

    def _remove(self, job: Job) -> None:
        # What Failed has no result: all that its owner can want to be rid of is the job.
        if job.state == "Failed":
            self.store.delete(job.job_id)
            log.info("job removed", extra={"job_id": job.job_id})
        elif self.store.erase(job.job_id):
            log.info("result removed", extra={"job_id": job.job_id})
        remove_upload(self._uploads_dir, job.job_id)
