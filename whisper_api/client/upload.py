"""Audio on its way to the server: a form with one file, read anew for each attempt and never held whole."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Union

from whisper_api.errors import InvalidInput

__all__ = ["Form", "Source", "SourceFailed", "opened"]

Source = Union[str, "os.PathLike[str]", bytes, BinaryIO]

CHUNK_BYTES = 1 << 16


class SourceFailed(Exception):
    """The file or the callback failed, the cause says how. As they are, requests takes some errors for its own."""


class Form:
    """A form with one file as the body of a request (RFC 7578).

    Args:
        fields: name to value.
        file: can seek; sent from its beginning, as long as it is now.
        name: of the file, for people.
        on_upload: called with the bytes of the file that were sent and those in all.

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
        # Escaped as browsers do it, in the HTML standard's "multipart form data".
        name = name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
        parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n')
        parts.append("Content-Type: application/octet-stream\r\n\r\n")
        self._head = "".join(parts).encode("utf-8", "replace")
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._on_upload = on_upload or _nothing
        self.content_type = f"multipart/form-data; boundary={boundary}"

    def __len__(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces()
        except Exception as error:
            raise SourceFailed from error

    def _pieces(self) -> Iterator[bytes]:
        yield self._head
        self._file.seek(0)
        sent = 0
        self._on_upload(sent, self._size)
        while sent < self._size:
            chunk = self._file.read(min(CHUNK_BYTES, self._size - sent))
            if not chunk:
                raise InvalidInput("the file became shorter while it was sent")
            yield chunk
            sent += len(chunk)
            self._on_upload(sent, self._size)
        yield self._tail


def _nothing(*ignored: object) -> None:
    return None


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[BinaryIO, str]]:
    """A source as a file that can be read more than once, and its name.

    Raises:
        OSError: it cannot be read.
        InvalidInput: it is a file of text.
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
