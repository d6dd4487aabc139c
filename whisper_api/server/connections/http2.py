"""HTTP/2 on one connection, as Hypercorn and h2 speak it, with bounds on what one client may hold."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import h2.events
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.config import Config as Settings
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request, StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup, WorkerContext
from hypercorn.utils import filter_pseudo_headers
from priority.priority import MissingStreamError

from whisper_api.server.connections.frames import BoundedConnection
from whisper_api.server.connections.limits import Bounds, Slots
from whisper_api.server.connections.patience import Patience
from whisper_api.server.connections.stream_buffer import StreamBuffer

__all__ = ["Http2"]

# The default size of a frame (RFC 9113, section 6.5.2). Clients may allow more, which would be copied at once.
FRAME_BYTES = 16 << 10
REFUSED = ((b":status", b"503"), (b"content-length", b"0"), (b"retry-after", b"1"))
MALFORMED = ((b":status", b"400"), (b"content-length", b"0"))


class Http2(H2Protocol):
    """HTTP/2 in which a stream that cannot go on is ended, and nothing of a stream stays when it has ended.

    Args:
        app: answers.
        settings: of the protocol.
        context: says when the server stops.
        task_group: in which requests are answered.
        state: of the connection.
        ssl: whether the connection is encrypted.
        client: address and port.
        server: address and port.
        send: writes to the connection.
        bounds: on streams and times.
        slots: for the requests that are open.
    """

    stream_buffers: dict[int, StreamBuffer]  # type: ignore[assignment]
    connection: BoundedConnection

    def __init__(
        self,
        app: AppWrapper,
        settings: Settings,
        context: WorkerContext,
        task_group: TaskGroup,
        state: ConnectionState,
        ssl: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Callable[[Event], Awaitable[None]],
        *,
        bounds: Bounds,
        slots: Slots,
    ) -> None:
        super().__init__(app, settings, context, task_group, state, ssl, client, server, send)
        self.connection = BoundedConnection(bounds.streams_per_connection)
        self._bounds = bounds
        self._slots = slots
        self._answer = app
        # With the client's window for the whole connection, which holds up all streams.
        self._patience = Patience(bounds.take_seconds, time.monotonic())
        self._taken = 0

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        return bool(self.streams or self.stream_buffers or self._slots.open)

    @property
    def begun(self) -> bool:
        """Whether a part of a frame or of a request's head has arrived, and not all of it."""
        return self.connection.begun

    def look(self, now: float) -> bool:
        """End the streams whose clients do not take what they asked for.

        Args:
            now: by ``time.monotonic``.

        Returns:
            Whether the client is to be cut off as a whole, because its window for the connection stays closed.
        """
        waiting = False
        for stream_id, buffer in list(self.stream_buffers.items()):
            stream = self.connection.streams.get(stream_id)
            closed_window = stream is not None and stream.outbound_flow_control_window <= 0
            waiting = waiting or (buffer.waiting and not closed_window)
            # Where the stream's own window is open, the client takes other streams first, which is its right.
            if buffer.patience.spent(now, buffer.taken, buffer.waiting and closed_window):
                self._cut(stream_id)
        closed_window = self.connection.outbound_flow_control_window <= 0
        return self._patience.spent(now, self._taken, waiting and closed_window)

    def say_goodbye(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> bytes:
        """Close the connection; the bytes to send for that (GOAWAY)."""
        with contextlib.suppress(ProtocolError):
            self.connection.close_connection(code)
        return self.connection.data_to_send()

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if isinstance(event, Closed):
            # Without this, answers that are under way would wait for ever to be taken.
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
                    # Sent before the client knew that the stream has ended.
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    continue
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                self.connection.bound_header_table()
            await super()._handle_events([event])
        await self._flush()

    async def _priority_updated(self, event: h2.events.PriorityUpdated) -> None:
        """Ignored: RFC 9113 has done away with priorities, and each could name a stream that is never opened."""

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
            # As HTTP/1.1 says it, where such a header cannot come from an HTTP/2 client (RFC 8441; RFC 9113, 8.2.2).
            headers.append((b"upgrade", pseudo[b":protocol"]))
        self.streams[stream_id] = stream = HTTPStream(
            functools.partial(self._answer_in_slot, stream_id),
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            stream_id,
        )
        self.stream_buffers[stream_id] = StreamBuffer(Patience(self._bounds.take_seconds, time.monotonic()))
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
        """Answer without a body, which a client that takes nothing could hold back, and without the application."""
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
        # A connection that is ending takes no more tasks, and ends its streams by itself.
        with contextlib.suppress(RuntimeError):
            self.task_group.spawn(self._after_cut, stream_id)

    async def _after_cut(self, stream_id: int) -> None:
        await self._flush()
        await self._close_stream(stream_id)

    def _forget(self, stream_id: int, code: ErrorCodes | None) -> None:
        """Keep nothing more of what a stream would have sent.

        Args:
            stream_id: whose.
            code: with which the stream is reset when it has not ended on both sides; None leaves it to the client.
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
