"""Copies of recordings in the memory of a GPU: each sample goes there once, and the stages read slices of the copy.

Without a copy, a stage sends each of its windows. The windows of segmentation overlap: for an hour of audio they are
ten hours of samples, 2.3 GB, which a thread would join in the host's memory and then wait for.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.worker.device_errors import clear_frames, is_out_of_memory

if TYPE_CHECKING:
    import torch

    from whisper_api.engine.worker.device import Device

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

# Bytes of copies on one device, over all jobs: 2.3 hours. batch_memory.RESERVED_BYTES counts them.
COPY_BYTES = 512 << 20
# At most this part of the memory that is free when a job begins.
FREE_SHARE = 1 / 16


class _Copy:
    """A recording of a job, and its copy once a stage has read it."""

    def __init__(self, audio: Floats, device: str) -> None:
        self.audio = audio
        self.device = device
        self.first = _address(audio)
        self.lock = threading.Lock()
        self.tensor: torch.Tensor | None = None  # guarded by lock

    def contains(self, piece: Floats) -> bool:
        return self.first <= _address(piece) and _address(piece) + piece.nbytes <= self.first + self.audio.nbytes


class DeviceCopies:
    """The copies of all jobs, on all devices of this process. Thread-safe.

    A slice of a copy keeps the copy's memory, so a batch that runs while its job ends is not harmed. The operations
    return when their results are in the host's memory, so no kernel reads a copy after its last slice has gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: list[_Copy] = []  # guarded by _lock; replaced, never changed

    @contextlib.contextmanager
    def kept(self, audio: Floats, device: Device) -> Iterator[None]:
        """While open, the stages of a job share one copy of its audio, which is made at the first use.

        There is none on a CPU, for audio that is not contiguous, and where copies would take too much memory.

        Args:
            audio: float32, shape (samples,). It does not change while the context is open.
            device: the device that runs the stages.
        """
        if device.kind == "cpu" or not audio.size or not _is_plain(audio):
            yield
            return
        copy = _Copy(audio, device.torch_name)
        free = device.free_memory()
        with self._lock:
            taken = sum(each.audio.nbytes for each in self._copies if each.device == copy.device)
            room = COPY_BYTES if free is None else min(COPY_BYTES, int(free * FREE_SHARE))
            if taken + audio.nbytes <= room:
                self._copies = [*self._copies, copy]
        try:
            yield
        finally:
            self._forget(copy)

    def tensor(self, piece: Floats, device: str) -> torch.Tensor:
        """A part of some audio as a tensor on a device: a slice of the job's copy, if it has one.

        On a GPU, call this in the stream that reads the tensor, and do not change the tensor.

        Args:
            piece: float32, shape (samples,).
            device: torch's name of the device.
        """
        plain = _is_plain(piece)
        copies = [each for each in self._copies if each.device == device and plain and each.contains(piece)]
        for copy in copies:
            whole = self._whole(copy)
            if whole is not None:
                first = (_address(piece) - copy.first) // piece.itemsize
                return whole[first : first + len(piece)]
        return _sent(piece, device)

    def drop(self, device: str) -> bool:
        """Free the copies on a device, whose memory has run out. Their jobs send their windows from now on.

        Returns:
            Whether there was any.
        """
        copies = [each for each in self._copies if each.device == device]
        for copy in copies:
            self._forget(copy)
        freed = [_free(each) for each in copies]
        return any(freed)

    def _whole(self, copy: _Copy) -> torch.Tensor | None:
        """The copy; None when there is no memory for it."""
        with copy.lock:
            if copy.tensor is not None:
                return copy.tensor
            try:
                copy.tensor = _sent(copy.audio, copy.device, whole=True)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = error
            else:
                return copy.tensor
        clear_frames(failure)
        log.info("a recording of %d MB is not kept on %s: there is no memory", copy.audio.nbytes >> 20, copy.device)
        self._forget(copy)
        return None

    def _forget(self, copy: _Copy) -> None:
        with self._lock:
            self._copies = [each for each in self._copies if each is not copy]


def _free(copy: _Copy) -> bool:
    with copy.lock:
        had, copy.tensor = copy.tensor is not None, None
    return had


def _sent(samples: Floats, device: str, *, whole: bool = False) -> torch.Tensor:
    """Send samples to a device.

    Args:
        samples: float32, shape (samples,).
        device: torch's name of the device.
        whole: whether other streams will read the tensor, so that it must be complete.
    """
    import torch

    tensor = torch.from_numpy(samples)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    if whole:
        # Not through pinned memory, of which torch would keep as much for ever.
        tensor = tensor.to(device)
        torch.cuda.current_stream(device).synchronize()
        return tensor
    # A copy from pinned memory runs in parallel with the device's work.
    return tensor.pin_memory().to(device, non_blocking=True)


def _is_plain(samples: Floats) -> bool:
    return samples.dtype == np.float32 and samples.ndim == 1 and samples.flags.c_contiguous


def _address(samples: Floats) -> int:
    """The address of the first sample."""
    address: int = samples.__array_interface__["data"][0]
    return address


COPIES = DeviceCopies()
