"""One address and what it does, by method."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from whisper_api.server.operations import Operation

__all__ = ["JsonResponse", "Resource"]


class JsonResponse(Response):
    """A value, a Struct too, as JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


class Resource:
    """An ASGI application for one address: HEAD is answered as GET is, OPTIONS with what is allowed, the rest is 405.

    Args:
        operations: method to what is done.
    """

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self.operations = dict(operations)
        self.handlers = {method: operation.handler for method, operation in operations.items()}
        if "GET" in self.handlers:
            self.handlers["HEAD"] = self.handlers["GET"]
        self.allow = ", ".join([*self.handlers, "OPTIONS"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self.handlers.get(scope["method"])
        if handler is not None:
            response = await handler(Request(scope, receive, send))
        elif scope["method"] == "OPTIONS":
            response = Response(status_code=204, headers={"Allow": self.allow})
        else:
            raise HTTPException(405, headers={"Allow": self.allow})
        await response(scope, receive, send)
