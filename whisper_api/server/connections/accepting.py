"""All connections of a server: accepts them within bounds, checks their deadlines, and closes them."""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import logging
import socket
import time
from collections.abc import Container, Sequence

from hypercorn.config import Config as Settings
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_api.logs import Repeats
from whisper_api.server.connections.connection import Connection, Shared, log_lost
from whisper_api.server.connections.limits import Quota, StreamSlots
from whisper_api.server.connections.response_budget import ResponseBudget
from whisper_api.server.connections.settings import Bounds
from whisper_api.server.middleware.access_log import PROBES
from whisper_api.server.responses.problems import REFUSED, TOO_MANY_CONNECTIONS
from whisper_api.server.sockets import network_of

log = logging.getLogger(__name__)
log.addFilter(Repeats())

CHECK_SECONDS = 0.5
STOPPING_CHECK_SECONDS = 0.05
# An aborted connection has this long to end its tasks.
ABORT_SECONDS = 1.0
# Other tasks run after this number of accepted connections, so that new connections do not delay the open ones.
ACCEPTED_AT_ONCE = 64
# A younger connection may not have had the time to send its request.
GRACE_SECONDS = 1.0
# Finding idle connections takes time, so several are closed when a new connection needs room.
EVICTED_AT_ONCE = 16
# Pause after an error of accepting, which in most cases means that the process may open no more files.
PAUSE_SECONDS = 0.2


class Connections:
    """All connections of one application, on the running loop.

    At the bound of all connections or of one address, a new connection replaces those that have been idle for longest.
    When all are busy, a few more connections are accepted for health checks only, so that a monitor does not mistake a
    busy server for a dead one.

    Args:
        app: the ASGI application.
        settings: Hypercorn's settings.
        bounds: bounds on connections, streams and memory.
        proxies: addresses to which the share of one address does not apply, because they connect for many clients.
    """

    def __init__(self, app: ASGIApp, settings: Settings, bounds: Bounds, *, proxies: Container[str] = ()) -> None:
        self._app = app
        self._health_only = _HealthOnly(app)
        self._settings = settings
        self._bounds = bounds
        self._proxies = proxies
        self._tls = settings.create_ssl_context()
        self._quota = Quota(bounds.connections, bounds.connections_per_address)
        self._streams = Quota(bounds.shared_streams, bounds.shared_streams_per_address)
        self._budget = ResponseBudget(bounds.response_bytes, bounds.response_bytes_per_address)
        self._shared = Shared(settings, bounds, self._budget)
        self._listening: list[socket.socket] = []
        self._background: list[asyncio.Task[None]] = []
        self._open: dict[Connection, asyncio.Task[None]] = {}
        self._connection_closed = asyncio.Event()
        # The connections that count towards the quota. The others are reserved, or being closed to make room.
        self._counted: set[Connection] = set()

    def renew_certificate(self) -> None:
        """Read the certificate and its key again, for connections that are made from now on.

        Raises:
            OSError: they cannot be used; the old ones stay in use.
        """
        if self._tls is not None:
            self._tls = self._settings.create_ssl_context()

    async def accept(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept connections.

        Args:
            sockets: listening and non-blocking; :meth:`close` closes them.
        """
        self._listening.extend(sockets)
        self._background = [asyncio.create_task(self._accept(sock)) for sock in sockets]
        self._background.append(asyncio.create_task(self._check_often()))

    async def close(self, seconds: float) -> None:
        """Accept no more connections, close idle ones, and let open responses end.

        Args:
            seconds: time after which open responses are broken off.
        """
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        for sock in self._listening:
            sock.close()
        await self._shared.context.terminated.set()
        deadline = time.monotonic() + seconds
        while self._open and time.monotonic() < deadline:
            self._check(stopping=True)
            await self._wait(STOPPING_CHECK_SECONDS)
        for connection in self._open:
            connection.abort()
        await self._wait(ABORT_SECONDS)
        for task in self._open.values():
            task.cancel()
        await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        if self._open:
            await asyncio.wait(set(self._open.values()), timeout=seconds)

    async def _check_often(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self._check(stopping=False)
            if (returning := self._budget.return_memory(time.monotonic())) is not None:
                await returning

    def _check(self, *, stopping: bool) -> None:
        now = time.monotonic()
        for connection in list(self._open):
            _check(connection, now, stopping)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count():
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError as error:
                # The client has gone already.
                if error.errno != errno.ECONNABORTED:
                    log.error("no connection can be accepted: %s", error.strerror)
                    self._evict(None, 0.0)
                    await asyncio.sleep(PAUSE_SECONDS)
            else:
                host, port = address[:2]
                # Each connection of a proxy counts as an address of its own.
                self._admit(sock, f"{host} {port}" if host in self._proxies else network_of(host))
            # sock_accept returns without letting other tasks run while connections wait.
            if number % ACCEPTED_AT_ONCE == 0:
                await asyncio.sleep(0)
            # Evicted connections keep their files until the event loop has closed them.
            while len(self._open) >= self._bounds.connections + 2 * self._bounds.reserved:
                self._connection_closed.clear()
                await self._connection_closed.wait()

    def _admit(self, sock: socket.socket, network: str) -> None:
        counted = self._quota.take(network)
        if not counted:
            self._evict(network if self._quota.exhausted(network) else None, GRACE_SECONDS)
            counted = self._quota.take(network)
        if not counted:
            log.warning("too many connections are open: only health checks are answered", extra={"client": network})
            if not self._reserve():
                sock.close()
                return
        connection = Connection(
            sock,
            self._app if counted else self._health_only,
            self._shared,
            StreamSlots(self._streams, network, self._bounds.streams_per_connection if counted else 1),
            network,
            reserved=not counted,
        )
        if counted:
            self._counted.add(connection)
        self._open[connection] = asyncio.create_task(self._serve(connection))

    def _evict(self, network: str | None, grace: float) -> None:
        """Close the connections that have been idle for longest.

        Args:
            network: the client address of the connections; None for any.
            grace: seconds for which a connection may be idle.
        """
        now = time.monotonic()
        idle = [
            (seconds, number, connection)
            for number, connection in enumerate(self._counted)
            if network in (None, connection.network) and (seconds := connection.idle_for(now) or 0.0) >= grace
        ]
        for _, _, connection in heapq.nlargest(EVICTED_AT_ONCE, idle):
            connection.close_idle(at_once=True)
            self._uncount(connection)

    def _reserve(self) -> bool:
        """Whether there is room for another connection above the bound; the oldest idle one makes room."""
        reserved = [connection for connection in self._open if connection.reserved]
        if len(reserved) < self._bounds.reserved:
            return True
        now = time.monotonic()
        silent = next((each for each in reserved if each.idle_for(now) is not None), None)
        if silent is None:
            return False
        silent.reserved = False
        silent.abort()
        return True

    def _uncount(self, connection: Connection) -> None:
        if connection in self._counted:
            self._counted.discard(connection)
            self._quota.give_back(connection.network)

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve(self._tls)
        except Exception as error:
            # Raised by Hypercorn for a client that breaks the protocol. Hypercorn logs the application's errors itself.
            log_lost(error)
            connection.abort()
        finally:
            self._uncount(connection)
            del self._open[connection]
            self._connection_closed.set()


def _check(connection: Connection, now: float, stopping: bool) -> None:
    try:
        connection.check_deadlines(now, stopping=stopping)
    except Exception as error:
        # The other connections are checked all the same.
        log_lost(error)
        connection.abort()


class _HealthOnly:
    """Answers health checks, and refuses other requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].endswith(PROBES):
            scope = {**scope, REFUSED: TOO_MANY_CONNECTIONS}
        await self._app(scope, receive, send)
