"""The configuration as Hypercorn's settings and as bounds on connections."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import dataclass

from hypercorn.config import Config as Settings

from whisper_api.config import Config
from whisper_api.errors import ConfigError
from whisper_api.logs import Repeats

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 << 10
# Hypercorn ends an HTTP/2 connection abruptly after this number of requests.
REQUESTS_PER_CONNECTION = 1_000_000
HEAD_SECONDS = 30.0
# A client has this long for its first request, however short WHISPER_API_KEEPALIVE is.
LEAST_HEAD_SECONDS = 5.0
TAKE_SECONDS = 60.0
# Number of open files of the process besides connections and uploads: database, models, the decoder's pipes.
OTHER_FILES = 96


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The bounds of all connections of one server. Times are in seconds.

    Attributes:
        connections: connections that may be open at a time.
        connections_per_address: connections of one client address.
        reserved: connections above ``connections``, on which only health checks are answered.
        reserved_seconds: longest life of such a connection.
        streams_per_connection: requests that one HTTP/2 connection may have open at a time.
        shared_streams: open requests of all HTTP/2 connections, the first one of each connection not counted.
        shared_streams_per_address: shared streams of one client address.
        response_bytes: bytes of response bodies that clients have not taken yet.
        response_bytes_per_address: bytes of such bodies of one client address.
        head_seconds: time from the first byte of a request's head to the last, and from the start of a connection to
            its first request.
        idle_seconds: time without a request, after the first request.
        take_seconds: time for which a client may take nothing of its response; see
            :class:`~whisper_api.server.connections.limits.ProgressDeadline`.
        linger_seconds: time for which a connection still reads after its end, so that its client receives
            the last response (RFC 9112, section 9.6).
    """

    connections: int
    connections_per_address: int
    reserved: int = 32
    reserved_seconds: float = 5.0
    streams_per_connection: int = 100
    shared_streams: int = 1000
    shared_streams_per_address: int = 500
    response_bytes: int = 64 << 20
    response_bytes_per_address: int = 32 << 20
    head_seconds: float = 30.0
    idle_seconds: float = 480.0
    take_seconds: float = 60.0
    linger_seconds: float = 2.0


def bounds_of(config: Config, open_files: int | None) -> Bounds:
    """The bounds of the server's connections.

    Args:
        config: gives the times, and the numbers of connections and bytes.
        open_files: number of files that the process may open; None for any number. Each connection needs one file for
            its socket and one for its upload.
    """
    connections = config.max_connections
    reserved = Bounds.reserved
    if open_files is not None:
        room = max(2, (open_files - OTHER_FILES) // 2)
        reserved = min(reserved, max(1, room // 8))
        if connections > room - 2 * reserved:
            connections = max(1, room - 2 * reserved)
            log.warning(
                "at most %d connections are open at a time, not MAX_CONNECTIONS: this process may open %d files "
                "(ulimit -n raises that)",
                connections,
                open_files,
            )
    keep_alive = config.keepalive_seconds
    return Bounds(
        connections=connections,
        connections_per_address=max(1, connections // 2),
        reserved=reserved,
        response_bytes=config.max_response_memory,
        response_bytes_per_address=max(1, config.max_response_memory // 2),
        head_seconds=min(HEAD_SECONDS, max(keep_alive, LEAST_HEAD_SECONDS)),
        idle_seconds=keep_alive,
        take_seconds=min(TAKE_SECONDS, config.timeout_seconds),
    )


def settings_of(config: Config) -> Settings:
    """Hypercorn's settings.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    settings = Settings()
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn.error")
    if not settings.errorlog.filters:
        settings.errorlog.addFilter(Repeats())
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


def raise_open_files() -> int | None:
    """Raise the number of files that this process may have open to the hard limit (``RLIMIT_NOFILE``).

    Returns:
        That number; None where the system has no limit.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS refuses more than its own maximum, which the hard limit does not contain.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft
