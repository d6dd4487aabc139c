"""The application: routes, layers and what lives as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from whisper_api.config import Config
from whisper_api.errors import ConfigError, InvalidOption
from whisper_api.server.middleware.access_log import AccessLog, ErrorAnswers
from whisper_api.server.middleware.auth import Authentication, LocalCallers
from whisper_api.server.middleware.cors import AllowedOrigins, CrossOrigin
from whisper_api.server.middleware.proxies import BehindProxy, TrustedAddresses, root_path_of
from whisper_api.server.middleware.upgrades import NoWebSockets
from whisper_api.server.resource import Resource
from whisper_api.server.responses.delivery import LingeringClose
from whisper_api.server.responses.error_responses import answer
from whisper_api.server.routes import (
    asr,
    corrections,
    docs,
    events,
    health,
    jobs,
    languages,
    openai,
    page,
    status,
    transcription,
)
from whisper_api.server.state import ServerState, thread_count

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService

__all__ = ["create_app", "new_service"]

# Files that are fetched at a time; a thread that waits for another server costs next to nothing.
FETCHES = 16

ROUTES = {
    "/": Resource({"GET": page.PAGE}),
    "/assets/{name}": Resource({"GET": page.ASSET}),
    "/transcribe": Resource({"POST": transcription.SUBMIT}),
    "/transcription": Resource({"POST": transcription.SUBMIT}),
    "/transcription/{job_id}": Resource({"GET": jobs.STATUS, "DELETE": jobs.CANCEL}),
    "/transcription/{job_id}/result": Resource({"GET": jobs.RESULT}),
    "/transcription/{job_id}/events": Resource({"GET": events.EVENTS}),
    "/transcription/{job_id}/corrections": Resource({"GET": corrections.CORRECTIONS, "PUT": corrections.CORRECT}),
    "/transcriptions": Resource({"GET": jobs.JOBS, "POST": transcription.SUBMIT_SEVERAL}),
    "/asr": Resource({"POST": asr.ASR}),
    "/detect-language": Resource({"POST": languages.DETECT}),
    "/status": Resource({"GET": status.STATUS}),
    "/livez": Resource({"GET": health.LIVEZ}),
    "/readyz": Resource({"GET": health.READYZ}),
    "/health": Resource({"GET": health.READYZ}),
    **{
        f"{prefix}{path}": Resource({method: operation})
        for prefix in ("/v1", "/openai/v1")
        for path, method, operation in (
            ("/audio/transcriptions", "POST", openai.TRANSCRIBE),
            ("/audio/translations", "POST", openai.TRANSLATE),
            ("/models", "GET", openai.MODELS),
            ("/models/{id:path}", "GET", openai.MODEL),
        )
    },
    "/openai/deployments/{deployment}/audio/transcriptions": Resource({"POST": openai.TRANSCRIBE_DEPLOYMENT}),
    "/openai/deployments/{deployment}/audio/translations": Resource({"POST": openai.TRANSLATE_DEPLOYMENT}),
    "/openai/models": Resource({"GET": openai.MODELS}),
    "/openai/models/{id:path}": Resource({"GET": openai.MODEL}),
    "/openapi.json": Resource({"GET": docs.DESCRIPTION}),
    "/docs": Resource({"GET": docs.PAGE}),
    "/docs.css": Resource({"GET": docs.STYLE}),
}


def create_app(config: Config | None = None, *, service: JobService | None = None, insecure: bool = False) -> Starlette:
    """The server as an ASGI application, to be served by itself or mounted in another one.

    Its lifespan opens the job database, starts the workers and loads the models; whoever mounts it runs that within
    the outer application's: ``async with app.router.lifespan_context(app): yield``.

    Args:
        config: None reads it as the command line does.
        service: one that somebody else has started and will close; None for one of the application's own.
        insecure: with authorization switched off, answer whoever asks, whatever names the request has for this host;
            pages of other origins only where the configuration allows them.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    if config is None:
        config = Config.load().config
    config = _checked(config)
    layers = [Middleware(AccessLog), Middleware(BehindProxy, config=config), Middleware(LingeringClose)]
    layers += [Middleware(NoWebSockets), Middleware(CrossOrigin, allowed=AllowedOrigins.of(config))]
    layers += [Middleware(ErrorAnswers)]
    if config.enable_authorization:
        layers += [Middleware(Authentication)]
    else:
        layers += [Middleware(LocalCallers, config=config, insecure=insecure)]
    app = Starlette(
        routes=[Route(path, resource, name=path) for path, resource in ROUTES.items()],
        middleware=layers,
        exception_handlers={HTTPException: answer, Exception: answer},
        lifespan=functools.partial(_lifespan, config=config, given=service),
    )
    # A redirect would make a client send its upload twice.
    app.router.redirect_slashes = False
    return app


def _checked(config: Config) -> Config:
    """The configuration with Whisper's code of its language.

    Raises:
        ConfigError: the language, or what is said of proxies or origins, cannot be used.
    """
    from whisper_api.engine.languages import language_or_auto

    root_path_of(config)
    TrustedAddresses(config.trusted_proxies)
    AllowedOrigins.of(config)
    try:
        return msgspec.structs.replace(config, language=language_or_auto(config.language))
    except InvalidOption as error:
        raise ConfigError(f"WHISPER_LANGUAGE: {error}") from None


def new_service(config: Config) -> JobService:
    """A service with a database of its own, which no other process serves. It is not started yet.

    Raises:
        StorageError: the database cannot be used; StorageLocked when another server uses it.
    """
    from whisper_api.jobs.executor import EXECUTORS
    from whisper_api.jobs.service import JobService
    from whisper_api.store.jobs import DATABASE_NAME, JobStore

    store = JobStore(config.data_dir / DATABASE_NAME)
    try:
        store.exclusive(config.tmp_dir)
        return JobService(config, store, EXECUTORS["local"](config))
    except BaseException:
        store.close()
        raise


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette, *, config: Config, given: JobService | None) -> AsyncIterator[None]:
    """What the application holds, closed in reverse order."""
    from whisper_api.access.keys import KeyRing

    async with contextlib.AsyncExitStack() as stack:
        if given is None:
            service = await asyncio.to_thread(new_service, config)
            stack.push_async_callback(asyncio.to_thread, service.close)
            await asyncio.to_thread(service.start)
        else:
            service = given
        threads = thread_count(config.http_workers)
        uploads = stack.enter_context(_pool(threads, "uploads"))
        reads = stack.enter_context(_pool(threads, "reads"))
        fetches = stack.enter_context(_pool(FETCHES, "fetches"))
        state = ServerState(config, service, KeyRing(service.store), uploads, reads, fetches)
        await state.waiters.start()
        app.state.server = state
        try:
            yield
        finally:
            del app.state.server
            state.draining.set()
            await state.waiters.close()
            if given is None:
                await asyncio.to_thread(service.stop, config.shutdown_grace_seconds)
            state.stopped.set()


@contextlib.contextmanager
def _pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
