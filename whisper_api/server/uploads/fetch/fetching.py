"""A file from an address that a caller names, without lending the caller this machine's place in the network.

The host's name is resolved once and every address it has is looked at; the connection goes to one of those, so that
what the name means later does not count. Redirects go the same way. Callers are told only that an address gave no file,
since any difference would tell what there is. For the same reason a name that does not exist and a name of a private
network get the same answer after the same time.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.fetch.addresses import Address, Resolver, is_own, is_public, resolve
from whisper_api.server.uploads.fetch.paced_response import paced_response
from whisper_api.server.uploads.fetch.urls import PORTS, joined, refused, target_of
from whisper_api.server.uploads.pace import Pace, PaceRules
from whisper_api.server.uploads.storing import StoredFile, storage_errors

__all__ = ["LOOKUP_SECONDS", "Fetch", "FetchRules"]

MAX_REDIRECTS = 5
# Of one host that are tried.
MAX_ADDRESSES = 4
REDIRECTS = (301, 302, 303, 307, 308)
PIECE_BYTES = 256 << 10
# Within the time for all of it: what does not answer that long will not.
SILENCE_SECONDS = 30.0
# The first server of names may be out of order, and the system asks the second after five seconds.
LOOKUP_SECONDS = 6.0


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched.

    Attributes:
        max_bytes: of a file.
        seconds: that a fetch may take, redirects and all.
        private_hosts: ``host`` or ``host:port``, in lower case, whose addresses need not be public; an IPv6 address in
            brackets, or alone as it is.
        resolve: finds the addresses of a host.
        context: of TLS; None for the certificates that are trusted here.
        min_bytes_per_second: the least rate of an answer, averaged over half a minute; 0 for none.
        lookup_seconds: that looking up a name may take, and after which the caller hears of a name that is not asked.
    """

    max_bytes: int
    seconds: float
    private_hosts: frozenset[str] = frozenset()
    resolve: Resolver = resolve
    context: ssl.SSLContext | None = None
    min_bytes_per_second: float = 0.0
    lookup_seconds: float = LOOKUP_SECONDS


class Fetch:
    """One file on its way from another server. :meth:`run` blocks, for as long as the rules allow.

    Args:
        url: as the caller wrote it.
        file: to be written.
        rules: what may be fetched.
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
        """End it from another thread; nothing is written after this returns. Waits for a disk that writes just now."""
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
                raise refused("it leads from https to http")
            secure = target.scheme == "https"
            location = self._get(target)
            if location is None:
                return
            url = joined(url, location)
        raise refused(f"it leads on more than {MAX_REDIRECTS} times")

    def _get(self, target: SplitResult) -> str | None:
        """Ask one server; where it leads to, or None when the file has come."""
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
            connection.response_class = paced_response(self._pace())
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
        """The addresses of a host that may be asked.

        Raises:
            Problem: 422 ``url_unreachable``, always after the same time: the name does not exist, its lookup takes too
                long, or an address of it may not be asked.
        """
        begun = time.monotonic()
        failure: Exception | None = None
        try:
            addresses = self._looked_up(host, port)
        # The second is what a name that no host can have makes of itself.
        except (OSError, UnicodeError, concurrent.futures.TimeoutError) as error:
            failure = error
        else:
            if self._may_ask(host, port, addresses):
                return addresses
        self._ended.wait(begun + self._rules.lookup_seconds - time.monotonic())
        raise self.unreachable() from failure

    def _looked_up(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host, in a thread of their own: the system cannot be told to stop looking."""
        found: concurrent.futures.Future[Sequence[Address]] = concurrent.futures.Future()

        def look() -> None:
            try:
                found.set_result(self._rules.resolve(host, port))
            except Exception as error:
                found.set_exception(error)

        threading.Thread(target=look, name="lookup", daemon=True).start()
        return found.result(self._rules.lookup_seconds)

    def _may_ask(self, host: str, port: int, addresses: Sequence[Address]) -> bool:
        name = f"[{host}]" if ":" in host else host
        if {host, name, f"{name}:{port}"} & self._rules.private_hosts:
            return True
        return all(is_public(address) and not is_own(address) for address in addresses)

    def _pace(self) -> Pace:
        return Pace(PaceRules(min(SILENCE_SECONDS, self._rules.seconds), self._rules.min_bytes_per_second))

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
        """Note what is to be shut down by :meth:`abort`."""
        with self._lock:
            if self._aborted:
                raise self.unreachable()
            self._socket = connection

    def unreachable(self) -> Problem:
        """What is said of everything that went wrong on the way."""
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
    """What is trusted on this machine, and what the library for requests brings along, where there is nothing."""
    import requests.certs

    context = ssl.create_default_context()
    context.load_verify_locations(requests.certs.where())
    return context
