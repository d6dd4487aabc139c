"""Synchronous requests and their jobs: a job is canceled when no client waits for it any more.

A client that times out sends the same upload again and then joins its old job. So the job goes on for a few seconds
after the last client has gone, and until the uploads that its owner had begun by then are complete, since one of them
may join the job. Then the job is given up: no upload joins it, and it is canceled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from whisper_api.errors import StorageError, WhisperApiError
from whisper_api.server.responses.problems import Problem

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService

log = logging.getLogger(__name__)

# Clients wait up to eight seconds before they try again.
GRACE_SECONDS = 10.0
# After a restart, clients may first have to find out that the server is back.
RESTART_GRACE_SECONDS = 60.0


class _Abandoned(NamedTuple):
    """A job without a client, and the task that will cancel it."""

    owner: str
    task: asyncio.Task[None]


class Waiters:
    """The synchronous requests of one server. All methods must run on its event loop.

    Args:
        service: the job service.

    Attributes:
        grace_seconds: how long a job goes on after its last client has gone.
        requests: job id to the number of requests that wait for the job.
        uploads: owner to an event for each unfinished upload, which is set when the upload ends.
        given_up: ids of the jobs that an upload which begins now must not join.
        canceling: tasks that are canceling a job at this moment.
    """

    def __init__(self, service: JobService) -> None:
        self.grace_seconds = GRACE_SECONDS
        self.requests: Counter[str] = Counter()
        self.uploads: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.given_up: set[str] = set()
        self.canceling: set[asyncio.Task[None]] = set()
        self._service = service
        self._abandoned: dict[str, _Abandoned] = {}
        self._closed = False

    async def start(self) -> None:
        """Give the clients of jobs some time to come back after a restart.

        Raises:
            StorageError: the jobs cannot be read.
        """
        for job in await asyncio.to_thread(self._service.unfinished_to_join):
            self._cancel_after(job.job_id, job.owner, RESTART_GRACE_SECONDS)

    @contextlib.contextmanager
    def uploading(self, owner: str) -> Iterator[frozenset[str]]:
        """While open, an upload of this owner is under way, and no job is canceled that the upload might join.

        Leave it only after :meth:`waiting` was entered for the job of the upload.

        Yields:
            Ids of the jobs that were given up before, which the upload must not join.
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
        """While open, a request waits for this job. When the last such client goes away, the job is canceled.

        An error of the job, or of a server that stops, does not cancel the job, because the client may come back. A
        client whose key was revoked cannot come back.

        Args:
            job_id: id of a job that was submitted by a synchronous request.
            owner: owner of the job.
            cancel: False for a job whose client has announced that it comes back.
        """
        self.requests[job_id] += 1
        abandoned = self._abandoned.pop(job_id, None)
        if abandoned is not None:
            abandoned.task.cancel()
        gone = True
        try:
            yield
            gone = False
        except (WhisperApiError, Problem) as error:
            gone = isinstance(error, Problem) and error.status == 401
            raise
        finally:
            self.requests[job_id] -= 1
            if not self.requests[job_id]:
                del self.requests[job_id]
                if gone and cancel and not self._closed:
                    self._cancel_after(job_id, owner, self.grace_seconds)

    def abandoned(self, owner: str) -> int:
        """The number of this owner's jobs without a client; each is soon joined or canceled."""
        return sum(each.owner == owner for each in self._abandoned.values())

    async def close(self) -> None:
        """Cancel no more jobs: when the server stops, jobs go back to the queue and their clients ask again."""
        self._closed = True
        tasks = [*(each.task for each in self._abandoned.values()), *self.canceling]
        for each in self._abandoned.values():
            each.task.cancel()
        self._abandoned.clear()
        if tasks:
            await asyncio.wait(tasks)

    def _cancel_after(self, job_id: str, owner: str, grace_seconds: float) -> None:
        task = asyncio.create_task(self._wait_and_cancel(job_id, owner, grace_seconds))
        self._abandoned[job_id] = _Abandoned(owner, task)

    async def _wait_and_cancel(self, job_id: str, owner: str, grace_seconds: float) -> None:
        await asyncio.sleep(grace_seconds)
        self.given_up.add(job_id)
        try:
            # A copy, without uploads that begin meanwhile: with many clients there would always be another upload.
            for upload in tuple(self.uploads.get(owner, ())):
                await upload.wait()
            task = self._abandoned.pop(job_id).task
            self.canceling.add(task)
            try:
                if await asyncio.to_thread(self._service.cancel_unfinished, job_id):
                    log.info("job canceled: its client has gone", extra={"job_id": job_id})
            except StorageError as error:
                log.warning("a job without a client could not be canceled: %s", error, extra={"job_id": job_id})
            finally:
                self.canceling.discard(task)
        finally:
            self.given_up.discard(job_id)
