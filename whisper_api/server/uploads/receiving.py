"""The body of a request, from the socket to threads that work on it, in pieces that are worth their while."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from typing import Generic, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from whisper_api.server.responses.delivery import BodyReceive
from whisper_api.server.uploads.pace import Pace, PaceRules
from whisper_api.server.uploads.storing import storage_errors

__all__ = ["Reception", "receive"]

# What is gathered before a thread is given it, and how long for more to come.
GATHER_BYTES = 512 << 10
GATHER_SECONDS = 0.01

T = TypeVar("T")


class Reader(Protocol):
    """Makes something of a body's bytes as they come."""

    def feed(self, data: bytes) -> None: ...
    def finish(self) -> None: ...


class Reception(ABC, Generic[T]):
    """A body on its way to the disk. Its methods run in threads.

    ``_lock`` is held by the one that works, since a request that is canceled discards what has come while the thread
    that writes it cannot be stopped.

    Args:
        reader: is given the body.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._discarded = False

    def feed(self, piece: bytes) -> None:
        """Take some more of the body."""
        with self._lock, storage_errors():
            if not self._discarded:
                self._reader.feed(piece)

    def finish(self, piece: bytes) -> T:
        """Take the last of the body, and give what it was.

        Raises:
            ClientDisconnect: it was discarded meanwhile.
        """
        with self._lock, storage_errors():
            if self._discarded:
                raise ClientDisconnect
            if piece:
                self._reader.feed(piece)
            self._reader.finish()
            return self._finished()

    def discard(self) -> None:
        """Leave nothing behind; what is fed after this is dropped."""
        with self._lock:
            self._discarded = True
            self._undo()

    @abstractmethod
    def _finished(self) -> T:
        """What the body was, now that the reader has all of it."""

    @abstractmethod
    def _undo(self) -> None:
        """Close and remove what was written."""


async def receive(request: Request, reception: Reception[T], rules: PaceRules, pool: Executor) -> T:
    """Feed a request's body to a reception, in the pool's threads, which discards it when that fails in any way.

    Args:
        request: whose body was not read yet.
        reception: takes it.
        rules: how slowly the body may come.
        pool: threads for blocking work.

    Returns:
        What the reception's ``finish`` gives.

    Raises:
        Problem: 408, the body comes too slowly.
        ClientDisconnect: the client has gone.
    """
    pieces = _pieces(BodyReceive(request.scope, request.receive), Pace(rules))
    try:
        async with contextlib.aclosing(pieces):
            async for piece, last in pieces:
                if last:
                    return await _in_thread(pool, reception.finish, piece)
                await _in_thread(pool, reception.feed, piece)
        return await _in_thread(pool, reception.finish, b"")
    except BaseException:
        await asyncio.shield(_in_thread(pool, reception.discard))
        raise


async def _pieces(receive: BodyReceive, pace: Pace) -> AsyncGenerator[tuple[bytes, bool], None]:
    """The body, in pieces that are worth a thread's while; with each, whether the body ends with it."""
    # Waited for without being canceled: a message must not be lost because the time to gather was over. The last one
    # may have come, and not been looked at, while the piece before it was worked on.
    message: asyncio.Task[Message] | None = None
    try:
        while message is not None or not receive.ended:
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
            if gathered:
                yield bytes(gathered), message is None and receive.ended
    finally:
        if message is not None:
            message.cancel()
            await asyncio.wait({message})


async def _in_thread(pool: Executor, work: Callable[..., T], *args: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *args)
