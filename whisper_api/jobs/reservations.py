"""Reservations: a job id and a directory for each upload that is on its way.

An upload takes its place in the queue only when it is there and is submitted. An upload that never ends holds nothing
that another caller needs.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from whisper_api.errors import CallerLimit
from whisper_api.jobs.outcomes import remove_upload
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.retention import Retention
from whisper_api.store.jobs import JobStore

__all__ = ["Reservation", "Reservations"]

RETRY_SECONDS = 30.0


class Reservation:
    """A job id and a directory for one upload, made by :class:`Reservations`.

    A context manager: at its end, the directory of an upload that was not submitted is removed. That touches the disk,
    so do not do it on an event loop.

    Attributes:
        job_id: a new UUID.
        owner: who asked for it.
        spare: how many of the owner's jobs do not count against the limits.
        directory: where the upload goes; not made yet.
        open: whether it was neither submitted nor given back.
    """

    def __init__(self, owner: str, spare: int, uploads_dir: Path, reservations: Reservations) -> None:
        self.job_id = str(uuid.uuid4())
        self.owner = owner
        self.spare = spare
        self.directory = uploads_dir / self.job_id
        self.open = True
        self._reservations = reservations

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Remove the directory; does nothing after it was submitted or released."""
        self._reservations.release(self)


class Reservations:
    """Makes reservations. Safe to use from any thread.

    Args:
        queue: bounds how many jobs wait.
        store: knows how many unfinished jobs an owner has.
        retention: must leave the directories alone that no job owns yet.
        uploads_dir: holds a directory for each job.
        per_owner: unfinished jobs that one owner may have; 0 for no such limit.
    """

    def __init__(
        self, queue: JobQueue, store: JobStore, retention: Retention, uploads_dir: Path, per_owner: int
    ) -> None:
        self._queue = queue
        self._store = store
        self._retention = retention
        self._uploads_dir = uploads_dir
        self._per_owner = per_owner
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._open: dict[str, Reservation] = {}
        self._submitting: set[str] = set()

    def reserve(self, owner: str, *, spare: int = 0) -> Reservation:
        """Begin an upload, unless its job would be refused now.

        The reservation counts among the owner's own unfinished jobs, and takes no place in the queue.

        Args:
            owner: for whom; empty when callers are not told apart, and then the limit for one owner does not hold.
            spare: how many of the owner's jobs do not count; no more than there may be, so that a client that leaves
                one job after the other still has a bound.

        Raises:
            QueueFull: the queue is full.
            CallerLimit: this owner has as many unfinished jobs as one may have.
            Draining: the service is stopping.
        """
        self._queue.check(spare=spare)
        place = Reservation(owner, spare, self._uploads_dir, self)
        with self._lock:
            self._check_limit(owner, spare)
            self._open[place.job_id] = place
        self._retention.protect(place.job_id)
        return place

    def release(self, place: Reservation) -> None:
        """Remove what was uploaded for a reservation; does nothing for one that is being submitted."""
        with self._lock:
            if place.job_id in self._submitting or self._open.pop(place.job_id, None) is None:
                return
            place.open = False
        self._give_back(place)

    @contextmanager
    def submitting(self, place: Reservation) -> Iterator[Callable[[], None]]:
        """Take a place in the queue and submit the job of a reservation, which nobody else can release meanwhile.

        When the job is not enqueued, the place is given back and the upload is removed.

        Yields:
            To be called once the job is in the store: puts it into the queue.

        Raises:
            QueueFull: the queue has become full while the upload came.
            Draining: the service is stopping.
        """
        reserved = enqueued = False

        def enqueue() -> None:
            nonlocal enqueued
            self._queue.put(place.job_id)
            enqueued = True

        with self._lock:
            if place.job_id in self._submitting or place.job_id not in self._open:
                raise RuntimeError("this reservation was used or released before")
            self._submitting.add(place.job_id)
        try:
            self._queue.reserve(spare=place.spare)
            reserved = True
            yield enqueue
        finally:
            if reserved and not enqueued:
                self._queue.release_reservation()
            with self._lock:
                self._submitting.discard(place.job_id)
                del self._open[place.job_id]
                place.open = False
            if enqueued:
                self._retention.unprotect(place.job_id)
            else:
                self._give_back(place)

    def _give_back(self, place: Reservation) -> None:
        remove_upload(self._uploads_dir, place.job_id)
        self._retention.unprotect(place.job_id)

    def _check_limit(self, owner: str, spare: int) -> None:
        """Called with the lock held: of two who ask at once, the second must see the first."""
        if not self._per_owner or not owner:
            return
        # A job that is being submitted may be counted twice for a moment, never not at all.
        coming = sum(place.owner == owner for place in self._open.values())
        if self._store.unfinished(owner) + coming >= self._per_owner + min(spare, self._per_owner):
            raise CallerLimit(
                f"This key has {self._per_owner} unfinished jobs, which is as many as one may have: "
                "try again when one has ended",
                RETRY_SECONDS,
            )
