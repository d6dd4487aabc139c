"""Requests that wait for a job: for a change of its status, for its end, or for its events.

A waiting request holds no thread, and ends when its client goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request

from whisper_api.errors import Draining
from whisper_api.job_values import (
    FINAL_STATES,
    JobCanceledEvent,
    JobCompletedEvent,
    JobEvent,
    JobFailedEvent,
    JobStatus,
)
from whisper_api.server.middleware.auth import check_key, key_seconds
from whisper_api.server.responses.delivery import background, until_gone
from whisper_api.server.state import ServerState, blocking, state_of, viewer_of

if TYPE_CHECKING:
    from whisper_api.jobs.events import NumberedEvent, Watch

# While the server stops, a status request waits this long, so that a polling client does not ask again at once.
DRAINING_WAIT_SECONDS = 1.0
# A job may start at the moment when the server begins to stop, so its status is read again after this time.
STOPPING_PAUSE_SECONDS = 0.1
# Events do not report that a key was revoked, so the status of the job is read again after this time at the latest.
READ_AGAIN_SECONDS = 15.0
# About as long as a restart takes.
RESTART_SECONDS = 10.0
# Some proxies end a connection after 30 seconds without a byte, and most after 60.
HEARTBEAT_SECONDS = 15.0


async def wait_for_change(request: Request, job_id: str, seconds: float) -> JobStatus:
    """Wait until the state of a job changes.

    Args:
        request: the wait ends when its client goes away.
        job_id: id of the job.
        seconds: longest time to wait.

    Raises:
        JobNotFound: there is no such job, or the caller may not see it.
        Problem: the caller's key was revoked or has expired meanwhile.
        ClientDisconnect: the client has gone away.
    """
    state = state_of(request)
    if state.draining.is_set():
        seconds = min(seconds, DRAINING_WAIT_SECONDS)
        leave = state.stopped
    else:
        leave = state.draining
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    async with _watching(request, job_id, leave) as (watch, gone):
        first = status = await _read_status(request, job_id)
        while status.status not in FINAL_STATES and status.status == first.status and not leave.is_set():
            left = deadline - clock()
            if left <= 0:
                break
            await watch.signal(min(left, READ_AGAIN_SECONDS, key_seconds(request)))
            if gone.done():
                raise ClientDisconnect
            status = await _read_status(request, job_id)
        return status


async def wait_for_end(request: Request, job_id: str, seconds: float | None) -> bool:
    """Wait until a job has ended.

    Args:
        request: the wait ends when its client goes away; the job goes on.
        job_id: id of the job.
        seconds: longest time to wait; None for no limit.

    Returns:
        Whether the job has ended.

    Raises:
        Draining: the server stops, and the job runs after the next start.
        Problem: the caller's key was revoked or has expired meanwhile.
        ClientDisconnect: the client has gone away.
    """
    state = state_of(request)
    clock = asyncio.get_running_loop().time
    deadline = math.inf if seconds is None else clock() + seconds
    async with _watching(request, job_id, state.draining, state.stopped) as (watch, gone):
        draining_before = state.draining.is_set()
        while True:
            status = await _read_status(request, job_id)
            if status.status in FINAL_STATES:
                return True
            # A job that was Queued when the server began to stop may have started at that moment, so read it twice.
            queued_for_good = draining_before and status.status == "Queued"
            if state.stopped.is_set() or queued_for_good:
                raise Draining(
                    f"The server stops. It keeps job {job_id} and runs it after the next start: ask for the job's "
                    "status then",
                    RESTART_SECONDS,
                )
            left = deadline - clock()
            if left <= 0:
                return False
            draining_before = state.draining.is_set()
            pause = STOPPING_PAUSE_SECONDS if draining_before and status.status == "Queued" else READ_AGAIN_SECONDS
            await watch.signal(min(left, pause, key_seconds(request)))
            if gone.done():
                raise ClientDisconnect


async def watch_events(
    request: Request, job_id: str, *, after: int = 0, heartbeat: float = HEARTBEAT_SECONDS
) -> AsyncGenerator[tuple[NumberedEvent, ...], None]:
    """The known events of a job, then its new events, until the job ends or the server stops.

    Close the generator when leaving it early (``contextlib.aclosing``).

    Args:
        request: the watcher's request; its body was read.
        job_id: id of the job.
        after: id of the last event that this watcher has; 0 for none.
        heartbeat: seconds after which the job's status and the caller's key are read again; without a new event in
            this time, an empty tuple is yielded.

    Yields:
        Events, oldest first. An empty first tuple means that the watcher has all events; a later empty tuple is a
        heartbeat. Nothing is yielded when the job has ended and the watcher has its last event.

    Raises:
        JobNotFound: there is no such job, or the caller may not see it.
        Problem: the caller's key was revoked or has expired meanwhile.
        ClientDisconnect: the client has gone away.
    """
    from whisper_api.jobs.events import LAST_ID, NumberedEvent

    state = state_of(request)
    clock = asyncio.get_running_loop().time
    async with _watching(request, job_id, state.stopped, after=after) as (watch, gone):
        read_at, status = clock(), await _read_status(request, job_id)
        read_again = min(heartbeat, key_seconds(request))
        timeout = 0.0
        while status.status not in FINAL_STATES:
            events = await watch.next(timeout)
            if gone.done():
                raise ClientDisconnect
            yield events
            if (events and events[-1].id == LAST_ID) or state.stopped.is_set():
                return
            if clock() - read_at >= read_again:
                read_at, status = clock(), await _read_status(request, job_id)
                read_again = min(heartbeat, key_seconds(request))
            timeout = read_at + read_again - clock()
        if after < LAST_ID:
            yield (NumberedEvent(LAST_ID, _end_of(status)),)


async def unless_draining(state: ServerState, work: Any) -> Any:
    """Await a coroutine, but cancel it when the server begins to stop.

    Args:
        state: the server's state.
        work: a coroutine.

    Raises:
        Draining: the server stops.
    """
    task = asyncio.ensure_future(work)
    async with background(state.draining.wait()) as draining:
        try:
            await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
    if task.cancelled():
        raise Draining("The server stops and takes no new work", RESTART_SECONDS)
    return task.result()


@contextlib.asynccontextmanager
async def _watching(
    request: Request, job_id: str, *stops: asyncio.Event, after: int | None = None
) -> AsyncIterator[tuple[Watch, asyncio.Task[None]]]:
    """A watch of a job that is also signaled when the client goes away or a stop is set.

    Args:
        request: the watcher's request.
        job_id: id of the job.
        stops: events of the server.
        after: id of the last event that the watcher has; None for a watcher of the job's state alone.

    Yields:
        The watch, and a task that is done when the client has gone away.
    """
    service = state_of(request).service
    async with (
        service.watch(job_id, after or 0, states_only=after is None) as watch,
        contextlib.AsyncExitStack() as stack,
    ):
        gone = await stack.enter_async_context(background(until_gone(request.receive)))
        for task in (gone, *[await stack.enter_async_context(background(stop.wait())) for stop in stops]):
            task.add_done_callback(lambda _: watch.wake())
        yield watch, gone


async def _read_status(request: Request, job_id: str) -> JobStatus:
    """The status of a job, after a check that the caller's key is still valid."""
    state = state_of(request)

    def status() -> JobStatus:
        check_key(request)
        return state.service.status(job_id, viewer_of(request))

    return await blocking(state.reads, status)


def _end_of(status: JobStatus) -> JobEvent:
    match status.status:
        case "Failed":
            return JobFailedEvent(job_id=status.job_id, error=status.error or "")
        case "Canceled":
            return JobCanceledEvent(job_id=status.job_id)
        case _:
            return JobCompletedEvent(job_id=status.job_id)
