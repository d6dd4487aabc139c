"""Watching a job over one request: what is known of it at once, then what happens, until it ends or nobody watches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request

from whisper_api.schema import FINAL_STATES, JobCanceledEvent, JobCompletedEvent, JobEvent, JobFailedEvent, JobStatus
from whisper_api.server.realtime.waiting import beside, look, until_gone
from whisper_api.server.state import state_of

if TYPE_CHECKING:
    from whisper_api.jobs.feed import NumberedEvent

__all__ = ["watch_news"]

# Some proxies end a connection on which nothing has come for 30 seconds, and most after 60.
HEARTBEAT_SECONDS = 15.0


async def watch_news(
    request: Request, job_id: str, *, after: int = 0, heartbeat: float = HEARTBEAT_SECONDS
) -> AsyncGenerator[tuple[NumberedEvent, ...], None]:
    """What is known of a job, at once, and then what happens to it, until it has ended or the server has stopped.

    Close it when it is left before its end (``contextlib.aclosing``).

    Args:
        request: of the watcher, its body read.
        job_id: which job.
        after: id of the last event that this watcher has had before; 0 for none.
        heartbeat: seconds from one look at the job and the caller's key to the next. Without news, there is an empty
            one then.

    Yields:
        Events, oldest first; none at all at first when the watcher has had them, later as a heartbeat. Nothing comes
        when it has had the last event of a job that has ended.

    Raises:
        JobNotFound: there is no such job, or none that this caller may see.
        Problem: the caller's key was revoked meanwhile.
        ClientDisconnect: nobody watches any more.
    """
    from whisper_api.jobs.feed import LAST_ID, NumberedEvent

    state = state_of(request)
    clock = asyncio.get_running_loop().time
    async with contextlib.AsyncExitStack() as stack:
        # Before the first look, so that nothing that happens after it is missed.
        watch = await stack.enter_async_context(state.service.feed.watch(job_id, after))
        looked, status = clock(), await look(request, job_id)
        gone = await stack.enter_async_context(beside(until_gone(request.receive)))
        stopped: asyncio.Task[object] = await stack.enter_async_context(beside(state.stopped.wait()))
        for task in (gone, stopped):
            task.add_done_callback(lambda _: watch.wake())
        wait = 0.0
        while status.status not in FINAL_STATES:
            news = await watch.next(wait)
            if gone.done():
                raise ClientDisconnect
            yield news
            if (news and news[-1].id == LAST_ID) or stopped.done():
                return
            if clock() - looked >= heartbeat:
                # Events do not tell that a key was revoked, nor of what got lost in a way nobody has thought of.
                looked, status = clock(), await look(request, job_id)
            wait = looked + heartbeat - clock()
        if after < LAST_ID:
            yield (NumberedEvent(LAST_ID, _end_of(status)),)


def _end_of(status: JobStatus) -> JobEvent:
    match status.status:
        case "Failed":
            return JobFailedEvent(job_id=status.job_id, error=status.error or "")
        case "Canceled":
            return JobCanceledEvent(job_id=status.job_id)
        case _:
            return JobCompletedEvent(job_id=status.job_id)
