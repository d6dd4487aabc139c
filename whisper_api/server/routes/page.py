"""``/`` and ``/assets/{name}``: the web page. The page uses only the public API."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.operations import Answer, Parameter, operation

DIRECTORY = Path(__file__).parents[1] / "web"
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# The browser loads scripts, styles and data from this server only, and plays recordings that the page made or opened.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Referrer-Policy": "no-referrer",
}
NAME = Parameter("name", str, "Name of a file of the page", location="path", required=True)


class _Asset(NamedTuple):
    content: bytes
    etag: str


@functools.cache
def _assets() -> Mapping[str, _Asset]:
    """The files of the page by name, read from the disk at the first request."""
    return {
        path.name: _Asset(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        for path in sorted(DIRECTORY.iterdir())
        if path.suffix in MEDIA_TYPES
        for content in (path.read_bytes(),)
    }


NOT_MODIFIED = Answer(304, "It has not changed")
page_call = functools.partial(operation, tag="Page", open=True, hidden=True)


@page_call(Answer(200, "The page", {"text/html": str}), NOT_MODIFIED)
async def page(request: Request) -> Response:
    """The page for uploading and recording audio, and for reading, correcting and downloading transcripts."""
    return await asyncio.to_thread(_response, request, INDEX)


@page_call(
    Answer(200, "The file", {"text/css": str, "text/javascript": str, "image/svg+xml": str}),
    NOT_MODIFIED,
    refusals=(404,),
    parameters=(NAME,),
)
async def asset(request: Request) -> Response:
    """A file of the page."""
    return await asyncio.to_thread(_response, request, request.path_params["name"])


def _response(request: Request, name: str) -> Response:
    found = _assets().get(name)
    if found is None:
        raise HTTPException(404)
    # no-cache: the browser revalidates at each visit, so scripts always belong to the running version of the server.
    headers = {**SECURITY_HEADERS, "ETag": found.etag, "Cache-Control": "no-cache"}
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers={**headers, "Content-Type": MEDIA_TYPES[Path(name).suffix]})
