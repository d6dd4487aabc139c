"""The jobs that wait: a bounded, thread-safe queue of job ids, first in, first out."""

from __future__ import annotations

import bisect
import threading

from whisper_api.errors import Draining, QueueFull

__all__ = ["JobQueue"]

RETRY_SECONDS = 10.0


class JobQueue:
    """Job ids in the order in which they are taken.

    Args:
        capacity: how many may wait, reservations included. Jobs put back without a reservation may exceed it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._ids: list[str] = []
        # When each of them came, as a number that rises; also of the job that was taken last.
        self._came: dict[str, int] = {}
        self._puts = 0
        self._taken = ""
        # Jobs of the queue that are not given out for now.
        self._held: set[str] = set()
        self._reserved = 0
        self._wakes = 0
        self._closed = False

    def reserve(self, retry_after: float = RETRY_SECONDS, *, spare: int = 0) -> None:
        """Keep a place for a job that is about to be put in.

        Args:
            retry_after: seconds to tell a caller who finds no place.
            spare: places there are for this caller beyond those for all; it gets no more than as many again.

        Raises:
            QueueFull: there is no place.
            Draining: the queue was closed.
        """
        with self._changed:
            self._check(retry_after, spare)
            self._reserved += 1

    def check(self, retry_after: float = RETRY_SECONDS, *, spare: int = 0) -> None:
        """Raise what :meth:`reserve` would raise now, and keep no place.

        Args:
            retry_after: seconds to tell a caller who finds no place.
            spare: as in :meth:`reserve`.

        Raises:
            QueueFull: there is no place.
            Draining: the queue was closed.
        """
        with self._changed:
            self._check(retry_after, spare)

    def release_reservation(self) -> None:
        """Give back a place that no job came for."""
        with self._changed:
            self._unreserve()

    def put(self, job_id: str, *, reserved: bool = True, first: bool = False) -> None:
        """Add a job behind the others. A closed queue still takes it in, and gives it to nobody.

        Args:
            job_id: which; it must not wait already.
            reserved: whether it comes for a place that was reserved, which is then used up.
            first: put the job before the others, since it was taken before them.
        """
        with self._changed:
            if job_id in self._ids:
                raise ValueError(f"job {job_id} is in the queue already")
            if reserved:
                self._unreserve()
            if job_id == self._taken:
                self._taken = ""
            if first:
                self._came[job_id] = min((self._came[each] for each in self._ids), default=self._puts) - 1
                self._ids.insert(0, job_id)
            else:
                self._puts += 1
                self._came[job_id] = self._puts
                self._ids.append(job_id)
            self._changed.notify()

    def take(self, timeout: float | None = None) -> str | None:
        """Remove the first job that is not held, waiting for one.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Returns:
            Its id; None when the time is over, after :meth:`wake`, or once the queue is closed.
        """
        with self._changed:
            wakes = self._wakes
            self._changed.wait_for(
                lambda: self._closed or self._wakes != wakes or self._first() < len(self._ids), timeout
            )
            first = self._first()
            if self._closed or first == len(self._ids):
                return None
            self._came.pop(self._taken, None)
            self._taken = self._ids.pop(first)
            return self._taken

    def hold(self, job_id: str) -> None:
        """Return a job that was just taken to its place, and do not give it out before :meth:`release`.

        Args:
            job_id: the job that the last call of :meth:`take` gave.
        """
        with self._changed:
            if job_id != self._taken:
                raise ValueError(f"job {job_id} was not taken last")
            came = self._came[job_id]
            self._ids.insert(bisect.bisect(self._ids, came, key=self._came.__getitem__), job_id)
            self._held.add(job_id)
            self._taken = ""

    def release(self, job_id: str) -> None:
        """Give a held job out again when its turn comes; nothing for a job that is not held."""
        with self._changed:
            self._held.discard(job_id)
            self._changed.notify()

    def held(self) -> frozenset[str]:
        """The jobs that :meth:`hold` has returned and :meth:`release` has not freed."""
        with self._changed:
            return frozenset(self._held)

    def remove(self, job_id: str) -> bool:
        """Take a job out, wherever it stands.

        Returns:
            Whether it was there.
        """
        with self._changed:
            self._held.discard(job_id)
            try:
                self._ids.remove(job_id)
            except ValueError:
                return False
            del self._came[job_id]
            return True

    def position(self, job_id: str) -> int | None:
        """Where a job stands: 1 for the one that is taken next; None when it does not wait."""
        with self._changed:
            try:
                return self._ids.index(job_id) + 1
            except ValueError:
                return None

    def positions(self) -> dict[str, int]:
        """Where every job stands, first to last."""
        with self._changed:
            return {job_id: position for position, job_id in enumerate(self._ids, start=1)}

    def wake(self) -> None:
        """Let everybody who waits in :meth:`take` return."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Give out nothing more and wake everybody. What waits stays where it is."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._ids)

    def _first(self) -> int:
        """The index of the first job that is not held; the queue's length when there is none."""
        return next((index for index, job_id in enumerate(self._ids) if job_id not in self._held), len(self._ids))

    def _check(self, retry_after: float, spare: int) -> None:
        if self._closed:
            raise Draining("The server is stopping and takes no new jobs: try again later", retry_after)
        if len(self._ids) + self._reserved >= self._capacity + min(spare, self._capacity):
            raise QueueFull(f"The queue is full ({self._capacity} jobs): try again later", retry_after)

    def _unreserve(self) -> None:
        if self._reserved == 0:
            raise RuntimeError("no place was reserved")
        self._reserved -= 1
