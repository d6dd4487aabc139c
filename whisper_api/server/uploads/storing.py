"""A file that is being uploaded: under another name until it is whole, and then safe from a power cut."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from whisper_api.errors import StorageError, StorageFull
from whisper_api.store.database import sync_directory

__all__ = ["StoredFile", "storage_errors"]

PART_NAME = "audio.part"
WHOLE_NAME = "audio"


class StoredFile:
    """One file on its way to the disk. Not safe to use from two threads at a time.

    Args:
        directory: made for it, mode 0700, when its first byte comes.
        hashed: whether to compute a digest of what is written.

    Attributes:
        path: of the whole file; nothing is there before :meth:`commit`.
        size: bytes so far.
    """

    def __init__(self, directory: Path, *, hashed: bool = False) -> None:
        self.path = directory / WHOLE_NAME
        self.size = 0
        self._directory = directory
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256() if hashed else None

    @property
    def digest(self) -> bytes:
        """SHA-256 of what was written; of nothing, when it was not asked for."""
        return (self._digest or hashlib.sha256()).digest()

    def write(self, data: bytes | memoryview) -> None:
        """Append some bytes."""
        self._opened().write(data)
        self.size += len(data)
        if self._digest is not None:
            self._digest.update(data)

    def overwrite(self, data: bytes) -> None:
        """Write some bytes over the file's first ones; the digest stays that of what was written before."""
        file = self._opened()
        file.seek(0)
        file.write(data)
        file.seek(0, os.SEEK_END)

    def commit(self) -> None:
        """Give the file its name; a power cut no longer undoes it."""
        with self._opened() as file:
            file.flush()
            os.fsync(file.fileno())
        (self._directory / PART_NAME).rename(self.path)
        for directory in (self._directory, self._directory.parent):
            sync_directory(directory)

    def close(self) -> None:
        """Close the file as it is; whoever owns the directory removes it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def remove(self) -> None:
        """Remove what has come; nothing may be written any more."""
        (self._directory / PART_NAME).unlink(missing_ok=True)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._file = os.fdopen(os.open(self._directory / PART_NAME, flags, 0o600), "wb")
        return self._file


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Name what the operating system says when an upload cannot be written.

    Raises:
        StorageFull: no space is left on the disk.
        StorageError: the file cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("The upload was not kept: no space is left on the disk") from error
        raise StorageError(f"The upload was not kept: {error.strerror or 'the disk cannot be written'}") from error
