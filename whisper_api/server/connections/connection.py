"""A connection: reads and writes it, and closes it when the client is silent or takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from h2.errors import ErrorCodes
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as Settings
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr
from starlette.types import ASGIApp

from whisper_api.logs import Repeats
from whisper_api.server.connections.http1 import Http1
from whisper_api.server.connections.http2 import Http2
from whisper_api.server.connections.limits import FrameTurns, ProgressDeadline, StreamSlots
from whisper_api.server.connections.response_budget import BudgetedResponse, ResponseBudget
from whisper_api.server.connections.settings import Bounds

log = logging.getLogger(__name__)
log.addFilter(Repeats())

# Number of bytes to read at a time: for an HTTP/1.1 body as many as asyncio reads from a socket, because a small piece
# costs as much as a large one; otherwise few, because pipelined requests wait in memory for the response before them.
BODY_BYTES = 256 << 10
HEAD_BYTES = 8 << 10
# asyncio stops reading when its buffer holds more than twice this.
UNREAD_BYTES = 4 << 10
# The bytes of HTTP/2 that are processed in one turn adapt to their frames: 256 bytes may be a dozen requests, while
# 64 kB of an upload are four frames.
LEAST_FRAMES_BYTES = 256
MOST_FRAMES_BYTES = 64 << 10
MANY_FRAMES = 8


@dataclass(frozen=True)
class Shared:
    """What all connections of a server share.

    Attributes:
        settings: Hypercorn's settings.
        bounds: bounds on times and streams.
        budget: memory for the responses of all connections.
        context: tells when the server stops.
        turns: turns of the connections to process frames.
    """

    settings: Settings
    bounds: Bounds
    budget: ResponseBudget
    context: WorkerContext = field(default_factory=lambda: WorkerContext(None))
    turns: FrameTurns = field(default_factory=FrameTurns)


class Connection:
    """An accepted connection.

    Args:
        sock: a non-blocking socket; the connection closes it.
        app: the ASGI application.
        shared: what all connections share.
        slots: slots for the open HTTP/2 requests.
        network: the client's address for counting.
        reserved: whether the connection closes after one request.
    """

    def __init__(
        self, sock: socket.socket, app: ASGIApp, shared: Shared, slots: StreamSlots, network: str, *, reserved: bool
    ) -> None:
        self.network = network
        self.reserved = reserved
        self._app = app
        self._shared = shared
        self._bounds = shared.bounds
        self._slots = slots
        self._had_turns = 0
        self._frames_bytes = LEAST_FRAMES_BYTES
        self._opened = time.monotonic()
        self._idle_since = self._opened
        self._begun_since: float | None = None
        self._closing_since: float | None = None
        self._requests = 0
        self._written = 0
        self._deadline = ProgressDeadline(shared.bounds.take_seconds, self._opened)
        self._send_lock = asyncio.Lock()
        self._protocol: Http1 | Http2 | None = None
        self._sock = sock
        self._aborted = False
        self._lost = False
        self._reader = asyncio.StreamReader(limit=UNREAD_BYTES)
        self._writer: asyncio.StreamWriter | None = None

    # --- from the handshake to the end ---

    async def serve(self, tls: ssl.SSLContext | None) -> None:
        """Shake hands, answer requests, and close.

        Args:
            tls: the certificate; None without TLS.
        """
        loop = asyncio.get_running_loop()
        try:
            if self._aborted:
                raise ConnectionAbortedError
            transport, protocol = await loop.connect_accepted_socket(
                lambda: asyncio.StreamReaderProtocol(self._reader),
                self._sock,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self._bounds.head_seconds,
            )
        except BaseException:
            self._sock.close()
            raise
        # A piece of a response counts as taken when the transport no longer holds any of it. With 0, asyncio's TLS
        # would never write again after the first pause.
        transport.set_write_buffer_limits(high=1)
        self._writer = writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)
        self._idle_since = time.monotonic()
        # asyncio's socket transports have this attribute. Other transports choose the size themselves.
        self._sized = hasattr(transport, "max_size")
        # Applies to the first read, too.
        self._read_size()
        try:
            async with TaskGroup(loop) as group:
                await self._begin(loop, group, writer)
                await self._read()
        finally:
            self._slots.close()
            writer.close()
            # The client may have reset the connection.
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _begin(self, loop: asyncio.AbstractEventLoop, group: TaskGroup, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        ssl_object = writer.get_extra_info("ssl_object")
        about = (
            self._answer,
            self._shared.settings,
            self._shared.context,
            group,
            ConnectionState({}),
            ssl_object is not None,
            parse_socket_addr(sock.family, sock.getpeername()),
            parse_socket_addr(sock.family, sock.getsockname()),
            self._send,
        )
        self._http2 = functools.partial(Http2, *about, bounds=self._bounds, slots=self._slots)
        if ssl_object is not None and ssl_object.selected_alpn_protocol() == "h2":
            self._protocol = self._http2()
            await self._protocol.initiate()
        else:
            self._protocol = Http1(*about)

    async def _answer(
        self,
        scope: Any,
        receive: Any,
        send: Any,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
        *,
        cut: Callable[[], None] | None = None,
    ) -> None:
        response = BudgetedResponse(self._shared.budget, self.network, scope, send, cut or self.abort)
        try:
            await self._app(scope, receive, response.send)
        finally:
            response.close()

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(self._read_size()):
                await self._receive(data)
                # A read with bytes in the buffer returns without letting other tasks run.
                await asyncio.sleep(0)
        await self._handle(Closed())

    def _read_size(self) -> int:
        if isinstance(self._protocol, Http2):
            size = MOST_FRAMES_BYTES
        else:
            size = BODY_BYTES if self._protocol is not None and self._protocol.receives_body else HEAD_BYTES
        if self._sized and self._writer is not None:
            self._writer.transport.max_size = size  # type: ignore[attr-defined]
        return size

    async def _receive(self, data: bytes) -> None:
        # A lingering close (RFC 9112, section 9.6): bytes after the end are read and dropped, so that the client's
        # system does not drop the last response.
        if self._closing_since is not None:
            return
        if isinstance(self._protocol, Http2):
            await self._receive_frames(self._protocol, data)
            return
        try:
            await self._handle(RawData(data))
        except H2ProtocolAssumedError as assumed:
            self._protocol = self._http2()
            await self._protocol.initiate()
            await self._receive_frames(self._protocol, assumed.data)

    async def _receive_frames(self, protocol: Http2, data: bytes) -> None:
        start = 0
        while start < len(data) and self._closing_since is None:
            await self._shared.turns.wait(self._had_turns)
            piece = data[start : start + self._frames_bytes]
            frames = protocol.connection.frames.count
            await protocol.handle(RawData(piece))
            start += len(piece)
            self._had_turns += 1
            if protocol.connection.frames.count - frames > MANY_FRAMES:
                self._frames_bytes = max(self._frames_bytes // 2, LEAST_FRAMES_BYTES)
            else:
                self._frames_bytes = min(self._frames_bytes * 2, MOST_FRAMES_BYTES)

    async def _handle(self, event: Event) -> None:
        assert self._protocol is not None
        await self._protocol.handle(event)

    async def _send(self, event: Event) -> None:
        assert self._writer is not None
        if isinstance(event, Closed):
            self._close()
        elif isinstance(event, RawData) and event.data:
            async with self._send_lock:
                try:
                    if self._writer.is_closing():
                        raise ConnectionAbortedError
                    self._written += len(event.data)
                    self._writer.write(event.data)
                    await self._writer.drain()
                    return
                except (ConnectionError, RuntimeError):
                    pass
            if not self._lost:
                self._lost = True
                await self._handle(Closed())

    def _close(self) -> None:
        assert self._writer is not None
        if self._closing_since is None:
            self._closing_since = time.monotonic()
            if self._writer.can_write_eof() and not self._writer.is_closing():
                with contextlib.suppress(OSError):
                    self._writer.write_eof()
            else:
                self._writer.close()

    # --- for the server's periodic check ---

    def abort(self) -> None:
        """End the connection at once, and drop bytes that are still to be sent."""
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._aborted = True
            # Makes a TLS handshake fail at once.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def idle_for(self, now: float) -> float | None:
        """Seconds without a request; None while a request is open.

        Args:
            now: by ``time.monotonic``.
        """
        protocol = self._protocol
        if protocol is None:
            return now - self._opened
        if protocol.busy:
            return None
        if protocol.keep_alive_requests != self._requests:
            self._requests = protocol.keep_alive_requests
            self._idle_since = now
        return now - self._idle_since

    def check_deadlines(self, now: float, *, stopping: bool) -> None:
        """Close the connection when a deadline is over.

        Args:
            now: by ``time.monotonic``.
            stopping: whether the server stops, so that idle connections close.
        """
        if self._writer is None or self._protocol is None:
            return
        to_send = self._writer.transport.get_write_buffer_size()
        if self._deadline.is_over(now, self._written - to_send, to_send > 0):
            self._cut_off("takes nothing of what is sent to it")
        elif self._closing_since is not None:
            if not to_send and now - self._closing_since >= (0 if stopping else self._bounds.linger_seconds):
                self.abort()
        elif isinstance(self._protocol, Http2) and self._protocol.cut_stalled(now):
            self._writer.write(self._protocol.goaway(ErrorCodes.ENHANCE_YOUR_CALM))
            self._cut_off("keeps its window closed")
        else:
            self._check_idle(self._protocol, now, stopping)

    def _check_idle(self, protocol: Http1 | Http2, now: float, stopping: bool) -> None:
        idle = self.idle_for(now)
        if idle is None:
            self._begun_since = None
            # A request above the bound of connections is a health check or was refused: both take little time.
            if self.reserved and now - self._opened >= self._bounds.reserved_seconds:
                self.abort()
            return
        if not protocol.begun:
            self._begun_since = None
        elif self._begun_since is None:
            self._begun_since = now
        head = now - self._begun_since if self._begun_since is not None else 0.0
        limit = self._bounds.idle_seconds if self._requests else self._bounds.head_seconds
        if self.reserved:
            limit = 0.0 if self._requests else self._bounds.reserved_seconds
        if stopping or idle >= limit or head >= self._bounds.head_seconds:
            self.close_idle()

    def close_idle(self, *, at_once: bool = False) -> None:
        """Close the connection in the way of its protocol; only while no request is open.

        Args:
            at_once: do not linger, because another connection needs the room.
        """
        if self._writer is not None and isinstance(self._protocol, Http2) and not self._writer.is_closing():
            self._writer.write(self._protocol.goaway())
        if at_once or self._writer is None:
            self.abort()
        elif self._closing_since is None:
            self._closing_since = time.monotonic()
            self._writer.close()

    def _cut_off(self, reason: str) -> None:
        log.info("a client was cut off: it %s", reason, extra={"client": self.network})
        self.abort()


def log_lost(error: BaseException) -> None:
    """Log a lost connection in one line; at the level DEBUG with a traceback."""
    while isinstance(inner := getattr(error, "exceptions", None), tuple) and inner:
        error = inner[0]
    # Includes TLS errors, and a peer that left before the first read.
    if isinstance(error, OSError):
        log.debug("a connection broke: %s", type(error).__name__)
        return
    trace = error if log.isEnabledFor(logging.DEBUG) else None
    log.warning("a connection was closed after %s", type(error).__name__, exc_info=trace)
