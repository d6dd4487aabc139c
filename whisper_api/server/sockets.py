"""The sockets that the server listens on. They are opened first, so that an unusable address fails at once."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket

from whisper_api.errors import ConfigError

# Number of connections that the system holds while the server is busy.
BACKLOG = 1024
MAX_MILLISECONDS = 2**31 - 1
# A subscriber of IPv6 has at least a network of this size (RFC 6177).
IPV6_PREFIX = 64

_REASONS = {
    errno.EADDRINUSE: "another program listens there: stop it, or choose another port (--port)",
    errno.EACCES: "this user may not use the port: choose one above 1023 (--port)",
    errno.EADDRNOTAVAIL: "this machine has no such address: choose another host (--host)",
}

Address = tuple[socket.AddressFamily, tuple[object, ...]]


def listen(host: str, port: int, *, timeout_seconds: float) -> list[socket.socket]:
    """Listen on every address of a host name.

    Args:
        host: a name or an address, IPv6 with or without brackets; ``::`` includes IPv4.
        port: the port; 0 for a free port, the same on all addresses.
        timeout_seconds: a connection whose peer acknowledges nothing ends after this time.

    Raises:
        ConfigError: the server cannot listen there; the message says why.
    """
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        failed: OSError | None = None
        for family, address in _addresses(host, port):
            if sockets:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                sock = _listening(family, address, timeout_seconds)
            except OSError as error:
                failed = failed or error
                continue
            stack.callback(sock.close)
            sockets.append(sock)
        if failed is not None and (not sockets or (failed.errno == errno.EADDRINUSE and port)):
            reason = _REASONS.get(failed.errno or 0, failed.strerror or str(failed))
            raise ConfigError(f"cannot listen on {_joined(host.strip('[]'), port)}: {reason}") from failed
        stack.pop_all()
    return sockets


def only_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens on this host.

    Raises:
        ConfigError: the host does not exist.
    """
    return all(is_loopback(str(address[0])) for _, address in _addresses(host, 0))


def is_loopback(name: str) -> bool:
    """Whether a host name or an address belongs to the loopback interface."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def network_of(host: str) -> str:
    """The network that counts as one client: an IPv4 address, also when mapped to IPv6, or an IPv6 /64 network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> IPV6_PREFIX << IPV6_PREFIX, IPV6_PREFIX)))


def url_of(scheme: str, sock: socket.socket) -> str:
    """The URL under which this machine reaches a server on a socket.

    Args:
        scheme: http or https.
        sock: a listening socket.
    """
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://{_joined(host, port)}"


def _addresses(host: str, port: int) -> list[Address]:
    name = host.strip("[]")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise ConfigError(f"WHISPER_API_HOST: {host!r} is no address of this machine: {reason}") from error
    usable = (socket.AF_INET, socket.AF_INET6)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found if family in usable))


def _listening(family: socket.AddressFamily, address: tuple[object, ...], timeout_seconds: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            # On Windows this option would let two servers share a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Ends a connection whose peer acknowledges nothing.
            milliseconds = min(int(1000 * timeout_seconds), MAX_MILLISECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
