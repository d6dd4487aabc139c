"""What the running application holds: made in its lifespan, closed with it, and found by every request."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request
from starlette.types import Scope

from whisper_api.config import Config
from whisper_api.server.openai.waiters import Waiters
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.turns import Amounts, Turns, client_network

if TYPE_CHECKING:
    from whisper_api.access.keys import KeyRing
    from whisper_api.jobs.service import JobService

__all__ = ["ServerState", "blocking", "caller_of", "owner_of", "state_in", "state_of", "thread_count", "viewer_of"]

T = TypeVar("T")

# A result is rendered in memory, which takes about five times its size, and rendering keeps the interpreter busy: more
# threads would take more memory, save no time and hold up the event loop.
RENDER_THREADS = 1
# A quarter of the threads for fetching.
FETCHES_PER_CALLER = 4


@dataclass
class ServerState:
    """The state of one application between start and end.

    Attributes:
        config: what it was made with.
        service: the door to the jobs.
        keys: who may enter.
        uploads: threads that write uploads and look into them. A slow disk fills these, and only these.
        reads: threads for what is answered within milliseconds.
        renders: threads that read stored transcripts and render them.
        fetches: threads that wait for other servers.
        draining: set when the server begins to stop: open answers that wait for nothing in particular end.
        stopped: set when no job runs any more: all other open answers end too.
        started: by ``time.monotonic``.
        waiters: the requests that wait for jobs which nobody else knows of.
        key_uploads, address_uploads: how many unfinished uploads one key and one address may have.
        form_bytes: how many bytes of unfinished forms with several files one caller may have on the disk.
        caller_fetches: how many files are fetched for one caller at a time.
        caller_renders: how many results are rendered for one caller at a time.
    """

    config: Config
    service: JobService
    keys: KeyRing
    uploads: ThreadPoolExecutor
    reads: ThreadPoolExecutor
    renders: ThreadPoolExecutor
    fetches: ThreadPoolExecutor
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    started: float = field(default_factory=time.monotonic)
    waiters: Waiters = field(init=False)
    key_uploads: Turns = field(init=False)
    address_uploads: Turns = field(init=False)
    form_bytes: Amounts = field(init=False)
    caller_fetches: Turns = field(init=False)
    caller_renders: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.waiters = Waiters(self.service)
        self.key_uploads = Turns(self.config.max_uploads_per_key)
        self.address_uploads = Turns(self.config.max_uploads_per_address)
        # As much as the unfinished uploads of one file each that one key may have.
        self.form_bytes = Amounts(self.config.max_uploads_per_key * self.config.max_file_size)
        self.caller_fetches = Turns(FETCHES_PER_CALLER)
        self.caller_renders = Turns(1)


def state_in(scope: Scope) -> ServerState:
    """The state of the application that a request came to.

    Raises:
        Problem: its lifespan was not run: 503 ``not_started``.
    """
    state: ServerState | None = getattr(scope["app"].state, "server", None)
    if state is None:
        raise Problem(
            503,
            "not_started",
            "The application was not started: when it is mounted in another one, run its lifespan within that one's "
            "(async with app.router.lifespan_context(app))",
        )
    return state


def state_of(request: Request) -> ServerState:
    """As :func:`state_in`."""
    return state_in(request.scope)


def owner_of(request: Request) -> str:
    """Whose jobs the caller submits: the id of its key; empty when authorization is off."""
    key = request.scope["state"].get("key")
    return key.key_id if key is not None else ""


def caller_of(request: Request) -> str:
    """Who calls, to share what is scarce: the id of its key, without authorization its network address."""
    return owner_of(request) or client_network(request.scope)


def viewer_of(request: Request) -> str | None:
    """Whose jobs the caller may see: None for all, which is what admins may, and everybody without authorization."""
    key = request.scope["state"].get("key")
    return None if key is None or key.role == "admin" else key.key_id


async def blocking(pool: Executor | None, function: Callable[..., T], *args: object) -> T:
    """Run a function that may block in a thread; what it logs carries this request's id.

    Args:
        pool: whose thread; None for one of the loop's own, for what may take long but is rare.
        function: what to run.
        args: its arguments.
    """
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(context.run, function, *args))


def thread_count(http_workers: int) -> int:
    """How many threads each pool of the server has."""
    return http_workers or os.cpu_count() or 1
