"""The devices of this machine: their choice by name, compute types, parallelism and free memory."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from whisper_api.errors import DeviceUnavailable, InvalidOption

log = logging.getLogger(__name__)

# Replacements for a compute type that the device does not support, the best first.
_FALLBACKS: dict[str, tuple[str, ...]] = {
    "cuda": ("float16", "bfloat16", "int8_float16", "int8", "float32"),
    "cpu": ("int8", "int8_float32", "float32"),
}
COMPUTE_TYPES = (
    "auto",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
    "float32",
)

CPUINFO = Path("/proc/cpuinfo")
# More lanes cost memory for activations and gain nothing, since few jobs run at once.
MAX_LANES = 4
# One batch is encoded, which is bound by arithmetic, while another is decoded, which is bound by latency.
GPU_LANES = 2


@dataclass(frozen=True)
class Device:
    """A CPU or GPU.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        index: number of the GPU; 0 for the CPU.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0

    @property
    def torch_name(self) -> str:
        """The device's name in torch: ``cpu``, ``cuda:0`` ..."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The context of a thread that runs models: makes this the current device and gives torch its own stream.

        Kernels on torch's default stream would wait for all of CTranslate2's streams, and those streams for the
        kernels. What is computed in float32 is meant to be: without this, torch's convolutions and LSTMs round to
        TF32, and diarization may find other speakers. Sums of products are kept in float32 too, as in CTranslate2.
        torch keeps these settings for the whole process.
        """
        if self.kind == "cpu":
            yield
            return
        import torch

        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.cuda.set_device(self.index)
        with torch.cuda.stream(torch.cuda.Stream(self.index)):  # type: ignore[no-untyped-call]
            yield

    def check(self) -> None:
        """Wait for the device's work, and raise the error of its context.

        Raises:
            RuntimeError: the context is dead, or an earlier kernel has failed.
        """
        if self.kind == "cuda":
            import torch

            torch.cuda.synchronize(self.index)

    def free_memory(self) -> int | None:
        """Bytes of free memory on the device, with what torch keeps of freed memory for later; None when unknown."""
        if self.kind == "cuda":
            import torch

            free, _ = torch.cuda.mem_get_info(self.index)
            # With the driver's pool, both numbers count CTranslate2's memory too.
            kept = torch.cuda.memory_reserved(self.index) - torch.cuda.memory_allocated(self.index)
            return int(free) + max(0, int(kept))
        return available_ram()


def choose_devices(name: str = "auto", index: int = 0) -> tuple[Device, ...]:
    """The devices of a name: one, or every GPU that can be used for ``cuda:all``.

    Args:
        name: ``auto`` (the first usable GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` or ``cuda:all``.
        index: number of the GPU for ``cuda``.

    Raises:
        DeviceUnavailable: this machine has no such device, or cannot use it.
        InvalidOption: the name is not a device name.
    """
    import ctranslate2

    kind, colon, suffix = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not suffix.isdecimal() and suffix != "all"):
        raise InvalidOption("device", f"{name!r} is not a device; use auto, cpu, cuda, cuda:<index> or cuda:all")
    count = int(ctranslate2.get_cuda_device_count())
    if kind == "auto":
        for each in range(count):
            problem = cuda_problem(each)
            if problem is None:
                return (Device("cuda", each),)
            log.warning("this machine has a GPU, but %s", problem)
    if kind != "cuda":
        return (Device("cpu"),)
    first = (int(suffix) if suffix.isdecimal() else 0) if colon else index
    if not 0 <= first < count:
        found = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
        raise DeviceUnavailable(f"device cuda:{first} was asked for, but this machine has {found}")
    problems = {each: cuda_problem(each) for each in (range(count) if suffix == "all" else [first])}
    usable = tuple(Device("cuda", each) for each, problem in problems.items() if problem is None)
    if not usable:
        raise DeviceUnavailable(f"device cuda:{first} was asked for, but {problems[first]}")
    for each, problem in problems.items():
        if problem is not None:
            log.warning("cuda:%d is not used: %s", each, problem)
    return usable


CUBLAS = "libcublas.so.12"


def cuda_problem(index: int = 0) -> str | None:
    """The reason why models cannot run on a GPU of this machine; None when they can.

    Loads cuBLAS, which CTranslate2 opens by its name at the first matrix product. The dynamic loader does not search
    the directory of the PyPI package's cuBLAS, but finds a library that is already loaded. Then runs a kernel of each
    library.
    """
    import torch

    from whisper_api.engine.worker.smoke_kernels import kernel_problem

    if torch.version.cuda is None:
        return f"torch {torch.__version__} cannot use the GPU; install a build of torch for CUDA 12"
    if not torch.cuda.is_available():
        return f"torch's CUDA {torch.version.cuda} cannot use the GPU; update the NVIDIA driver"
    if sys.platform.startswith("linux") and not _opens(CUBLAS):
        package = importlib.util.find_spec("nvidia")
        folders = (package.submodule_search_locations or ()) if package else ()
        if not any(_opens(str(Path(folder) / "cublas" / "lib" / CUBLAS)) for folder in folders):
            return f"{CUBLAS} cannot be opened; `pip install nvidia-cublas-cu12` brings it"
    return kernel_problem(index)


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def choose_compute_type(device: Device, requested: str = "auto") -> str:
    """The compute type for CTranslate2: the requested type if the device supports it, else its best type.

    Args:
        device: the device.
        requested: a compute type of CTranslate2, or ``auto``, which is float16 on most GPUs and int8 on a CPU.

    Raises:
        InvalidOption: ``requested`` is not a compute type.
    """
    import ctranslate2

    if requested in ("default", ""):
        requested = "auto"
    if requested not in COMPUTE_TYPES:
        raise InvalidOption("compute_type", f"{requested!r} is not one of {', '.join(COMPUTE_TYPES)}")
    supported = ctranslate2.get_supported_compute_types(device.kind, device.index)
    if requested in supported:
        return requested
    chosen = next((name for name in _FALLBACKS[device.kind] if name in supported), "float32")
    if requested != "auto":
        log.warning("%s does not support compute type %s: using %s", device.torch_name, requested, chosen)
    return chosen


def physical_cores() -> int:
    """The number of physical cores that this process may use.

    The two hardware threads of one core share its arithmetic units, so more threads than cores slow matrix products.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores: set[str] = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    quota = _cgroup_cpus()
    return max(1, len(cores) if quota is None else min(len(cores), quota))


class Parallelism(NamedTuple):
    """The parallelism of the work on a device.

    Attributes:
        lanes: number of batches that run at once.
        threads: number of CPU threads of each batch.
    """

    lanes: int
    threads: int


def threads_and_lanes(device: Device) -> Parallelism:
    """Choose the parallelism of a device.

    On a CPU, lanes have priority over threads: batches on one thread each never wait for each other, but the threads of
    one batch do.
    """
    cores = physical_cores()
    lanes = min(cores, MAX_LANES) if device.kind == "cpu" else GPU_LANES
    return Parallelism(lanes, max(1, cores // lanes))


def has_bfloat16(device: Device) -> bool:
    """Whether the device multiplies bfloat16 natively: a CPU with AVX512_BF16 or AMX, or a GPU from Ampere on."""
    if device.kind == "cuda":
        import ctranslate2

        return "bfloat16" in ctranslate2.get_supported_compute_types("cuda", device.index)
    return not cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags, as Linux names them; empty on other systems."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(
        flag for name, _, flags in lines if name.strip() in ("flags", "Features") for flag in flags.split()
    )


def limit_torch_threads() -> None:
    """Limit torch to the threads of one lane. By default, torch uses all cores in each lane."""
    import torch

    threads = threads_and_lanes(Device("cpu")).threads
    if torch.get_num_threads() > threads:
        torch.set_num_threads(threads)


def release_cached_memory() -> None:
    """Return memory that torch keeps for later to the devices, so that other libraries can have it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _cgroup_cpus() -> int | None:
    """Number of CPUs that the container may use (cgroup v2 ``cpu.max``: quota and period in µs); None for no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, round(int(quota) / int(period)))


def available_ram() -> int | None:
    """Bytes of free main memory, within the container's limit; None when unknown."""
    if not sys.platform.startswith("linux"):
        return None
    limits: list[int] = []
    try:
        memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(memory["MemAvailable"].split()[0]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, KeyError):
        log.debug("the memory limits of this machine cannot be read")
    return min(limits) if limits else None
