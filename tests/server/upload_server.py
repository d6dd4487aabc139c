"""An application that does nothing but receive uploads and deliver text, served over a real socket.

Run as a program (``python upload_server.py DIRECTORY``) it prints its port and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from whisper_api import Config
from whisper_api.errors import WhisperApiError
from whisper_api.server.connections import Bounds, Connections, settings_of
from whisper_api.server.responses.delivery import DeliveredResponse, LingeringClose
from whisper_api.server.responses.problems import Problem, handler, problem_response
from whisper_api.server.uploads.incoming import IncomingForm, Limits
from whisper_api.server.uploads.pace import PaceRules
from whisper_api.server.uploads.receiving import receive

__all__ = [
    "BOUNDARY",
    "PATIENCE_SECONDS",
    "UploadServer",
    "field_part",
    "file_part",
    "form",
    "head",
    "serving",
    "until",
]

BOUNDARY = "4b2aXY"
# Long enough for a machine that is busy with something else; no test waits for it to pass.
PATIENCE_SECONDS = 60.0


def field_part(name: str, value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return b'Content-Disposition: form-data; name="%s"\r\n\r\n%s' % (name.encode(), data)


def file_part(data: bytes, disposition: bytes = b'filename="call.wav"', name: bytes = b"file") -> bytes:
    return b'Content-Disposition: form-data; name="%s"; %s\r\nContent-Type: audio/wav\r\n\r\n%s' % (
        name,
        disposition,
        data,
    )


def form(*parts: bytes, boundary: str = BOUNDARY) -> bytes:
    """A multipart body of parts, each with its headers."""
    line = b"--" + boundary.encode()
    return b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + b"--\r\n"


def head(length: int | None, *more: str, path: str = "/upload") -> bytes:
    """The head of a request; without a length, its body is chunked."""
    body = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        body,
        *more,
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came to be so"
        time.sleep(0.005)


@dataclass
class UploadServer:
    """Serves in a thread while it is open.

    Attributes:
        directory: where uploads go, each into a directory of its own.
        limits: what an upload may take.
        linger: arguments of the lingering close.
        keep_alive_seconds: that an idle connection stays.
        linger_seconds: for which a connection still reads after the server has ended it.
        started: how many requests have begun.
        ended: for each that has ended, the error's name, or an empty string.
        delivered: how many texts were delivered in full.
        port: where it listens.
    """

    directory: Path
    limits: Limits
    linger: dict[str, Any] = field(default_factory=dict)
    keep_alive_seconds: float = 60.0
    linger_seconds: float = 2.0
    started: int = 0
    ended: list[str] = field(default_factory=list)
    delivered: int = 0
    port: int = 0

    def app(self, pool: ThreadPoolExecutor) -> ASGIApp:
        numbers = itertools.count()

        async def upload(request: Request) -> Response:
            self.started += 1
            outcome = ""
            try:
                directory = self.directory / str(next(numbers))
                received = IncomingForm(self.limits, lambda: directory, purpose="")
                await receive(request, received, pool)
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                self.ended.append(outcome)
            (file,) = received.files
            assert file.stored is not None
            with file.stored.path.open("rb") as whole:
                digest = hashlib.sha256()
                while piece := whole.read(1 << 16):
                    digest.update(piece)
            return JSONResponse(
                {
                    "path": str(file.stored.path),
                    "size": file.size,
                    "sha256": digest.hexdigest(),
                    "fingerprint": file.fingerprint,
                    "file_name": file.file_name,
                    "fields": received.fields,
                }
            )

        async def refuse(request: Request) -> Response:
            raise Problem(401, "unauthorized", "nobody is let in here")

        async def crash(request: Request) -> Response:
            raise RuntimeError("as it may happen")

        async def text(request: Request) -> Response:
            async def count() -> None:
                self.delivered += 1

            return DeliveredResponse("é" * (request.path_params["size"] // 2), on_delivered=count)

        async def gone(request: Request, error: Exception) -> Response:
            return Response(status_code=400)

        errors = handler(problem_response)
        starlette = Starlette(
            routes=[
                Route("/upload", upload, methods=["POST"]),
                Route("/refuse", refuse, methods=["GET", "POST"]),
                Route("/crash", crash, methods=["POST"]),
                Route("/text/{size:int}", text),
            ],
            exception_handlers={Problem: errors, WhisperApiError: errors, ClientDisconnect: gone},
        )
        return LingeringClose(starlette, **self.linger)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def files(self) -> list[str]:
        """All files in the directory."""
        return sorted(path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*"))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def until_started(self, count: int) -> None:
        """Wait until so many uploads have begun."""
        until(lambda: self.started >= count)

    def connections(self) -> int:
        """How many connections something in the server still works for."""
        names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks(self._loop)]
        return sum(name.endswith(("Connections._serve", "_handle")) for name in names)

    def __enter__(self) -> UploadServer:
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        listening.setblocking(False)
        bounds = Bounds(
            connections=500,
            connections_per_address=500,
            idle_seconds=self.keep_alive_seconds,
            linger_seconds=self.linger_seconds,
            response_bytes=1 << 30,
            response_bytes_per_address=1 << 30,
        )
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._closing = contextlib.ExitStack()
        pool = self._closing.enter_context(ThreadPoolExecutor(2))
        connections = Connections(self.app(pool), settings_of(Config()), bounds)

        async def serve() -> None:
            await connections.accept([listening])
            await self._stop.wait()
            await connections.close(1.0)

        thread = threading.Thread(target=self._run, args=(serve(),))
        thread.start()
        self._closing.callback(thread.join)
        self._closing.callback(lambda: self._loop.call_soon_threadsafe(self._stop.set))
        until(lambda: self._loop.is_running())
        with self.connect():
            pass
        return self

    def __exit__(self, *ignored: object) -> None:
        self._closing.close()

    def _run(self, serving: Any) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(serving)
        self._loop.close()


def serving(
    directory: Path,
    *,
    max_file_size: int = 1 << 20,
    timeout_seconds: float = PATIENCE_SECONDS,
    linger: dict[str, Any] | None = None,
    keep_alive_seconds: float = 60.0,
    linger_seconds: float = 2.0,
) -> UploadServer:
    """A server with its uploads in a directory of their own."""
    directory.mkdir(exist_ok=True)
    limits = Limits(max_file_size, PaceRules(timeout_seconds))
    return UploadServer(directory, limits, linger or {}, keep_alive_seconds, linger_seconds)


if __name__ == "__main__":
    with serving(Path(sys.argv[1]), max_file_size=1 << 40) as server:
        print(server.port, flush=True)
        threading.Event().wait()
