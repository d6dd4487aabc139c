"""Lets a batch use the cores of idle lanes, and gives torch and CTranslate2 one pool of GPU memory.

On a CPU each lane runs its batches on its own cores, so that lanes never wait for each other. A batch that runs alone
leaves the other cores idle: it may use them, too. The threads sleep while they wait, because the lanes' next batches
and other programs need the cores.

On a GPU, each library has an allocator that takes memory from the CUDA driver's pool (``cudaMallocAsync``). With both,
memory that one library has freed serves the other, and as torch sets up the pool, the driver does not unmap freed
memory at every synchronisation. The libraries read these settings when they are loaded.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

# What OpenMP reads, once, when torch is loaded. GNU's OpenMP turns so many times, about 20 microseconds, before it
# sleeps: short operations follow each other so fast that sleeping at once would make two threads a third slower.
SLEEPING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}

_local = threading.local()
_torch_sleeps = True


def let_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make the threads of one torch operation sleep while they wait for each other.

    By default they spin. Beside other programs that use the cores, an operation on two threads then takes several times
    as long as on one thread, and ten times the processor time. Settings of the user stay. Where the threads spin,
    because the user wants it or because torch was imported before, torch keeps to a batch's own cores.

    Args:
        environment: the variables of this process.
    """
    global _torch_sleeps
    given = [name for name in SLEEPING if name in environment]
    if given or "torch" in sys.modules:
        _torch_sleeps = any(environment[name].strip().lower() in ("passive", SLEEPING[name]) for name in given)
        return
    environment.update(SLEEPING)
    _torch_sleeps = True


def batch_threads(usual: int) -> int:
    """The number of threads that the batch on this thread may use.

    Args:
        usual: the number outside of a batch, and of a batch beside others.
    """
    batch: _Batch | None = getattr(_local, "batch", None)
    return usual if batch is None else batch.threads


def adjust() -> None:
    """Between two parts of a batch: use the cores of lanes that became idle, or give them back."""
    batch: _Batch | None = getattr(_local, "batch", None)
    if batch is not None and batch.share is not None:
        batch.use(batch.share())


@contextmanager
def using(threads: int, usual: int, share: Callable[[], int] | None = None) -> Iterator[None]:
    """The context of a batch that may use so many threads; torch uses them from this thread on.

    Args:
        threads: the number of threads.
        usual: the number after this context.
        share: returns the number that the batch may use by now, for :func:`adjust`; None for an unchanging number.
    """
    batch = _local.batch = _Batch(usual, share)
    batch.use(threads)
    try:
        yield
    finally:
        del _local.batch
        batch.use(usual)


class _Batch:
    """The batch that runs on a thread.

    Attributes:
        threads: the number of threads that it may use.
    """

    def __init__(self, usual: int, share: Callable[[], int] | None) -> None:
        self._usual, self.share, self.threads = usual, share, usual

    def use(self, threads: int) -> None:
        """Use so many threads. In torch, the number belongs to the calling thread."""
        self.threads = threads
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(torch, "get_num_threads"):
            # Another thread may be importing it.
            return
        wanted = threads if _torch_sleeps else min(threads, self._usual)
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)


# What the driver makes on a machine with an NVIDIA GPU: on a server or PC, on a Jetson, in Windows' Linux.
DEVICE_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/nvhost-gpu", "/dev/dxg")
# torch 2.8 reads the first name, and later versions the second one too.
TORCH_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
CTRANSLATE2_NAME = "CT2_CUDA_ALLOCATOR"


def share_device_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch and CTranslate2 take memory from one pool where there may be a CUDA device.

    Settings of the user stay. Without effect after torch was imported.

    Args:
        environment: the variables of this process.
    """
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if hidden or not any(Path(file).exists() for file in DEVICE_FILES):
        return
    if not any(name in environment for name in TORCH_NAMES):
        environment[TORCH_NAMES[0]] = "backend:cudaMallocAsync"
    environment.setdefault(CTRANSLATE2_NAME, "cuda_malloc_async")
