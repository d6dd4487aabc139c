"""Uploads of audio: a form with one file, which is read anew for each attempt and never held in memory whole."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Union

from whisper_api.errors import InvalidInput, Portable

Source = Union[str, "os.PathLike[str]", bytes, BinaryIO]

CHUNK_BYTES = 1 << 16


class UploadFailed(Portable):
    """The file or the callback failed. The wrapper keeps requests from taking some errors for its own.

    Args:
        reason: the error.

    Attributes:
        reason: the error; an attribute, because httpcore clears the cause of errors that it passes on.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class MultipartForm:
    """A form with one file as the body of a request (RFC 7578); an iterable of bytes for ``for`` and ``async for``.

    Args:
        fields: name to value.
        file: a seekable file; sent from its beginning to its current end.
        name: name of the file, for people.
        on_upload: called with the number of bytes of the file that were sent, and the number of all.

    Attributes:
        content_type: the header that the body needs.
    """

    def __init__(
        self,
        fields: Mapping[str, str],
        file: BinaryIO,
        name: str,
        on_upload: Callable[[int, int], None] | None,
    ) -> None:
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()
        ]
        # Escaped as in the HTML standard, section "multipart form data".
        name = name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
        parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n')
        parts.append("Content-Type: application/octet-stream\r\n\r\n")
        self._head = "".join(parts).encode("utf-8", "replace")
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._on_upload = on_upload or (lambda sent, total: None)
        self._sent = 0
        self.content_type = f"multipart/form-data; boundary={boundary}"

    def __len__(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        with _as_source_failure():
            yield self._begin()
            while self._unsent:
                yield self._counted(self._file.read(self._unsent))
                self._on_upload(self._sent, self._size)
            yield self._tail

    async def __aiter__(self) -> AsyncIterator[bytes]:
        import asyncio

        with _as_source_failure():
            yield self._begin()
            while self._unsent:
                # Read in a thread, because a disk may be slow. The callback runs in the event loop.
                yield self._counted(await asyncio.to_thread(self._file.read, self._unsent))
                self._on_upload(self._sent, self._size)
            yield self._tail

    def _begin(self) -> bytes:
        self._file.seek(0)
        self._sent = 0
        self._on_upload(0, self._size)
        return self._head

    @property
    def _unsent(self) -> int:
        """The number of bytes to read next."""
        return min(CHUNK_BYTES, self._size - self._sent)

    def _counted(self, chunk: bytes) -> bytes:
        if not chunk:
            raise InvalidInput("the file became shorter while it was sent")
        self._sent += len(chunk)
        return chunk


@contextlib.contextmanager
def _as_source_failure() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UploadFailed(error) from error


def whole(sources: Sequence[Source]) -> list[bytes]:
    """The bytes of each source.

    Raises:
        OSError: a source cannot be read.
        InvalidInput: a source is a text file object.
    """
    found = []
    for source in sources:
        with opened(source) as (file, _):
            file.seek(0)
            found.append(file.read())
    return found


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[BinaryIO, str]]:
    """A source as a file that can be read more than once, and its name.

    Raises:
        OSError: the source cannot be read.
        InvalidInput: the source is a text file object.
    """
    with contextlib.ExitStack() as stack:
        file: Any
        if isinstance(source, (bytes, bytearray, memoryview)):
            file = io.BytesIO(source)
        elif isinstance(source, (str, os.PathLike)):
            file = stack.enter_context(Path(source).open("rb"))
        else:
            file = source
        if isinstance(file, io.TextIOBase):
            raise InvalidInput("audio is bytes: open the file in binary mode")
        name = getattr(file, "name", None)
        if not file.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, copy, CHUNK_BYTES)
            file = copy
        yield file, Path(name).name if isinstance(name, str) else "audio"
