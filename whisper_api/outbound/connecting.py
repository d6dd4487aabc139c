"""Connects to the host of a caller's URL without giving the caller access to this machine's network.

The host's name is resolved once, all of its addresses are checked, and the connection goes to one of them, so that a
later change of the name has no effect. A name that does not exist and a name in a private network fail in the same way
after the same time, because differences would reveal the network.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult

from whisper_api.outbound.addresses import Address, Resolver, is_own, is_public, literal, resolve
from whisper_api.outbound.urls import host_of

# Number of addresses of one host that are tried.
MAX_ADDRESSES = 4
# When the first name server is out of order, the system asks the second after five seconds.
LOOKUP_SECONDS = 6.0


class NotReachable(OSError):
    """There is no connection: the host may not be connected to or has no address, or the connection was aborted."""


@dataclass(frozen=True)
class ConnectRules:
    """The rules for connections.

    Attributes:
        seconds: longest time to connect, and longest silence of the other side.
        private_hosts: ``host`` or ``host:port``, in lower case, whose addresses need not be public; an IPv6 address
            with brackets, or without them when it has no port.
        resolve: finds the addresses of a host.
        context: the TLS context; None to trust this machine's certificates.
        lookup_seconds: longest time for looking up a name; the refusal of a name comes after this time, too.
    """

    seconds: float
    private_hosts: Collection[str] = frozenset()
    resolve: Resolver = resolve
    context: ssl.SSLContext | None = None
    lookup_seconds: float = LOOKUP_SECONDS


class Connector:
    """Makes connections, one at a time, that another thread can abort.

    Args:
        rules: the rules for connections.
    """

    def __init__(self, rules: ConnectRules) -> None:
        self._rules = rules
        self._ended = threading.Event()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._socket: socket.socket | None = None
        self._aborted = False

    def abort(self) -> None:
        """Break the connection, and make no other."""
        with self._lock:
            self._aborted = True
            self._ended.set()
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def connected(self, target: SplitResult) -> Iterator[http.client.HTTPConnection]:
        """A connection to the host of a URL, with TLS for https.

        Args:
            target: parts of the URL, as :func:`~whisper_api.outbound.urls.target_of` returns them.

        Raises:
            OSError: there is no connection; NotReachable also when the host may not be connected to.
        """
        host, port = host_of(target)
        plain = self._connect(host, port)
        with contextlib.ExitStack() as stack:
            stack.callback(plain.close)
            self._watch(plain)
            connection: http.client.HTTPConnection
            if target.scheme == "https":
                context = self._rules.context or _trusted()
                connection = http.client.HTTPSConnection(host, port, context=context)
                connection.sock = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
                stack.callback(connection.sock.close)
                self._watch(connection.sock)
                connection.sock.do_handshake()
            else:
                connection = http.client.HTTPConnection(host, port)
                connection.sock = plain
            stack.callback(connection.close)
            yield connection

    def allowed_addresses(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host, when the server may connect to all of them.

        Raises:
            NotReachable: always after the same time: the name does not exist, its lookup takes too long, or one of its
                addresses is not allowed.
        """
        begun = time.monotonic()
        failure: Exception | None = None
        try:
            addresses = self._looked_up(host, port)
        # Encoding a malformed host name raises UnicodeError.
        except (OSError, UnicodeError, concurrent.futures.TimeoutError) as error:
            failure = error
        else:
            if self._is_allowed(host, port, addresses):
                return addresses
        self._ended.wait(begun + self._rules.lookup_seconds - time.monotonic())
        raise NotReachable("the host has no address that the server may connect to") from failure

    def _connect(self, host: str, port: int) -> socket.socket:
        addresses = self.allowed_addresses(host, port)
        failure: OSError = OSError("no address")
        for address in addresses[:MAX_ADDRESSES]:
            family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
            plain = socket.socket(family, socket.SOCK_STREAM)
            plain.settimeout(self._rules.seconds)
            try:
                self._watch(plain)
                plain.connect((str(address), port))
                return plain
            except NotReachable:
                plain.close()
                raise
            except OSError as error:
                failure = error
                plain.close()
        raise failure

    def _looked_up(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host, looked up in a separate thread, because a lookup cannot be canceled."""
        if literal(host) is not None:
            # Takes no time, and a thread would.
            return self._rules.resolve(host, port)
        found: concurrent.futures.Future[Sequence[Address]] = concurrent.futures.Future()

        def look() -> None:
            try:
                found.set_result(self._rules.resolve(host, port))
            except Exception as error:
                found.set_exception(error)

        threading.Thread(target=look, name="lookup", daemon=True).start()
        return found.result(self._rules.lookup_seconds)

    def _is_allowed(self, host: str, port: int, addresses: Sequence[Address]) -> bool:
        name = f"[{host}]" if ":" in host else host
        if {host, name, f"{name}:{port}"}.intersection(self._rules.private_hosts):
            return True
        return all(is_public(address) and not is_own(address) for address in addresses)

    def _watch(self, connection: socket.socket) -> None:
        """Keep the socket, so that :meth:`abort` can shut it down."""
        with self._lock:
            if self._aborted:
                raise NotReachable("the connection was aborted")
            self._socket = connection


def hosts_in(setting: str | None) -> frozenset[str]:
    """The hosts in a setting: ``host`` or ``host:port``, with commas between."""
    return frozenset(filter(None, (host.strip().lower() for host in (setting or "").split(","))))


@functools.cache
def _trusted() -> ssl.SSLContext:
    """A TLS context with this machine's certificates, and with those of requests for machines that have none."""
    import requests.certs

    context = ssl.create_default_context()
    context.load_verify_locations(requests.certs.where())
    return context
