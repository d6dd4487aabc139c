"""What one HTTP/2 stream still has to send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypercorn.protocol.h2 import BufferCompleteError

from whisper_api.server.connections.patience import Patience

__all__ = ["StreamBuffer"]


class StreamBuffer:
    """Holds the piece of the body that the application has handed over, and holds the application until it is sent.

    Takes the place of Hypercorn's buffer of the same name, which copies a piece of any size and lets the application
    go on. Nothing is copied here but what goes into the next frame, so a body that many streams send is held once.

    Args:
        patience: of the server with the client that takes this stream.
    """

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.taken = 0
        self._piece = memoryview(b"")
        self._whole = False
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> bool:
        """Whether there is something to send."""
        return bool(self._piece)

    @property
    def complete(self) -> bool:
        """Whether all of the body was sent."""
        return self._whole and not self._piece

    async def push(self, data: bytes) -> None:
        """Hand over a piece of the body, and wait until it is sent.

        Raises:
            BufferCompleteError: the stream has ended.
        """
        await self._until(lambda: not self._piece)
        if self._closed or self._whole:
            raise BufferCompleteError
        self._piece = memoryview(data)
        await self._until(lambda: not self._piece)

    def pop(self, max_bytes: int) -> bytes:
        """Take what goes into the next frame: at most so many bytes."""
        data = bytes(self._piece[:max_bytes])
        self._piece = self._piece[len(data) :]
        self.taken += len(data)
        if not self._piece:
            self._changed.set()
        return data

    def set_complete(self) -> None:
        """Say that no further piece comes."""
        self._whole = True

    async def drain(self) -> None:
        """Wait until the end of the stream was sent, or the stream has ended otherwise."""
        await self._until(lambda: False)

    def close(self) -> None:
        """Drop what is left, because the stream has ended; nobody waits any longer."""
        self._closed = True
        self._piece = memoryview(b"")
        self._changed.set()

    async def _until(self, happened: Callable[[], bool]) -> None:
        while not (self._closed or happened()):
            self._changed.clear()
            await self._changed.wait()
