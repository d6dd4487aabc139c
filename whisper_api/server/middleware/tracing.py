"""A span for every request. This layer is there only when traces are on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_api.server.middleware.access_log import PROBES
from whisper_api.server.middleware.proxies import client_address
from whisper_api.telemetry.metrics import METHODS
from whisper_api.telemetry.tracing import RequestSpan

# Monitors ask for these every few seconds, and nobody looks for their spans.
UNTRACED = (*PROBES, "/metrics")
# The name of an unknown method (OpenTelemetry's conventions for HTTP).
OTHER_METHOD = "_OTHER"


class TracedRequests:
    """Reports each request as a span. The span says what the access log says, and has no path, query or header.

    Args:
        app: the rest of the application.
        templates: resource to the template of its path.
    """

    def __init__(self, app: ASGIApp, *, templates: Mapping[Any, str]) -> None:
        self.app = app
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Absent while the application starts and stops.
        server = getattr(scope["app"].state, "server", None) if scope["type"] == "http" else None
        if server is None or scope["path"].endswith(UNTRACED):
            await self.app(scope, receive, send)
            return
        status: int | None = None

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with server.service.tracing.request(Headers(scope=scope).getlist) as span:
            try:
                await self.app(scope, receive, noted_send)
            finally:
                if span is not None:
                    self._end(span, scope, status)

    def _end(self, span: RequestSpan, scope: Scope, status: int | None) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        route = self._templates.get(scope.get("endpoint"))
        key = scope["state"].get("key")
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope.get("http_version"),
            "client.address": client_address(scope),
            "whisper_api.request.id": scope.get("request_id"),
            "whisper_api.key.id": key.key_id if key is not None else None,
            "whisper_api.job.id": scope.get("job_id"),
        }
        name = "HTTP" if method == OTHER_METHOD else method
        span.end(name if route is None else f"{name} {route}", status, attributes)
