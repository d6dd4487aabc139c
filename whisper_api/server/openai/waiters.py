"""Who waits for which job: a job that was submitted to be waited for is canceled when nobody does any more.

A client that gives up after some time asks again with the same upload, and its job must be there then. So the job
goes on for a little while after the last client has left, and until the uploads that its owner has begun by then have
come whole, as one of them may be the one that asks for it. After that the job is given up, and joined by none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from whisper_api.errors import JobNotFound, StorageError, WhisperApiError
from whisper_api.server.responses.problems import Problem

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService

__all__ = ["GRACE_SECONDS", "RESTART_GRACE_SECONDS", "Waiters"]

log = logging.getLogger(__name__)

# Clients wait up to eight seconds before they try again.
GRACE_SECONDS = 10.0
# Those that a restart has cut off may have to find out first that there is a server again.
RESTART_GRACE_SECONDS = 60.0


class _Leaving(NamedTuple):
    owner: str
    task: asyncio.Task[None]


class Waiters:
    """The requests of one server that wait for jobs. To be used on its event loop.

    Args:
        service: holds the jobs.

    Attributes:
        grace_seconds: how long a job goes on after its last client has left.
        requests: how many requests wait for a job, by job id.
        uploads: events of the uploads that come in, by owner; each is set when its upload has ended.
        given_up: ids of jobs that no upload may join which begins now.
        canceling: tasks that cancel a job at this moment.
    """

    def __init__(self, service: JobService) -> None:
        self.grace_seconds = GRACE_SECONDS
        self._service = service
        self.requests: Counter[str] = Counter()
        self.uploads: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        # By job: whose it is, and the task that will cancel it.
        self._leaving: dict[str, _Leaving] = {}
        self.given_up: set[str] = set()
        self.canceling: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Wait for the clients of jobs that an earlier process has left behind: none of them is here any more.

        Raises:
            StorageError: the jobs cannot be read.
        """
        for job in await asyncio.to_thread(self._service.waited_for):
            self._cancel_soon(job.job_id, job.owner, RESTART_GRACE_SECONDS)

    @contextlib.contextmanager
    def uploading(self, owner: str) -> Iterator[frozenset[str]]:
        """While open, an upload of this owner comes in, and no job is canceled that it might join.

        Leave it only after :meth:`waiting` was entered for the job that the upload has become.

        Yields:
            Ids of the jobs that it must not join: they were given up before it began.
        """
        ended = asyncio.Event()
        self.uploads[owner].add(ended)
        try:
            yield frozenset(self.given_up)
        finally:
            ended.set()
            self.uploads[owner].discard(ended)
            if not self.uploads[owner]:
                del self.uploads[owner]

    @contextlib.contextmanager
    def waiting(self, job_id: str, owner: str, *, cancel: bool = True) -> Iterator[None]:
        """While open, a request waits for this job. When its client goes, the job is canceled, unless others wait.

        Errors of the job itself, and of a server that stops, are none of the client's doing and cancel nothing; but
        whoever is not let in any more does not come back.

        Args:
            job_id: of a job that was submitted to be waited for.
            owner: whose it is.
            cancel: False for a job that its client has said it will come back to.
        """
        self.requests[job_id] += 1
        leaving = self._leaving.pop(job_id, None)
        if leaving is not None:
            leaving.task.cancel()
        left = True
        try:
            yield
            left = False
        except (WhisperApiError, Problem) as error:
            left = isinstance(error, Problem) and error.status == 401
            raise
        finally:
            self.requests[job_id] -= 1
            if not self.requests[job_id]:
                del self.requests[job_id]
                if left and cancel and not self._closed:
                    self._cancel_soon(job_id, owner, self.grace_seconds)

    def left(self, owner: str) -> int:
        """How many of this owner's jobs nobody waits for any more: they are joined soon, or canceled."""
        return sum(leaving.owner == owner for leaving in self._leaving.values())

    async def close(self) -> None:
        """Cancel no jobs any more: when the server stops, they are put back, and their clients will ask again."""
        self._closed = True
        tasks = [*(leaving.task for leaving in self._leaving.values()), *self.canceling]
        for leaving in self._leaving.values():
            leaving.task.cancel()
        self._leaving.clear()
        if tasks:
            await asyncio.wait(tasks)

    def _cancel_soon(self, job_id: str, owner: str, grace_seconds: float) -> None:
        task = asyncio.create_task(self._cancel_later(job_id, owner, grace_seconds))
        self._leaving[job_id] = _Leaving(owner, task)

    async def _cancel_later(self, job_id: str, owner: str, grace_seconds: float) -> None:
        await asyncio.sleep(grace_seconds)
        self.given_up.add(job_id)
        try:
            # Not for those that begin meanwhile: with many clients there is always one.
            for upload in tuple(self.uploads.get(owner, ())):
                await upload.wait()
            task = self._leaving.pop(job_id).task
            self.canceling.add(task)
            try:
                if await asyncio.to_thread(self._cancel, job_id):
                    log.info("job canceled: nobody waits for it any more", extra={"job_id": job_id})
            except StorageError as error:
                log.warning("a job that nobody waits for could not be canceled: %s", error, extra={"job_id": job_id})
            finally:
                self.canceling.discard(task)
        finally:
            self.given_up.discard(job_id)

    def _cancel(self, job_id: str) -> bool:
        """Cancel a job that has not ended; one that has keeps its result, for a client that asks for it again."""
        try:
            if self._service.status(job_id, None).status not in ("Queued", "Processing"):
                return False
            self._service.cancel(job_id, None, force=True)
        except JobNotFound:
            return False
        return True
