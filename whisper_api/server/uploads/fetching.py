"""Fetches a file from a caller's URL without giving the caller access to this machine's network.

:mod:`whisper_api.outbound` checks the address of each connection; redirects are treated in the same way. Every failure
is reported to the caller with the same error, because differences would reveal the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import http.client
import io
import socket
import ssl
import string
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, urljoin

from whisper_api.config import Config
from whisper_api.errors import QueueFull
from whisper_api.outbound.addresses import Resolver, resolve
from whisper_api.outbound.connecting import LOOKUP_SECONDS, Connector, ConnectRules, hosts_in
from whisper_api.outbound.urls import UrlRefused, path_of, target_of
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import ServerState, blocking
from whisper_api.server.uploads.pace import Pace, PaceRules
from whisper_api.server.uploads.storing import StoredFile, storage_errors

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
PIECE_BYTES = 256 << 10
# A server without a byte for this long counts as failed, also when the time for the whole fetch is longer.
SILENCE_SECONDS = 30.0


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

    @property
    def silence_seconds(self) -> float:
        """Longest time to connect, and longest silence of the other server."""
        return min(SILENCE_SECONDS, self.seconds)

    @property
    def of_connections(self) -> ConnectRules:
        """The rules for the connections of a fetch."""
        return ConnectRules(
            self.silence_seconds, self.private_hosts, self.resolve, self.context, lookup_seconds=self.lookup_seconds
        )


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
        self._connector = Connector(rules.of_connections)
        self._lock = threading.Lock()
        # Guarded by _lock:
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
        self._connector.abort()

    def _follow(self, url: str) -> None:
        secure = False
        for _ in range(MAX_REDIRECTS + 1):
            target = fetched(url)
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
        with self._connector.connected(target) as connection:
            pace = Pace(PaceRules(self._rules.silence_seconds, self._rules.min_bytes_per_second))
            connection.response_class = _paced_response(pace)
            connection.request(
                "GET",
                path_of(target),
                headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "whisper-api"},
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


# A fetch has this much more time to end with its own error.
MARGIN_SECONDS = 1.0
BUSY_RETRY_SECONDS = 30.0


def check_enabled(config: Config) -> None:
    """Check that the configuration allows fetching files.

    Raises:
        Problem: 400 ``url_not_enabled``.
    """
    if not config.enable_url_uploads:
        raise Problem(
            400,
            "url_not_enabled",
            "This server fetches no files: send the audio itself, or set ENABLE_URL_UPLOADS = true on the server",
        )


def rules_of(config: Config) -> FetchRules:
    """The rules for fetching in a configuration."""
    return FetchRules(
        max_bytes=config.max_file_size,
        seconds=config.url_fetch_timeout_seconds,
        min_bytes_per_second=config.min_upload_bytes_per_second,
        lookup_seconds=LOOKUP_SECONDS,
        private_hosts=hosts_in(config.url_private_hosts),
    )


async def fetch_file(state: ServerState, url: str, file: StoredFile, caller: str) -> None:
    """Fetch a file from its URL.

    The wait for a turn and the fetch each end after the configured time, even when a disk or a server hangs. A caller
    has a share of the turns, so that slow servers leave room for other callers.

    Args:
        state: the server's state, which has threads for fetching.
        url: URL of the file.
        file: the file to write; on failure the owner of its directory removes it.
        caller: the caller, as :func:`~whisper_api.server.state.caller_of` names it.

    Raises:
        Problem: 400 ``url_refused``, 413 ``url_too_large`` or 422 ``url_unreachable``.
        QueueFull: too many other files are being fetched.
        StorageError: the file cannot be written.
    """
    rules = rules_of(state.config)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(state.caller_fetches.taken(caller, rules.seconds))
        except asyncio.TimeoutError:
            raise _busy() from None
        await _run(state, Fetch(url, file, rules), rules.seconds)


async def _run(state: ServerState, fetch: Fetch, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    def run() -> None:
        loop.call_soon_threadsafe(begun.set)
        fetch.run()

    running = loop.run_in_executor(state.fetches, contextvars.copy_context().run, run)
    try:
        try:
            await asyncio.wait_for(begun.wait(), seconds)
        except asyncio.TimeoutError:
            raise _busy() from None
        await asyncio.wait({running}, timeout=seconds + MARGIN_SECONDS)
        if not running.done():
            raise fetch.unreachable()
        running.result()
    finally:
        if not running.done():
            # The thread may still look up a name. Its outcome is read so that asyncio logs no unread exception.
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            running.cancel()
            # In a thread, because a slow disk would block the event loop.
            await asyncio.shield(blocking(state.uploads, fetch.abort))


def _busy() -> QueueFull:
    return QueueFull("Too many other files are being fetched: try again later", BUSY_RETRY_SECONDS)


def fetched(url: str) -> SplitResult:
    """The parts of a URL that the server may fetch.

    Raises:
        Problem: 400 ``url_refused``: the server does not fetch this URL.
    """
    try:
        return target_of(url)
    except UrlRefused as error:
        raise refused(error.reason) from None


def joined(url: str, location: str) -> str:
    """The target of a redirect.

    Args:
        url: URL of the request.
        location: ``Location`` of the response; characters that a URL may not contain are encoded.

    Raises:
        Problem: 400 ``url_refused``: the location cannot be read.
    """
    try:
        # The library decodes headers as Latin-1.
        return urljoin(url, quote(location.encode("latin-1"), safe=string.punctuation))
    except ValueError:
        raise refused("it redirects to a URL that cannot be read") from None


def refused(reason: str) -> Problem:
    """The error for a URL that the server does not fetch."""
    return Problem(400, "url_refused", f"This url is not fetched: {reason}")
