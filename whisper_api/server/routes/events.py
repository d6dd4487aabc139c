"""``/transcription/{job_id}/events``: what happens to a job, as it happens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import InvalidOption, JobNotFound, WhisperApiError
from whisper_api.schema import JobEvent
from whisper_api.server.operations import Answer, Operation, Parameter
from whisper_api.server.query import job_id_of
from whisper_api.server.realtime.event_stream import HEARTBEAT, EventStream, frames
from whisper_api.server.realtime.watching import watch_news
from whisper_api.server.responses.problems import Problem
from whisper_api.server.routes.jobs import JOB_ID

if TYPE_CHECKING:
    from whisper_api.jobs.feed import NumberedEvent

__all__ = ["EVENTS"]

# How long a client waits before it connects again; a restart takes a few seconds.
RETRY = b"retry: 2000\n\n"
MAX_ID_DIGITS = 19

LAST_EVENT_ID = Parameter(
    "Last-Event-ID", str, "Id of the last event that was received; what is no id counts as none", location="header"
)
AFTER = Parameter(
    "after", Annotated[int, Meta(ge=0)], "As Last-Event-ID, for callers that cannot set headers; the header wins", 0
)


async def events(request: Request) -> Response:
    """What happens to a job, as server-sent events, until it has ended.

    Each event has an ``id``, an ``event`` and, as ``data``, a JSON object:

    - ``queued``: the job waits, or waits again. ``queue_position``. What was told before is void.
    - ``progress``: it runs. ``progress`` from 0 to 1, ``stage``, ``eta_seconds`` or null.
    - ``segment``: some text is known. ``index``, ``aligned``, ``segments`` as in a result, but without speakers. What
      comes later with the same ``index`` takes its place.
    - ``completed``, ``failed`` with ``error``, ``canceled``: it has ended, and so does the stream.

    Each object has ``job_id`` and, again, ``event``, too. A client that comes late, or again with ``Last-Event-ID``, is
    told what it has missed, as far as that still matters. There is a comment when nothing else has come for 15 seconds.
    The stream ends within that time, too, once the key is revoked that it was asked for with.
    """
    job_id = job_id_of(request)
    pieces = _pieces(watch_news(request, job_id, after=_last_id(request)))
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        # This is what keeps a browser from asking again.
        return Response(status_code=204)
    return EventStream(RETRY + first, pieces)


async def _pieces(all_news: AsyncGenerator[tuple[NumberedEvent, ...], None]) -> AsyncGenerator[bytes, None]:
    begun = False
    async with contextlib.aclosing(all_news):
        try:
            async for news in all_news:
                begun = True
                for piece in frames(news):
                    yield piece
                if not news:
                    yield HEARTBEAT
        except (Problem, WhisperApiError):
            # In the middle of a stream there is no status to say it with: who asks again is told.
            if not begun:
                raise


def _last_id(request: Request) -> int:
    """The id of the last event that the client has had; 0 for none."""
    after: int = AFTER.of(request)
    given = request.headers.get(LAST_EVENT_ID.name, "").strip()
    # A browser would be turned away for ever by a refusal, which it cannot read.
    if given.isascii() and given.isdecimal() and len(given) <= MAX_ID_DIGITS:
        return int(given)
    return after


EVENTS = Operation(
    events,
    "Jobs",
    (
        Answer(200, "Events, as they happen", {"text/event-stream": JobEvent}),
        Answer(204, "The client has had the last event of this job"),
    ),
    refusals=(InvalidOption, JobNotFound),
    parameters=(JOB_ID, AFTER, LAST_EVENT_ID),
)
