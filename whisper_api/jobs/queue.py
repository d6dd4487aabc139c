"""The waiting jobs: a bounded, thread-safe queue of job ids, first in, first out."""

from __future__ import annotations

import bisect
import math
import threading

from whisper_api.errors import Draining, QueueFull

RETRY_SECONDS = 10.0


class JobQueue:
    """Job ids in the order in which they are taken.

    A job that was taken still counts as waiting, in front of the others, until :meth:`started`.

    Args:
        capacity: number of jobs that may wait, with reservations. Jobs put back without a reservation may exceed it.
        slots: number of jobs that run at a time.
        draining_seconds: time after which a caller may try again once the queue was closed.
    """

    def __init__(self, capacity: int, slots: int = 1, *, draining_seconds: float = RETRY_SECONDS) -> None:
        self._capacity = capacity
        self._draining_seconds = draining_seconds
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._slots = slots
        self._ids: list[str] = []
        # Jobs that were taken and do not run yet.
        self._starting: dict[str, None] = {}
        # The order in which the waiting and starting jobs were put in, as a rising number.
        self._order: dict[str, int] = {}
        self._puts = 0
        # Waiting jobs that cannot be taken now.
        self._held: set[str] = set()
        self._reserved = 0
        self._closed = False

    def set_slots(self, slots: int) -> None:
        """Change how many jobs run at a time, from which the positions follow.

        Args:
            slots: number of jobs.
        """
        with self._changed:
            self._slots = max(slots, 1)

    def resize(self, capacity: int) -> None:
        """Change the number of jobs that may wait. Jobs that wait already stay.

        Args:
            capacity: as for the constructor.
        """
        with self._changed:
            self._capacity = capacity

    def reserve(self, *, extra_slots: int = 0) -> None:
        """Reserve room for a job that is about to be put in.

        Args:
            extra_slots: room for this caller beyond the capacity, at most the capacity again.

        Raises:
            QueueFull: there is no room.
            Draining: the queue was closed.
        """
        with self._changed:
            self._check(extra_slots)
            self._reserved += 1

    def check(self, *, extra_slots: int = 0) -> None:
        """Raise the error that :meth:`reserve` would raise now, and reserve nothing.

        Args:
            extra_slots: as in :meth:`reserve`.

        Raises:
            QueueFull: there is no room.
            Draining: the queue was closed.
        """
        with self._changed:
            self._check(extra_slots)

    def release_reservation(self) -> None:
        """Give back a reservation that was not used."""
        with self._changed:
            self._unreserve()

    def put(self, job_id: str, *, reserved: bool = True, first: bool = False) -> None:
        """Add a job behind the others. A closed queue accepts the job, but it cannot be taken.

        Args:
            job_id: id of a job that is not in the queue.
            reserved: whether the job uses up a reservation.
            first: put the job before the others, because it was taken before them.
        """
        with self._changed:
            if job_id in self._ids:
                raise ValueError(f"job {job_id} is in the queue already")
            if reserved:
                self._unreserve()
            self._starting.pop(job_id, None)
            if first:
                self._order[job_id] = min((self._order[each] for each in self._ids), default=self._puts) - 1
                self._ids.insert(0, job_id)
            else:
                self._puts += 1
                self._order[job_id] = self._puts
                self._ids.append(job_id)
            self._changed.notify()

    def take(self, timeout: float | None = None) -> str | None:
        """Take the first job that is not held, waiting for one.

        Args:
            timeout: seconds to wait; None for no limit.

        Returns:
            The job's id; None when the time is over, or once the queue is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._first() < len(self._ids), timeout)
            first = self._first()
            if self._closed or first == len(self._ids):
                return None
            job_id = self._ids.pop(first)
            self._starting[job_id] = None
            return job_id

    def started(self, job_id: str) -> None:
        """Count a job that was taken as waiting no longer: it runs, or it has ended."""
        with self._changed:
            if job_id in self._starting:
                del self._starting[job_id]
                del self._order[job_id]

    def not_started(self, job_id: str) -> None:
        """Count a job as waiting again, after :meth:`started` was called too early."""
        with self._changed:
            self._starting[job_id] = None
            self._order.setdefault(job_id, 0)

    def hold(self, job_id: str) -> None:
        """Return a job that was taken to its position, where it cannot be taken before :meth:`release`.

        Args:
            job_id: id of a job that was taken and has not started.
        """
        with self._changed:
            if job_id not in self._starting:
                raise ValueError(f"job {job_id} was not taken, or has started")
            del self._starting[job_id]
            index = bisect.bisect(self._ids, self._order[job_id], key=self._order.__getitem__)
            self._ids.insert(index, job_id)
            self._held.add(job_id)

    def release(self, job_id: str) -> None:
        """Let a held job be taken again; nothing happens for a job that is not held."""
        with self._changed:
            self._held.discard(job_id)
            self._changed.notify()

    def held(self) -> frozenset[str]:
        """The jobs that :meth:`hold` has returned and :meth:`release` has not freed."""
        with self._changed:
            return frozenset(self._held)

    def remove(self, job_id: str) -> bool:
        """Remove a job that was not taken.

        Returns:
            Whether it was in the queue.
        """
        with self._changed:
            self._held.discard(job_id)
            if job_id not in self._ids:
                return False
            self._ids.remove(job_id)
            del self._order[job_id]
            return True

    def position(self, job_id: str) -> int | None:
        """The position of a job, as in :meth:`positions`; None when the job does not wait."""
        with self._changed:
            if job_id in self._starting:
                return 1
            try:
                return self._batch(len(self._starting) + self._ids.index(job_id) + 1)
            except ValueError:
                return None

    def positions(self) -> dict[str, int]:
        """The position of every waiting job, first to last.

        The job at position 1 is taken next. With several slots, the position is the number of a batch of jobs.
        """
        with self._changed:
            return {job_id: self._batch(at) for at, job_id in enumerate((*self._starting, *self._ids), start=1)}

    def close(self) -> None:
        """Let no more jobs be taken, and wake every thread. The waiting jobs stay."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _batch(self, position: int) -> int:
        return math.ceil(position / self._slots)

    def _first(self) -> int:
        """The index of the first job that is not held; the length of the queue when there is none."""
        return next((index for index, job_id in enumerate(self._ids) if job_id not in self._held), len(self._ids))

    def _check(self, extra_slots: int) -> None:
        if self._closed:
            raise Draining("The server is stopping and takes no new jobs: try again later", self._draining_seconds)
        if len(self._ids) + self._reserved >= self._capacity + min(extra_slots, self._capacity):
            raise QueueFull(f"The queue is full ({self._capacity} jobs): try again later", RETRY_SECONDS)

    def _unreserve(self) -> None:
        if self._reserved == 0:
            raise RuntimeError("nothing was reserved")
        self._reserved -= 1
