"""The configuration as Hypercorn's settings and as bounds."""

from __future__ import annotations

import logging

from hypercorn.config import Config as Settings

from whisper_api.config import Config
from whisper_api.errors import ConfigError
from whisper_api.logs import Repeats
from whisper_api.server.connections.limits import Bounds

__all__ = ["MAX_HEADER_BYTES", "bounds_of", "settings_of"]

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 << 10
# Hypercorn ends an HTTP/2 connection abruptly after so many requests.
REQUESTS_PER_CONNECTION = 1_000_000
HEAD_SECONDS = 30.0
# With a very short WHISPER_API_KEEPALIVE a client still has so long to send its first request.
LEAST_HEAD_SECONDS = 5.0
TAKE_SECONDS = 60.0
# Files that the process needs for everything but connections and their uploads: database, models, the decoder's pipes.
OTHER_FILES = 96


def settings_of(config: Config) -> Settings:
    """How to speak to clients.

    Args:
        config: its times and its certificate.

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


def bounds_of(config: Config, open_files: int | None) -> Bounds:
    """The bounds of the server's connections.

    Args:
        config: its times, and how many connections it allows.
        open_files: that the process may have; None for any number. Each connection needs one for itself and one for
            its upload.
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
        head_seconds=min(HEAD_SECONDS, max(keep_alive, LEAST_HEAD_SECONDS)),
        idle_seconds=keep_alive,
        response_bytes=config.max_response_memory,
        response_bytes_per_address=max(1, config.max_response_memory // 2),
        take_seconds=min(TAKE_SECONDS, config.timeout_seconds),
    )
