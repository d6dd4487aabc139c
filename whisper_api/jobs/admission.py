"""The way from an upload to a job: the reservation of its id and directory, the submission, and the limits.

A job takes its position in the queue only when its upload is whole and submitted, so an upload that never ends holds
nothing that another caller needs.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from whisper_api.config import Downloaders
from whisper_api.errors import CallerLimit, ModelUnavailable
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.retention import Retention, remove_upload
from whisper_api.options import TranscriptionOptions
from whisper_api.records import made_of
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job, JobRequest

RETRY_SECONDS = 30.0


class Submission(JobRequest, frozen=True, kw_only=True):
    """A job as a caller submits it.

    Attributes:
        join: use the owner's job with the same fingerprint, options and format instead of a new one, if that job waits,
            runs, or has just ended and was not delivered. Jobs with an idempotency key neither join nor are joined.
        not_to_join: ids of jobs that must not be joined.
    """

    join: bool = False
    not_to_join: frozenset[str] = frozenset()

    def job(self, created_at: float) -> Job:
        """The job to store.

        Args:
            created_at: seconds since 1970.
        """
        return made_of(self, Job, created_at=created_at)


class Reservation:
    """A job id and a directory for one upload, made by :class:`Reservations`.

    Use it as a context manager: at the end, the directory of an upload that was not submitted is removed. That touches
    the disk, so do not do it on an event loop.

    Attributes:
        job_id: a new UUID.
        owner: id of the caller's key.
        extra_slots: how many of the owner's jobs do not count against the limits.
        directory: directory of the upload, which does not exist yet.
        open: whether the reservation was neither submitted nor released.
        submitting: whether the reservation is being submitted now.
    """

    def __init__(self, owner: str, extra_slots: int, uploads_dir: Path, reservations: Reservations) -> None:
        self.job_id = str(uuid.uuid4())
        self.owner = owner
        self.extra_slots = extra_slots
        self.directory = uploads_dir / self.job_id
        self.open = True
        self.submitting = False
        self._reservations = reservations

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.release()

    def release(self) -> None:
        """Remove the upload, unless it is being submitted, or was submitted or released."""
        self._reservations.release(self)


class Reservations:
    """Makes reservations. Safe to use from any thread.

    Args:
        queue: limits how many jobs wait.
        store: counts the unfinished jobs of an owner.
        retention: keeps the directories of reservations from being removed as orphans.
        uploads_dir: holds one directory for each job.
        per_owner: unfinished jobs that one owner may have; 0 for no limit.

    Attributes:
        per_owner: may be changed at any time.
    """

    def __init__(
        self, queue: JobQueue, store: JobStore, retention: Retention, uploads_dir: Path, per_owner: int
    ) -> None:
        self._queue = queue
        self._store = store
        self._retention = retention
        self._uploads_dir = uploads_dir
        self.per_owner = per_owner
        self._lock = threading.Lock()
        # Guarded by _lock, together with the flags of each reservation:
        self._open: set[Reservation] = set()

    def reserve(self, owner: str, extra_slots: int) -> Reservation:
        """Begin an upload, unless its job would be refused now.

        The reservation counts as one of the owner's unfinished jobs and takes no room in the queue.

        Args:
            owner: id of the caller's key; empty without authorization, and then there is no limit for one owner.
            extra_slots: how many of the owner's jobs do not count. At most as many as the limit are accepted, so that
                a client that abandons one job after the other still has a bound.

        Raises:
            QueueFull: the queue is full.
            CallerLimit: this owner has as many unfinished jobs as an owner may have.
            Draining: the service is stopping.
        """
        self._queue.check(extra_slots=extra_slots)
        reservation = Reservation(owner, extra_slots, self._uploads_dir, self)
        with self._lock:
            self._check_limit(owner, extra_slots)
            self._open.add(reservation)
        self._retention.protect(reservation.job_id)
        return reservation

    def __len__(self) -> int:
        """The number of uploads that have begun and are neither submitted nor released."""
        return len(self._open)

    def release(self, reservation: Reservation) -> None:
        """The same as :meth:`Reservation.release`."""
        with self._lock:
            if reservation.submitting or not reservation.open:
                return
            self._close(reservation)
        self._remove_upload(reservation)

    @contextmanager
    def submitting(self, reservation: Reservation) -> Iterator[Callable[[], None]]:
        """Reserve room in the queue and submit the job; the reservation cannot be released meanwhile.

        If the job is not enqueued, the room is freed and the upload is removed.

        Yields:
            A function that puts the job into the queue, to be called once the job is in the store.

        Raises:
            QueueFull: the queue has become full during the upload.
            Draining: the service is stopping.
        """
        reserved = enqueued = False

        def enqueue() -> None:
            nonlocal enqueued
            self._queue.put(reservation.job_id)
            enqueued = True

        with self._lock:
            if reservation.submitting or not reservation.open:
                raise RuntimeError("this reservation was used or released before")
            reservation.submitting = True
        try:
            self._queue.reserve(extra_slots=reservation.extra_slots)
            reserved = True
            yield enqueue
        finally:
            if reserved and not enqueued:
                self._queue.release_reservation()
            with self._lock:
                self._close(reservation)
            if enqueued:
                self._retention.unprotect(reservation.job_id)
            else:
                self._remove_upload(reservation)

    def _close(self, reservation: Reservation) -> None:
        self._open.discard(reservation)
        reservation.open = reservation.submitting = False

    def _remove_upload(self, reservation: Reservation) -> None:
        remove_upload(self._uploads_dir, reservation.job_id)
        self._retention.unprotect(reservation.job_id)

    def _check_limit(self, owner: str, extra_slots: int) -> None:
        """Needs the lock, so that of two callers at the same moment the second counts the first."""
        if not self.per_owner or not owner:
            return
        # A job that is being submitted may be counted twice for a moment, but is never missed.
        coming = sum(each.owner == owner for each in self._open)
        if self._store.unfinished(owner) + coming >= self.per_owner + min(extra_slots, self.per_owner):
            raise CallerLimit(
                f"This key has {self.per_owner} unfinished jobs, and more are not allowed: try again when a job has "
                "ended",
                RETRY_SECONDS,
            )


def check_download(submission: Submission, executor: Executor, store: JobStore, downloaders: Downloaders) -> None:
    """Refuse a job that names a model which has to be downloaded, if its owner may not make the server download models.

    The models that the configuration names, also those of aliases, are downloaded for every caller.

    Args:
        submission: submission of the job.
        executor: knows which models are on this machine.
        store: knows the role of the owner's key.
        downloaders: whose jobs may name a model that has to be downloaded.

    Raises:
        ModelUnavailable: the owner may not make the server download the model.
    """
    options = submission.options
    if downloaders == "anyone" or executor.named_by_configuration(options):
        return
    name = executor.model_name(options)
    if name == executor.model_name(TranscriptionOptions()):
        return
    if name not in executor.missing_models(options, submission.hf_token):
        return
    key = store.key(submission.owner)
    # Without authorization there are no keys, and every caller has the rights of an administrator.
    is_administrator = not submission.owner or (key is not None and key[0].role == "admin")
    if downloaders == "administrators" and is_administrator:
        return
    allowed = "administrators" if downloaders == "administrators" else "nobody"
    raise ModelUnavailable(
        f"model: {name} is not on this server, and WHISPER_MODEL_DOWNLOADS lets {allowed} make the server download a "
        f"model. `whisper-api models pull {name}` on the server fetches it."
    )
