"""A server of files on this machine, which misbehaves as it is told."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["FileServer", "Handler", "file_server"]


class Handler(BaseHTTPRequestHandler):
    """Handles GET with the entry of the server's ``answers`` for the path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: FileServer = self.server.files  # type: ignore[attr-defined]
        server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        path = self.path.partition("?")[0]
        answer = server.answers.get(path)
        if answer is None:
            self.send(404, b"what is inside")
        elif callable(answer):
            with contextlib.suppress(OSError):
                answer(self)
        else:
            self.send(200, answer)

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer; underscores in the names of headers become hyphens."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Transfer_Encoding" not in headers and "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@dataclass
class FileServer:
    """What is served.

    Attributes:
        answers: path to a file's content, or to what answers.
        asked: path and headers of every request.
        port: where it listens.
        scheme: http, or https.
        over: set when the server is to end, for answers that take for ever.
    """

    answers: dict[str, bytes | Callable[[Handler], None]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"


@contextlib.contextmanager
def file_server(context: ssl.SSLContext | None = None) -> Iterator[FileServer]:
    """Serve while open; over TLS with a context."""
    files = FileServer(scheme="https" if context else "http")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.files = files  # type: ignore[attr-defined]
    files.port = server.server_address[1]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield files
    finally:
        files.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
