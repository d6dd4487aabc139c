"""Who waits for which job: a job that was submitted to be waited for is canceled when nobody does any more.

A client that gives up after some time asks again with the same upload, and its job must be there then. So the job
goes on for a little while after the last client has left, and for as long as the same owner sends an upload, which may
be the one that asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, NamedTuple

from whisper_api.errors import JobNotFound, StorageError, WhisperApiError
from whisper_api.server.problems import Problem

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService

__all__ = ["GRACE_SECONDS", "Waiters"]

log = logging.getLogger(__name__)

# Clients wait up to eight seconds before they try again.
GRACE_SECONDS = 10.0


class _Leaving(NamedTuple):
    owner: str
    task: asyncio.Task[None]


class Waiters:
    """The requests of one server that wait for jobs. To be used on its event loop.

    Args:
        service: holds the jobs.

    Attributes:
        grace_seconds: that a job goes on after the last client has left.
    """

    def __init__(self, service: JobService) -> None:
        self.grace_seconds = GRACE_SECONDS
        self._service = service
        self._waiting: Counter[str] = Counter()
        # By owner: how many uploads come in, and what is set when the last of them has ended.
        self._uploads: Counter[str] = Counter()
        self._no_upload: dict[str, asyncio.Event] = {}
        # By job: whose it is, and the task that will cancel it. By task: whose job it is canceling.
        self._leaving: dict[str, _Leaving] = {}
        self._canceling: dict[asyncio.Task[None], str] = {}
        self._closed = False

    @contextlib.asynccontextmanager
    async def uploading(self, owner: str) -> AsyncIterator[None]:
        """While open, an upload of this owner comes in, and none of the jobs that its clients have left is canceled.

        Leave it only after :meth:`waiting` was entered for the job that the upload has become.
        """
        # An upload must not join a job that has heard already that it is to stop.
        while canceling := [task for task, whose in self._canceling.items() if whose == owner]:
            await asyncio.wait(canceling)
        self._uploads[owner] += 1
        self._no_upload.setdefault(owner, asyncio.Event())
        try:
            yield
        finally:
            self._uploads[owner] -= 1
            if not self._uploads[owner]:
                del self._uploads[owner]
                self._no_upload.pop(owner).set()

    @contextlib.contextmanager
    def waiting(self, job_id: str, owner: str, *, cancel: bool = True) -> Iterator[None]:
        """While open, a request waits for this job. When its client goes, the job is canceled, unless others wait.

        Errors of the job itself, and of a server that stops, are none of the client's doing and cancel nothing.

        Args:
            job_id: of a job that was submitted to be waited for.
            owner: whose it is.
            cancel: False for a job that its client has said it will come back to.
        """
        self._waiting[job_id] += 1
        leaving = self._leaving.pop(job_id, None)
        if leaving is not None:
            leaving.task.cancel()
        left = True
        try:
            yield
            left = False
        except (WhisperApiError, Problem):
            left = False
            raise
        finally:
            self._waiting[job_id] -= 1
            if not self._waiting[job_id]:
                del self._waiting[job_id]
                if left and cancel and not self._closed:
                    task = asyncio.create_task(self._cancel_later(job_id, owner))
                    self._leaving[job_id] = _Leaving(owner, task)

    def left(self, owner: str) -> int:
        """How many of this owner's jobs nobody waits for any more: they are joined soon, or canceled."""
        return sum(leaving.owner == owner for leaving in self._leaving.values())

    async def close(self) -> None:
        """Cancel no jobs any more: when the server stops, they are put back, and their clients will ask again."""
        self._closed = True
        tasks = [*(leaving.task for leaving in self._leaving.values()), *self._canceling]
        for leaving in self._leaving.values():
            leaving.task.cancel()
        self._leaving.clear()
        if tasks:
            await asyncio.wait(tasks)

    async def _cancel_later(self, job_id: str, owner: str) -> None:
        await asyncio.sleep(self.grace_seconds)
        while (no_upload := self._no_upload.get(owner)) is not None:
            await no_upload.wait()
        task = self._leaving.pop(job_id).task
        self._canceling[task] = owner
        try:
            if await asyncio.to_thread(self._cancel, job_id):
                log.info("job canceled: nobody waits for it any more", extra={"job_id": job_id})
        except StorageError as error:
            log.warning("a job that nobody waits for could not be canceled: %s", error, extra={"job_id": job_id})
        finally:
            del self._canceling[task]

    def _cancel(self, job_id: str) -> bool:
        """Cancel a job that has not ended; one that has keeps its result, for a client that asks for it again."""
        try:
            if self._service.status(job_id, None).status not in ("Queued", "Processing"):
                return False
            self._service.cancel(job_id, None, force=True)
        except JobNotFound:
            return False
        return True
