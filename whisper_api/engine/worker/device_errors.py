"""What an error of a device's library means: memory ran out, the device is lost, or neither.

The libraries report all three as ``RuntimeError``, so the texts tell them apart. After a sticky CUDA error, every later
call on the context fails, whoever makes it: only a new process can use the device again.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Literal

from whisper_api.engine.worker import fork
from whisper_api.errors import DeviceLost, OutOfMemory

log = logging.getLogger(__name__)

ErrorKind = Literal["memory", "sticky", "other"]

# Part of a message in lower case, to what the error means. The first match counts. CUDA's own texts are those of
# cudaGetErrorString(); torch, CTranslate2, Thrust and ONNX Runtime put words of their own around them.
ERROR_TEXTS: dict[str, ErrorKind] = {
    # CUDA: the context is dead.
    "an illegal memory access was encountered": "sticky",
    "an illegal instruction was encountered": "sticky",
    "device-side assert triggered": "sticky",
    "unspecified launch failure": "sticky",
    "the launch timed out and was terminated": "sticky",
    "uncorrectable ecc error": "sticky",
    "uncorrectable nvlink error": "sticky",
    "hardware stack error": "sticky",
    "misaligned address": "sticky",
    "operation not supported on global/shared address space": "sticky",
    "invalid program counter": "sticky",
    "context is destroyed": "sticky",
    "driver shutting down": "sticky",
    # A fault that the hardware of Hopper and later confines to one process.
    "invalid access of peer gpu memory over nvlink or a hardware error": "sticky",
    "tensor memory not completely freed": "sticky",
    "the mps client has been terminated by the server": "sticky",
    # The GPU has fallen off its bus, or was taken from this process.
    "device(s) is/are busy or unavailable": "sticky",
    "no cuda-capable device is detected": "sticky",
    # CUDA's "unknown error", as torch, CTranslate2, Thrust and ONNX Runtime report it.
    "cuda error: unknown error": "sticky",
    "cuda failed with error unknown error": "sticky",
    "cudaerrorunknown": "sticky",
    "cuda failure 999": "sticky",
    # CUDA, torch, CTranslate2 and Thrust.
    "out of memory": "memory",
    # ONNX Runtime, on a CPU and on a GPU.
    "failed to allocate": "memory",
    "is smaller than requested bytes": "memory",
    # C++, on a CPU.
    "bad_alloc": "memory",
    # cuBLAS, cuFFT and cuDNN before version 9; then cuDNN.
    "_alloc_failed": "memory",
    "allocation_failed": "memory",
    # cuBLAS and cuDNN make their handles, and cuDNN finds an algorithm, only when there is memory for a workspace.
    "cublas_status_not_initialized": "memory",
    "cudnn_status_not_initialized": "memory",
    "unable to find an engine": "memory",
    # torch on a CPU, when it maps a file, and on Windows.
    "can't allocate memory": "memory",
    "cannot allocate memory": "memory",
    "not enough memory": "memory",
}
# Values of cudaError_t that torch.AcceleratorError carries.
STICKY_CODES = frozenset((4, 46, 100, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 999))


def kind_of(error: BaseException) -> ErrorKind:
    """What an error means.

    Args:
        error: of torch, CTranslate2, ONNX Runtime or Python. The errors that caused it count as well.
    """
    cause: BaseException | None = error
    while cause is not None:
        kind = _own_kind(cause)
        if kind != "other":
            return kind
        cause = cause.__cause__
    return "other"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, CTranslate2, ONNX Runtime or Python reports that memory ran out."""
    return kind_of(error) == "memory"


def _own_kind(error: BaseException) -> ErrorKind:
    if isinstance(error, (MemoryError, OutOfMemory)):
        return "memory"
    if isinstance(error, DeviceLost):
        return "sticky"
    # Errors of ONNX Runtime do not derive from RuntimeError.
    if not isinstance(error, RuntimeError) and not type(error).__module__.startswith("onnxruntime"):
        return "other"
    if getattr(error, "error_code", None) in STICKY_CODES:
        return "sticky"
    text = str(error).lower()
    return next((kind for words, kind in ERROR_TEXTS.items() if words in text), "other")


def first_line(error: BaseException) -> str:
    """What an error says. In further lines, torch gives advice for programmers."""
    return str(error).partition("\n")[0].strip() or type(error).__name__


def clear_frames(error: BaseException) -> None:
    """Free the local variables of the frames that an error passed, and of the errors before it.

    The frames hold the tensors of a failed batch. The error keeps its traceback, with file names and lines.
    """
    pending, seen = [error], set[int]()
    while pending:
        one = pending.pop()
        if id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            pending.extend(before for before in (one.__cause__, one.__context__) if before is not None)


class DeviceFault:
    """Remembers that a device is lost, for everything that uses the devices of an engine. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._reason = ""
        self._listeners: list[Callable[[], None]] = []

    @property
    def reported(self) -> bool:
        """Whether a device is lost."""
        return bool(self._reason)

    def on_report(self, listener: Callable[[], None]) -> None:
        """Call a function once, in any thread, when a device is lost."""
        with self._lock:
            self._listeners.append(listener)

    def report(self, error: BaseException) -> DeviceLost:
        """Note that a device is lost.

        Args:
            error: the sticky error.

        Returns:
            The error for whoever waits for the device.
        """
        with self._lock:
            first = not self._reason
            if first:
                self._reason = first_line(error)
            listeners = list(self._listeners)
        if first:
            _hold_tensors()
            log.critical("the device is lost, and so are all models: %s", self._reason, exc_info=error)
            for listener in listeners:
                listener()
        return self.error()

    def error(self) -> DeviceLost:
        """A new error for one of those who wait for the lost device."""
        return DeviceLost(f"the device is lost ({self._reason}): only a new process can use it")

    def check(self) -> None:
        """Raise DeviceLost when a device is lost.

        Raises:
            DeviceLost: after :meth:`report`.
        """
        if self._reason:
            raise self.error()


def _hold_tensors() -> None:
    """Keep all tensors on GPUs for ever.

    With the driver's pool of memory, torch's allocator throws when it frees memory on a dead context. It frees in
    destructors, from which no exception may escape, so the process would be aborted before its jobs are back in the
    queue.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):
            # A tensor of another library's own kind may not tell where it is.
            with contextlib.suppress(Exception):
                if each.is_cuda:
                    fork.keep_for_ever(each)
