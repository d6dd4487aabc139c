"""Bodies that are JSON: read within bounds, and made into values."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from whisper_api.errors import InvalidInput
from whisper_api.server.responses.delivery import BodyReceive
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import state_of
from whisper_api.server.uploads.pace import Pace, pace_rules
from whisper_api.server.uploads.upload_turn import upload_turn

__all__ = ["received_body", "value_of"]

T = TypeVar("T")


async def received_body(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """The whole body of a request, which counts as an unfinished upload of its caller while it comes.

    Args:
        request: whose body was not read yet.
        max_bytes: how long it may be.
        seconds: how long it may take to come; the configured least rate holds besides.

    Raises:
        Problem: 413 ``body_too_large``, or 408 ``slow_sender``.
        CallerLimit: the caller has as many unfinished uploads as one may have.
        ClientDisconnect: the client has gone.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > max_bytes:
        raise _too_large(max_bytes)
    config = state_of(request).config
    rules = pace_rules(min(seconds, config.timeout_seconds), config.min_upload_bytes_per_second, seconds)
    async with upload_turn(request):
        return await _received(BodyReceive(request.scope, request.receive), max_bytes, Pace(rules))


async def _received(receive: BodyReceive, max_bytes: int, pace: Pace) -> bytes:
    body = bytearray()
    while not receive.ended:
        coming = asyncio.ensure_future(receive())
        try:
            await pace.wait(coming)
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
        message = coming.result()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        pace.came(len(piece))
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def value_of(body: bytes, kind: type[T]) -> T:
    """The value that a body is.

    Args:
        body: JSON.
        kind: what it must be.

    Raises:
        InvalidInput: it is not.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise InvalidInput("The body cannot be used: it is nested too deep") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidInput(f"The body cannot be used: {error}") from None


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, "body_too_large", f"Body too large: this address takes {max_bytes} bytes")
