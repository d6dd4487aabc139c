"""A receiver of webhooks on this machine, which answers as it is told and verifies with the library of others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

__all__ = ["Receiver", "Told", "receiver"]

# What the receiver answers with: a status, and headers.
Answer = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class Told:
    """A request: its path, headers and body, and when it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    status: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def event(self, *secrets: str) -> dict[str, Any]:
        """The event, whose signature must be that of each secret."""
        events = [Webhook(secret).verify(self.body, self.headers) for secret in secrets]
        assert events[1:] == events[:-1]
        event: dict[str, Any] = events[0]
        return event


@dataclass
class Receiver:
    """An HTTP server that keeps the requests that it receives.

    Attributes:
        answer: answers a request by its path; called in the thread of the request.
        told: every request, in the order of their ends.
        port: where it listens.
        most_at_once: the most requests at a time, by path.
    """

    answer: Callable[[str], Answer] = lambda path: (204, {})
    told: list[Told] = field(default_factory=list)
    port: int = 0
    most_at_once: Counter[str] = field(default_factory=Counter)
    _now: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = "/hook") -> str:
        return f"http://{self.host}{path}"

    def at(self, path: str) -> list[Told]:
        """The requests to a path."""
        with self._lock:
            return [each for each in self.told if each.path == path]

    def handle(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        at = time.time()
        with self._lock:
            self._now[path] += 1
            self.most_at_once[path] = max(self.most_at_once[path], self._now[path])
        try:
            answer = self.answer(path)
        finally:
            with self._lock:
                self._now[path] -= 1
        with self._lock:
            self.told.append(Told(path, headers, body, at, answer[0]))
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        receiving: Receiver = self.server.receiver  # type: ignore[attr-defined]
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:
            # The sender was killed before it had sent the whole request.
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, more = receiving.handle(self.path, headers, body)
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in {"Content-Length": "0", **more}.items():
                self.send_header(name, value)
            self.end_headers()

    def log_message(self, *ignored: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *ignored: object) -> None:
        # Tests kill the server that sends.
        pass


@contextlib.contextmanager
def receiver(answer: Callable[[str], Answer] | None = None) -> Iterator[Receiver]:
    """Receive while open."""
    receiving = Receiver() if answer is None else Receiver(answer)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.receiver = receiving  # type: ignore[attr-defined]
    receiving.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiving
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
