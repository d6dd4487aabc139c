"""The state of the running application, which its lifespan makes and closes, and which every request can reach."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib.metadata
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request
from starlette.types import Scope

from whisper_api.access.request_limits import RequestLimits
from whisper_api.config import Config, with_new_values
from whisper_api.errors import RateLimited
from whisper_api.server.realtime.waiters import Waiters
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.turns import Amounts, Turns, client_network
from whisper_api.store.rows import Key

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService

T = TypeVar("T")

# A result is rendered in memory, which takes about five times its size, and rendering keeps the interpreter busy: more
# threads would take more memory, save no time and hold up the event loop.
RENDER_THREADS = 1
# Number of files that are fetched at a time; a thread that waits for another server costs next to nothing.
FETCHES = 16
FETCHES_PER_CALLER = 4


class ServerState:
    """The state of one application between start and end.

    Args:
        config: the configuration.
        service: the job service.

    Attributes:
        config: the configuration in force.
        service: the job service.
        keys: the keys of the callers.
        uploads: threads that write and probe uploads. A slow disk occupies these threads and no others.
        reads: threads for requests that take a few milliseconds.
        renders: a thread that reads stored transcripts and renders them.
        fetches: threads that wait for other servers.
        enrolments: a thread that computes the voices of known speakers.
        draining: set when the server begins to stop; status requests that wait for a change end then.
        stopped: set when no job runs any more; all other waiting requests end then.
        started: when the server started, by ``time.monotonic``.
        limits: the rate limits of the keys.
        waiters: the open synchronous requests, whose jobs are canceled when the client goes away.
        key_uploads, address_uploads: limit the unfinished uploads of one key and of one address.
        form_bytes: limits the bytes on the disk of one caller's unfinished forms with several files.
        caller_fetches: limits the files that are fetched at a time for one caller.
        caller_enrolments: limits the voices that are computed at a time for one caller.
        caller_renders: limits the results that are rendered at a time for one caller.
    """

    def __init__(self, config: Config, service: JobService) -> None:
        threads = thread_count(config.http_workers)
        self.config = config
        self.service = service
        self.keys = service.keys
        self.uploads = ThreadPoolExecutor(threads, thread_name_prefix="uploads")
        self.reads = ThreadPoolExecutor(threads, thread_name_prefix="reads")
        self.renders = ThreadPoolExecutor(RENDER_THREADS, thread_name_prefix="renders")
        self.fetches = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetches")
        self.enrolments = ThreadPoolExecutor(1, thread_name_prefix="enrolments")
        self.draining = asyncio.Event()
        self.stopped = asyncio.Event()
        self.started = time.monotonic()
        self.waiters = Waiters(service)
        self.limits = RequestLimits(config)
        self.key_uploads = Turns(config.max_uploads_per_key)
        self.address_uploads = Turns(config.max_uploads_per_address)
        # The same number of bytes as the unfinished uploads of one key, with one file each, may have.
        self.form_bytes = Amounts(config.max_uploads_per_key * config.max_file_size)
        self.caller_fetches = Turns(FETCHES_PER_CALLER)
        self.caller_enrolments = Turns(1)
        self.caller_renders = Turns(1)
        service.settings.register(self.take_settings)

    def take_settings(self, config: Config) -> None:
        """Use the new values of a configuration. Runs on the event loop."""
        self.config = config = with_new_values(self.config, config)
        self.limits.configure(config)
        self.key_uploads.resize(config.max_uploads_per_key)
        self.address_uploads.resize(config.max_uploads_per_address)
        self.form_bytes.most = config.max_uploads_per_key * config.max_file_size

    def close(self) -> None:
        """End the threads, without waiting for work that has begun."""
        self.service.settings.unregister(self.take_settings)
        for pool in (self.uploads, self.reads, self.renders, self.fetches, self.enrolments):
            pool.shutdown(wait=False, cancel_futures=True)


def state_in(scope: Scope) -> ServerState:
    """The state of the application that handles a request.

    Raises:
        Problem: 503 ``not_started``: the application's lifespan was not run.
    """
    state: ServerState | None = getattr(scope["app"].state, "server", None)
    if state is None:
        raise Problem(
            503,
            "not_started",
            "The application was not started: an application that mounts it must run its lifespan too (async with "
            "app.router.lifespan_context(app))",
        )
    return state


def state_of(request: Request) -> ServerState:
    """The same as :func:`state_in`, for a request."""
    return state_in(request.scope)


def service_of(request: Request) -> JobService:
    """The jobs of the application that handles a request."""
    return state_of(request).service


def key_of(request: Request) -> Key | None:
    """The key of a request; None without authorization, and where no key is needed."""
    key: Key | None = request.scope["state"].get("key")
    return key


def owner_of(request: Request) -> str:
    """The owner of the jobs that the caller submits: the id of the caller's key; empty without authorization."""
    key = key_of(request)
    return key.key_id if key is not None else ""


def caller_of(request: Request) -> str:
    """The caller whose limits a request counts against: the id of its key; without authorization its address."""
    return owner_of(request) or client_network(request.scope)


def viewer_of(request: Request) -> str | None:
    """The owner whose jobs the caller may see; None, for an admin and without authorization, sees all jobs.

    An operator sees the states of all jobs, and only operations that show no text of a job take its key.
    """
    key = key_of(request)
    return None if key is None or key.role in ("admin", "operator") else key.key_id


def sees_texts(request: Request) -> bool:
    """Whether the caller may see the texts of jobs: all but an operator."""
    key = key_of(request)
    return key is None or key.role != "operator"


async def blocking(pool: Executor | None, function: Callable[..., T], *args: object) -> T:
    """Run a function that may block in a thread; its log lines have the id of this request.

    Args:
        pool: the pool of the thread; None for the loop's default pool, for rare calls that may take long.
        function: the function.
        args: its arguments.
    """
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(context.run, function, *args))


async def writes(request: Request, function: Callable[..., T], *args: object) -> T:
    """Run a function that writes to the database, in a thread.

    Args:
        request: the request that needs the result.
        function: the function.
        args: its arguments.
    """
    return await blocking(state_of(request).uploads, function, *args)


def thread_count(http_workers: int) -> int:
    """The number of threads in each pool of the server."""
    return http_workers or os.cpu_count() or 1


def version() -> str:
    """The version of the installed package; ``0+source`` when the package is not installed."""
    try:
        return importlib.metadata.version("whisper-api")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


# Key of a request's state: the limits of its key, and what is left of them. The access log adds them to the response.
LIMITS = "limits"


def count_request(scope: Scope, key: Key) -> None:
    """Count a request of a key with rate limits.

    Args:
        scope: scope of the request.
        key: key of the request.

    Raises:
        RateLimited: the key has sent too many requests.
    """
    limits = state_in(scope).limits
    if limits.rates_of(key):
        try:
            scope["state"][LIMITS] = list(limits.count(key))
        except RateLimited:
            scope["state"][LIMITS] = list(limits.standings(key))
            raise


def note_quotas(request: Request) -> None:
    """Note for the response what is left of the quotas of the request's key. Blocks on the database.

    Args:
        request: an upload.
    """
    state, key = state_of(request), key_of(request)
    quotas = state.service.usage.quotas
    if key is not None and quotas.of_key(key):
        request.scope["state"].setdefault(LIMITS, []).extend(quotas.standings_of(key))
