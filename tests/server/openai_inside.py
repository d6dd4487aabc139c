"""Uploads under ``/v1`` to an application without a socket, each of whose messages is in the test's hands."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from server.inside import AUDIO, Inside, RawRequest

__all__ = ["PATH", "all_canceled", "error", "headers", "running", "sent", "states", "upload"]

PATH = "/v1/audio/transcriptions"


def upload(*, path: str = PATH, headers: dict[str, str] | None = None, whole: bool = True, **fields: str) -> RawRequest:
    """A request that uploads audio; without its end when it is not whole."""
    request = httpx.Request("POST", "http://a", data=fields, files={"file": ("a.wav", AUDIO)})
    body = request.read()
    given = {"content-type": request.headers["content-type"], "content-length": str(len(body)), **(headers or {})}
    return RawRequest("POST", path, given, (body if whole else body[: len(body) // 2],), whole)


@contextlib.asynccontextmanager
async def sent(app: Inside, *requests: RawRequest) -> AsyncIterator[list[asyncio.Task[None]]]:
    """While open, these requests are under way."""
    tasks = [asyncio.create_task(request.to(app.app)) for request in requests]
    try:
        yield tasks
    finally:
        for request in requests:
            request.gone.set()
        await asyncio.gather(*tasks)


def states(app: Inside) -> list[str]:
    """The states of all jobs, oldest first."""
    return [status.status for status in reversed(app.service.list_jobs(None)[0])]


def all_canceled(app: Inside) -> bool:
    return set(states(app)) == {"Canceled"}


async def running(app: Inside, jobs: int = 1) -> None:
    await app.until(lambda: len(app.executor.started) == jobs)


def error(request: RawRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.answer)["error"]
    return body


def headers(request: RawRequest) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in request.sent[0]["headers"]}
