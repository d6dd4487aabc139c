"""``100 Continue`` (RFC 9110, section 10.1.1), sent when the application reads the body and not before.

Hypercorn sends it as soon as a request's head has arrived. A client that waits for it would then send its file to a
server that refuses the request because of the key, the address, the size or a full queue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import h11
from hypercorn.protocol.h11 import H11Protocol
from starlette.types import Message, Receive, Scope, Send

__all__ = ["LateContinue"]


class LateContinue(H11Protocol):
    """HTTP/1.1 that asks for a body when the application first reads the request, unless it has answered by then."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = _Connection(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
        # Every request of this connection goes to the application through this attribute.
        self.app = self._reading(self.app)

    def _reading(self, app: Callable[..., Awaitable[None]]) -> Any:
        async def run(scope: Scope, receive: Receive, send: Send, *spawn: Any) -> None:
            answered = False

            async def receive_after_continue() -> Message:
                if not answered and self._client_waits():
                    headers = self.config.response_headers("h11")
                    await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=headers))
                return await receive()

            async def send_with_close(message: Message) -> None:
                nonlocal answered
                if message["type"] == "http.response.start":
                    answered = True
                    if self._client_waits():
                        # The body may come or not, so where the next request begins cannot be told.
                        headers = [field for field in message["headers"] if field[0].lower() != b"connection"]
                        message = {**message, "headers": [*headers, (b"connection", b"close")]}
                await send(message)

            await app(scope, receive_after_continue, send_with_close, *spawn)

        return run

    def _client_waits(self) -> bool:
        connection = self.connection
        return (
            isinstance(connection, h11.Connection)
            and connection.client_is_waiting_for_100_continue
            and connection.our_state is h11.SEND_RESPONSE
        )


class _Connection(h11.Connection):
    """Never tells Hypercorn that the client waits, since :class:`LateContinue` looks for itself.

    A request whose body has two lengths is malformed.
    """

    @property
    def they_are_waiting_for_100_continue(self) -> bool:
        return False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if {b"transfer-encoding", b"content-length"} <= names:
                # RFC 9112, section 6.1: a proxy in front may have taken the other length, and what it took for the body
                # would be read as a request here.
                raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length", error_status_hint=400)
        return event
