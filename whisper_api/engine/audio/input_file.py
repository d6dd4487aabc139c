"""The bytes of a recording: a file on the disk, or a file object, which may be a stream.

The decoder process reads a file by its descriptor, and asks this process for the bytes of every other source.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import select
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from whisper_api.engine.audio.messages import Request
from whisper_api.engine.audio.source import HEAD_BYTES
from whisper_api.engine.audio.track import AudioMemory, storage_error
from whisper_api.errors import AudioTooLong, InvalidAudio, StorageFull

# Descriptors of files can be handed to another process.
ISOLATED = hasattr(socket, "send_fds")
# How formats begin that libav can read from a stream.
STREAMABLE = (b"RIFF", b"RF64", b"ID3", b"fLaC", b"OggS", b"\x1aE\xdf\xa3", b"#!AMR", b".snd", b"FLV", b"\x47", b"\xff")
# While a pipe gives nothing, the caller is asked this often whether to go on.
CHECK_MILLISECONDS = 100
# The most bytes that a second of a recording can have (video of 256 Mbit/s has as many), and that its header can have.
MOST_BYTES_PER_SECOND = 32 << 20
MOST_HEADER_BYTES = 64 << 20


@contextlib.contextmanager
def opened(
    source: Any, check: Callable[[], None], memory: AudioMemory | None = None, max_seconds: float | None = None
) -> Iterator[InputFile]:
    """Open a source, and close what was opened for it.

    Args:
        source: a path, bytes, or a binary file object.
        check: as :class:`InputFile` takes it.
        memory: the same.
        max_seconds: the same.

    Raises:
        InvalidAudio: the source is none of these, or cannot be read.
        AudioTooLong, StorageFull, StorageError: as :class:`InputFile` raises them.
    """
    limits = check, memory, max_seconds
    with contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray, memoryview)):
            file = InputFile(io.BytesIO(source), "the data", *limits)
        elif isinstance(source, (str, os.PathLike)):
            path = Path(source)
            try:
                if stat.S_ISDIR(path.stat().st_mode):
                    raise InvalidAudio(f"{path} is a directory, not an audio file")
                file = InputFile(stack.enter_context(path.open("rb", buffering=0)), path.name, *limits)
            except FileNotFoundError as error:
                raise InvalidAudio(f"{path}: there is no such file") from error
            except (OSError, ValueError) as error:
                raise InvalidAudio(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        elif hasattr(source, "read"):
            name = getattr(source, "name", None)
            file = InputFile(source, Path(name).name if isinstance(name, str) else "the file object", *limits)
        else:
            raise InvalidAudio(
                f"a {type(source).__name__} is not audio: give a path, bytes, a binary file object or a NumPy array"
            )
        try:
            yield file
        finally:
            file.close()


class InputFile:
    """The bytes of a source.

    Args:
        file: a binary file object.
        name: for messages.
        check: called between the blocks of a stream that must be read whole, and ten times a second while a pipe gives
            nothing; may raise.
        memory: says where the temporary file of a stream that must be read whole is made; None for the usual place.
        max_seconds: how long the audio may be, which bounds the bytes of such a stream; None for any length.

    Raises:
        AudioTooLong, StorageFull, StorageError: such a stream has too many bytes, or its copy cannot be written.

    Attributes:
        name: for messages.
        size: in bytes; None for a stream.
        descriptor: of a regular file, which another process can read; None for another source.
    """

    def __init__(
        self,
        file: Any,
        name: str,
        check: Callable[[], None],
        memory: AudioMemory | None = None,
        max_seconds: float | None = None,
    ) -> None:
        self.name = name
        self._file = file
        self._copy: IO[bytes] | None = None
        self._read = _reader(file, check)
        self._head = b""
        self.size = self._end()
        if self.size is None:
            self._head = b"".join(self._blocks(HEAD_BYTES, check))
            if not self._head.startswith(STREAMABLE):
                # libav may need the end of such a file before its beginning.
                self._file = self._copied(memory or AudioMemory(), check, max_seconds)
                self._read, self.size = self._file.read, self._end()
        self.descriptor = _descriptor(self._file) if self.size is not None else None

    def request(self, operation: Literal["decode", "probe"], **options: Any) -> Request:
        return Request(
            operation=operation, name=self.name, size=self.size, by_descriptor=self.descriptor is not None, **options
        )

    def read(self, offset: int, size: int) -> bytes:
        """Read up to ``size`` bytes; a stream gives its bytes in their order, whatever the offset."""
        if self._head:
            block, self._head = self._head[:size], self._head[size:]
            return block
        if self.size is not None:
            self._file.seek(offset)
        block = self._read(size)
        if isinstance(block, str):
            raise InvalidAudio(f"{self.name}: the file object gives text; open it in binary mode")
        if block is not None and len(block) > size:
            raise InvalidAudio(f"{self.name}: the file object gave {len(block)} bytes when asked for {size}")
        return bytes(block or b"")

    def close(self) -> None:
        """Go to the beginning, where the next reader expects a file, and remove the copy of a stream."""
        if self._copy is not None:
            self._copy.close()
        elif self.size is not None:
            with contextlib.suppress(OSError, ValueError):
                self._file.seek(0)

    def _end(self) -> int | None:
        try:
            size = self._file.seek(0, os.SEEK_END)
            return int(self._file.tell() if size is None else size)
        except (AttributeError, OSError):
            return None

    def _copied(self, memory: AudioMemory, check: Callable[[], None], max_seconds: float | None) -> IO[bytes]:
        """Copy a stream from its beginning into a temporary file."""
        size = 0
        try:
            copy = self._copy = memory.temporary_file()
            for block in self._blocks(None, check):
                size += len(block)
                if size > most_bytes(max_seconds):
                    raise AudioTooLong(
                        f"{self.name} has given {size} bytes, more than {max_seconds:g} s of audio can have, and has "
                        "not ended: give a stream that ends, or the path of a file"
                    )
                left = memoryview(block)
                while left:
                    left = left[_written(copy, left, self.name, size) :]
        except BaseException:
            if self._copy is not None:
                self._copy.close()
            raise
        return copy

    def _blocks(self, size: int | None, check: Callable[[], None]) -> Iterator[bytes]:
        """Read ``size`` bytes, or all there are: a pipe gives what it has."""
        while size != 0 and (block := self.read(0, size or 1 << 20)):
            yield block
            size = None if size is None else size - len(block)
            check()


def most_bytes(seconds: float | None) -> float:
    """The most bytes that a file of so many seconds can have; infinity for any length."""
    return math.inf if seconds is None else MOST_HEADER_BYTES + seconds * MOST_BYTES_PER_SECOND


def _written(copy: IO[bytes], block: memoryview, name: str, size: int) -> int:
    try:
        return copy.write(block)
    except OSError as error:
        failure = storage_error(error)
        if isinstance(failure, StorageFull):
            failure = StorageFull(
                f"there is no room on the disk for a copy of {name}, which has given {size} bytes and has not ended: "
                "give a stream that ends, or the path of a file, which is not copied"
            )
        raise failure from error


def _reader(file: Any, check: Callable[[], None]) -> Callable[[int], Any]:
    """How to read on in a file object, so that ``check`` is called while a pipe or a terminal gives nothing."""
    read: Callable[[int], Any] = file.read
    buffered = type(file) is io.BufferedReader
    # A class of somebody else may read its content in read() alone.
    raw = file.raw if buffered else file
    if type(raw) is not io.FileIO or stat.S_ISREG(os.fstat(raw.fileno()).st_mode) or not hasattr(select, "poll"):
        return read
    if buffered:
        read = file.read1
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)

    def read_when_ready(size: int) -> Any:
        while not poll.poll(CHECK_MILLISECONDS):
            check()
        return read(size)

    return read_when_ready


def _descriptor(file: Any) -> int | None:
    """The descriptor of a file that reads itself as its content is on the disk: no class of somebody else does."""
    if type(file) is not io.FileIO and type(file) is not io.BufferedReader:
        return None
    if type(file) is io.BufferedReader and type(file.raw) is not io.FileIO:
        return None
    descriptor = file.fileno()
    return descriptor if ISOLATED and stat.S_ISREG(os.fstat(descriptor).st_mode) else None
