"""Storage of decoded audio while it grows: in memory within the budget of all jobs, else in a temporary file.

In both cases a file descriptor gives access to the samples: the decoder process writes them, and this process maps
them.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.errors import StorageError, StorageFull
from whisper_api.schema import SAMPLE_RATE

Samples = NDArray[np.float32]
SAMPLE_BYTES = 4
MAX_CHANNELS = 8
"""The most channels that are decoded separately."""
LEAST_GROWTH = 60 * SAMPLE_RATE * SAMPLE_BYTES
Reserve = Callable[[int], tuple[int, int]]
"""Reserves room for a total number of bytes. Returns the file's descriptor and the number of bytes that have room."""
ReserveTrack = Callable[[int, int], tuple[int, int]]
"""The same for several tracks, each with a file of its own: takes the number of the track, then the number of bytes."""


class AudioMemory:
    """The memory budget of decoded audio, over all jobs of an engine.

    No job waits for memory: a recording that does not fit continues in a temporary file, whose pages the system can
    write back and evict. So a short clip never waits for a long recording, and deadlock is impossible.

    Args:
        limit: bytes over all recordings; None for no limit.
        directory: directory of the temporary files. The files have no name, so a crash leaves none behind. None for
            ``TMPDIR``, else ``/var/tmp`` if it exists, since ``/tmp`` is often in memory itself.
    """

    def __init__(self, limit: int | None = None, directory: Path | None = None) -> None:
        self.limit = limit
        self._directory = directory
        self._lock = threading.Lock()
        self._used = 0  # guarded by _lock

    @property
    def used(self) -> int:
        """Bytes that recordings have claimed."""
        with self._lock:
            return self._used

    def claim(self, size: int) -> bool:
        """Claim bytes. Returns False, and claims nothing, when they exceed the limit."""
        with self._lock:
            if self.limit is not None and self._used + size > self.limit:
                return False
            self._used += size
            return True

    def release(self, size: int) -> None:
        """Return bytes that were claimed."""
        with self._lock:
            self._used -= size

    def temporary_file(self) -> IO[bytes]:
        """Open a temporary file without a name.

        Raises:
            OSError: the directory cannot be written to.
        """
        if self._directory is not None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._directory or _default_directory(), prefix="whisper-api-", buffering=0)


class Recording:
    """The file with the samples of one recording.

    Args:
        memory: the budget of all recordings; None for no limit.
    """

    def __init__(self, memory: AudioMemory | None = None) -> None:
        self._memory = memory or AudioMemory()
        self._in_memory = hasattr(os, "memfd_create")
        self._claimed = 0
        self._file: IO[bytes] | None = None

    def reserve(self, size: int) -> tuple[int, int]:
        """Reserve room for samples; see :data:`Reserve`. The content moves to a temporary file when memory is full.

        Raises:
            StorageFull, StorageError: the temporary file cannot be written.
        """
        if self._in_memory:
            for capacity in (max(size, self._claimed + max(self._claimed // 16, LEAST_GROWTH)), size):
                if self._memory.claim(capacity - self._claimed):
                    self._claimed = capacity
                    if self._file is None:
                        self._file = os.fdopen(os.memfd_create("whisper-api-audio"), "r+b", buffering=0)
                    return self._file.fileno(), capacity
        try:
            file = self._file if self._file is not None and not self._in_memory else self._moved()
        except OSError as error:
            raise storage_error(error) from error
        return file.fileno(), sys.maxsize

    def finish(self, size: int) -> Samples:
        """Map the first samples of the recording, and close the file.

        Args:
            size: number of samples.

        Returns:
            float32, shape (size,), writable. Its memory stays claimed until the last reference to the array is gone.

        Raises:
            StorageError: the file cannot be mapped.
        """
        if self._file is None or not size:
            return np.zeros(size, np.float32)
        try:
            mapped = mmap.mmap(self._file.fileno(), size * SAMPLE_BYTES)
        except (OSError, ValueError) as error:
            raise storage_error(error) from error
        if self._in_memory:
            finalizer = weakref.finalize(mapped, self._memory.release, len(mapped))
            finalizer.atexit = False
            self._claimed -= len(mapped)
        self.close()
        return np.frombuffer(mapped, np.float32)

    def close(self) -> None:
        """Close the file and release its claim. A mapping keeps its content and its own claim."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._memory.release(self._claimed)
        self._claimed = 0

    def _moved(self) -> IO[bytes]:
        file = self._memory.temporary_file()
        if self._file is not None:
            self._file.seek(0)
            shutil.copyfileobj(self._file, file, 1 << 20)
        self.close()
        self._in_memory = False
        self._file = file
        return file


class Track:
    """Writes samples at 16 kHz into a file.

    Args:
        reserve: reserves room in the file; None to only count samples.

    Attributes:
        size: number of samples.
        not_finite: number of samples that were NaN or infinite; they are written as 0.
        peak: the largest absolute value.
    """

    def __init__(self, reserve: Reserve | None) -> None:
        self.size = 0
        self.not_finite = 0
        self.peak = 0.0
        self._reserve = reserve
        self._descriptor = -1
        self._room = 0

    def append(self, block: Samples) -> None:
        """Add samples: float32, shape (samples,).

        Raises:
            StorageFull, StorageError: the file cannot be written.
        """
        if not len(block):
            return
        peak = float(np.abs(block).max())
        if not math.isfinite(peak):
            bad = ~np.isfinite(block)
            self.not_finite += int(bad.sum())
            block = np.where(bad, np.float32(0.0), block)
            peak = float(np.abs(block).max())
        self.peak = max(self.peak, peak)
        end = self.size + len(block)
        if not peak:
            self.silence_until(end)
            return
        if self._has_file(end):
            left = np.ascontiguousarray(block).view(np.uint8).data
            try:
                os.lseek(self._descriptor, self.size * SAMPLE_BYTES, os.SEEK_SET)
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                raise storage_error(error) from error
        self.size = end

    def silence_until(self, end: int) -> None:
        """Add zeros up to a number of samples.

        Raises:
            StorageFull, StorageError: the file cannot be written.
        """
        if end <= self.size:
            return
        if self._has_file(end):
            try:
                # A hole in the file reads as zeros and takes no space.
                os.truncate(self._descriptor, end * SAMPLE_BYTES)
            except OSError as error:
                raise storage_error(error) from error
        self.size = end

    def _has_file(self, end: int) -> bool:
        if self._reserve is None:
            return False
        if end * SAMPLE_BYTES > self._room:
            self._descriptor, self._room = self._reserve(end * SAMPLE_BYTES)
        return True


def end_to_end(pieces: Sequence[Samples], spacing: int, memory: AudioMemory) -> Samples:
    """Recordings one after the other, with silence between.

    Args:
        pieces: float32, each of shape (samples,), not longer than ``spacing``.
        spacing: samples from the beginning of one recording to that of the next.
        memory: the budget that the result belongs to.

    Returns:
        float32, shape (pieces * spacing,).

    Raises:
        StorageFull, StorageError: the temporary file cannot be written.
    """
    with contextlib.closing(Recording(memory)) as recording:
        track = Track(recording.reserve)
        for number, piece in enumerate(pieces, start=1):
            for start in range(0, len(piece), 1 << 20):
                track.append(piece[start : start + (1 << 20)])
            track.silence_until(number * spacing)
        return recording.finish(track.size)


def storage_error(error: Any) -> StorageError:
    """What a write to the temporary file failed with, as an error that says what to do."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("there is no room on the disk for the decoded audio: an hour of it takes 230 MB")
    reason = getattr(error, "strerror", None) or str(error)
    return StorageError(f"the temporary file for the decoded audio cannot be used: {reason}")


def _default_directory() -> str | None:
    return "/var/tmp" if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK) else None
