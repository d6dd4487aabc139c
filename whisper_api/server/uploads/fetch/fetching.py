"""Fetches a file from a caller's URL without giving the caller access to this machine's network.

The host's name is resolved once, all of its addresses are checked, and the connection goes to one of them, so that a
later change of the name has no effect. Redirects are treated in the same way. Every failure is reported to the caller
with the same error, because differences would reveal the network. For the same reason, a name that does not exist and
a name in a private network get the same response after the same time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.fetch.addresses import Address, Resolver, is_own, is_public, resolve
from whisper_api.server.uploads.fetch.urls import PORTS, joined, refused, target_of
from whisper_api.server.uploads.pace import Pace, PaceRules
from whisper_api.server.uploads.storing import StoredFile, storage_errors

__all__ = ["LOOKUP_SECONDS", "Fetch", "FetchRules"]

MAX_REDIRECTS = 5
# Number of addresses of one host that are tried.
MAX_ADDRESSES = 4
REDIRECTS = (301, 302, 303, 307, 308)
PIECE_BYTES = 256 << 10
# A server without a byte for this long counts as failed, also when the time for the whole fetch is longer.
SILENCE_SECONDS = 30.0
# When the first name server is out of order, the system asks the second after five seconds.
LOOKUP_SECONDS = 6.0


@dataclass(frozen=True)
class FetchRules:
    """The rules for fetching files.

    Attributes:
        max_bytes: most bytes of a file.
        seconds: longest time for a fetch with its redirects.
        private_hosts: ``host`` or ``host:port``, in lower case, whose addresses need not be public; an IPv6 address
            with brackets, or without them when it has no port.
        resolve: finds the addresses of a host.
        context: the TLS context; None to trust this machine's certificates.
        min_bytes_per_second: least rate of a response, averaged over half a minute; 0 for any rate.
        lookup_seconds: longest time for looking up a name; the refusal of a name comes after this time, too.
    """

    max_bytes: int
    seconds: float
    private_hosts: frozenset[str] = frozenset()
    resolve: Resolver = resolve
    context: ssl.SSLContext | None = None
    min_bytes_per_second: float = 0.0
    lookup_seconds: float = LOOKUP_SECONDS


class Fetch:
    """Fetches one file from another server. :meth:`run` blocks for as long as the rules allow.

    Args:
        url: the caller's URL.
        file: the file to write.
        rules: the rules for fetching.
    """

    def __init__(self, url: str, file: StoredFile, rules: FetchRules) -> None:
        self._url = url
        self._file = file
        self._rules = rules
        self._ended = threading.Event()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._socket: socket.socket | None = None
        self._aborted = False

    def run(self) -> None:
        """Fetch the file.

        Raises:
            Problem: 400 ``url_refused``, 413 ``url_too_large`` or 422 ``url_unreachable``.
            StorageError: the file cannot be written.
        """
        end = threading.Timer(self._rules.seconds, self.abort)
        end.daemon = True
        end.start()
        try:
            self._follow(self._url)
        except (OSError, http.client.HTTPException) as error:
            raise self.unreachable() from error
        finally:
            end.cancel()
            self._file.close()

    def abort(self) -> None:
        """End the fetch from another thread, after a write in progress; nothing is written after that."""
        with self._lock:
            self._aborted = True
            self._ended.set()
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _follow(self, url: str) -> None:
        secure = False
        for _ in range(MAX_REDIRECTS + 1):
            target = target_of(url)
            if secure and target.scheme != "https":
                raise refused("it redirects from https to http")
            secure = target.scheme == "https"
            location = self._get(target)
            if location is None:
                return
            url = joined(url, location)
        raise refused(f"it redirects more than {MAX_REDIRECTS} times")

    def _get(self, target: SplitResult) -> str | None:
        """Send a request to one server: store the file and return None, or return the location of a redirect."""
        assert target.hostname is not None
        port = target.port or PORTS[target.scheme]
        with self._connected(target, target.hostname, port) as connection:
            path = f"{target.path or '/'}{'?' if target.query else ''}{target.query}"
            connection.request(
                "GET", path, headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "whisper-api"}
            )
            response = connection.getresponse()
            if response.status in REDIRECTS:
                location = response.getheader("Location", "")
                if not location:
                    raise self.unreachable()
                return location
            if response.status != 200 or response.getheader("Content-Encoding", "identity").lower() != "identity":
                raise self.unreachable()
            self._store(response)
            return None

    @contextlib.contextmanager
    def _connected(self, target: SplitResult, host: str, port: int) -> Iterator[http.client.HTTPConnection]:
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
            silence = min(SILENCE_SECONDS, self._rules.seconds)
            pace = Pace(PaceRules(silence, self._rules.min_bytes_per_second))
            connection.response_class = _paced_response(pace)
            stack.callback(connection.close)
            yield connection

    def _connect(self, host: str, port: int) -> socket.socket:
        addresses = self._allowed_addresses(host, port)
        failure: OSError = OSError("no address")
        for address in addresses[:MAX_ADDRESSES]:
            family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
            plain = socket.socket(family, socket.SOCK_STREAM)
            plain.settimeout(min(SILENCE_SECONDS, self._rules.seconds))
            try:
                self._watch(plain)
                plain.connect((str(address), port))
                return plain
            except OSError as error:
                failure = error
                plain.close()
            except Problem:
                plain.close()
                raise
        raise failure

    def _allowed_addresses(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host, when the server may connect to all of them.

        Raises:
            Problem: 422 ``url_unreachable``, always after the same time: the name does not exist, its lookup takes too
                long, or one of its addresses is not allowed.
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
        raise self.unreachable() from failure

    def _looked_up(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host, looked up in a separate thread, because a lookup cannot be canceled."""
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
        if {host, name, f"{name}:{port}"} & self._rules.private_hosts:
            return True
        return all(is_public(address) and not is_own(address) for address in addresses)

    def _store(self, response: http.client.HTTPResponse) -> None:
        limit = self._rules.max_bytes
        if response.length is not None and response.length > limit:
            raise _too_large(limit)
        while piece := response.read1(PIECE_BYTES):
            if self._file.size + len(piece) > limit:
                raise _too_large(limit)
            self._locked(functools.partial(self._file.write, piece))
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        self._locked(self._file.commit)

    def _locked(self, write: Callable[[], object]) -> None:
        with self._lock:
            if self._aborted:
                raise self.unreachable()
            with storage_errors():
                write()

    def _watch(self, connection: socket.socket) -> None:
        """Keep the socket, so that :meth:`abort` can shut it down."""
        with self._lock:
            if self._aborted:
                raise self.unreachable()
            self._socket = connection

    def unreachable(self) -> Problem:
        """The error for every failure of a fetch."""
        return Problem(
            422,
            "url_unreachable",
            f"Nothing could be fetched from this url: its host must have a public address, or be one of "
            f"URL_PRIVATE_HOSTS, and answer GET with status 200 and the whole file, as it is, within "
            f"{self._rules.seconds:g} seconds",
        )


def _too_large(limit: int) -> Problem:
    return Problem(413, "url_too_large", f"The file at this url exceeds the limit of {limit} bytes")


@functools.cache
def _trusted() -> ssl.SSLContext:
    """A TLS context with this machine's certificates, and with those of requests for machines that have none."""
    import requests.certs

    context = ssl.create_default_context()
    context.load_verify_locations(requests.certs.where())
    return context


def _paced_response(pace: Pace) -> type[http.client.HTTPResponse]:
    """A class for ``HTTPConnection.response_class`` whose headers and body must arrive at a least pace.

    The standard library bounds the time of each read from the socket only, which a server passes for ever by sending
    one byte at a time.

    Args:
        pace: the pace of all bytes. A read raises ``TimeoutError`` when the server is too slow.
    """

    class PacedResponse(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:
            super().__init__(sock, *args, **named)
            # The socket stays open as long as this file object, even when the connection was closed.
            self.fp = io.BufferedReader(_Paced(self.fp.detach(), sock, pace))

    return PacedResponse


class _Paced(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket, pace: Pace) -> None:
        self._raw = raw
        self._sock = sock
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._pace.left <= 0:
            raise TimeoutError("the server sends too slowly")
        self._sock.settimeout(self._pace.left)
        begun = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._pace.waited(time.monotonic() - begun)
        self._pace.came(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
