"""All connections of a server: they are accepted here, within bounds, and none is left when they are closed."""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import logging
import socket
import time
from collections.abc import Container, Sequence

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as Settings
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_api.logs import Repeats
from whisper_api.server.connections.connection import Connection, log_lost
from whisper_api.server.connections.limits import Bounds, Quota, Slots
from whisper_api.server.connections.turns import Turns
from whisper_api.server.middleware.access_log import PROBES
from whisper_api.server.responses.delivery import LingeringClose
from whisper_api.server.responses.error_responses import answer
from whisper_api.server.responses.problems import TOO_MANY_CONNECTIONS
from whisper_api.server.sockets import network_of

__all__ = ["Connections"]

log = logging.getLogger(__name__)
log.addFilter(Repeats())

LOOK_SECONDS = 0.5
STOPPING_LOOK_SECONDS = 0.05
# What is left of a connection that was broken off, to come to its end.
ABORT_SECONDS = 1.0
# So that those who connect first do not hold up those who connect after them, nor these those who are connected.
ACCEPTED_AT_ONCE = 64
# A connection that was accepted a moment ago may not have had the time to send its request.
GRACE_SECONDS = 1.0
# So many idle connections are closed at a time, so that looking for them does not become the work.
EVICTED_AT_ONCE = 16
# When a connection cannot be accepted, mostly because no more files may be open, that may be otherwise after a pause.
PAUSE_SECONDS = 0.2
DYING_SECONDS = 0.01


class Connections:
    """All connections of one application, on the running loop.

    When there are as many as there may be, or an address has as many as it may have, a new one takes the place of the
    one that has been idle for longest. Where all are busy, a few more are accepted on which only health checks are
    answered, so that whatever watches the server does not take a busy one for a dead one.

    Args:
        app: answers.
        settings: of the protocols.
        bounds: on connections.
        proxies: addresses to which the share of one address does not apply, because they connect for many clients.
    """

    def __init__(self, app: ASGIApp, settings: Settings, bounds: Bounds, *, proxies: Container[str] = ()) -> None:
        self._app = app
        self._health_only = _HealthOnly(app)
        self._settings = settings
        self._bounds = bounds
        self._proxies = proxies
        self._context = WorkerContext(None)
        self._tls = settings.create_ssl_context()
        self._quota = Quota(bounds.connections, bounds.connections_per_address)
        self._streams = Quota(bounds.shared_streams, bounds.shared_streams_per_address)
        self._turns = Turns()
        self._listening: list[socket.socket] = []
        self._background: list[asyncio.Task[None]] = []
        self._open: dict[Connection, asyncio.Task[None]] = {}
        # Those that count towards the quota; the others are reserved or are being closed to make room.
        self._counted: set[Connection] = set()

    async def accept(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept connections.

        Args:
            sockets: that listen, and do not block; they are closed with the connections.
        """
        self._listening.extend(sockets)
        self._background = [asyncio.create_task(self._accept(sock)) for sock in sockets]
        self._background.append(asyncio.create_task(self._look_often()))

    async def close(self, seconds: float) -> None:
        """Accept no more, close what is idle, and let answers that are under way end.

        Args:
            seconds: after which they are broken off.
        """
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        for sock in self._listening:
            sock.close()
        await self._context.terminated.set()
        deadline = time.monotonic() + seconds
        while self._open and time.monotonic() < deadline:
            self._look(stopping=True)
            await self._wait(STOPPING_LOOK_SECONDS)
        for connection in self._open:
            connection.abort()
        await self._wait(ABORT_SECONDS)
        for task in self._open.values():
            task.cancel()
        await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        if self._open:
            await asyncio.wait(set(self._open.values()), timeout=seconds)

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._look(stopping=False)

    def _look(self, *, stopping: bool) -> None:
        now = time.monotonic()
        for connection in list(self._open):
            _look_at(connection, now, stopping)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count():
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError as error:
                # A client that has gone again by now is nobody's fault.
                if error.errno != errno.ECONNABORTED:
                    log.error("no connection can be accepted: %s", error.strerror)
                    self._evict(None, 0.0)
                    await asyncio.sleep(PAUSE_SECONDS)
            else:
                host, port = address[:2]
                # Each connection of a proxy counts as an address of its own.
                self._admit(sock, f"{host} {port}" if host in self._proxies else network_of(host))
            # Accepting does not wait while somebody connects.
            if number % ACCEPTED_AT_ONCE == 0:
                await asyncio.sleep(0)
            # Those that were closed to make room have their files until the event loop comes to them.
            while len(self._open) >= self._bounds.connections + 2 * self._bounds.reserved:
                await asyncio.sleep(DYING_SECONDS)

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
            self._settings,
            self._context,
            self._bounds,
            Slots(self._streams, network, self._bounds.streams_per_connection if counted else 1),
            self._turns,
            network,
            reserved=not counted,
        )
        if counted:
            self._counted.add(connection)
        self._open[connection] = asyncio.create_task(self._serve(connection))

    def _evict(self, network: str | None, grace: float) -> None:
        """Close those connections that have been idle for longest.

        Args:
            network: of which client; None for any.
            grace: seconds that a connection may be idle without being closed.
        """
        now = time.monotonic()
        idle = [
            (seconds, number, connection)
            for number, connection in enumerate(self._counted)
            if network in (None, connection.network) and (seconds := connection.idle_for(now) or 0.0) >= grace
        ]
        for _, _, connection in heapq.nlargest(EVICTED_AT_ONCE, idle):
            connection.say_goodbye(at_once=True)
            self._uncount(connection)

    def _reserve(self) -> bool:
        """Whether there is room for one more connection above the bound; the oldest silent one makes room."""
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
            # The application's errors do not come here: it is what Hypercorn makes of a client that breaks the rules.
            log_lost(error)
            connection.abort()
        finally:
            self._uncount(connection)
            del self._open[connection]


def _look_at(connection: Connection, now: float, stopping: bool) -> None:
    try:
        connection.look(now, stopping=stopping)
    except Exception as error:
        # The deadlines of the others go on.
        log_lost(error)
        connection.abort()


class _HealthOnly:
    """Answers health checks, and refuses everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refuse = LingeringClose(_refuse)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith(PROBES):
            await self._app(scope, receive, send)
        else:
            await self._refuse(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    response = await answer(Request(scope), TOO_MANY_CONNECTIONS)
    await response(scope, receive, send)
