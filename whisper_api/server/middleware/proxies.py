"""The server's public address and the client's address behind a reverse proxy.

A proxy passes both on in headers. Any client can send these headers, too, so they are read only in requests from an
address in ``WHISPER_TRUSTED_PROXIES``. The public prefix may also be configured (``WHISPER_ROOT_PATH``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_api.config import Config
from whisper_api.errors import ConfigError

PUBLIC_HOST = "whisper_api.public_host"
MAX_PREFIX_CHARACTERS = 255
_SLASHES = re.compile(r"/{2,}")
# Unreserved characters (RFC 3986).
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
# A pair in an element of Forwarded (RFC 7239, section 4).
_PAIR = re.compile(r"""\s*([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s";,]*))\s*""")
# An address in X-Forwarded-For or Forwarded: with or without a port, IPv6 with or without brackets.
_NODE = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|(\d+(?:\.\d+){3})(?::\d+)?|([0-9A-Fa-f:.]+)")


class TrustedAddresses:
    """The addresses of trusted proxies.

    Args:
        text: addresses and networks (``10.0.0.0/8``), with commas between; None and empty for none.

    Raises:
        ConfigError: an item is not an address or a network.
    """

    def __init__(self, text: str | None) -> None:
        try:
            self._networks = tuple(
                ipaddress.ip_network(each.strip(), strict=False) for each in (text or "").split(",") if each.strip()
            )
        except ValueError as error:
            raise ConfigError(
                f"WHISPER_TRUSTED_PROXIES: {error}; expected addresses or networks with commas between, as in "
                "127.0.0.1, 10.0.0.0/8"
            ) from None

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, str):
            return False
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        return any((mapped or parsed) in network for network in self._networks)


def root_path_of(config: Config) -> str:
    """The configured public prefix: empty, or a path without a slash at its end.

    Raises:
        ConfigError: the configured value is not a path.
    """
    prefix = (config.root_path or "").strip().rstrip("/")
    if prefix and not _is_prefix(prefix):
        raise ConfigError(f"WHISPER_ROOT_PATH: {config.root_path!r} is not a path such as /whisper")
    return prefix


def client_address(scope: Scope) -> str | None:
    """The address of a request's client, from trusted proxies or the connection; None where there is none."""
    client = scope.get("client")
    return str(client[0]) if client else None


def public_url(request: Request) -> str:
    """The URL under which the client calls this application, without a slash at the end."""
    host = request.scope.get(PUBLIC_HOST) or request.headers.get("host") or "127.0.0.1"
    return f"{request.scope['scheme']}://{host}{request.scope.get('root_path', '')}"


class BehindProxy:
    """Restores the path, scheme, prefix and client address that a request had before the proxies.

    Repeated slashes in the path count as a single slash: clients whose base URL ends in a slash send ``//asr``.

    The scope itself is changed and not a copy, so that outer layers see the change. The ``Host`` header stays, because
    security checks must not depend on headers of a proxy.

    Args:
        app: the rest of the application.
        config: names trusted proxies and the prefix.

    Raises:
        ConfigError: the proxies or the prefix cannot be used.
    """

    def __init__(self, app: ASGIApp, *, config: Config) -> None:
        self.app = app
        self.trusted = TrustedAddresses(config.trusted_proxies)
        self.root_path = root_path_of(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope["path"] = _SLASHES.sub("/", scope["path"])
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        prefix = self.root_path
        peer = client_address(scope)
        if peer is not None and peer in self.trusted:
            prefix = _apply_headers(scope, peer, self.trusted) or prefix
        if prefix:
            _add_prefix(scope, prefix)
            if scope["path"] == prefix and scope["method"] in ("GET", "HEAD"):
                # The page's relative links need the slash.
                response = Response(status_code=308, headers={"Location": f"{prefix}/"})
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _add_prefix(scope: Scope, prefix: str) -> None:
    """Put an application under a prefix, whether or not the proxy has removed it from the path."""
    root_path, path = scope.get("root_path", ""), scope["path"]
    if root_path.startswith(prefix):
        # An outer application has added the prefix.
        return
    if path != prefix and not path.startswith(f"{prefix}/"):
        path = prefix + path
    scope.update(root_path=prefix + root_path, path=path)


def _apply_headers(scope: Scope, peer: str, trusted: TrustedAddresses) -> str:
    """Set the client, the scheme and the public host from the headers of a trusted proxy, and return the prefix.

    ``Forwarded`` (RFC 7239) is read only without ``X-Forwarded`` headers: a proxy that sets these passes on a
    ``Forwarded`` header of the client unchanged. Invalid values are ignored.
    """
    headers = Headers(scope=scope)
    nodes = _listed(headers, "x-forwarded-for")
    scheme, host = _last(headers, "x-forwarded-proto"), _last(headers, "x-forwarded-host")
    if not (nodes or scheme or host):
        elements = [dict(_pairs(element)) for element in _listed(headers, "forwarded")]
        nodes = [element.get("for", "") for element in elements]
        if elements:
            scheme, host = elements[-1].get("proto"), elements[-1].get("host")
    scope["client"] = (_client(nodes, peer, trusted), 0)
    if (scheme or "").lower() in ("http", "https"):
        scope["scheme"] = str(scheme).lower()
    if host and _HOST.fullmatch(host):
        scope[PUBLIC_HOST] = host
    prefix = (_last(headers, "x-forwarded-prefix") or "").rstrip("/")
    return prefix if _is_prefix(prefix) else ""


def _client(nodes: list[str], peer: str, trusted: TrustedAddresses) -> str:
    """The nearest address that is not a trusted proxy. The client may have invented the addresses before it."""
    client = peer
    for node in reversed(nodes):
        match = _NODE.fullmatch(node)
        address = next(filter(None, match.groups()), "") if match is not None else ""
        try:
            client = str(ipaddress.ip_address(address))
        except ValueError:
            break
        if client not in trusted:
            break
    return client


def _is_prefix(text: str) -> bool:
    return len(text) <= MAX_PREFIX_CHARACTERS and _PREFIX.fullmatch(text) is not None and "/.." not in text


def _listed(headers: Headers, name: str) -> list[str]:
    """The values of a list header, from all of its lines."""
    return [value.strip() for line in headers.getlist(name) for value in line.split(",") if value.strip()]


def _last(headers: Headers, name: str) -> str | None:
    """The value of the nearest proxy."""
    values = _listed(headers, name)
    return values[-1] if values else None


def _pairs(element: str) -> Iterator[tuple[str, str]]:
    for pair in element.split(";"):
        match = _PAIR.fullmatch(pair)
        if match is not None:
            quoted = match[2]
            yield match[1].lower(), match[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
