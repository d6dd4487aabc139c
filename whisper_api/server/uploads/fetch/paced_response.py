"""A response of another server that must come at a least rate, its headers as well as its body."""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

from whisper_api.server.uploads.pace import Pace

__all__ = ["paced_response"]


def paced_response(pace: Pace) -> type[http.client.HTTPResponse]:
    """A class of responses, for ``HTTPConnection.response_class``.

    The standard library bounds the time of each read from the socket. A server that sends one byte at a time in the
    headers, in the length of a chunk or in the body passes that bound for ever. These responses count every read.

    Args:
        pace: of all that comes. A read raises ``TimeoutError`` when it is spent.
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
