"""``/openapi.json`` and ``/docs``: the description of the API for programs and for people. They need no key."""

from __future__ import annotations

import functools
import shlex
from html import escape
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.middleware.proxies import public_url
from whisper_api.server.openapi.docs import ADDRESS_MARK, page
from whisper_api.server.openapi.openapi import description
from whisper_api.server.operations import Answer, Resource, operation
from whisper_api.server.state import state_of

# The page runs no script and loads only its stylesheet, and no other page may embed it.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"}


document_call = functools.partial(operation, tag="Documents", open=True)


@document_call(Answer(200, "The description", {"application/json": dict[str, Any]}))
def openapi(request: Request) -> Response:
    """The description of the API for programs (OpenAPI 3.1)."""
    return Response(_described(request)[0], media_type="application/json")


@document_call(Answer(200, "The page", {"text/html": str}))
def docs(request: Request) -> Response:
    """The description of the API for people."""
    address = escape(shlex.quote(public_url(request))).encode()
    return Response(address.join(_described(request)[1]), headers=PAGE_HEADERS, media_type="text/html")


def _described(request: Request) -> tuple[bytes, tuple[bytes, ...]]:
    routes = tuple(request.app.state.routes.items())
    return _made(routes, request.scope.get("root_path", ""), state_of(request).config.enable_authorization)


@functools.lru_cache(maxsize=4)
def _made(
    routes: tuple[tuple[str, Resource], ...], root_path: str, authorization: bool
) -> tuple[bytes, tuple[bytes, ...]]:
    """The description as JSON, and as HTML that is split where the server's address is inserted.

    Cached, because an application's description never changes, and most processes have a single application.
    """
    api = description(dict(routes), root_path=root_path, authorization=authorization)
    return msgspec.json.encode(api), tuple(part.encode() for part in page(api).split(ADDRESS_MARK))
