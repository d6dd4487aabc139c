"""The outermost layers: an id, a log line and a measured time for every request, and a response to every error."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import time
import uuid
from collections.abc import Hashable, Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_api.access.limit_values import fields_of
from whisper_api.logs import Repeats, current_request
from whisper_api.server.auditing import CLIENT_GONE, record, record_lost_client
from whisper_api.server.middleware.auth import is_counted
from whisper_api.server.middleware.proxies import client_address
from whisper_api.server.responses.problems import REFUSED, ErrorHandler, Problem
from whisper_api.server.state import LIMITS, ServerState
from whisper_api.telemetry.metrics import METHODS
from whisper_api.telemetry.tracing import RequestSpan

log = logging.getLogger("whisper_api.access")


def _kind(record: logging.LogRecord) -> Hashable | None:
    """Log every request with a key. Count repeated lines of other requests, because any stranger can send them."""
    if getattr(record, "key_id", None) is not None:
        return None
    return record.levelno, record.msg, getattr(record, "status", None)


log.addFilter(Repeats(lines=100, kind=_kind))

USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Monitors ask for these every few seconds, so they are logged at the level DEBUG.
PROBES = ("/livez", "/readyz", "/health")
# Nobody looks for the spans of these.
UNTRACED = (*PROBES, "/metrics")
# The name of an unknown method in spans (OpenTelemetry's conventions for HTTP).
OTHER_METHOD = "_OTHER"
PATH_CHARACTERS = 200
# Parameters of a template that the server makes itself.
_IDS = re.compile(r"\{(?:job|speaker)_id\}")


class AccessLog:
    """Gives each request an id (``X-Request-ID``: the client's, when it is usable) and logs one line when it ends.

    An audited request is recorded in the audit trail, before its response begins. With traces on, each request is a
    span, which says what the log line says, and the line has the ids of the span.

    No query, form field, name or header is logged, except the client's address from trusted proxies. Of requests
    without a key, the first hundred of each status are logged each minute, and the others are counted.

    Args:
        app: the application.
        templates: resource to the template of its path, for the metrics and the log.
    """

    def __init__(self, app: ASGIApp, *, templates: Mapping[Any, str]) -> None:
        self.app = app
        self._templates = templates
        # Paths with a name that the caller has chosen.
        self._named = {template for template in templates.values() if "{" in _IDS.sub("", template)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        clients_id = Headers(scope=scope).get("x-request-id", "")
        request_id = clients_id if USABLE_ID.fullmatch(clients_id) else uuid.uuid4().hex
        scope["request_id"] = request_id
        scope.setdefault("state", {})
        status = CLIENT_GONE
        bytes_in = bytes_out = 0

        async def counted_receive() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
                limits = scope["state"].get(LIMITS)
                if limits:
                    headers.update(fields_of(limits))
                await record(scope, status)
            bytes_out += len(message.get("body", b""))
            await send(message)

        begun = time.perf_counter()
        token = current_request.set(request_id)
        with _traced(scope) as span:
            try:
                await self.app(scope, counted_receive, counted_send)
            finally:
                self._end(scope, span, status, time.perf_counter() - begun, bytes_in, bytes_out)
                current_request.reset(token)

    def _end(
        self, scope: Scope, span: RequestSpan | None, status: int, seconds: float, bytes_in: int, bytes_out: int
    ) -> None:
        record_lost_client(scope)
        route, method, server = self._templates.get(scope.get("endpoint")), scope["method"], _server(scope)
        key = scope["state"].get("key")
        key_id, client, job_id = key.key_id if key else None, client_address(scope), scope.get("job_id")
        if server is not None:
            server.service.metrics.request_ended(method, route, status, seconds)
            if route is not None and (key or not server.config.enable_authorization) and is_counted(scope):
                server.service.usage.count_request(key_id or "")
        path: str = route if route in self._named else scope["path"]
        log.log(
            logging.DEBUG if path.endswith(PROBES) else logging.INFO,
            "request",
            extra={
                "client": client,
                "method": method,
                "route": route,
                "path": path if len(path) <= PATH_CHARACTERS else f"{path[:PATH_CHARACTERS]}...",
                "status": status,
                "ms": round(1000 * seconds, 1),
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "key_id": key_id,
                "job_id": job_id,
            },
        )
        if span is not None:
            known = method if method in METHODS else OTHER_METHOD
            name = "HTTP" if known == OTHER_METHOD else known
            attributes = {
                "http.request.method": known,
                "http.route": route,
                "url.scheme": scope["scheme"],
                "network.protocol.version": scope.get("http_version"),
                "client.address": client,
                "whisper_api.request.id": scope["request_id"],
                "whisper_api.key.id": key_id,
                "whisper_api.job.id": job_id,
            }
            span.end(
                name if route is None else f"{name} {route}", None if status == CLIENT_GONE else status, attributes
            )


def _server(scope: Scope) -> ServerState | None:
    """The state of the application; absent while it starts and stops."""
    return getattr(scope["app"].state, "server", None) if "app" in scope else None


def _traced(scope: Scope) -> contextlib.AbstractContextManager[RequestSpan | None]:
    server = _server(scope)
    if server is None or not server.service.tracing.on or scope["path"].endswith(UNTRACED):
        return contextlib.nullcontext()
    return server.service.tracing.request(Headers(scope=scope).getlist)


class ErrorAnswers:
    """Turns every error of an application into a response, those of its middleware too. No response has a traceback.

    Args:
        app: the application.
        handler: makes the responses.
    """

    def __init__(self, app: ASGIApp, handler: ErrorHandler) -> None:
        self.app = app
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused: Problem | None = scope.get(REFUSED)
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            await send(message)
            begun = True

        try:
            if refused is not None:
                # A copy: a raised exception keeps the frames of its traceback alive.
                raise copy.copy(refused)
            await self.app(scope, receive, watched_send)
            return
        except ClientDisconnect:
            return
        except Exception as error:
            if begun:
                # The server closes a connection whose response ends too early, so the client notices.
                log.error("a response broke off", exc_info=error)
                return
            response = await self._handler(Request(scope), error)
        # Outside of the except block, which keeps the error alive: the error's frames hold the body of a refused
        # response for as long as a slow client takes to read this response.
        await response(scope, receive, send)
