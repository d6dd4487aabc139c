"""The application without a socket: a real service and a real database, and an executor that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import httpx
import pytest
from fakes import config_in, eventually, new_service
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Scope

from whisper_api.access.keys import KeyRing
from whisper_api.job_values import FINAL_STATES
from whisper_api.jobs.service import JobService
from whisper_api.key_values import Role
from whisper_api.server.app import create_app
from whisper_api.server.state import ServerState
from whisper_api.telemetry import Tracing
from whisper_api.testing import FakeExecutor

__all__ = ["AUDIO", "ORIGIN", "Inside", "RawRequest", "inside", "lines_of", "on_a_loop", "problem"]

P = ParamSpec("P")

ORIGIN = "http://127.0.0.1:8181"
# A limit for busy machines, as in harness.py.
PATIENCE_SECONDS = 180.0
# A WAV file of ASCII bytes (80 samples of 8 bits at 8 kHz), since the fake executor reads its upload as text.
AUDIO = b"RIFF\x74\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\x50\0\0\0" + b"\x7f" * 80


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), PATIENCE_SECONDS))

    return run


@dataclass
class Inside:
    """A running application.

    Attributes:
        app, service, executor: its parts.
    """

    app: Starlette
    service: JobService
    executor: FakeExecutor

    @property
    def state(self) -> ServerState:
        state: ServerState = self.app.state.server
        return state

    def token(self, name: str, role: Role = "user", **limits: Any) -> str:
        """Make a key and return its token."""
        return KeyRing(self.service.store).create(name, role, **limits)[1]

    def client(self, token: str | None = None, **headers: str) -> httpx.AsyncClient:
        """A client with this token, or without one. It raises the errors of the application."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=ORIGIN, headers=headers)

    async def post(self, client: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: str) -> Any:
        """Upload audio."""
        return await client.post("/transcribe", data=fields, files={"file": ("a.wav", AUDIO)}, headers=headers)

    async def submit(self, client: httpx.AsyncClient, **fields: str) -> str:
        """Upload audio, which must be accepted. Returns the id of the job."""
        answer = await self.post(client, None, **fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    until = staticmethod(eventually)

    async def finish(self, client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended. Returns its status, for which the client sends exactly one request."""
        # A request with ?wait=N returns at each change of state, so the number of requests would depend on the machine.
        await self.until(lambda: self.service.status(job_id, None).status in FINAL_STATES, "the job has ended")
        status: dict[str, Any] = (await client.get(f"/transcription/{job_id}")).json()
        return status

    async def running(self, client: httpx.AsyncClient, **fields: str) -> str:
        """Upload audio and wait until its job runs. Returns the id of the job."""
        job_id = await self.submit(client, **fields)
        await self.until(lambda: job_id in self.executor.started)
        return job_id


@contextlib.asynccontextmanager
async def inside(
    directory: Path,
    executor: FakeExecutor | None = None,
    *,
    insecure: bool = False,
    tracing: Tracing | None = None,
    **settings: Any,
) -> AsyncIterator[Inside]:
    """An application with its files in a directory; without keys, unless the settings say otherwise."""
    settings = {"enable_authorization": False, **settings}
    executor = executor or FakeExecutor()
    service = new_service(directory, executor, tracing=tracing, **settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(service.close)
        app = create_app(config_in(directory, **settings), service=service, insecure=insecure)
        await stack.enter_async_context(app.router.lifespan_context(app))
        service.start()
        yield Inside(app, service, executor)


@dataclass
class RawRequest:
    """An ASGI request whose messages the test controls.

    Attributes:
        method, path, headers: of the request.
        body: comes in these pieces.
        whole: whether its end comes too; if not, there is silence after the last piece.
        sent: what the application has answered.
        gone: set when the client leaves.
    """

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: tuple[bytes, ...] = ()
    whole: bool = True
    sent: list[Message] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int:
        """The status of the response."""
        return int(self.sent[0]["status"])

    @property
    def answer(self) -> bytes:
        """The body of the response."""
        return b"".join(message.get("body", b"") for message in self.sent)

    async def to(self, app: ASGIApp) -> None:
        """Send the request to an application and record the response."""
        path, _, query = self.path.partition("?")
        headers = {"host": "127.0.0.1", **{name.lower(): value for name, value in self.headers.items()}}
        scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8181),
        }
        waiting: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in self.body]
        if self.whole:
            waiting.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Message:
            if waiting:
                return waiting.pop(0)
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            self.sent.append(message)

        await app(scope, receive, send)


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a response, which must be this problem."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["error"] == body["detail"]
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert {"type", "title"} <= body.keys()
    return body


def lines_of(caplog: pytest.LogCaptureFixture, logger: str = "whisper_api.access") -> list[dict[str, Any]]:
    """The records of a logger, by default of the one that writes a line for each request."""
    return [vars(record) for record in caplog.records if record.name == logger]
