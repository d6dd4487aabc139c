"""Uploads that come as an address: fetched in place of a file, where the configuration allows it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses

from whisper_api.config import Config
from whisper_api.errors import QueueFull
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import ServerState, blocking
from whisper_api.server.uploads.fetch.fetching import LOOKUP_SECONDS, Fetch, FetchRules
from whisper_api.server.uploads.fetch.urls import file_name_of
from whisper_api.server.uploads.storing import StoredFile
from whisper_api.server.uploads.uploads import Upload

__all__ = ["check_enabled", "fetched", "rules_of"]

# That a fetch has to notice by itself that its time is over, and to say what it was.
MARGIN_SECONDS = 1.0
BUSY_RETRY_SECONDS = 30.0


def check_enabled(config: Config) -> None:
    """Whether anything may be fetched here.

    Raises:
        Problem: 400 ``url_not_enabled``.
    """
    if not config.enable_url_uploads:
        raise Problem(
            400,
            "url_not_enabled",
            "This server fetches no files: send the audio itself, or set ENABLE_URL_UPLOADS = true where it runs",
        )


def rules_of(config: Config) -> FetchRules:
    """What may be fetched, as the configuration says."""
    hosts = (host.strip().lower() for host in (config.url_private_hosts or "").split(","))
    return FetchRules(
        max_bytes=config.max_file_size,
        seconds=config.url_fetch_timeout_seconds,
        min_bytes_per_second=config.min_upload_bytes_per_second,
        lookup_seconds=LOOKUP_SECONDS,
        private_hosts=frozenset(filter(None, hosts)),
    )


async def fetched(state: ServerState, upload: Upload, caller: str) -> Upload:
    """Fetch the file of an upload that came as an address.

    It takes no longer than the configuration says, whatever hangs, once it has its turn; nor does it wait longer for
    that. One caller has a share of the turns, so that slow origins it names leave room for other callers.

    Args:
        state: of the server, which has threads for this.
        upload: whose ``url`` is set; its directory is there, and whoever owns it removes what lies in it on failure.
        caller: who asks for it, as :func:`~whisper_api.server.state.caller_of` says.

    Returns:
        The same with the file at its path.

    Raises:
        Problem: 400 ``url_not_enabled`` or ``url_refused``, 413 ``url_too_large`` or 422 ``url_unreachable``.
        QueueFull: so many others are fetched that its turn did not come.
        StorageError: the file cannot be written.
    """
    check_enabled(state.config)
    rules = rules_of(state.config)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(state.caller_fetches.taken(caller, rules.seconds))
        except asyncio.TimeoutError:
            raise _busy() from None
        return await _fetched(state, upload, rules)


async def _fetched(state: ServerState, upload: Upload, rules: FetchRules) -> Upload:
    assert upload.url is not None
    file = StoredFile(upload.path.parent)
    fetch = Fetch(upload.url, file, rules)
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    def run() -> None:
        loop.call_soon_threadsafe(begun.set)
        fetch.run()

    running = loop.run_in_executor(state.fetches, contextvars.copy_context().run, run)
    try:
        try:
            await asyncio.wait_for(begun.wait(), rules.seconds)
        except asyncio.TimeoutError:
            raise _busy() from None
        await asyncio.wait({running}, timeout=rules.seconds + MARGIN_SECONDS)
        if not running.done():
            raise fetch.unreachable()
        running.result()
    finally:
        if not running.done():
            # Nobody waits for a name that is still being looked up; what it ends with is nobody's concern.
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            running.cancel()
            # Not here, where a slow disk would hold up everybody.
            await asyncio.shield(blocking(state.uploads, fetch.abort))
    return dataclasses.replace(upload, size=file.size, file_name=file_name_of(upload.url))


def _busy() -> QueueFull:
    return QueueFull("Too many other files are being fetched: try again later", BUSY_RETRY_SECONDS)
