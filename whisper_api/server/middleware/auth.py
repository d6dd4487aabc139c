"""Authentication by bearer keys (RFC 6750) or Azure's header; without keys, a check that the request is local."""

from __future__ import annotations

import base64
import binascii
import logging
import math
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_api.access.keys import key_id_in
from whisper_api.config import Config
from whisper_api.errors import KeyExpired, RateLimited
from whisper_api.server.middleware.cors import AllowedOrigins, is_preflight
from whisper_api.server.middleware.proxies import PUBLIC_HOST, client_address
from whisper_api.server.responses.problems import Problem
from whisper_api.server.sockets import is_loopback
from whisper_api.server.state import blocking, count_request, state_in, state_of
from whisper_api.server.uploads.part_headers import shown
from whisper_api.server.uploads.turns import client_network
from whisper_api.store.rows import Key

log = logging.getLogger(__name__)

MAX_ORIGINS_LOGGED = 20
# Paths that need no key: health checks, the page (which asks for a key itself) and the API's description. None of them
# reveals anything about jobs.
OPEN_PATHS = frozenset(("/", "/livez", "/readyz", "/health", "/openapi.json", "/docs"))
OPEN_PREFIXES = ("/assets/",)
METRICS_PATH = "/metrics"
# Clocks differ a little, so a request waits at least this long before it looks at its key again.
SHORTEST_WAIT_SECONDS = 0.02
AZURE_HEADER = "api-key"
CHALLENGE = 'Bearer realm="whisper-api"'
# Clients of whisper-asr-webservice take a key only as a part of the server's address: http://user:key@host.
BASIC_PATHS = frozenset(("/asr", "/detect-language"))


class Authentication:
    """Passes requests with a valid key, and refuses others with 401; routes find the key in the request's state.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            try:
                key = scope["state"]["key"] = await self._key(scope)
            except Problem as problem:
                if problem.status == 401:
                    state_in(scope).service.audit.refused(client_address(scope))
                raise
            except RateLimited:
                state_in(scope).service.audit.refused(client_address(scope), 429)
                raise
            if is_counted(scope):
                count_request(scope, key)
        await self.app(scope, receive, send)

    async def _key(self, scope: Scope) -> Key:
        token = _token_of(scope)
        if not token:
            raise Problem(
                401,
                "unauthorized",
                "A key is needed: send the header Authorization: Bearer <key> (whisper-api keys create makes one)",
                {"WWW-Authenticate": CHALLENGE},
            )
        state = state_in(scope)
        limits = state.limits
        if limits.has_failures:
            limits.check_attempt(client_network(scope), key_id_in(token))
        try:
            # A change of thread costs more than the verification.
            at_once, key = state.keys.verify_at_once(token)
            if not at_once:
                key = await blocking(state.reads, state.keys.verify, token)
        except KeyExpired as error:
            raise _expired(error) from None
        if key is None:
            limits.note_failure(client_network(scope))
            raise _refused()
        limits.note_success(key.key_id)
        return key


def is_counted(scope: Scope) -> bool:
    """Whether a request counts towards rate limits and usage: health checks, metrics and the page's files do not."""
    return not _is_open(scope) and _path_in(scope) != METRICS_PATH


def check_key(request: Request) -> None:
    """Check the key of a long request again. Blocks on the database.

    Raises:
        Problem: 401 ``unauthorized`` or ``key_expired``: the key was revoked or has expired meanwhile.
    """
    key = request.scope["state"].get("key")
    if key is None:
        return
    try:
        key = state_of(request).keys.recheck(key)
    except KeyExpired as error:
        raise _expired(error) from None
    if key is None:
        raise _refused()
    request.scope["state"]["key"] = key


def key_seconds(request: Request) -> float:
    """Seconds until the key of a request expires, as :func:`check_key` has last seen it; infinite for never."""
    key = request.scope["state"].get("key")
    if key is None or key.expires_at is None:
        return math.inf
    return max(SHORTEST_WAIT_SECONDS, float(key.expires_at) - time.time())


class LocalCallers:
    """Protects a server without keys from the pages that a local browser shows. Refuses with 403 ``forbidden_origin``.

    A request from a page must have this server's origin or an origin that the configuration allows. Its ``Host`` must
    name this machine, because a page can point its own host name at this machine (DNS rebinding).

    Args:
        app: the rest of the application.
        config: names the host.
        allowed: the allowed origins.
        insecure: other machines may reach the server, so that ``Host`` may be any name.
        logged: the refused origins that the log has already, shared by the parts of an application.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: Config,
        allowed: AllowedOrigins,
        insecure: bool = False,
        logged: set[str] | None = None,
    ) -> None:
        self.app = app
        self.host = config.host.strip("[]").lower()
        self.allowed = allowed
        self.insecure = insecure
        self._logged = set() if logged is None else logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (is_preflight(scope) or not _is_open(scope)):
            self._check(scope)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host, origin, site = headers.get("host", ""), headers.get("origin"), headers.get("sec-fetch-site")
        name = _host_name(host)
        if not self.insecure and name != self.host and not is_loopback(name):
            raise _forbidden(
                "The Host header does not name this machine",
                "start the server with --insecure, or switch authorization on",
            )
        if origin is not None:
            hosts = {host, str(scope.get(PUBLIC_HOST, host))} if self.insecure else {host}
            own = {f"{scope['scheme']}://{each}".lower() for each in hosts}
            if not (origin.lower() in own or origin in self.allowed or (self.insecure and site == "same-origin")):
                self._log_once(origin)
                raise _forbidden(
                    "The request comes from a page of another origin",
                    f"name the origin in ALLOWED_ORIGINS (now it is {shown(origin)}), or switch authorization on",
                )
        elif site == "cross-site" and not self.allowed.all:
            raise _forbidden("The request comes from a page of another site", "switch authorization on")

    def _log_once(self, origin: str) -> None:
        """Log an origin once: browsers do not show their users why a request was refused."""
        if origin not in self._logged and len(self._logged) < MAX_ORIGINS_LOGGED:
            self._logged.add(origin)
            log.warning("a page of another origin was refused; ALLOWED_ORIGINS may name it: %s", shown(origin))


def _token_of(scope: Scope) -> str:
    """The key of a request; empty when there is none."""
    headers = Headers(scope=scope)
    if "authorization" not in headers:
        # Azure's clients send the key in a header of its own.
        return headers.get(AZURE_HEADER, "").strip()
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    # Pages of other sites can make a browser send the password that it has stored for this server.
    from_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if scheme.lower() == "basic" and _path_in(scope) in BASIC_PATHS and not from_elsewhere:
        return _basic_token(credentials.strip())
    return ""


def _basic_token(credentials: str) -> str:
    """The key in basic credentials (RFC 7617): the password, or without a password, the name."""
    try:
        name, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return (password or name).strip()


def _refused() -> Problem:
    return Problem(
        401,
        "unauthorized",
        "This key is not known here, or was revoked",
        {"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'},
    )


def _expired(error: KeyExpired) -> Problem:
    challenge = f'{CHALLENGE}, error="invalid_token", error_description="expired"'
    return Problem(401, "key_expired", str(error), {"WWW-Authenticate": challenge})


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _forbidden(reason: str, help: str) -> Problem:
    return Problem(403, "forbidden_origin", f"{reason}, and authorization is off: {help}")


def _path_in(scope: Scope) -> str:
    """The path without the prefix of the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _is_open(scope: Scope) -> bool:
    path = _path_in(scope)
    return scope["method"] == "OPTIONS" or path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
