"""Decoded audio as it grows: in memory while the budget of all jobs allows it, else in a mapped temporary file."""

from __future__ import annotations

import errno
import math
import os
import tempfile
import threading
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.errors import StorageError, StorageFull
from whisper_api.schema import SAMPLE_RATE

__all__ = ["SAMPLE_RATE", "AudioMemory", "Samples", "Track", "replace_not_finite"]

"""Samples per second of everything that is decoded; what Whisper was trained on."""
Samples = NDArray[np.float32]
SAMPLE_BYTES = 4
LEAST_GROWTH = 60 * SAMPLE_RATE


class AudioMemory:
    """The memory that decoded audio may take, over all jobs of an engine.

    Nobody waits for it: a recording that finds no room goes on in a temporary file, whose pages the system can write
    back and drop. So a short clip never stands behind a long recording, and there is nothing to deadlock on.

    Args:
        limit: bytes over all recordings; None for no limit.
        directory: where the temporary files go. They have no name, so nothing is left over after a crash. None for
            ``TMPDIR``, else ``/var/tmp`` where there is one, since ``/tmp`` is often memory itself.
    """

    def __init__(self, limit: int | None = None, directory: Path | None = None) -> None:
        self.limit = limit
        self._directory = directory
        self._lock = threading.Lock()
        self._used = 0  # guarded by _lock

    @property
    def used(self) -> int:
        """Bytes that recordings hold now."""
        with self._lock:
            return self._used

    def take(self, size: int) -> bool:
        """Claim bytes, if there is room for them."""
        with self._lock:
            if self.limit is not None and self._used + size > self.limit:
                return False
            self._used += size
            return True

    def give_back(self, size: int) -> None:
        """Return bytes that were claimed."""
        with self._lock:
            self._used -= size

    def temporary_file(self) -> IO[bytes]:
        """An open file without a name.

        Raises:
            OSError: the directory cannot be written to.
        """
        if self._directory is not None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._directory or _default_directory(), prefix="whisper-api-", buffering=0)


class _Claim:
    """What one recording has claimed of the memory; returned when its array is gone, or before."""

    def __init__(self, memory: AudioMemory) -> None:
        self._memory = memory
        self._size = 0

    def extend(self, size: int) -> bool:
        if not self._memory.take(size):
            return False
        self._size += size
        return True

    def reduce(self, size: int) -> None:
        returned, self._size = self._size - size, size
        self._memory.give_back(returned)

    def release(self) -> None:
        self.reduce(0)


class Track:
    """A float32 array at 16 kHz that grows.

    In memory it is reallocated (mremap on Linux), so that there are never two of it.

    Args:
        memory: the budget, and where the rest goes.

    Attributes:
        size: samples so far.
        not_finite: how many samples were NaN or infinite; they stand as 0.
        peak: the largest absolute value.
    """

    def __init__(self, memory: AudioMemory | None = None) -> None:
        self.size = 0
        self.not_finite = 0
        self.peak = 0.0
        self._memory = memory or AudioMemory()
        self._claim = _Claim(self._memory)
        self._data: Samples = np.zeros(0, dtype=np.float32)
        self._release = _at_end_of(self, self._claim)
        self._file: IO[bytes] | None = None

    def append(self, block: Samples) -> None:
        """Add samples: float32, shape (samples,).

        Raises:
            StorageFull, StorageError: the temporary file cannot be written.
        """
        if not len(block):
            return
        peak = float(np.abs(block).max())
        if not math.isfinite(peak):
            block = block.copy()
            self.not_finite += replace_not_finite(block)
            peak = float(np.abs(block).max())
        self.peak = max(self.peak, peak)
        end = self.size + len(block)
        if not peak:
            self.silence_until(end)
            return
        if self._has_room(end):
            self._data[self.size : end] = block
        else:
            self._write(block)
        self.size = end

    def silence_until(self, end: int) -> None:
        """Add zeros up to a number of samples.

        Raises:
            StorageFull, StorageError: the temporary file cannot be written.
        """
        if end <= self.size:
            return
        if self._has_room(end):
            self._data[self.size : end] = 0.0
        else:
            # A hole in the file reads as zeros and takes no room on the disk.
            self._resize_file(end)
        self.size = end

    def finish(self) -> Samples:
        """The samples, shape (samples,). The track is at its end.

        Raises:
            StorageError: the temporary file cannot be mapped.
        """
        if self._file is None:
            self._data.resize(self.size, refcheck=False)
            self._claim.reduce(self._data.nbytes)
            # The caller keeps the array as long as it likes: its end is what returns the memory.
            self._release.detach()
            _at_end_of(self._data, self._claim)
            return self._data
        try:
            # Writable, since torch warns of arrays that are not.
            mapped = np.memmap(self._file, np.float32, mode="r+", shape=(self.size,))
        except (OSError, ValueError) as error:
            raise _storage_error(error) from error
        finally:
            # The mapping keeps the content.
            self.close()
        return mapped.view(np.ndarray)

    def close(self) -> None:
        """Let go of the temporary file."""
        if self._file is not None:
            self._file.close()

    def _has_room(self, end: int) -> bool:
        """Whether the samples up to ``end`` have room in memory; if not, the track is in its file."""
        if self._file is not None:
            return False
        if end <= len(self._data):
            return True
        # New room is zero-filled and so counts as used memory: a sixteenth is spent at most.
        size = max(end, len(self._data) + max(len(self._data) // 16, LEAST_GROWTH))
        for wanted in (size, end):
            if self._claim.extend((wanted - len(self._data)) * SAMPLE_BYTES):
                self._data.resize(wanted, refcheck=False)
                return True
        self._to_file()
        return False

    def _to_file(self) -> None:
        try:
            self._file = self._memory.temporary_file()
        except OSError as error:
            raise _storage_error(error) from error
        self._write(self._data[: self.size])
        self._data = np.zeros(0, dtype=np.float32)
        self._claim.release()

    def _write(self, block: Samples) -> None:
        assert self._file is not None
        left = np.ascontiguousarray(block).view(np.uint8).data
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _storage_error(error) from error

    def _resize_file(self, end: int) -> None:
        assert self._file is not None
        try:
            self._file.truncate(end * SAMPLE_BYTES)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise _storage_error(error) from error


def replace_not_finite(block: Samples) -> int:
    """Set NaN and infinite samples to 0; tells how many there were."""
    bad = ~np.isfinite(block)
    block[bad] = 0.0
    return int(bad.sum())


def _at_end_of(owner: object, claim: _Claim) -> weakref.finalize[Any, Any]:
    release = weakref.finalize(owner, claim.release)
    release.atexit = False
    return release


def _default_directory() -> str | None:
    return "/var/tmp" if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK) else None


def _storage_error(error: Any) -> StorageError:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("there is no room on the disk for the decoded audio: an hour of it takes 230 MB")
    reason = getattr(error, "strerror", None) or str(error)
    return StorageError(f"the temporary file for the decoded audio cannot be used: {reason}")
