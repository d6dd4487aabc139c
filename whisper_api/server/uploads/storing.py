"""Files that are being uploaded. A file gets its name when it is whole, and then survives a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from whisper_api.errors import StorageError, StorageFull
from whisper_api.schema import SAMPLE_RATE
from whisper_api.store.database import sync_directory

PART_NAME = "audio.part"
WHOLE_NAME = "audio"

SAMPLE_BYTES = 2
HEADER_BYTES = 44
# A WAV file begins with "RIFF", four bytes of length and "WAVE".
SIGNATURE_BYTES = 12
# Players and encoders write this length when they do not know how many samples follow.
UNKNOWN_LENGTH = 0xFFFFFFFF


class StoredFile:
    """A file that is being written. Two threads must not use it at the same time.

    Args:
        directory: directory of the file; made with mode 0700 for the first byte.

    Attributes:
        directory: directory of the file.
        path: path of the whole file, which exists after :meth:`commit`.
        size: bytes written so far.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / WHOLE_NAME
        self.size = 0
        self._part = directory / PART_NAME
        self._file: BinaryIO | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append some bytes."""
        self._opened().write(data)
        self.size += len(data)

    def commit(self) -> None:
        """Give the file its name, and make it survive a power cut."""
        with self._opened() as file:
            file.flush()
            os.fsync(file.fileno())
        self._part.rename(self.path)
        for directory in (self.directory, self.directory.parent):
            sync_directory(directory)

    def close(self) -> None:
        """Close the file without finishing it; the owner of the directory removes it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def discard(self) -> None:
        """Close and remove an unfinished file."""
        self.close()
        self._part.unlink(missing_ok=True)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._file = os.fdopen(os.open(self._part, flags, 0o600), "wb")
        return self._file


class HeaderlessFile(StoredFile):
    """Signed 16-bit little-endian mono samples at 16 kHz, stored behind the header of a WAV file.

    Clients of whisper-asr-webservice send such samples with ``encode=false``. If the data is a WAV file, it is stored
    unchanged.

    Args:
        directory: directory of the file.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        # The first bytes; None once they have shown whether this is a WAV file.
        self._beginning: bytearray | None = bytearray()
        self._has_header = False

    def write(self, data: bytes | memoryview) -> None:
        """Append some samples."""
        if self._beginning is None:
            super().write(data)
            return
        self._beginning += data
        if len(self._beginning) >= SIGNATURE_BYTES:
            self._begin(bytes(self._beginning))

    def commit(self) -> None:
        """Write the length of the samples into the header, and give the file its name."""
        if self._beginning is not None:
            self._begin(bytes(self._beginning))
        if self._has_header:
            file = self._opened()
            file.seek(0)
            file.write(wav_header(self.size - HEADER_BYTES))
        super().commit()

    def _begin(self, beginning: bytes) -> None:
        self._beginning = None
        if not (beginning.startswith(b"RIFF") and beginning[8:SIGNATURE_BYTES] == b"WAVE"):
            self._has_header = True
            super().write(wav_header(0))
        super().write(beginning)


def wav_header(data_bytes: int) -> bytes:
    """The header of a WAV file of 16-bit mono samples at 16 kHz (RIFF, format 1).

    Args:
        data_bytes: length of the samples. The format cannot express 4 GiB or more; the header then says "unknown".
    """
    riff_bytes = min(HEADER_BYTES - 8 + data_bytes, UNKNOWN_LENGTH)
    byte_rate = SAMPLE_RATE * SAMPLE_BYTES
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", riff_bytes, b"WAVE"),
        *(b"fmt ", 16, 1, 1, SAMPLE_RATE, byte_rate, SAMPLE_BYTES, 8 * SAMPLE_BYTES),
        *(b"data", min(data_bytes, UNKNOWN_LENGTH)),
    )


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Translate errors of the operating system while an upload is written.

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
