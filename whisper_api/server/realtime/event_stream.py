"""Server-sent events (the HTML standard, section 9.2) as a response: sent as they come, to whoever still takes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from whisper_api.jobs.feed import NumberedEvent

__all__ = ["HEARTBEAT", "EventStream", "frames"]

# A line that begins with a colon is a comment.
HEARTBEAT = b": still here\n\n"
# A client that takes nothing for so long has what is in the buffers on the way, and gets no more.
TAKE_SECONDS = 60.0
# What is sent at once is held for each client until it has taken it, and has to be taken within that time.
PIECE_BYTES = 1 << 16


class EventStream(Response):
    """A response whose body has no length and ends when there is nothing more to tell.

    Args:
        first: the beginning of the body: any number of whole events.
        rest: what follows, in pieces like that; closed when nobody takes them any more.
        take_seconds: how long a client may take nothing of what is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], *, take_seconds: float = TAKE_SECONDS) -> None:
        # Proxies that follow this header (nginx and others) would collect what comes in small pieces.
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
                    # Without an end, so that the server closes the connection.
                    return
        # What is closed by now listens to the client no more: the end of an HTTP/2 request is still to be received.
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunk: bytes) -> None:
        message: Message = {"type": "http.response.body", "body": chunk, "more_body": True}
        await asyncio.wait_for(send(message), self._take_seconds)


def frames(news: Iterable[NumberedEvent]) -> Iterator[bytes]:
    """Events as they are written into a stream, in pieces of whole events."""
    piece = bytearray()
    for told in news:
        piece += b"id: %d\nevent: %s\ndata: %s\n\n" % (told.id, told.name.encode(), told.data)
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
