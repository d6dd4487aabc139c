"""Who may call: bearer keys (RFC 6750; Azure's header too), and without them, only what this machine asks for."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_api.config import Config
from whisper_api.server.problems import Problem
from whisper_api.server.sockets import is_loopback
from whisper_api.server.state import blocking, state_in, state_of

__all__ = ["OPEN_PATHS", "Authentication", "LocalCallers", "check_key"]

# For whatever watches the server, the page, which asks for a key itself, and what describes the API; they tell nothing
# about jobs.
OPEN_PATHS = frozenset(("/", "/livez", "/readyz", "/health", "/openapi.json", "/docs", "/docs.css"))
OPEN_PREFIXES = ("/assets/",)
AZURE_HEADER = "api-key"
CHALLENGE = 'Bearer realm="whisper-api"'


class Authentication:
    """Lets in who has a key that was not revoked; routes find it in the request's state.

    Raises, as an answer: 401 ``unauthorized``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            scope["state"]["key"] = await self._key(scope)
        await self.app(scope, receive, send)

    async def _key(self, scope: Scope) -> object:
        headers = Headers(scope=scope)
        # Azure's clients send the key in a header of its own.
        given = headers.get("authorization") or f"Bearer {headers.get(AZURE_HEADER, '')}"
        scheme, _, token = given.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Problem(
                401,
                "unauthorized",
                "A key is needed: send the header Authorization: Bearer <key> (whisper-api keys create makes one)",
                {"WWW-Authenticate": CHALLENGE},
            )
        state = state_in(scope)
        key = await blocking(state.reads, state.keys.verify, token.strip())
        if key is None:
            raise _refused()
        return key


def check_key(request: Request) -> None:
    """Look again whether a request's key still lets it in: for one that takes long. Blocks on the database.

    Raises:
        Problem: 401 ``unauthorized``: the key was revoked meanwhile.
    """
    key = request.scope["state"].get("key")
    if key is not None and not state_of(request).keys.still_good(key):
        raise _refused()


class LocalCallers:
    """Without keys, whoever reaches the server is let in, and a browser reaches it for every page it shows.

    So a request must name this machine as its host, which one that was led here by a rebound name does not, and must
    not come from a page of another origin.

    Raises, as an answer: 403 ``forbidden_origin``.
    """

    def __init__(self, app: ASGIApp, *, config: Config) -> None:
        self.app = app
        self.host = config.host.strip("[]").lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            self._check(scope)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = _host_name(host)
        if name != self.host and not is_loopback(name):
            raise _forbidden("The Host header does not name this machine")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scope['scheme']}://{host}".lower():
            raise _forbidden("The request comes from a page of another origin")
        if headers.get("sec-fetch-site", "") == "cross-site":
            raise _forbidden("The request comes from a page of another site")


def _refused() -> Problem:
    return Problem(
        401,
        "unauthorized",
        "This key is not known here, or was revoked",
        {"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'},
    )


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _forbidden(reason: str) -> Problem:
    return Problem(
        403, "forbidden_origin", f"{reason}. Authorization is off: switch it on, or start the server with --insecure"
    )


def _is_open(scope: Scope) -> bool:
    whole: str = scope["path"]
    path = whole.removeprefix(scope.get("root_path", ""))
    return scope["method"] == "OPTIONS" or path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
