"""Bodies that are JSON: read within bounds, and made into values."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from whisper_api.errors import InvalidInput
from whisper_api.server.delivery import BodyReceive
from whisper_api.server.problems import Problem

__all__ = ["received_body", "value_of"]

T = TypeVar("T")


async def received_body(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """The whole body of a request.

    Args:
        request: whose body was not read yet.
        max_bytes: how long it may be.
        seconds: how long it may take to come.

    Raises:
        Problem: 413 ``body_too_large``, or 408 ``slow_sender``.
        ClientDisconnect: the client has gone.
    """
    receive = BodyReceive(request.scope, request.receive)
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    body = bytearray()
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > max_bytes:
        raise _too_large(max_bytes)
    while not receive.ended:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - clock()))
        except asyncio.TimeoutError:
            raise Problem(
                408, "slow_sender", f"The body has not come within {seconds:g} seconds", {"Connection": "close"}
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
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
