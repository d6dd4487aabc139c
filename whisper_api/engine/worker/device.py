"""The device that models run on: which there is, what it can compute, how much memory it has."""

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

__all__ = [
    "Device",
    "Parallelism",
    "choose_compute_type",
    "choose_device",
    "choose_devices",
    "cuda_problem",
    "has_bfloat16",
    "limit_torch_threads",
    "physical_cores",
    "threads_and_lanes",
    "visible_devices",
]

log = logging.getLogger(__name__)

# What CTranslate2 falls back to, in order, when a device lacks the compute type that was asked for.
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
# More lanes than this gain nothing: each holds the activations of a batch, and few jobs run at once.
MAX_LANES = 4
# One batch is encoded while another one is decoded: the first is bound by arithmetic, the second by waiting.
GPU_LANES = 2


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        index: which of several; 0 for the CPU.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0

    @property
    def torch_name(self) -> str:
        """The name torch knows it by: ``cpu``, ``cuda:0`` ..."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What a thread that runs models stays in: its current device is this one, and torch has a stream of its own.

        On torch's default stream its kernels would wait for all that CTranslate2 has queued on its streams, and those
        for them.
        """
        if self.kind == "cpu":
            yield
            return
        import torch

        torch.cuda.set_device(self.index)
        with torch.cuda.stream(torch.cuda.Stream(self.index)):  # type: ignore[no-untyped-call]
            yield

    def free_memory(self) -> int | None:
        """Bytes of memory that can still be had on the device, where others may use it too; None if not known."""
        if self.kind == "cuda":
            import torch

            free, _ = torch.cuda.mem_get_info(self.index)
            return int(free)
        return available_ram()


def visible_devices() -> tuple[Device, ...]:
    """All devices of this machine that are worth running models on: its GPUs, or the CPU where there is none."""
    import ctranslate2

    return tuple(Device("cuda", index) for index in range(ctranslate2.get_cuda_device_count())) or (Device("cpu"),)


def choose_device(name: str = "auto", index: int = 0) -> Device:
    """The device for a name: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    ``cuda:all`` gives the first GPU; :func:`choose_devices` gives them all.

    Raises:
        DeviceUnavailable: no such device on this machine.
        InvalidOption: not a device name.
    """
    import ctranslate2

    kind, colon, suffix = name.partition(":")
    if colon:
        if not suffix.isdecimal() and suffix != "all":
            raise InvalidOption("device", f"{name!r} is not a device; use auto, cpu, cuda, cuda:<index> or cuda:all")
        index = 0 if suffix == "all" else int(suffix)
    count = int(ctranslate2.get_cuda_device_count())
    problem = cuda_problem() if count and kind in ("auto", "cuda") else None
    if kind == "auto":
        if problem:
            log.warning("there is a GPU, but it cannot be used: %s", problem)
        kind = "cuda" if count > 0 and not problem else "cpu"
    if kind == "cpu":
        return Device("cpu")
    if kind != "cuda":
        raise InvalidOption("device", f"{name!r} is not a device; use auto, cpu, cuda or cuda:<index>")
    if index < 0 or index >= count:
        found = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
        raise DeviceUnavailable(f"device cuda:{index} was asked for, but this machine has {found}")
    if problem:
        raise DeviceUnavailable(f"device cuda:{index} was asked for, but {problem}")
    return Device("cuda", index)


def choose_devices(name: str = "auto", index: int = 0) -> tuple[Device, ...]:
    """The devices for a name: every GPU for ``cuda:all``, else the one that :func:`choose_device` gives.

    Raises:
        DeviceUnavailable: no such device on this machine.
        InvalidOption: not a device name.
    """
    device = choose_device(name, index)
    return visible_devices() if name == "cuda:all" else (device,)


CUBLAS = "libcublas.so.12"


def cuda_problem() -> str | None:
    """Why models cannot run on a GPU although there is one; None when they can.

    Loads cuBLAS, which CTranslate2 opens by its name when it first multiplies: that of PyPI's packages lies where no
    loader looks, but once it is loaded it is found.
    """
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use it; install a build of torch for CUDA 12"
    if sys.platform.startswith("linux") and not _opens(CUBLAS):
        package = importlib.util.find_spec("nvidia")
        folders = (package.submodule_search_locations or ()) if package else ()
        if not any(_opens(str(Path(folder) / "cublas" / "lib" / CUBLAS)) for folder in folders):
            return f"{CUBLAS} cannot be opened; `pip install nvidia-cublas-cu12` brings it"
    return None


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def choose_compute_type(device: Device, wanted: str = "auto") -> str:
    """The compute type CTranslate2 will use: what was asked for when the device supports it, else the best it does.

    The default is float16 on a GPU and int8 on a CPU.

    Raises:
        InvalidOption: not a compute type.
    """
    import ctranslate2

    if wanted in ("default", ""):
        wanted = "auto"
    if wanted not in COMPUTE_TYPES:
        raise InvalidOption("compute_type", f"{wanted!r} is not one of {', '.join(COMPUTE_TYPES)}")
    supported = ctranslate2.get_supported_compute_types(device.kind, device.index)
    if wanted in supported:
        return wanted
    chosen = next((name for name in _FALLBACKS[device.kind] if name in supported), "float32")
    if wanted != "auto":
        log.warning("%s does not support compute type %s: using %s", device.torch_name, wanted, chosen)
    return chosen


def physical_cores() -> int:
    """Cores this process may run on, counting the two threads of one core once.

    More threads than that slow matrix products down: the two share one set of arithmetic units.
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
    """How the work on a device is spread.

    Attributes:
        lanes: how many batches run at once.
        threads: on the CPU, for each of them.
    """

    lanes: int
    threads: int


def threads_and_lanes(device: Device) -> Parallelism:
    """How many batches to run at once on a device, and on how many threads each.

    On a CPU the lanes come first: batches on one thread each never wait for each other, threads of one batch do.
    """
    cores = physical_cores()
    lanes = min(cores, MAX_LANES) if device.kind == "cpu" else GPU_LANES
    return Parallelism(lanes, max(1, cores // lanes))


def has_bfloat16(device: Device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32: a CPU with AVX512_BF16 or AMX, a GPU since Ampere."""
    if device.kind == "cuda":
        import ctranslate2

        return "bfloat16" in ctranslate2.get_supported_compute_types("cuda", device.index)
    return not cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the CPU can do, as Linux names it; nothing on other systems."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(
        flag for name, _, flags in lines if name.strip() in ("flags", "Features") for flag in flags.split()
    )


def limit_torch_threads() -> None:
    """Keep torch to the threads of one lane: by itself it takes every core of the machine, for each lane."""
    import torch

    threads = threads_and_lanes(Device("cpu")).threads
    if torch.get_num_threads() > threads:
        torch.set_num_threads(threads)


def _cgroup_cpus() -> int | None:
    """Whole CPUs that a container may use, None for no limit (cgroup v2 ``cpu.max``: quota and period in µs)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, round(int(quota) / int(period)))


def available_ram() -> int | None:
    """Bytes of main memory that can still be had, within the container's limit; None where that cannot be told."""
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
