"""Moves a request's body from the socket to threads that parse it, in pieces large enough for a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor
from typing import Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from whisper_api.errors import CallerLimit, InvalidInput
from whisper_api.server.realtime.waiting import unless_draining
from whisper_api.server.responses.delivery import BodyReceive
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import blocking, owner_of, state_of
from whisper_api.server.uploads import plain_bodies
from whisper_api.server.uploads.incoming import HOW_TO_SEND, IncomingForm, too_large
from whisper_api.server.uploads.json_reader import JSON_TYPE, JsonReader
from whisper_api.server.uploads.multipart import MultipartReader, boundary_of
from whisper_api.server.uploads.pace import Pace, pace_rules
from whisper_api.server.uploads.storing import storage_errors
from whisper_api.server.uploads.turns import client_network

# A thread gets a piece of this size, or a smaller one when the next bytes take this long.
GATHER_BYTES = 512 << 10
GATHER_SECONDS = 0.01

# Quick uploads end within this time. When all uploads of a caller are slow, the next one is refused.
TURN_SECONDS = 30.0
RETRY_SECONDS = 30.0
# Key of an ASGI scope: marks a request that has its turn.
TURN = "whisper_api.upload_turn"


MAX_JSON_BYTES = 1 << 20

# What an operation with a JSON body may answer because of the body.
BODY_REFUSALS = (
    InvalidInput,
    CallerLimit,
    Problem(408, "slow_sender", "The body comes too slowly"),
    Problem(413, "body_too_large", "The body is larger than the address takes"),
)

T = TypeVar("T")


class Reader(Protocol):
    """Parses a body of one media type, piece by piece, into an :class:`IncomingForm`."""

    def feed(self, data: bytes) -> None: ...
    def finish(self) -> None: ...


@contextlib.asynccontextmanager
async def upload_turn(request: Request) -> AsyncIterator[None]:
    """Wait until the caller has few enough unfinished uploads. Count this one among them while the ``with`` is open.

    A request that has its turn gets no second one.

    Args:
        request: a request whose body was not read yet.

    Raises:
        CallerLimit: the caller's other uploads have not ended.
        Draining: the server stops.
    """
    if TURN in request.scope:
        yield
        return
    state = state_of(request)
    bounds = (
        (state.key_uploads, owner_of(request), "key", state.config.max_uploads_per_key),
        (state.address_uploads, client_network(request.scope), "address", state.config.max_uploads_per_address),
    )
    async with contextlib.AsyncExitStack() as stack:
        for turns, caller, whose, most in bounds:
            turn = turns.taken(caller, TURN_SECONDS)
            try:
                await unless_draining(state, stack.enter_async_context(turn))
            except asyncio.TimeoutError:
                raise CallerLimit(
                    f"This {whose} has {most} uploads that have not ended, and more are not allowed: try again when an "
                    "upload has ended",
                    RETRY_SECONDS,
                ) from None
        request.scope[TURN] = True
        yield


async def receive(
    request: Request, form: IncomingForm, pool: Executor, *, raw: bool = False, json: bool = False
) -> None:
    """Receive a request's body into a form. Parsing and writing happen in the pool's threads.

    Any failure removes the files.

    Args:
        request: a request whose body was not read yet.
        form: collects the fields and files.
        pool: threads for blocking work.
        raw: whether the body may be the recording itself, with the fields in the query.
        json: whether the body may be JSON.

    Raises:
        Problem: 400, 408 or 413; the code says what is wrong.
        InvalidInput, InvalidOption: a JSON body or a URL cannot be used.
        StorageError: a file cannot be written.
        Draining: the server stops.
        ClientDisconnect: the client has gone.
    """
    reader = _reader_for(request, form, raw, json)
    # A canceled request discards the files but cannot stop a thread that writes one, so both take this lock.
    lock = threading.Lock()
    discarded = False

    def feed(piece: bytes, last: bool) -> None:
        with lock, storage_errors():
            if discarded:
                raise ClientDisconnect
            if piece:
                reader.feed(piece)
            if last:
                reader.finish()
                form.finish()

    def discard() -> None:
        nonlocal discarded
        with lock:
            discarded = True
            form.discard()

    pieces = _pieces(BodyReceive(request.scope, request.receive), Pace(form.limits.pace))
    try:
        async with contextlib.aclosing(pieces):
            async for piece, last in pieces:
                await blocking(pool, feed, piece, last)
    except BaseException:
        await asyncio.shield(blocking(pool, discard))
        raise


async def received_body(request: Request, *, max_bytes: int, seconds: float | None = None) -> bytes:
    """The whole body of a request, which counts as an unfinished upload of the caller while it arrives.

    Args:
        request: a request whose body was not read yet.
        max_bytes: most bytes of the body.
        seconds: longest time for the body, by default that of a request; the configured least rate applies too.

    Raises:
        Problem: 413 ``body_too_large``, or 408 ``slow_sender``.
        CallerLimit: the caller has as many unfinished uploads as one may have.
        ClientDisconnect: the client has gone.
    """
    too_long = Problem(413, "body_too_large", f"Body too large: this address takes {max_bytes} bytes")
    if _stated_bytes(request) > max_bytes:
        raise too_long
    config = state_of(request).config
    seconds = config.timeout_seconds if seconds is None else seconds
    rules = pace_rules(min(seconds, config.timeout_seconds), config.min_upload_bytes_per_second, seconds)
    body = bytearray()
    async with upload_turn(request):
        pieces = _pieces(BodyReceive(request.scope, request.receive), Pace(rules))
        async with contextlib.aclosing(pieces):
            async for piece, _ in pieces:
                body += piece
                if len(body) > max_bytes:
                    raise too_long
    return bytes(body)


async def received_value(request: Request, kind: type[T], *, max_bytes: int = MAX_JSON_BYTES) -> T:
    """The value of a request's JSON body.

    Args:
        request: a request whose body was not read yet.
        kind: type of the value.
        max_bytes: most bytes of the body.

    Raises:
        InvalidInput: the body is not JSON, or no such value.
        Problem, CallerLimit, ClientDisconnect: as with :func:`received_body`.
    """
    return decoded(await received_body(request, max_bytes=max_bytes), kind)


def decoded(body: bytes, kind: type[T]) -> T:
    """The value of a JSON body.

    Args:
        body: the whole body.
        kind: type of the value.

    Raises:
        InvalidInput: the body is not JSON, or no such value.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise InvalidInput("The body cannot be used: its JSON is nested too deep") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidInput(f"The body cannot be used: {error}") from None


def _reader_for(request: Request, form: IncomingForm, raw: bool, json: bool) -> Reader:
    """The reader for the body's media type. Refuses a body whose ``Content-Length`` is too large for one file."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if json and media_type == JSON_TYPE:
        return JsonReader(form)
    limits, most = form.limits, form.limits.max_file_size
    how_to_send = plain_bodies.HOW_TO_SEND_RAW if raw else HOW_TO_SEND
    is_raw = raw and plain_bodies.is_audio(media_type)
    if not form.takes_many:
        form.stated_bytes = _stated_bytes(request)
        other_bytes = 0 if is_raw else limits.max_field_bytes + limits.max_other_bytes
        if form.stated_bytes > most + other_bytes:
            raise too_large(form.stated_bytes, most)
    if media_type == plain_bodies.URLENCODED_TYPE:
        return plain_bodies.UrlencodedReader(form, how_to_send)
    if is_raw:
        return plain_bodies.RawReader(request, form)
    return MultipartReader(boundary_of(content_type, how_to_send), form)


def _stated_bytes(request: Request) -> int:
    """The ``Content-Length`` of a body; 0 without a valid header."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


async def _pieces(receive: BodyReceive, pace: Pace) -> AsyncGenerator[tuple[bytes, bool], None]:
    """The body in pieces, each with whether it is the last. The last piece may be empty."""
    # The task outlives a timeout, because canceling it could lose a message. It may also hold the last message, which
    # arrived while a thread processed the piece before.
    message: asyncio.Task[Message] | None = None
    ended = False
    try:
        while not ended:
            gathered = bytearray()
            while len(gathered) < GATHER_BYTES and (message is not None or not receive.ended):
                message = message or asyncio.create_task(receive())
                if gathered:
                    await asyncio.wait({message}, timeout=GATHER_SECONDS)
                    if not message.done():
                        break
                else:
                    await pace.wait(message)
                received = message.result()
                message = None
                if received["type"] == "http.disconnect":
                    raise ClientDisconnect
                body = received.get("body", b"")
                pace.came(len(body))
                gathered += body
            ended = message is None and receive.ended
            yield bytes(gathered), ended
    finally:
        if message is not None:
            message.cancel()
            await asyncio.wait({message})
