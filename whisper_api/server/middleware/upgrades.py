"""Refuses WebSocket handshakes, because no path of this server speaks WebSocket."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_api.server.responses.problems import ErrorHandler, Problem

NOT_FOUND = Problem(404, "not_found", "There is nothing at this address")
NOT_SPOKEN = Problem(
    400,
    "websocket_unsupported",
    "This address does not speak WebSocket: send an ordinary request (a job's events are server-sent events)",
)


class NoWebSockets:
    """Refuses WebSocket handshakes: 404 for an unknown path, 400 ``websocket_unsupported`` for others.

    No key is needed, because browsers cannot send a key with a handshake, and the API's description lists all paths.
    A handshake is an HTTP request with ``Upgrade: websocket`` (RFC 6455), an extended CONNECT (RFC 8441), or, under
    another ASGI server, a scope of the type ``websocket``.

    Args:
        app: an application whose router knows all paths.
        handler: makes the responses to errors.
    """

    def __init__(self, app: ASGIApp, handler: ErrorHandler) -> None:
        self.app = app
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            if "websocket.http.response" in scope.get("extensions", {}):
                await self._refuse(scope, receive, _as_websocket(send))
            else:
                await send({"type": "websocket.close"})
        elif scope["type"] == "http" and _is_handshake(scope):
            await self._refuse(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_scope = {**scope, "type": "http", "method": "GET"}
        router: Router = scope["app"].router
        found = any(route.matches(request_scope)[0] is not Match.NONE for route in router.routes)
        response = await self._handler(Request(request_scope), NOT_SPOKEN if found else NOT_FOUND)
        await response(request_scope, receive, send)


def _is_handshake(scope: Scope) -> bool:
    upgrades = Headers(scope=scope).get("upgrade", "").lower().split(",")
    return scope["method"] in ("GET", "CONNECT") and any(each.strip() == "websocket" for each in upgrades)


def _as_websocket(send: Send) -> Send:
    """Sends an HTTP response as a "websocket denial response", an extension of ASGI."""

    async def send_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return send_denial
