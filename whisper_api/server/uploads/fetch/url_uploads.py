"""Fetches the files at callers' URLs, if the configuration allows it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars

from whisper_api.config import Config
from whisper_api.errors import QueueFull
from whisper_api.outbound.connecting import LOOKUP_SECONDS, hosts_in
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import ServerState, blocking
from whisper_api.server.uploads.fetch.fetching import Fetch, FetchRules
from whisper_api.server.uploads.storing import StoredFile

__all__ = ["check_enabled", "fetch_file", "rules_of"]

# A fetch has this much more time to end with its own error.
MARGIN_SECONDS = 1.0
BUSY_RETRY_SECONDS = 30.0


def check_enabled(config: Config) -> None:
    """Check that the configuration allows fetching files.

    Raises:
        Problem: 400 ``url_not_enabled``.
    """
    if not config.enable_url_uploads:
        raise Problem(
            400,
            "url_not_enabled",
            "This server fetches no files: send the audio itself, or set ENABLE_URL_UPLOADS = true on the server",
        )


def rules_of(config: Config) -> FetchRules:
    """The rules for fetching in a configuration."""
    return FetchRules(
        max_bytes=config.max_file_size,
        seconds=config.url_fetch_timeout_seconds,
        min_bytes_per_second=config.min_upload_bytes_per_second,
        lookup_seconds=LOOKUP_SECONDS,
        private_hosts=hosts_in(config.url_private_hosts),
    )


async def fetch_file(state: ServerState, url: str, file: StoredFile, caller: str) -> None:
    """Fetch a file from its URL.

    The wait for a turn and the fetch each end after the configured time, even when a disk or a server hangs. A caller
    has a share of the turns, so that slow servers leave room for other callers.

    Args:
        state: the server's state, which has threads for fetching.
        url: URL of the file.
        file: the file to write; on failure the owner of its directory removes it.
        caller: the caller, as :func:`~whisper_api.server.state.caller_of` names it.

    Raises:
        Problem: 400 ``url_refused``, 413 ``url_too_large`` or 422 ``url_unreachable``.
        QueueFull: too many other files are being fetched.
        StorageError: the file cannot be written.
    """
    rules = rules_of(state.config)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(state.caller_fetches.taken(caller, rules.seconds))
        except asyncio.TimeoutError:
            raise _busy() from None
        await _run(state, Fetch(url, file, rules), rules.seconds)


async def _run(state: ServerState, fetch: Fetch, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    def run() -> None:
        loop.call_soon_threadsafe(begun.set)
        fetch.run()

    running = loop.run_in_executor(state.fetches, contextvars.copy_context().run, run)
    try:
        try:
            await asyncio.wait_for(begun.wait(), seconds)
        except asyncio.TimeoutError:
            raise _busy() from None
        await asyncio.wait({running}, timeout=seconds + MARGIN_SECONDS)
        if not running.done():
            raise fetch.unreachable()
        running.result()
    finally:
        if not running.done():
            # The thread may still look up a name. Its outcome is read so that asyncio logs no unread exception.
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            running.cancel()
            # In a thread, because a slow disk would block the event loop.
            await asyncio.shield(blocking(state.uploads, fetch.abort))


def _busy() -> QueueFull:
    return QueueFull("Too many other files are being fetched: try again later", BUSY_RETRY_SECONDS)
