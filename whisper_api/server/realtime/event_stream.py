"""Server-sent events (HTML standard, section 9.2) as a response, sent as they happen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from whisper_api.jobs.events import NumberedEvent

# A line that begins with a colon is a comment.
HEARTBEAT = b": still here\n\n"
# A client that reads nothing for this long is disconnected.
TAKE_SECONDS = 60.0
# A piece stays in memory, once for each client, until the client has read it.
PIECE_BYTES = 1 << 16


class EventStream(Response):
    """A response whose body has no declared length and ends with the last event.

    Args:
        first: the beginning of the body: any number of whole events.
        rest: the rest of the body, in pieces of whole events; closed when the response ends.
        take_seconds: how long a client may read nothing before it is disconnected.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], *, take_seconds: float = TAKE_SECONDS) -> None:
        # Without this header nginx and other proxies would buffer small pieces.
        super().__init__(None, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._take_seconds = take_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._rest):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                try:
                    await self._send(send, self._first)
                    async for chunk in self._rest:
                        await self._send(send, chunk)
                except asyncio.TimeoutError:
                    # The body gets no end, so that the server closes the connection.
                    return
        # After the generator is closed, because the generator receives the client's messages, and the end of an HTTP/2
        # request may still arrive.
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunk: bytes) -> None:
        message: Message = {"type": "http.response.body", "body": chunk, "more_body": True}
        await asyncio.wait_for(send(message), self._take_seconds)


def frames(events: Iterable[NumberedEvent]) -> Iterator[bytes]:
    """Events in the format of a stream, in pieces of whole events."""
    piece = bytearray()
    for each in events:
        piece += b"id: %d\nevent: %s\ndata: %s\n\n" % (each.id, each.name.encode(), each.data)
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
