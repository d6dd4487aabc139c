"""Cross-origin access from browsers (the Fetch standard, "CORS protocol"): which pages may call the server.

Starlette's CORSMiddleware answers preflights itself, with the same methods for every path, and lets no page read
why it is refused. Here the methods are those of the path's own ``Allow``, and a refused page may read its 403.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_api.config import Config
from whisper_api.errors import ConfigError

ANY = "*"
EXPOSED = "Location, RateLimit, RateLimit-Policy, Retry-After, Warning, X-Job-ID, X-Request-ID, X-Should-Retry"
PREFLIGHT_HEADERS = {
    # The asterisk allows the headers with which OpenAI's client describes itself. It does not cover Authorization.
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-ID, *",
    "Access-Control-Max-Age": "86400",
}
# An origin as browsers write it (RFC 6454): scheme, host, and a port that is not the default; no path.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+")


class AllowedOrigins:
    """The origins whose pages may call the server.

    Args:
        text: origins with commas between, or ``*`` for all; None and empty for none.

    Attributes:
        all: whether every page may call.
        origins: the origins that may, else.

    Raises:
        ConfigError: an item is not an origin.
    """

    def __init__(self, text: str | None) -> None:
        items = {each.strip().lower().rstrip("/") for each in (text or "").split(",") if each.strip()}
        self.all = ANY in items
        self.origins = frozenset(items - {ANY})
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"ALLOWED_ORIGINS: {origin!r} is not an origin; expected origins with commas between, as in "
                    "https://app.example, http://localhost:3000, or * for the pages of every site"
                )

    @classmethod
    def of(cls, config: Config) -> AllowedOrigins:
        """The origins that a configuration allows: all when keys are needed, because browsers do not add a key."""
        return cls(ANY if config.enable_authorization else config.allowed_origins)

    def take_settings(self, config: Config) -> None:
        """Allow the origins of a new configuration, which was checked."""
        new = type(self).of(config)
        self.all, self.origins = new.all, new.origins

    def __contains__(self, origin: object) -> bool:
        return self.all or (isinstance(origin, str) and origin.lower() in self.origins)


class CrossOrigin:
    """Tells browsers which pages may read a response. Pages of other origins may only read why they are refused.

    Args:
        app: the rest of the application.
        allowed: the origins whose pages may read responses.
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
    """Whether a request is a preflight: a browser asks whether a page may send a request."""
    return scope["method"] == "OPTIONS" and "access-control-request-method" in Headers(scope=scope)
