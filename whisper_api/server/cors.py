"""Cross-origin access from browsers (the Fetch standard, "CORS protocol")."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CrossOrigin"]

ANSWER_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Location, Retry-After, X-Job-ID, X-Request-ID, X-Should-Retry",
}
PREFLIGHT_HEADERS = {
    # The asterisk is for what OpenAI's client tells of itself; a browser does not take it for Authorization.
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-ID, *",
    "Access-Control-Max-Age": "86400",
}


class CrossOrigin:
    """Lets pages of any origin call the server: the key is what lets them in, and browsers send none by themselves.

    Only to be used where a key is asked for.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(ANSWER_HEADERS)
                if scope["method"] == "OPTIONS" and "Allow" in headers:
                    headers.update(PREFLIGHT_HEADERS)
                    headers["Access-Control-Allow-Methods"] = headers["Allow"]
            await send(message)

        await self.app(scope, receive, send_with_headers)
