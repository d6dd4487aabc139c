"""Responses that are put together from parts while they are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["JoinedResponse"]


class JoinedResponse(Response):
    """A body of parts with the same short text between them.

    The parts are those of all requests, so that any number of clients that take nothing hold no copy of them.

    Args:
        parts: of the body.
        between: stands between two of them.
        headers: to send along.
        media_type: of the body.
    """

    def __init__(
        self, parts: Sequence[bytes], between: bytes, headers: Mapping[str, str] | None = None, *, media_type: str
    ) -> None:
        super().__init__(None, headers=headers, media_type=media_type)
        self._parts = parts
        self._between = between
        length = sum(map(len, parts)) + len(between) * (len(parts) - 1)
        self.headers["Content-Length"] = str(length)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts[:-1]:
            for piece in (part, self._between):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": self._parts[-1], "more_body": False})
