"""The server's connections: they are accepted, speak HTTP/1.1 and HTTP/2, and no client can use them all up.

``accepting`` holds all connections, ``connection`` is one of them, ``http1`` and ``http2`` adapt Hypercorn's protocols,
``frames`` and ``stream_buffer`` bound what h2 and a stream hold, ``limits``, ``patience`` and ``turns`` count, and
``settings`` reads the configuration.
"""

from whisper_api.server.connections.accepting import Connections
from whisper_api.server.connections.connection import log_lost
from whisper_api.server.connections.limits import Bounds, raise_open_files
from whisper_api.server.connections.settings import bounds_of, settings_of

__all__ = ["Bounds", "Connections", "bounds_of", "log_lost", "raise_open_files", "settings_of"]
