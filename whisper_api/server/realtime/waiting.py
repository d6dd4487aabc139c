"""Requests that wait for a job: no thread is held, and none outlives its client."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from whisper_api.errors import Draining
from whisper_api.jobs.events import TERMINAL, UNDERWAY
from whisper_api.schema import FINAL_STATES, JobEvent, JobStatus
from whisper_api.server.middleware.auth import check_key
from whisper_api.server.state import ServerState, blocking, state_of, viewer_of

if TYPE_CHECKING:
    from whisper_api.jobs.events import Subscription

__all__ = ["beside", "look", "unless_draining", "until_gone", "wait_for_change", "wait_for_end"]

# While the server stops, whoever asks again and again is still held back a little.
DRAINING_WAIT_SECONDS = 1.0
STOPPING_PAUSE_SECONDS = 0.1
# Events tell of every change, but not that a key was revoked; nor of what got lost in a way nobody has thought of.
LOOK_AGAIN_SECONDS = 15.0
# About as long as a restart takes.
RESTART_SECONDS = 10.0


async def look(request: Request, job_id: str) -> JobStatus:
    """Where a job stands, for a request that has waited.

    Raises:
        JobNotFound: there is no such job, or none that this caller may see.
        Problem: the caller's key was revoked meanwhile.
    """
    state = state_of(request)

    def status() -> JobStatus:
        check_key(request)
        return state.service.status(job_id, viewer_of(request))

    return await blocking(state.reads, status)


async def wait_for_change(request: Request, job_id: str, seconds: float) -> JobStatus:
    """Wait until a job's status is another word than now, but not longer than asked.

    Args:
        request: ends the wait when its client goes.
        job_id: which job.
        seconds: how long at most.

    Raises:
        JobNotFound: there is no such job, or none that this caller may see.
        Problem: the caller's key was revoked meanwhile.
        ClientDisconnect: nobody waits any more.
    """
    state = state_of(request)
    if state.draining.is_set():
        seconds = min(seconds, DRAINING_WAIT_SECONDS)
        leave = state.stopped
    else:
        leave = state.draining
    first: str | None = None

    def changed(status: JobStatus) -> bool:
        nonlocal first
        first = first or status.status
        return status.status != first or leave.is_set()

    def news(event: JobEvent, status: JobStatus) -> bool:
        # Of a job that runs, only what ends it is news.
        return not (isinstance(event, UNDERWAY) and status.status == "Processing")

    return await _wait(request, job_id, seconds, changed, leave, news=news)


async def wait_for_end(request: Request, job_id: str, seconds: float | None) -> bool:
    """Wait until a job has ended, but not longer than asked.

    Args:
        request: ends the wait when its client goes; the job goes on.
        job_id: which job.
        seconds: how long at most; None for as long as it takes.

    Returns:
        Whether it has ended.

    Raises:
        Draining: the server stops, and the job will be run after it has started again.
        Problem: the caller's key was revoked meanwhile.
        ClientDisconnect: nobody waits any more.
    """
    state = state_of(request)
    draining = state.draining.is_set()

    def put_off(status: JobStatus) -> bool:
        nonlocal draining
        # What was Queued before the server began to stop may have been begun by then.
        before, draining = draining, state.draining.is_set()
        if state.stopped.is_set() or (before and status.status == "Queued"):
            raise Draining(
                f"The server stops. Job {job_id} is kept and will run when it has started again: ask for its status",
                RESTART_SECONDS,
            )
        return False

    status = await _wait(
        request, job_id, seconds, put_off, state.draining, state.stopped, news=lambda event, status: False
    )
    return status.status in FINAL_STATES


async def unless_draining(state: ServerState, work: Any) -> Any:
    """Await something, but not after the server has begun to stop.

    Args:
        state: tells when that is.
        work: a coroutine; it is cancelled then.

    Raises:
        Draining: the server stops.
    """
    task = asyncio.ensure_future(work)
    async with beside(state.draining.wait()) as draining:
        try:
            await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
    if task.cancelled():
        raise Draining("The server stops and takes no new work", RESTART_SECONDS)
    return task.result()


async def _wait(
    request: Request,
    job_id: str,
    seconds: float | None,
    enough: Callable[[JobStatus], bool],
    *stops: asyncio.Event,
    news: Callable[[JobEvent, JobStatus], bool],
) -> JobStatus:
    """Ask for the status at every stop and event that is news, until it is enough, has ended or time is up."""
    clock = asyncio.get_running_loop().time
    deadline = math.inf if seconds is None else clock() + seconds
    async with contextlib.AsyncExitStack() as stack:
        gone = await stack.enter_async_context(beside(until_gone(request.receive)))
        others = {gone, *[await stack.enter_async_context(beside(stop.wait())) for stop in stops]}
        # Before the first look, so that nothing that happens after it is missed.
        events = await stack.enter_async_context(state_of(request).service.events.subscribe(job_id))
        while True:
            status = await look(request, job_id)
            left = deadline - clock()
            if status.status in FINAL_STATES or enough(status) or left <= 0:
                return status
            async with beside(_next_news(events, status, news)) as change:
                happened, _ = await asyncio.wait(
                    {change, *others}, timeout=min(left, LOOK_AGAIN_SECONDS), return_when=asyncio.FIRST_COMPLETED
                )
            if gone in happened:
                raise ClientDisconnect
            others -= happened


async def _next_news(events: Subscription, status: JobStatus, news: Callable[[JobEvent, JobStatus], bool]) -> None:
    while (event := await events.next()) is not None:
        if isinstance(event, TERMINAL) or news(event, status):
            return
    # The service is stopping, and says so at once to all who ask from then on.
    await asyncio.sleep(STOPPING_PAUSE_SECONDS)


async def until_gone(receive: Receive) -> None:
    """Wait until a client has gone.

    Args:
        receive: of its request; nobody else may use it meanwhile.
    """
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def beside(work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A coroutine as a task that goes on beside what stands in the ``with``, and not longer."""
    task: asyncio.Task[Any] = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
