"""``/openapi.json`` and ``/docs``: what the server can do. No key is asked for."""

from __future__ import annotations

import asyncio
import functools
import shlex
from html import escape
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.middleware.proxies import public_url
from whisper_api.server.openapi.docs import ADDRESS_MARK, page
from whisper_api.server.openapi.openapi import description
from whisper_api.server.operations import Answer, Operation
from whisper_api.server.resource import Resource
from whisper_api.server.responses.joined import JoinedResponse
from whisper_api.server.state import blocking, state_of

__all__ = ["DESCRIPTION", "PAGE", "STYLE"]

STYLESHEET = Path(__file__).parents[1] / "openapi" / "docs.css"
# Nothing is run, nothing is fetched but the stylesheet, and no other page shows this one within itself.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"}


async def openapi(request: Request) -> Response:
    """This description, as a program reads it (OpenAPI 3.1)."""
    described = await blocking(state_of(request).reads, _described, request)
    return Response(described[0], media_type="application/json")


async def docs(request: Request) -> Response:
    """This description, as people read it."""
    _, parts = await blocking(state_of(request).reads, _described, request)
    address = shlex.quote(public_url(request))
    return JoinedResponse(parts, escape(address).encode(), headers=PAGE_HEADERS, media_type="text/html")


async def style(request: Request) -> Response:
    """How the page of the description looks."""
    return Response(await asyncio.to_thread(_stylesheet), media_type="text/css")


def _described(request: Request) -> tuple[bytes, tuple[bytes, ...]]:
    routes = tuple(request.app.state.routes.items())
    return _made(routes, request.scope.get("root_path", ""), state_of(request).config.enable_authorization)


@functools.lru_cache(maxsize=4)
def _made(
    routes: tuple[tuple[str, Resource], ...], root_path: str, authorization: bool
) -> tuple[bytes, tuple[bytes, ...]]:
    """As JSON, and as HTML in the parts between which the server's address stands.

    An application's never changes, and mostly a process has one.
    """
    api = description(dict(routes), root_path=root_path, authorization=authorization)
    return msgspec.json.encode(api), tuple(part.encode() for part in page(api).split(ADDRESS_MARK))


@functools.cache
def _stylesheet() -> bytes:
    return STYLESHEET.read_bytes()


DESCRIPTION = Operation(
    openapi, "Documents", (Answer(200, "The description", {"application/json": dict[str, Any]}),), open=True
)
PAGE = Operation(docs, "Documents", (Answer(200, "The page", {"text/html": str}),), open=True)
STYLE = Operation(style, "Documents", (Answer(200, "The stylesheet", {"text/css": str}),), open=True, hidden=True)
