"""``/transcription/{job_id}/events``: the events of a job as a stream; ``/events/check`` tries whether streams flow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import WhisperApiError
from whisper_api.job_values import JobEvent
from whisper_api.server.operations import Answer, Parameter, job_id_of, operation
from whisper_api.server.realtime.event_stream import HEARTBEAT, EventStream, frames
from whisper_api.server.realtime.waiting import watch_events
from whisper_api.server.responses.problems import Problem
from whisper_api.server.routes.jobs import JOB_ID

if TYPE_CHECKING:
    from whisper_api.jobs.events import NumberedEvent

# A client waits this long before it connects again; a restart of the server takes a few seconds.
RETRY = b"retry: 2000\n\n"
MAX_ID_DIGITS = 19

LAST_EVENT_ID = Parameter(
    "Last-Event-ID", str, "Id of the last event that the client received; a malformed id is ignored", location="header"
)
AFTER = Parameter(
    "after", Annotated[int, Meta(ge=0)], "The same as Last-Event-ID, which wins, for callers that set no headers", 0
)


@operation(
    Answer(200, "A stream of events", {"text/event-stream": JobEvent}),
    Answer(204, "The client has already received the last event of this job"),
    tag="Jobs",
    parameters=(JOB_ID, AFTER, LAST_EVENT_ID),
    audit="job.read",
    scope="read",
)
async def events(request: Request) -> Response:
    """Stream the events of a job as server-sent events, until the job has ended.

    Each event has an ``id``, an ``event`` and, as ``data``, a JSON object:

    - ``queued``: the job waits, or waits again, at ``queue_position``. All earlier events of the job are void.
    - ``progress``: the job runs. ``progress`` from 0 to 1, ``stage``, ``eta_seconds`` or null.
    - ``segment``: a part of the text is known. ``index``, ``aligned``, and ``segments`` as in a result, but without
      speakers. A later event with the same ``index`` replaces this one.
    - ``completed``, ``failed`` with ``error``, ``canceled``: the job has ended, and the stream ends too.

    Each object also has ``job_id`` and ``event``. A client that connects late, or again with ``Last-Event-ID``,
    receives the events that it has missed and that are still valid. After 15 seconds without an event the server sends
    a comment. When the key of the request is revoked, the stream ends within that time.
    """
    job_id = job_id_of(request)
    pieces = _pieces(watch_events(request, job_id, after=_last_id(request)))
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        # A browser that receives this status does not connect again.
        return Response(status_code=204)
    return EventStream(RETRY + first, pieces)


async def _pieces(batches: AsyncGenerator[tuple[NumberedEvent, ...], None]) -> AsyncGenerator[bytes, None]:
    begun = False
    async with contextlib.aclosing(batches):
        try:
            async for batch in batches:
                begun = True
                for piece in frames(batch):
                    yield piece
                if not batch:
                    yield HEARTBEAT
        except (Problem, WhisperApiError):
            # A stream that has begun cannot send an error status. The client receives the error at its next connection.
            if not begun:
                raise


def _last_id(request: Request) -> int:
    """The id of the last event that the client has received; 0 for none."""
    after: int = AFTER.of(request)
    text = request.headers.get(LAST_EVENT_ID.name, "").strip()
    # A malformed id is not an error: a browser could not read the error, and would send the same id for ever.
    if text.isascii() and text.isdecimal() and len(text) <= MAX_ID_DIGITS:
        return int(text)
    return after


PAUSE_SECONDS = 0.2
# A proxy that collects responses sends the first with the head of the response, and the last with its end.
PARTS = 3


class StreamCheckEvent(msgspec.Struct, frozen=True, tag_field="event", tag="check"):
    """An event of the check.

    Attributes:
        part: 1, 2 or 3.
    """

    part: int


@operation(
    Answer(200, "A stream of three events", {"text/event-stream": StreamCheckEvent}),
    tag="Server",
    roles=("user", "admin", "operator"),
)
async def check(request: Request) -> Response:
    """Stream three events with a pause of a fifth of a second before each but the first.

    When two arrive at once, a proxy on the way collects responses, and live text comes late.
    """
    return EventStream(_event(1), _others())


async def _others() -> AsyncGenerator[bytes, None]:
    for part in range(2, PARTS + 1):
        await asyncio.sleep(PAUSE_SECONDS)
        yield _event(part)


def _event(part: int) -> bytes:
    return b"event: check\ndata: %s\n\n" % msgspec.json.encode(StreamCheckEvent(part))
