"""HTTP/2 on a connection: Hypercorn's protocol with bounds on the memory of a client's streams."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any

import h2.events
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request, StreamClosed
from hypercorn.protocol.h2 import BufferCompleteError, H2Protocol
from hypercorn.utils import filter_pseudo_headers
from priority.priority import MissingStreamError

from whisper_api.server.connections.frames import BoundedConnection
from whisper_api.server.connections.http1 import new_stream
from whisper_api.server.connections.limits import ProgressDeadline, StreamSlots
from whisper_api.server.connections.settings import Bounds

# The default size of a frame (RFC 9113, section 6.5.2). A client may allow larger ones, which would be copied whole.
FRAME_BYTES = 16 << 10
REFUSED = ((b":status", b"503"), (b"content-length", b"0"), (b"retry-after", b"1"))
MALFORMED = ((b":status", b"400"), (b"content-length", b"0"))


class Http2(H2Protocol):
    """HTTP/2 that resets stalled streams, and keeps nothing of a stream that has ended.

    Args:
        app: the ASGI application, in Hypercorn's form; it also takes a function that cuts its stream.
        about: the other arguments of Hypercorn's protocol.
        bounds: bounds on streams and times.
        slots: slots for the open requests.
    """

    stream_buffers: dict[int, StreamBuffer]  # type: ignore[assignment]
    connection: BoundedConnection

    def __init__(
        self,
        app: Callable[..., Coroutine[Any, Any, None]],
        *about: Any,
        bounds: Bounds,
        slots: StreamSlots,
    ) -> None:
        super().__init__(app, *about)
        self.connection = BoundedConnection(bounds.streams_per_connection)
        self._bounds = bounds
        self._slots = slots
        self._answer = app
        # The deadline for the client's window of the whole connection, which stops all streams when it is closed.
        self._deadline = ProgressDeadline(bounds.take_seconds, time.monotonic())
        self._taken = 0

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        return bool(self.streams or self.stream_buffers or self._slots.open)

    @property
    def begun(self) -> bool:
        """Whether an unfinished frame or request head has arrived."""
        return self.connection.begun

    def cut_stalled(self, now: float) -> bool:
        """Reset the streams whose windows the client keeps closed for too long.

        Args:
            now: by ``time.monotonic``.

        Returns:
            Whether the whole connection is to be cut, because the client keeps its window closed.
        """
        waiting = False
        for stream_id, buffer in list(self.stream_buffers.items()):
            stream = self.connection.streams.get(stream_id)
            closed_window = stream is not None and stream.outbound_flow_control_window <= 0
            waiting = waiting or (buffer.waiting and not closed_window)
            # While the stream's own window is open, the client takes other streams first, which is allowed.
            if buffer.deadline.is_over(now, buffer.taken, buffer.waiting and closed_window):
                self._cut(stream_id)
        closed_window = self.connection.outbound_flow_control_window <= 0
        return self._deadline.is_over(now, self._taken, waiting and closed_window)

    def goaway(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> bytes:
        """Close the connection.

        Returns:
            The frame to send (GOAWAY).
        """
        with contextlib.suppress(ProtocolError):
            self.connection.close_connection(code)
        return self.connection.data_to_send()

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if isinstance(event, Closed):
            # Without this, open responses would wait for their clients for ever.
            for stream_id in list(self.stream_buffers):
                self._forget(stream_id, ErrorCodes.CANCEL)

    async def stream_send(self, event: StreamEvent) -> None:
        if not self.closed:
            await super().stream_send(event)
        elif isinstance(event, StreamClosed):
            await self._close_stream(event.stream_id)

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.connection.earned(sent_bytes=len(event.data))
                if event.stream_id not in self.streams:
                    # The client sent this before it knew that the stream has ended.
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    continue
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                self.connection.bound_header_table()
            await super()._handle_events([event])
        await self._flush()

    async def _priority_updated(self, event: h2.events.PriorityUpdated) -> None:
        """Ignore priorities: RFC 9113 deprecates them, and each could name a stream that is never opened."""

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        stream_id = request.stream_id
        assert stream_id is not None
        self.keep_alive_requests += 1
        pseudo = {name: value for name, value in request.headers or () if name.startswith(b":")}
        method, path = pseudo[b":method"], pseudo.get(b":path", pseudo.get(b":authority", b""))
        if not (method.isascii() and path.isascii()):
            await self._refuse(stream_id, MALFORMED)
            return
        if not self._slots.begin():
            await self._refuse(stream_id, REFUSED)
            return
        headers = filter_pseudo_headers(list(request.headers or ()))
        if b":protocol" in pseudo:
            # The form of HTTP/1.1. HTTP/2 clients may not send this header (RFC 8441; RFC 9113, section 8.2.2).
            headers.append((b"upgrade", pseudo[b":protocol"]))
        answer = functools.partial(self._answer_in_slot, stream_id)
        self.streams[stream_id] = stream = new_stream(self, answer, stream_id)
        self.stream_buffers[stream_id] = StreamBuffer(ProgressDeadline(self._bounds.take_seconds, time.monotonic()))
        self.priority.insert_stream(stream_id)
        self.priority.block(stream_id)
        await stream.handle(
            Request(
                stream_id=stream_id,
                headers=headers,
                http_version="2",
                method=method.decode().upper(),
                raw_path=path,
                state=self.connection_state,
            )
        )

    async def _answer_in_slot(self, stream_id: int, *arguments: Any) -> None:
        try:
            await self._answer(*arguments, cut=functools.partial(self._cut, stream_id))
        finally:
            self._slots.end()

    async def _refuse(self, stream_id: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Respond without the application, and without a body, because a client could refuse to take a body."""
        with contextlib.suppress(ProtocolError):
            self.connection.send_headers(stream_id, list(headers), end_stream=True)
        self._forget(stream_id, ErrorCodes.NO_ERROR)
        await self._flush()

    async def _send_data(self, stream_id: int) -> None:
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None:
            self.priority.remove_stream(stream_id)
            return
        try:
            window = self.connection.local_flow_control_window(stream_id)
            data = buffer.pop(max(0, min(window, self.connection.max_outbound_frame_size, FRAME_BYTES)))
            if data or buffer.complete:
                self.connection.send_data(stream_id, data, end_stream=buffer.complete)
                self.connection.earned(sent_bytes=len(data), answers=int(buffer.complete))
                self._taken += len(data)
        except ProtocolError:
            self._forget(stream_id, ErrorCodes.CANCEL)
            return
        if buffer.complete:
            self._forget(stream_id, None)
        elif not data:
            self.priority.block(stream_id)
        await self._flush()

    async def _close_stream(self, stream_id: int) -> None:
        broken = stream_id in self.stream_buffers
        self._forget(stream_id, ErrorCodes.INTERNAL_ERROR if broken else ErrorCodes.NO_ERROR)
        await super()._close_stream(stream_id)
        if not self.closed:
            await self._flush()

    def _cut(self, stream_id: int) -> None:
        self._forget(stream_id, ErrorCodes.CANCEL)
        # A connection that ends accepts no more tasks, and ends its streams itself.
        with contextlib.suppress(RuntimeError):
            self.task_group.spawn(self._after_cut, stream_id)

    async def _after_cut(self, stream_id: int) -> None:
        await self._flush()
        await self._close_stream(stream_id)

    def _forget(self, stream_id: int, code: ErrorCodes | None) -> None:
        """Drop the unsent bytes of a stream.

        Args:
            stream_id: id of the stream.
            code: the error code for resetting a stream that has not ended on both sides; None does not reset it.
        """
        stream = self.connection.streams.get(stream_id)
        if code is not None and stream is not None and not stream.closed:
            with contextlib.suppress(ProtocolError):
                self.connection.reset_stream(stream_id, code)
        buffer = self.stream_buffers.pop(stream_id, None)
        if buffer is not None:
            buffer.close()
        with contextlib.suppress(MissingStreamError):
            self.priority.remove_stream(stream_id)


class StreamBuffer:
    """Holds one piece of a body, and lets the application wait until the piece is sent.

    Hypercorn's buffer of the same name copies a piece of any size, and lets the application go on. This buffer copies
    only the bytes of the next frame, so a body that many streams send is in memory once.

    Args:
        deadline: the client's deadline to take this stream.
    """

    def __init__(self, deadline: ProgressDeadline) -> None:
        self.deadline = deadline
        self.taken = 0
        self._piece = memoryview(b"")
        self._whole = False
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> bool:
        """Whether there are bytes to send."""
        return bool(self._piece)

    @property
    def complete(self) -> bool:
        """Whether all of the body was sent."""
        return self._whole and not self._piece

    async def push(self, data: bytes) -> None:
        """Hand over a piece of the body, and wait until it is sent.

        Raises:
            BufferCompleteError: the stream has ended.
        """
        await self._until(lambda: not self._piece)
        if self._closed or self._whole:
            raise BufferCompleteError
        self._piece = memoryview(data)
        await self._until(lambda: not self._piece)

    def pop(self, max_bytes: int) -> bytes:
        """Remove and return at most so many bytes, for the next frame."""
        data = bytes(self._piece[:max_bytes])
        self._piece = self._piece[len(data) :]
        self.taken += len(data)
        if not self._piece:
            self._changed.set()
        return data

    def set_complete(self) -> None:
        """Note that the body has no further piece."""
        self._whole = True

    async def drain(self) -> None:
        """Wait until the stream has ended."""
        await self._until(lambda: False)

    def close(self) -> None:
        """Note that the stream has ended: drop the rest, and wake the application."""
        self._closed = True
        self._piece = memoryview(b"")
        self._changed.set()

    async def _until(self, happened: Callable[[], bool]) -> None:
        while not (self._closed or happened()):
            self._changed.clear()
            await self._changed.wait()
