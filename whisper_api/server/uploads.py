"""Uploads: from the socket to the disk as they come, counted, and gone without a trace when they fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from whisper_api.errors import StorageError, StorageFull
from whisper_api.jobs.database import sync_directory
from whisper_api.server.delivery import BodyReceive
from whisper_api.server.multipart import FormReader, Limits, boundary_of, too_large
from whisper_api.server.problems import Problem

__all__ = ["Limits", "Upload", "receive_upload"]

PART_NAME = "audio.part"
WHOLE_NAME = "audio"

# What is gathered before a thread is given it, and how long for more to come.
GATHER_BYTES = 512 << 10
GATHER_SECONDS = 0.01

T = TypeVar("T")


@dataclass(frozen=True)
class Upload:
    """A form that has come whole, its file on the disk.

    Attributes:
        path: of the file.
        size: bytes of it.
        fingerprint: SHA-256 over file and fields, if it was asked for: equal when all of them are.
        file_name: the client's name for it, for people; never a path.
        fields: name and value of each text field, in order.
    """

    path: Path
    size: int
    fingerprint: str | None
    file_name: str | None
    fields: tuple[tuple[str, str], ...]


async def receive_upload(
    request: Request, directory: Path, limits: Limits, pool: Executor, *, fingerprint: bool = False
) -> Upload:
    """Receive a form with one file. Parsing and writing happen in the pool's threads.

    Args:
        request: whose body was not read yet.
        directory: made for the file, mode 0700, and removed with all it holds when this fails in any way.
        limits: what the upload may take.
        pool: threads for blocking work.
        fingerprint: whether to compute one.

    Returns:
        The upload, which a power cut no longer undoes.

    Raises:
        Problem: 400, 408 or 413, and its code says what is wrong.
        StorageFull: no space is left on the disk.
        StorageError: the file cannot be written for another reason.
        ClientDisconnect: the client has gone.
    """
    boundary = boundary_of(request.headers.get("content-type", ""))
    stated = _stated_bytes(request)
    if stated is not None and stated > limits.max_file_size + limits.max_field_bytes + limits.max_other_bytes:
        raise too_large(stated, limits.max_file_size)
    reception = _Reception(directory, boundary, limits, stated, fingerprint)
    pieces = _pieces(BodyReceive(request.scope, request.receive), limits.timeout_seconds)
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


class _Reception:
    """One upload on its way to the disk.

    Its methods run in threads, one at a time: ``_lock`` is held by the one that works, since a request that is
    canceled discards the upload while the thread that writes it cannot be stopped.
    """

    def __init__(
        self, directory: Path, boundary: bytes, limits: Limits, stated_bytes: int | None, fingerprint: bool
    ) -> None:
        self._directory = directory
        self._reader = FormReader(boundary, limits, self._write, stated_bytes)
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256() if fingerprint else None
        self._lock = threading.Lock()
        self._discarded = False

    def feed(self, piece: bytes) -> None:
        with self._lock, _storage_errors():
            if not self._discarded:
                self._reader.feed(piece)

    def finish(self, piece: bytes) -> Upload:
        with self._lock, _storage_errors():
            if self._discarded:
                raise ClientDisconnect
            if piece:
                self._reader.feed(piece)
            self._reader.finish()
            path = self._commit()
        fields = tuple(self._reader.fields)
        return Upload(path, self._reader.size, self._fingerprint(fields), self._reader.file_name, fields)

    def discard(self) -> None:
        with self._lock:
            self._discarded = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
            shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self, data: memoryview) -> None:
        self._opened().write(data)
        if self._digest is not None:
            self._digest.update(data)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._file = os.fdopen(os.open(self._directory / PART_NAME, flags, 0o600), "wb")
        return self._file

    def _commit(self) -> Path:
        with self._opened() as file:
            file.flush()
            os.fsync(file.fileno())
        path = self._directory / WHOLE_NAME
        (self._directory / PART_NAME).rename(path)
        for directory in (self._directory, self._directory.parent):
            sync_directory(directory)
        return path

    def _fingerprint(self, fields: tuple[tuple[str, str], ...]) -> str | None:
        if self._digest is None:
            return None
        whole = hashlib.sha256(self._digest.digest())
        # Sorted by name alone: of a field that comes twice, the last counts.
        for field in sorted(fields, key=lambda field: field[0]):
            for text in field:
                data = text.encode()
                whole.update(len(data).to_bytes(8, "big") + data)
        return whole.hexdigest()


async def _pieces(receive: BodyReceive, timeout_seconds: float) -> AsyncGenerator[tuple[bytes, bool], None]:
    """The body, in pieces that are worth a thread's while; with each, whether the body ends with it."""
    loop = asyncio.get_running_loop()
    # Waited for without being canceled: a message must not be lost because the time to gather was over.
    message: asyncio.Task[Message] | None = None
    try:
        while not receive.ended:
            gathered = bytearray()
            deadline = loop.time() + timeout_seconds
            while len(gathered) < GATHER_BYTES and not receive.ended:
                message = message or asyncio.create_task(receive())
                patience = GATHER_SECONDS if gathered else deadline - loop.time()
                await asyncio.wait({message}, timeout=patience)
                if not message.done():
                    if gathered:
                        break
                    raise _slow(timeout_seconds)
                received = message.result()
                message = None
                if received["type"] == "http.disconnect":
                    raise ClientDisconnect
                gathered += received.get("body", b"")
            if gathered:
                yield bytes(gathered), receive.ended
    finally:
        if message is not None:
            message.cancel()
            await asyncio.wait({message})


async def _in_thread(pool: Executor, work: Callable[..., T], *args: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *args)


def _slow(seconds: float) -> Problem:
    return Problem(408, "slow_sender", f"No byte came for {seconds:g} seconds", {"Connection": "close"})


def _stated_bytes(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("The upload was not kept: no space is left on the disk") from error
        raise StorageError(f"The upload was not kept: {error.strerror or 'the disk cannot be written'}") from error
