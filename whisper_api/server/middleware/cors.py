"""Cross-origin access from browsers (the Fetch standard, "CORS protocol"): which pages may call the server."""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_api.config import Config
from whisper_api.errors import ConfigError

__all__ = ["AllowedOrigins", "CrossOrigin", "is_preflight"]

ANY = "*"
EXPOSED = "Location, Retry-After, Warning, X-Job-ID, X-Request-ID, X-Should-Retry"
PREFLIGHT_HEADERS = {
    # The asterisk is for what OpenAI's client tells of itself; a browser does not take it for Authorization.
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-ID, *",
    "Access-Control-Max-Age": "86400",
}
# A scheme and a host, as browsers write an origin (RFC 6454): no path, and the port only where it is not the usual one.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+")


class AllowedOrigins:
    """The origins of the pages that may call the server though they have no key.

    Args:
        text: origins with commas between, or ``*`` for all; None and empty for none.

    Raises:
        ConfigError: there is something else among them.
    """

    def __init__(self, text: str | None) -> None:
        given = {each.strip().lower().rstrip("/") for each in (text or "").split(",") if each.strip()}
        self.all = ANY in given
        self._origins = frozenset(given - {ANY})
        for origin in self._origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"ALLOWED_ORIGINS: {origin!r} is not an origin; expected some as in https://app.example, "
                    "http://localhost:3000 with commas between, or * for the pages of every site"
                )

    @classmethod
    def of(cls, config: Config) -> AllowedOrigins:
        """Those that a configuration names; with keys, all: browsers do not send a key by themselves."""
        return cls(ANY if config.enable_authorization else config.allowed_origins)

    def __contains__(self, origin: object) -> bool:
        return self.all or (isinstance(origin, str) and origin.lower() in self._origins)


class CrossOrigin:
    """Tells browsers which pages may read an answer.

    Pages of other origins may read why they are refused, and nothing else.

    Args:
        app: the rest of the application.
        allowed: origins.
    """

    def __init__(self, app: ASGIApp, *, allowed: AllowedOrigins) -> None:
        self.app = app
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        origin = Headers(scope=scope).get("origin")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if not self.allowed.all:
                    headers.add_vary_header("Origin")
                if origin in self.allowed:
                    self._allow(scope, headers, ANY if self.allowed.all else str(origin))
                elif origin is not None and message["status"] == 403:
                    headers["Access-Control-Allow-Origin"] = ANY
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _allow(self, scope: Scope, headers: MutableHeaders, origin: str) -> None:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = EXPOSED
        if scope["method"] == "OPTIONS" and "Allow" in headers:
            headers.update(PREFLIGHT_HEADERS)
            headers["Access-Control-Allow-Methods"] = headers["Allow"]


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks if a page may send a request."""
    return scope["method"] == "OPTIONS" and "access-control-request-method" in Headers(scope=scope)
