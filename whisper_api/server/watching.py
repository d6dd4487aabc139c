"""Watching a job over one request: what is known of it at once, then what happens, until it ends or nobody watches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request

from whisper_api.schema import JobCanceledEvent, JobCompletedEvent, JobEvent, JobFailedEvent, JobStatus
from whisper_api.server.state import blocking, state_of, viewer_of
from whisper_api.server.waiting import ENDED, beside, until_gone

if TYPE_CHECKING:
    from whisper_api.jobs.feed import Told

__all__ = ["HEARTBEAT_SECONDS", "watch_job", "watch_news"]

# Some proxies end a connection on which nothing has come for 30 seconds, and most after 60.
HEARTBEAT_SECONDS = 15.0


async def watch_job(
    request: Request, job_id: str, *, after: int = 0, heartbeat: float = HEARTBEAT_SECONDS
) -> AsyncGenerator[Told | None, None]:
    """As :func:`watch_news`, one event after the other, and None when there is nothing to tell."""
    async with contextlib.aclosing(watch_news(request, job_id, after=after, heartbeat=heartbeat)) as all_news:
        async for news in all_news:
            for told in news:
                yield told
            if not news:
                yield None


async def watch_news(
    request: Request, job_id: str, *, after: int = 0, heartbeat: float = HEARTBEAT_SECONDS
) -> AsyncGenerator[tuple[Told, ...], None]:
    """What is known of a job, at once, and then what happens to it, until it has ended or the server has stopped.

    Close it when it is left before its end (``contextlib.aclosing``).

    Args:
        request: of the watcher, its body read.
        job_id: which job.
        after: id of the last event that this watcher has had before; 0 for none.
        heartbeat: seconds without news after which there is an empty one.

    Yields:
        Events, oldest first; none at all at first when the watcher has had them, later as a heartbeat. Nothing comes
        when it has had the last event of a job that has ended.

    Raises:
        JobNotFound: there is no such job, or none that this caller may see.
        ClientDisconnect: nobody watches any more.
    """
    from whisper_api.jobs.feed import LAST_ID, Told

    state, viewer = state_of(request), viewer_of(request)

    async def look() -> JobStatus:
        return await blocking(state.reads, state.service.status, job_id, viewer)

    async with contextlib.AsyncExitStack() as stack:
        # Before the first look, so that nothing that happens after it is missed.
        watch = await stack.enter_async_context(state.service.feed.watch(job_id, after))
        status = await look()
        gone = await stack.enter_async_context(beside(until_gone(request.receive)))
        stopped: asyncio.Task[object] = await stack.enter_async_context(beside(state.stopped.wait()))
        for task in (gone, stopped):
            task.add_done_callback(lambda _: watch.wake())
        wait = 0.0
        while status.status not in ENDED:
            news = await watch.next(wait)
            if gone.done():
                raise ClientDisconnect
            yield news
            if (news and news[-1].id == LAST_ID) or stopped.done():
                return
            if wait and not news:
                # Events tell of every change; this is for the one that got lost in a way nobody has thought of.
                status = await look()
            wait = heartbeat
        if after < LAST_ID:
            yield (Told(LAST_ID, _end_of(status)),)


def _end_of(status: JobStatus) -> JobEvent:
    match status.status:
        case "Failed":
            return JobFailedEvent(job_id=status.job_id, error=status.error or "")
        case "Canceled":
            return JobCanceledEvent(job_id=status.job_id)
        case _:
            return JobCompletedEvent(job_id=status.job_id)
