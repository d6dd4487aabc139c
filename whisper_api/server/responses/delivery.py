"""How answers leave: results that know whether they arrived, and refusals that are read before the upload has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyReceive", "DeliveredResponse", "LingeringClose", "drain"]

PIECE_BYTES = 64 << 10
# How long a client that broke off has to be noticed, before the last byte goes out.
LOOK_SECONDS = 0.005
END_SECONDS = 1.0

LINGER_SECONDS = 30.0
LINGER_IDLE_SECONDS = 5.0
LINGER_BYTES = 1 << 30

BODY_ENDED = "whisper_api.body_ended"


class DeliveredResponse(Response):
    """A response that tells whether the client had all of it.

    Its last byte is held back for a moment: a client that is still there then, and that it is sent to, has had the
    response, but for what stands in buffers on the way. One that breaks off before has not, nor has one that asked
    for the headers alone.

    Args:
        content: the body; text becomes UTF-8.
        status_code: the HTTP status.
        headers: to send along.
        media_type: of the body.
        on_delivered: awaited after the last byte was sent.
    """

    def __init__(
        self,
        content: str | bytes,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        *,
        on_delivered: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(content, status_code, headers, media_type)
        self.on_delivered = on_delivered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        delivered = False
        # ASGI lets send() raise when the client has gone; Hypercorn drops the message instead.
        with contextlib.suppress(OSError):
            async with _listening(receive) as gone:
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
        # The end of a response is the end of its connection or stream, which may be told before it was sent.
        return await _sent(send, last, gone, END_SECONDS)


async def _sent(send: Send, message: Message, gone: asyncio.Task[None], seconds: float = 0.0) -> bool:
    """Send a message, unless the client goes: Hypercorn waits for ever for room in an HTTP/2 stream that has ended.

    Args:
        send: of the application.
        message: to send.
        gone: done when the client has gone.
        seconds: that it may go on after that.

    Returns:
        Whether it was sent.
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
    """Receives messages, and notes in the scope when the request has no more of them.

    Args:
        scope: of the request.
        receive: the application's own.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive

    @property
    def ended(self) -> bool:
        """Whether the request's last byte, or the end of its connection, was received."""
        return BODY_ENDED in self._scope

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._scope[BODY_ENDED] = True
        return message


class LingeringClose:
    """Ends a response only when the request has ended too: a lingering close.

    When a server answers and closes while the client still sends, the client's system may throw the answer away (RFC
    9112, section 9.6); and Hypercorn waits for ever for room in its queue of received messages. So the answer goes
    out whole, only its end is held back, and what still comes is read and dropped, for a bounded time. A client that
    has the whole answer may break off at once.

    Args:
        app: any ASGI application: one response, or everything, as the outermost middleware.
        seconds: how long it goes on at most.
        idle_seconds: how long it waits for the next byte.
        max_bytes: how much it drops at most.
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
            # Who was waited for in vain is not waited for again.
            if not timed_out:
                await self._drain(body)
            # The end of the connection must find room in the queue that the rest of the request still comes to.
            async with _listening(body):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await self.app(scope, body, send_and_linger)
        except Exception:
            # Who catches it answers without knowing of the body.
            if not body.ended:
                await self._drain(body)
            raise

    async def _drain(self, receive: Receive) -> None:
        await drain(receive, seconds=self.seconds, idle_seconds=self.idle_seconds, max_bytes=self.max_bytes)


async def drain(
    receive: Receive,
    *,
    seconds: float = LINGER_SECONDS,
    idle_seconds: float = LINGER_IDLE_SECONDS,
    max_bytes: int = LINGER_BYTES,
) -> None:
    """Read and drop the rest of a request, until it or the connection ends or a bound is met.

    Args:
        receive: of the request, which has not ended.
        seconds: how long at most.
        idle_seconds: how long to wait for the next byte.
        max_bytes: how much at most.
    """
    until = asyncio.get_running_loop().time() + seconds
    left = max_bytes
    while left > 0:
        wait = min(idle_seconds, until - asyncio.get_running_loop().time())
        try:
            message = await asyncio.wait_for(receive(), wait)
        except asyncio.TimeoutError:
            return
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))


@contextlib.asynccontextmanager
async def _listening(receive: Receive) -> AsyncIterator[asyncio.Task[None]]:
    """While open, messages are received and dropped; the task is done once the connection has ended."""
    task = asyncio.create_task(_until_disconnected(receive))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _has_no_body(scope: Scope) -> bool:
    if BODY_ENDED in scope:
        return True
    headers = dict(scope["headers"])
    # HTTP/2 has no other sign of a body than that it comes.
    return (
        scope["http_version"].startswith("1")
        and headers.get(b"content-length", b"0") == b"0"
        and b"transfer-encoding" not in headers
    )
