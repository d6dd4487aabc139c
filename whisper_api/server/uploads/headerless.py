"""Samples without a header, as clients of whisper-asr-webservice send them: made a WAV file while they come."""

from __future__ import annotations

import struct

from whisper_api.schema import SAMPLE_RATE
from whisper_api.server.uploads.storing import StoredFile

__all__ = ["HEADER_BYTES", "HeaderlessFile", "wav_header"]

SAMPLE_BYTES = 2
HEADER_BYTES = 44
# What a WAV file begins with, whose samples follow somewhere after: "RIFF", four bytes of length, "WAVE".
SIGNATURE_BYTES = 12
# The length that says: as much as there is (as players and encoders write streams).
UNKNOWN_LENGTH = 0xFFFFFFFF


def wav_header(data_bytes: int) -> bytes:
    """The header of a WAV file of 16-bit mono samples at 16 kHz (RIFF, format 1).

    Args:
        data_bytes: length of the samples; from 4 GiB on, which the format cannot tell, the header leaves it open.
    """
    riff_bytes = min(HEADER_BYTES - 8 + data_bytes, UNKNOWN_LENGTH)
    byte_rate = SAMPLE_RATE * SAMPLE_BYTES
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", riff_bytes, b"WAVE"),
        *(b"fmt ", 16, 1, 1, SAMPLE_RATE, byte_rate, SAMPLE_BYTES, 8 * SAMPLE_BYTES),
        *(b"data", min(data_bytes, UNKNOWN_LENGTH)),
    )


class HeaderlessFile:
    """Writes signed 16-bit little-endian mono samples at 16 kHz to a file, behind a header of a WAV file.

    A client that sends a WAV file all the same gets it stored as it is.

    Args:
        file: where to write.
    """

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._beginning: bytearray | None = bytearray()
        self._data_bytes: int | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Take some more samples."""
        if self._beginning is None:
            self._append(data)
            return
        self._beginning += data
        if len(self._beginning) >= SIGNATURE_BYTES:
            self._begin()

    def finish(self) -> None:
        """Say that all samples have come: the header gets their length. The file may be committed then."""
        if self._beginning is not None:
            self._begin()
        if self._data_bytes is not None:
            self._file.overwrite(wav_header(self._data_bytes))

    def _begin(self) -> None:
        beginning, self._beginning = bytes(self._beginning or b""), None
        if not (beginning.startswith(b"RIFF") and beginning[8:SIGNATURE_BYTES] == b"WAVE"):
            self._data_bytes = 0
            self._file.write(wav_header(0))
        self._append(beginning)

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        if self._data_bytes is not None:
            self._data_bytes += len(data)
