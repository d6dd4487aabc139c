"""Responses that know whether the client received them, and the lingering close of a response to an unread upload."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PIECE_BYTES = 64 << 10
# The last byte is held back for this time, in which the server notices that the client has gone.
LOOK_SECONDS = 0.005
# Hypercorn may report the end of the stream before it has sent the last byte, which then has this long.
END_SECONDS = 1.0

LINGER_SECONDS = 30.0
LINGER_IDLE_SECONDS = 5.0
LINGER_BYTES = 1 << 30

BODY_ENDED = "whisper_api.body_ended"


async def until_gone(receive: Receive) -> None:
    """Wait until the client has gone away; drop the messages that come before.

    Args:
        receive: the request's function; nothing else may call it meanwhile.
    """
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def background(work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """Run a coroutine as a task, which is canceled when the ``with`` block ends."""
    task: asyncio.Task[Any] = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


class DeliveredResponse(Response):
    """A response that reports its delivery.

    The last byte is held back for a moment. When the client is still connected after that moment and the byte is sent,
    the response counts as delivered, though its end may still be in buffers on the way. A response that breaks off
    earlier does not count as delivered, nor does a response to a HEAD request.

    Args:
        content: the body; text becomes UTF-8.
        headers: headers of the response.
        on_delivered: awaited after the last byte was sent.
    """

    def __init__(
        self,
        content: str | bytes,
        headers: Mapping[str, str] | None = None,
        *,
        on_delivered: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(content, headers=headers)
        self.on_delivered = on_delivered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        delivered = False
        # ASGI lets send() raise when the client has gone; Hypercorn drops the message instead.
        with contextlib.suppress(OSError):
            async with background(until_gone(receive)) as gone:
                delivered = await self._send_to_the_end(send, gone)
        if delivered:
            await self.on_delivered()

    async def _send_to_the_end(self, send: Send, gone: asyncio.Task[None]) -> bool:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        held = max(0, len(body) - 1)
        for start in range(0, held, PIECE_BYTES):
            piece = bytes(body[start : min(start + PIECE_BYTES, held)])
            if not await _sent(send, {"type": "http.response.body", "body": piece, "more_body": True}, gone):
                return False
        await asyncio.wait({gone}, timeout=LOOK_SECONDS)
        if gone.done():
            return False
        last = {"type": "http.response.body", "body": bytes(body[held:]), "more_body": False}
        return await _sent(send, last, gone, END_SECONDS)


async def _sent(send: Send, message: Message, gone: asyncio.Task[None], seconds: float = 0.0) -> bool:
    """Send a message, but give up when the client has gone, because ``send`` may then block for ever.

    Args:
        send: the application's.
        message: the message.
        gone: a task that is done when the client has gone.
        seconds: how long sending goes on after that.

    Returns:
        Whether the message was sent.
    """
    sending = asyncio.ensure_future(send(message))
    try:
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done() and seconds:
            await asyncio.wait({sending}, timeout=seconds)
        if not sending.done():
            return False
        sending.result()
        return True
    finally:
        sending.cancel()
        await asyncio.wait({sending})


class BodyReceive:
    """Receives messages, and notes in the scope when the request has ended.

    Args:
        scope: the scope of the request.
        receive: receives the messages.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive

    @property
    def ended(self) -> bool:
        """Whether the request or its connection has ended."""
        return BODY_ENDED in self._scope

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._scope[BODY_ENDED] = True
        return message


class LingeringClose:
    """Ends a response only when the request has ended (RFC 9112, section 9.6).

    When a server responds and closes while the client still sends, the client's system may drop the response.
    Therefore the response is sent except for its end, and the rest of the request is read and dropped for a bounded
    time. A client that has the whole response may break off at once.

    Args:
        app: any ASGI application: a single response, or the whole application with this as the outermost middleware.
        seconds: longest time to read the rest of the request.
        idle_seconds: longest time to wait for the next byte.
        max_bytes: most bytes of the rest that are read.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        seconds: float = LINGER_SECONDS,
        idle_seconds: float = LINGER_IDLE_SECONDS,
        max_bytes: int = LINGER_BYTES,
    ) -> None:
        self.app = app
        self.seconds = seconds
        self.idle_seconds = idle_seconds
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _has_no_body(scope):
            await self.app(scope, receive, send)
            return
        body = BodyReceive(scope, receive)
        timed_out = False

        async def send_and_linger(message: Message) -> None:
            nonlocal timed_out
            if message["type"] == "http.response.start":
                timed_out = message["status"] == 408
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not last or body.ended:
                await send(message)
                return
            await send({**message, "more_body": True})
            # After one timeout, do not wait for this client again.
            if not timed_out:
                await self._drain(body)
            # Hypercorn puts the end of the connection into the same bounded queue as the rest of the request, and waits
            # for room in the queue.
            async with background(until_gone(body)):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await self.app(scope, body, send_and_linger)
        except Exception:
            # The error handler that responds does not know that the body was not read.
            if not body.ended:
                await self._drain(body)
            raise

    async def _drain(self, body: BodyReceive) -> None:
        """Read and drop the rest of a request, until the request or the connection ends or a bound is met."""
        until = asyncio.get_running_loop().time() + self.seconds
        left = self.max_bytes
        while left > 0 and not body.ended:
            wait = min(self.idle_seconds, until - asyncio.get_running_loop().time())
            try:
                message = await asyncio.wait_for(body(), wait)
            except asyncio.TimeoutError:
                return
            left -= len(message.get("body", b""))


def _has_no_body(scope: Scope) -> bool:
    if BODY_ENDED in scope:
        return True
    headers = dict(scope["headers"])
    # The head of an HTTP/2 request does not tell whether a body follows.
    return (
        scope["http_version"].startswith("1")
        and headers.get(b"content-length", b"0") == b"0"
        and b"transfer-encoding" not in headers
    )
