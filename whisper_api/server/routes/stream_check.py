"""``/events/check``: a short stream that shows whether something on the way to the caller holds streams back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.operations import Answer, Operation
from whisper_api.server.realtime.event_stream import EventStream

__all__ = ["CHECK", "PARTS", "PAUSE_SECONDS"]

PAUSE_SECONDS = 0.2
# A proxy that collects responses sends the first with the head of the response, and the last with its end.
PARTS = 3


class StreamCheckEvent(msgspec.Struct, frozen=True, tag_field="event", tag="check"):
    """An event of the check.

    Attributes:
        part: 1, 2 or 3.
    """

    part: int


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


CHECK = Operation(
    check,
    (Answer(200, "A stream of three events", {"text/event-stream": StreamCheckEvent}),),
    tag="Server",
    roles=("user", "admin", "operator"),
)
