"""The application: its table of routes, its middleware and its lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from whisper_api.access.request_limits import check_limits
from whisper_api.config import Config
from whisper_api.errors import ConfigError, InvalidOption
from whisper_api.server.middleware.access_log import AccessLog, ErrorAnswers
from whisper_api.server.middleware.auth import Authentication, LocalCallers
from whisper_api.server.middleware.cors import AllowedOrigins, CrossOrigin
from whisper_api.server.middleware.proxies import BehindProxy, TrustedAddresses, root_path_of
from whisper_api.server.middleware.upgrades import NoWebSockets
from whisper_api.server.openai.errors import error_response
from whisper_api.server.operations import Resource
from whisper_api.server.responses.delivery import LingeringClose
from whisper_api.server.responses.problems import ErrorHandler, handler, problem_response
from whisper_api.server.routes import (
    asr,
    docs,
    events,
    health,
    jobs,
    keys,
    languages,
    openai,
    page,
    reports,
    speakers,
    status,
    transcription,
    vocabularies,
    webhooks,
)
from whisper_api.server.sockets import only_local
from whisper_api.server.state import ServerState

if TYPE_CHECKING:
    from whisper_api.jobs.executor import Executor
    from whisper_api.jobs.service import JobService

NATIVE_ROUTES = {
    "/": Resource({"GET": page.page}),
    "/assets/{name}": Resource({"GET": page.asset}),
    "/transcribe": Resource({"POST": transcription.submit}),
    "/transcription": Resource({"POST": transcription.submit}),
    "/transcription/{job_id}": Resource({"GET": jobs.status, "DELETE": jobs.cancel}),
    "/transcription/{job_id}/result": Resource({"GET": jobs.result}),
    "/transcription/{job_id}/events": Resource({"GET": events.events}),
    "/transcription/{job_id}/corrections": Resource({"GET": jobs.corrections, "PUT": jobs.correct}),
    "/transcriptions": Resource({"GET": jobs.jobs, "POST": transcription.submit_several}),
    "/speakers": Resource({"GET": speakers.speakers, "POST": speakers.enroll}),
    "/speakers/{speaker_id}": Resource({"GET": speakers.speaker, "PATCH": speakers.rename, "DELETE": speakers.delete}),
    "/speakers/{speaker_id}/samples": Resource({"POST": speakers.add_samples}),
    "/asr": Resource({"POST": asr.asr}),
    "/detect-language": Resource({"POST": languages.detect}),
    "/vocabularies": Resource({"GET": vocabularies.list_all}),
    "/vocabularies/{name}": Resource(
        {"GET": vocabularies.read, "PUT": vocabularies.put, "DELETE": vocabularies.delete}
    ),
    "/webhooks": Resource({"GET": webhooks.list_all, "POST": webhooks.create}),
    # Before the addresses of endpoints.
    "/webhooks/secret": Resource({"GET": webhooks.own_secret}),
    "/webhooks/secret/rotate": Resource({"POST": webhooks.rotate_own}),
    "/webhooks/deliveries": Resource({"GET": webhooks.deliveries}),
    "/webhooks/deliveries/{delivery_id}": Resource({"GET": webhooks.delivery}),
    "/webhooks/deliveries/{delivery_id}/resend": Resource({"POST": webhooks.resend}),
    "/webhooks/{endpoint_id}": Resource({"GET": webhooks.read, "PATCH": webhooks.change, "DELETE": webhooks.delete}),
    "/webhooks/{endpoint_id}/secret": Resource({"GET": webhooks.secret}),
    "/webhooks/{endpoint_id}/secret/rotate": Resource({"POST": webhooks.rotate}),
    "/webhooks/{endpoint_id}/test": Resource({"POST": webhooks.test}),
    "/admin/audit": Resource({"GET": reports.audit}),
    "/admin/keys": Resource({"GET": keys.keys, "POST": keys.create_key}),
    "/admin/keys/{key_id}": Resource({"GET": keys.key, "PATCH": keys.change_key, "DELETE": keys.revoke_key}),
    "/admin/keys/{key_id}/rotate": Resource({"POST": keys.rotate_key}),
    "/usage": Resource({"GET": reports.own}),
    "/admin/usage": Resource({"GET": reports.all_keys}),
    "/status": Resource({"GET": status.server_status}),
    "/events/check": Resource({"GET": events.check}),
    "/metrics": Resource({"GET": health.metrics}),
    "/livez": Resource({"GET": health.livez}),
    "/readyz": Resource({"GET": health.readyz}),
    "/health": Resource({"GET": health.readyz}),
    "/openapi.json": Resource({"GET": docs.openapi}),
    "/docs": Resource({"GET": docs.docs}),
}
MODEL_ROUTES = {
    "/models": Resource({"GET": openai.models}),
    "/models/{id:path}": Resource({"GET": openai.model}),
}
OPENAI_ROUTES = {
    "/audio/transcriptions": Resource({"POST": openai.transcribe}),
    "/audio/translations": Resource({"POST": openai.translate}),
    **MODEL_ROUTES,
}
AZURE_ROUTES = {
    "/deployments/{deployment}/audio/transcriptions": Resource({"POST": openai.transcribe_deployment}),
    "/deployments/{deployment}/audio/translations": Resource({"POST": openai.translate_deployment}),
    **MODEL_ROUTES,
}
# Prefix to OpenAI's routes under it; the first prefix that matches a path counts. Clients of Azure's newer API use
# /openai/v1.
OPENAI_MOUNTS = {"/v1": OPENAI_ROUTES, "/openai/v1": OPENAI_ROUTES, "/openai": AZURE_ROUTES}
ROUTES = {
    **NATIVE_ROUTES,
    **{f"{prefix}{path}": route for prefix, routes in OPENAI_MOUNTS.items() for path, route in routes.items()},
}
# Resource to the template of its path. A resource of several prefixes has the template of the first.
TEMPLATES = {resource: path for path, resource in reversed(ROUTES.items())}


def create_app(
    config: Config | None = None,
    *,
    service: JobService | None = None,
    executor: Executor | None = None,
    insecure: bool = False,
) -> Starlette:
    """The server as an ASGI application of its own, or to be mounted in another application.

    The lifespan of the application opens the job database, starts the workers and loads the models. An outer
    application must run it within its own lifespan: ``async with app.router.lifespan_context(app): yield``.

    Args:
        config: the configuration; None reads it as the command line does.
        service: a job service that the caller has started and will close; None for one of the application's own.
        executor: runs the jobs of the application's own service; None for this process's engine. A test passes
            :class:`whisper_api.testing.FakeExecutor`.
        insecure: without authorization, respond to requests from other machines and with any ``Host``; pages of other
            origins still need an entry in the configuration.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    if config is None:
        config = Config.load().config
    config = checked(config)
    origins = AllowedOrigins.of(config)
    layers = [
        Middleware(AccessLog, templates=TEMPLATES),
        Middleware(BehindProxy, config=config),
        Middleware(LingeringClose),
        Middleware(CrossOrigin, allowed=origins),
    ]
    admit = Middleware(LocalCallers, config=config, allowed=origins, insecure=insecure, logged=set())
    if config.enable_authorization:
        admit = Middleware(Authentication)
    state = State()
    openai_errors = handler(error_response)
    app = Starlette(
        routes=[Mount(prefix, _part(routes, openai_errors, admit, state)) for prefix, routes in OPENAI_MOUNTS.items()],
        middleware=layers,
        lifespan=functools.partial(_lifespan, config=config, origins=origins, outer_service=service, executor=executor),
    )
    app.state = state
    app.router.redirect_slashes = False
    # The native routes are the default and not a mount, so that they also refuse paths without a leading slash.
    app.router.default = _part(NATIVE_ROUTES, handler(problem_response), admit, state)
    return app


def create_metrics_app(app: Starlette, config: Config) -> Starlette:
    """An application with ``/metrics`` only, which needs no key, for a port that only monitoring can reach.

    Args:
        app: the application of the server; its lifespan must run.
        config: names the host of the port.
    """
    local = msgspec.structs.replace(config, host=config.metrics_host)
    origins = AllowedOrigins.of(config)
    admit = Middleware(LocalCallers, config=local, allowed=origins, insecure=not only_local(local.host))
    outer = Starlette(middleware=[Middleware(AccessLog, templates=TEMPLATES)])
    outer.state = app.state
    outer.router.default = _part({"/metrics": NATIVE_ROUTES["/metrics"]}, handler(problem_response), admit, app.state)
    return outer


def _part(routes: Mapping[str, Resource], errors: ErrorHandler, admit: Middleware, state: State) -> Starlette:
    """An application of routes whose errors, also those of authentication, have one shape."""
    app = Starlette(
        routes=[Route(path, resource, name=path) for path, resource in routes.items()],
        middleware=[Middleware(ErrorAnswers, handler=errors), Middleware(NoWebSockets, handler=errors), admit],
        exception_handlers={HTTPException: errors, Exception: errors},
    )
    # A redirect would make a client send its upload twice.
    app.router.redirect_slashes = False
    app.state = state
    return app


def checked(config: Config) -> Config:
    """The configuration with Whisper's code of the language.

    Raises:
        ConfigError: the language, the root path, the proxies, the origins or the limits cannot be used.
    """
    from whisper_api.engine.languages import language_or_auto

    root_path_of(config)
    TrustedAddresses(config.trusted_proxies)
    AllowedOrigins.of(config)
    check_limits(config)
    try:
        return msgspec.structs.replace(config, language=language_or_auto(config.language))
    except InvalidOption as error:
        raise ConfigError(f"WHISPER_LANGUAGE: {error}") from None


@contextlib.asynccontextmanager
async def _lifespan(
    app: Starlette,
    *,
    config: Config,
    origins: AllowedOrigins,
    outer_service: JobService | None,
    executor: Executor | None,
) -> AsyncIterator[None]:
    """Make the state of the application, and close it in reverse order."""
    from whisper_api.jobs.service import JobService

    async with contextlib.AsyncExitStack() as stack:
        service = outer_service
        if service is None:
            service = await asyncio.to_thread(JobService.open, config, executor)
            stack.push_async_callback(asyncio.to_thread, service.close)
            await asyncio.to_thread(service.start)
        state = ServerState(config, service)
        stack.callback(state.close)
        service.settings.register(origins.take_settings)
        stack.callback(service.settings.unregister, origins.take_settings)
        await state.waiters.start()
        app.state.server, app.state.routes = state, ROUTES
        try:
            yield
        finally:
            del app.state.server
            state.draining.set()
            await state.waiters.close()
            if outer_service is None:
                await asyncio.to_thread(service.stop, config.shutdown_grace_seconds)
            state.stopped.set()
