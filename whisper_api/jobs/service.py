"""JobService: submit, status, result, cancel, wait, events. The one door to durable jobs."""

from __future__ import annotations

import base64
import builtins
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from whisper_api.config import Config
from whisper_api.errors import (
    Draining,
    IdempotencyConflict,
    InvalidOption,
    JobCanceled,
    JobFailed,
    JobIsProcessing,
    JobNotFinished,
    JobNotFound,
    ResultGone,
)
from whisper_api.jobs.estimates import Estimates
from whisper_api.jobs.events import EventBus
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.health import Health
from whisper_api.jobs.lifecycle import STOP_SECONDS, Lifecycle
from whisper_api.jobs.outcomes import event_of, remove_upload
from whisper_api.jobs.preload import RETRY_SECONDS, Preload
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.reservations import Reservation, Reservations
from whisper_api.jobs.retention import Retention
from whisper_api.jobs.running import Running, RunningJobs
from whisper_api.jobs.statuses import Statuses
from whisper_api.jobs.store import AlreadyThere, Job, JobStore
from whisper_api.jobs.worker import Workplace
from whisper_api.schema import JobQueuedEvent, JobState, JobStatus, Transcript, TranscriptionOptions

__all__ = ["Health", "JobService", "Reservation", "Submission"]

log = logging.getLogger("whisper_api.jobs")

ENDED: frozenset[JobState] = frozenset({"Completed", "Failed", "Canceled"})
MAX_PAGE = 1000
WRITE_RETRY_SECONDS = 3.0
DRAINING_RETRY_SECONDS = 10.0


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A job as a caller wants it. The fields are those of :class:`~whisper_api.jobs.store.Job`, but for one.

    Attributes:
        join: take the owner's job with the same fingerprint instead of a new one, where it waits, runs, or has just
            ended and was not delivered yet.
    """

    job_id: str
    owner: str
    options: TranscriptionOptions
    output_format: str
    keep_result: bool = False
    file_name: str | None = None
    audio_bytes: int
    audio_seconds: float | None
    hf_token: str | None = None
    warnings: tuple[str, ...] = ()
    idempotency_key: str | None = None
    fingerprint: str | None = None
    metadata: dict[str, Any] | None = None
    known_speakers: tuple[str, ...] = ()
    join: bool = False

    def __repr__(self) -> str:
        # The token, the prompt and the client's file name must not find their way into a log.
        return f"Submission(job_id={self.job_id!r}, owner={self.owner!r})"


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
        self._config = config
        self._uploads_dir = config.tmp_dir
        slots = config.max_concurrent_jobs if config.enable_concurrency else 1
        self._queue = JobQueue(config.max_queued_jobs)
        self._running = RunningJobs(slots)
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
        preload = Preload(executor, preload_retry_seconds, lambda: self.counts() == (0, 0))
        taken: set[str] = set()
        self._statuses = Statuses(self._queue, self._running, self._estimates, taken)
        self._place = Workplace(
            store=store,
            queue=self._queue,
            executor=executor,
            running=self._running,
            events=self.events,
            estimates=self._estimates,
            uploads_dir=self._uploads_dir,
            moved=self._moved,
            completed=preload.succeeded,
            retry_seconds=write_retry_seconds,
            stopping=threading.Event(),
            turn=threading.Lock(),
            taken=taken,
        )
        self._life = Lifecycle(config, self._place, preload, self._retention)

    def start(self) -> None:
        """Put back what was running, remove what nobody owns, and begin to work; models are loaded meanwhile.

        Raises:
            StorageError: the database or the upload directory cannot be used.
        """
        self._life.start()

    def drain(self) -> None:
        """Refuse new work from now on, and start no more jobs; those that run go on. Whoever waits is woken once."""
        self._life.drain()

    def stop(self, grace: float) -> None:
        """Drain, give the running jobs some time, and put back into the queue those that have not ended by then.

        Args:
            grace: seconds.
        """
        self._life.stop(grace)

    def close(self) -> None:
        """Stop at once if that was not done, and free everything. Calling it twice is fine."""
        self._life.close()

    @property
    def hangs(self) -> bool:
        """Whether the executor is still at work though the service was closed."""
        return self._life.hangs

    def health(self) -> Health:
        """Whether jobs are worked on, and why not."""
        return self._life.health()

    def reserve(self, owner: str) -> Reservation:
        """Ask for a place in the queue, before the upload is read: ``with service.reserve(owner) as place``.

        Args:
            owner: for whom.

        Raises:
            QueueFull, CallerLimit, Draining: not now.
        """
        self._check_not_draining()
        return self._reservations.reserve(owner)

    def submit(self, submission: Submission, place: Reservation) -> Job:
        """Accept a job: once this returns it is on the disk, and will be run whatever happens to the process.

        Args:
            submission: what is wanted; the upload is whole, in ``place.directory``.
            place: what was reserved for it. It is used up, or on any failure given back with its directory removed.

        Returns:
            The job; the one that was there before when the owner sends the same idempotency key and content again.

        Raises:
            UnknownModel, ModelUnavailable: it cannot be served.
            IdempotencyConflict: the owner used this idempotency key for something else.
            Draining: the service is stopping.
            StorageError: it could not be stored.
        """
        with self._reservations.submitting(place) as enqueue:
            self._check_not_draining()
            self.executor.check(submission.options, submission.hf_token)
            job = Job(
                created_at=time.time(),
                **{name: getattr(submission, name) for name in Submission.__struct_fields__ if name != "join"},
            )
            try:
                job = self.store.add(job)
            except AlreadyThere as there:
                if there.job.fingerprint != submission.fingerprint:
                    raise IdempotencyConflict(
                        there.job.job_id, "This Idempotency-Key came before, with another upload or other fields"
                    ) from None
                log.info("job submitted again", extra={"job_id": there.job.job_id})
                return there.job
            self._estimates.expect(job)
            enqueue()
        log.info(
            "job submitted",
            extra={"job_id": job.job_id, "audio_bytes": job.audio_bytes, "audio_seconds": job.audio_seconds},
        )
        return job

    def status(self, job_id: str, owner: str | None) -> JobStatus:
        """Where a job stands.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
        """
        return self._statuses.of(self._job(job_id, owner))

    def list(
        self, owner: str | None, *, status: JobState | None = None, limit: int = 50, after: str | None = None
    ) -> tuple[builtins.list[JobStatus], str | None]:
        """Jobs, newest first, a page at a time.

        Args:
            owner: whose; None for everybody's.
            status: only those in this state.
            limit: how many at most, up to 1000.
            after: where the page before ended.

        Returns:
            The page, and what to give as ``after`` for the next one; None when this was the last.

        Raises:
            InvalidOption: a limit or ``after`` that cannot be.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidOption("limit", f"expected a whole number from 1 to {MAX_PAGE}")
        before_seq = None if after is None else _seq_of(after)
        jobs = self.store.page(owner=owner, state=status, limit=limit + 1, before_seq=before_seq)
        page = jobs[:limit]
        return self._statuses.of_all(page), _cursor_of(page[-1].seq) if len(jobs) > limit else None

    def result(self, job_id: str, owner: str | None) -> tuple[Job, Transcript]:
        """The transcript of a job.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
            JobNotFinished, JobFailed, JobCanceled: it has none.
            ResultGone: it was delivered, has expired or was deleted.
        """
        job = self._job(job_id, owner)
        match job.state:
            case "Failed":
                raise JobFailed(job_id, f"The job failed: {job.error or 'its log has the reason'}", job.error_name)
            case "Canceled":
                raise JobCanceled(job_id, "The job was canceled, so there is no result")
            case "Completed":
                transcript = self.store.transcript(job_id)
                if transcript is None:
                    raise ResultGone(job_id, "The result was delivered, has expired or was deleted")
                return job, transcript
            case _:
                raise JobNotFinished(job_id, f"The job is {job.state}: ask again when it is Completed")

    def mark_delivered(self, job_id: str) -> None:
        """The result was sent in full to a client that was still there: unless it is to be kept, it goes soon."""
        self.store.mark_delivered(job_id, time.time())
        log.info("result delivered", extra={"job_id": job_id})

    def cancel(self, job_id: str, owner: str | None, *, force: bool = False) -> None:
        """Cancel a job that waits; remove result and files of one that has ended.

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
            if job.state in ENDED:
                self._remove_result(job)
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

    def counts(self) -> tuple[int, int]:
        """How many jobs wait, and how many run."""
        taken = self._place.taken
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
            if status.status in ENDED or self._life.stopped or (left is not None and left <= 0):
                return status
            self.events.wait_for_change(changes, left)

    def _job(self, job_id: str, owner: str | None) -> Job:
        job = self.store.get(job_id)
        if job is None or (owner is not None and job.owner != owner):
            raise JobNotFound(job_id)
        return job

    def _check_not_draining(self) -> None:
        if self._life.draining:
            raise Draining(
                "The server is stopping and takes no new jobs: try again later",
                self._config.shutdown_grace_seconds + DRAINING_RETRY_SECONDS,
            )

    def _stop_running(self, running: Running) -> bool:
        self._running.ask(running, "cancel")
        return running.ended.wait(STOP_SECONDS)

    def _canceled(self, job_id: str) -> None:
        log.info("job canceled", extra={"job_id": job_id})
        self._estimates.forget(job_id)
        remove_upload(self._uploads_dir, job_id)
        job = self.store.get(job_id)
        if job is not None:
            self.events.publish(event_of(job))
        self._moved()

    def _remove_result(self, job: Job) -> None:
        if self.store.drop_result(job.job_id):
            log.info("result removed", extra={"job_id": job.job_id})
        remove_upload(self._uploads_dir, job.job_id)

    def _moved(self) -> None:
        """Tell those who wait for a job in the queue where it stands now."""
        watched = self.events.watched()
        if watched:
            places = self._statuses.positions()
            self.events.publish(
                *(JobQueuedEvent(job_id=each, queue_position=places[each]) for each in watched & places.keys())
            )


def _cursor_of(seq: int) -> str:
    return base64.urlsafe_b64encode(str(seq).encode()).decode().rstrip("=")


def _seq_of(cursor: str) -> int:
    try:
        seq = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        seq = 0
    # Much else can be decoded too; and SQLite knows no larger numbers.
    if not 0 < seq < 1 << 63 or _cursor_of(seq) != cursor:
        raise InvalidOption("after", "expected what an answer gave as next")
    return seq
