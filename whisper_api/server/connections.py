"""Connections: accepted here, spoken to by Hypercorn, and none is left when they are closed.

Hypercorn's own ``serve`` keeps the connection of a client that has gone until its time of idleness is over, and from
Python 3.12 on waits without a bound for clients that take nothing, so the accepting is done here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import uuid
from collections.abc import Sequence
from typing import Any

import h11
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as Settings
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from starlette.types import ASGIApp

from whisper_api.config import Config
from whisper_api.errors import ConfigError
from whisper_api.server.late_continue import LateContinue
from whisper_api.server.problems import Problem, ProblemResponse

__all__ = ["Connections", "settings_of"]

log = logging.getLogger(__name__)
access_log = logging.getLogger("whisper_api.access")

MAX_HEADER_BYTES = 32 << 10
# Hypercorn ends an HTTP/2 connection abruptly after so many requests.
REQUESTS_PER_CONNECTION = 1_000_000
# What is read at a time: of a body as much as asyncio takes from a socket. h11 bounds the headers that it does not have
# whole, so what comes before a body is read by smaller pieces.
BODY_BYTES = 256 << 10
HEAD_BYTES = 64 << 10
# Statuses that h11 gives to what it cannot read.
MALFORMED = {
    400: ("malformed_request", "This is not a request that HTTP/1.1 allows (RFC 9112)"),
    431: ("headers_too_large", f"The request's headers exceed {MAX_HEADER_BYTES} bytes"),
    501: ("transfer_encoding", "The only transfer encoding that is understood is chunked"),
}
# What is left of a connection that was broken off, to come to its end.
ABORT_SECONDS = 1.0


class Connections:
    """All connections of one application, on the running loop.

    Args:
        app: answers.
        settings: of the protocols.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]
        self._settings = settings
        self._context = WorkerContext(None)
        self._servers: list[asyncio.Server] = []
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def accept(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept connections.

        Args:
            sockets: that listen; they are closed with the connections.
        """
        context = self._settings.create_ssl_context()
        timeout = self._settings.ssl_handshake_timeout if context is not None else None
        for sock in sockets:
            self._servers.append(
                await asyncio.start_server(
                    self._serve,
                    sock=sock,
                    backlog=self._settings.backlog,
                    limit=BODY_BYTES,
                    ssl=context,
                    ssl_handshake_timeout=timeout,
                )
            )

    async def close(self, seconds: float) -> None:
        """Accept no more, close what is idle, and let answers that are under way end.

        Args:
            seconds: after which they are broken off.
        """
        for server in self._servers:
            server.close()
        await self._context.terminated.set()
        await self._wait(seconds)
        for writer in self._open.values():
            writer.transport.abort()
        await self._wait(ABORT_SECONDS)
        for task in self._open:
            task.cancel()
        await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        if self._open:
            await asyncio.wait(set(self._open), timeout=seconds)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        loop = asyncio.get_running_loop()
        try:
            await _Connection(self._app, loop, self._settings, self._context, {}, reader, writer)
        except Exception as error:
            # The application's errors do not come here: it is what Hypercorn makes of a client that breaks the rules.
            log_lost(error)
            writer.transport.abort()
        finally:
            del self._open[task]


class _Connection(TCPServer):
    """One connection. It ends when its client ends it, and does not wait to have been idle for long enough."""

    ended = False

    async def _read_data(self) -> None:
        was = self.protocol
        if isinstance(was.protocol, H11Protocol):
            was.protocol = _Http1(
                was.app,
                was.config,
                was.context,
                was.task_group,
                was.state,
                was.ssl,
                was.client,
                was.server,
                was.send,
            )
        # Not as the base class does it, which takes a body, too, by pieces of 64 kB; each costs as much as a large one.
        with contextlib.suppress(OSError):
            while not self.reader.at_eof():
                await self.protocol.handle(RawData(await self.reader.read(self._at_a_time())))
        await self.protocol.handle(Closed())
        self.ended = True
        if isinstance(self.protocol.protocol, H2Protocol):
            # Nobody sends any more: without this, an answer that is under way would wait for ever to be taken.
            for buffer in list(self.protocol.protocol.stream_buffers.values()):
                await buffer.close()
        await self.idle_task.stop()

    def _at_a_time(self) -> int:
        protocol = self.protocol.protocol
        receives_body = isinstance(protocol, H11Protocol) and protocol.stream is not None
        return BODY_BYTES if receives_body else HEAD_BYTES

    async def protocol_send(self, event: Event) -> None:
        if not (self.ended and isinstance(event, Updated)):
            await super().protocol_send(event)


class _Http1(LateContinue):
    """HTTP/1.1 in which what is no request gets a problem for an answer, as every other error does."""

    async def _send_error_response(self, status_code: int) -> None:
        request_id = uuid.uuid4().hex
        code, detail = MALFORMED.get(status_code, MALFORMED[400])
        problem = Problem(status_code, code, detail, {"Connection": "close", "X-Request-ID": request_id})
        response = ProblemResponse(problem, request_id)
        headers = [*response.raw_headers, *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=bytes(response.body)))
        await self._send_h11_event(h11.EndOfMessage())
        access_log.info("malformed request", extra={"status": status_code, "request_id": request_id})


def log_lost(error: BaseException) -> None:
    """Note that a connection was lost, in one line, and where that comes from for those who look for it."""
    while isinstance(inner := getattr(error, "exceptions", None), tuple) and inner:
        error = inner[0]
    if isinstance(error, (ssl.SSLError, ConnectionError, TimeoutError)):
        log.debug("a connection broke: %s", type(error).__name__)
        return
    trace = error if log.isEnabledFor(logging.DEBUG) else None
    log.warning("a connection was closed after %s", type(error).__name__, exc_info=trace)


def settings_of(config: Config, *, backlog: int) -> Settings:
    """How to speak to clients.

    Args:
        config: its times and its certificate.
        backlog: connections that the system holds while the server is busy.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    settings = Settings()
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.backlog = backlog
    settings.keep_alive_timeout = config.keepalive_seconds
    settings.keep_alive_max_requests = REQUESTS_PER_CONNECTION
    settings.h11_max_incomplete_size = MAX_HEADER_BYTES
    settings.h2_max_header_list_size = MAX_HEADER_BYTES
    settings.include_server_header = False
    cert, key = config.tls_cert_file, config.tls_key_file
    if (cert is None) != (key is None):
        there, missing = ("CERT", "KEY") if key is None else ("KEY", "CERT")
        raise ConfigError(f"WHISPER_TLS_{there}_FILE is set, and WHISPER_TLS_{missing}_FILE is not: TLS needs both")
    if cert is not None and key is not None:
        settings.certfile, settings.keyfile = str(cert), str(key)
        try:
            settings.create_ssl_context()
        except OSError as error:
            raise ConfigError(
                f"WHISPER_TLS_CERT_FILE, WHISPER_TLS_KEY_FILE: {cert} and {key} are no certificate and its key, both "
                f"as PEM: {error.strerror or error}"
            ) from error
    return settings
