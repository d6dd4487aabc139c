"""HTTP/1.1 on a connection: Hypercorn's protocol with the changes that this server needs."""

from __future__ import annotations

import logging
import uuid
from http import HTTPStatus
from typing import Any

import h11
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Request
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, H11SendableEvent

from whisper_api.logs import Repeats
from whisper_api.server.connections.settings import MAX_HEADER_BYTES
from whisper_api.server.responses.problems import Problem, ProblemResponse

log = logging.getLogger(__name__)
log.addFilter(Repeats())

# The statuses that h11 gives to malformed requests.
MALFORMED = {
    400: ("malformed_request", "HTTP/1.1 (RFC 9112) does not allow this request"),
    431: ("headers_too_large", f"The request's headers exceed {MAX_HEADER_BYTES} bytes"),
    501: ("transfer_encoding", "The server understands only the transfer encoding chunked"),
}


class Http1(H11Protocol):
    """HTTP/1.1 with problem details for malformed requests, reason phrases, and a late ``100 Continue``.

    Upgrades are ignored, as RFC 9110 (section 7.8) allows: a request to change to a WebSocket or to HTTP/2 is answered
    as the HTTP/1.1 request that it is. HTTP/2 with prior knowledge raises ``H2ProtocolAssumedError``.

    Hypercorn sends ``100 Continue`` (RFC 9110, section 10.1.1) as soon as a request's head has arrived, so a client
    would send its file to a server that refuses the request because of the key, the path, the size or a full queue.
    This class sends it when the application first reads the body, unless the application has responded before.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = _Connection(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        return self.stream is not None

    @property
    def receives_body(self) -> bool:
        """Whether the rest of a request's body has not arrived yet."""
        return self.stream is not None and self.connection.their_state is h11.SEND_BODY

    @property
    def begun(self) -> bool:
        """Whether an unfinished request head has arrived."""
        return self.stream is None and bool(self.connection.trailing_data[0])

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if isinstance(event, Closed):
            await self._end()

    async def _maybe_recycle(self) -> None:
        await super()._maybe_recycle()
        if self.connection.our_state is not h11.IDLE:
            await self._end()

    async def _end(self) -> None:
        """Ignore what the client has sent after the last request."""
        self.connection = _Ended()
        await self.can_read.set()

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = new_stream(self, self._answer, STREAM_ID)
        # Counted first, because the application may respond before the stream has returned.
        self.keep_alive_requests += 1
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )

    async def _answer(self, scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any) -> None:
        answered = False

        async def receive_after_continue() -> Any:
            if not answered and self._client_waits():
                headers = self.config.response_headers("h11")
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=headers))
            return await receive()

        async def send_with_close(message: Any) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                if self._client_waits():
                    # The client may or may not send the body, so the start of the next request is unknown.
                    headers = [field for field in message["headers"] if field[0].lower() != b"connection"]
                    message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive_after_continue, send_with_close, sync_spawn, call_soon)

    def _client_waits(self) -> bool:
        connection = self.connection
        return (
            isinstance(connection, h11.Connection)
            and connection.client_is_waiting_for_100_continue
            and connection.our_state is h11.SEND_RESPONSE
        )

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        if isinstance(event, (h11.Response, h11.InformationalResponse)) and not event.reason:
            # RFC 9112 allows an empty phrase, but some clients cannot read it.
            kind = type(event)
            event = kind(status_code=event.status_code, headers=event.headers, reason=_phrase(event.status_code))
        await super()._send_h11_event(event)

    async def _send_error_response(self, status_code: int) -> None:
        request_id = uuid.uuid4().hex
        code, detail = MALFORMED.get(status_code, MALFORMED[400])
        problem = Problem(status_code, code, detail, {"Connection": "close", "X-Request-ID": request_id})
        response = ProblemResponse(problem, request_id)
        headers = [*response.raw_headers, *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=bytes(response.body)))
        await self._send_h11_event(h11.EndOfMessage())
        log.info("malformed request", extra={"status": status_code, "request_id": request_id})


class _Connection(h11.Connection):
    """Refuses a body with two lengths, and hides from Hypercorn that a client waits for ``100 Continue``."""

    @property
    def they_are_waiting_for_100_continue(self) -> bool:
        return False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if {b"transfer-encoding", b"content-length"} <= names:
                # RFC 9112, section 6.1: a proxy in front may believe the other length. Then the bytes that are a body
                # for the proxy would be a request here.
                raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length", error_status_hint=400)
        return event


class _Ended(H11WSConnection):
    """Replaces h11's connection when it has ended: ignores what is received and sent."""

    def __init__(self) -> None:
        pass

    def receive_data(self, data: bytes) -> None:
        pass

    def next_event(self) -> type[h11.NEED_DATA]:
        return h11.NEED_DATA

    def send(self, event: H11SendableEvent) -> bytes:
        return b""


def new_stream(protocol: H11Protocol | H2Protocol, app: AppWrapper, stream_id: int) -> HTTPStream:
    """A request on a connection.

    Args:
        protocol: the protocol of the connection.
        app: answers the request.
        stream_id: id of the stream.
    """
    about = protocol.config, protocol.context, protocol.task_group, protocol.ssl, protocol.client, protocol.server
    return HTTPStream(app, *about, protocol.stream_send, stream_id)


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"
