"""Ids and directories for the jobs of one request, and the idempotency keys of its files."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api.server.state import ServerState, blocking
from whisper_api.server.uploads.incoming import MAX_FILES
from whisper_api.server.uploads.storing import StoredFile

if TYPE_CHECKING:
    from whisper_api.jobs.admission import Reservation
    from whisper_api.jobs.service import JobService


def file_key(key: str, number: int) -> str:
    """The idempotency key of one job of several, with a separator that no client can send.

    Args:
        key: the request's idempotency key.
        number: number of the file, from 0.
    """
    return f"{key}\x1f{number}"


def keys_of(key: str) -> tuple[str, ...]:
    """The idempotency keys of all jobs that a request with this key may have made."""
    return (key, *(file_key(key, number) for number in range(MAX_FILES)))


class Reservations:
    """The reservations of one request, by the directory of their file.

    Args:
        service: makes further reservations.
        first: the reservation that was made before the body was read.
    """

    def __init__(self, service: JobService, first: Reservation) -> None:
        self._service = service
        self._owner = first.owner
        self._unused = [first]
        self._by_directory = {first.directory: first}

    def new_directory(self) -> Path:
        """The directory for one more file.

        Raises:
            QueueFull, CallerLimit, QuotaExceeded, Draining: the service accepts no job now.
        """
        reservation = self._unused.pop() if self._unused else self._service.reserve(self._owner)
        self._by_directory[reservation.directory] = reservation
        return reservation.directory

    def of(self, stored: StoredFile) -> Reservation:
        """The reservation of a file."""
        return self._by_directory[stored.directory]

    def open(self) -> list[Reservation]:
        """The reservations that were not submitted."""
        return [reservation for reservation in self._by_directory.values() if reservation.open]


@contextlib.asynccontextmanager
async def reserved(state: ServerState, owner: str, key: str | None, extra_slots: int) -> AsyncIterator[Reservations]:
    """Reserve ids and directories for the jobs of one request, and release the unused ones at the end.

    A request with a known ``Idempotency-Key`` passes a full queue, because most likely it makes no new job.

    Args:
        state: the server's state.
        owner: owner of the jobs.
        key: the request's idempotency key.
        extra_slots: number of the owner's jobs that do not count towards the limits.

    Raises:
        QueueFull, CallerLimit, QuotaExceeded, Draining: the service accepts no job now.
    """
    service = state.service

    def reserve() -> Reservation:
        is_known = key is not None and service.has_submitted(owner, keys_of(key))
        return service.reserve(owner, extra_slots=extra_slots + is_known)

    def release() -> None:
        for reservation in reservations.open():
            reservation.release()

    reservations = Reservations(service, await blocking(state.uploads, reserve))
    try:
        yield reservations
    finally:
        if reservations.open():
            # Shielded, because a canceled request must not leave its files.
            await asyncio.shield(blocking(state.uploads, release))
