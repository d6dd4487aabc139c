"""The device that models run on: which there is, what it can compute, how much memory it has."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whisper_api.errors import DeviceUnavailable, InvalidOption

__all__ = ["Device", "choose_compute_type", "choose_device", "limit_torch_threads", "physical_cores"]

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

    def total_memory(self) -> int | None:
        """Bytes of memory on the device; None where that cannot be told."""
        if self.kind == "cuda":
            import torch

            return int(torch.cuda.get_device_properties(self.index).total_memory)
        return available_ram()


def choose_device(name: str = "auto", index: int = 0) -> Device:
    """The device for a name: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        DeviceUnavailable: no such device on this machine.
        InvalidOption: not a device name.
    """
    import ctranslate2

    kind, colon, suffix = name.partition(":")
    if colon:
        if not suffix.isdecimal():
            raise InvalidOption("device", f"{name!r} is not a device; use auto, cpu, cuda or cuda:<index>")
        index = int(suffix)
    count = int(ctranslate2.get_cuda_device_count())
    if kind == "auto":
        kind = "cuda" if count > 0 else "cpu"
    if kind == "cpu":
        return Device("cpu")
    if kind != "cuda":
        raise InvalidOption("device", f"{name!r} is not a device; use auto, cpu, cuda or cuda:<index>")
    if index < 0 or index >= count:
        found = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
        raise DeviceUnavailable(f"device cuda:{index} was asked for, but this machine has {found}")
    return Device("cuda", index)


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


def limit_torch_threads() -> None:
    """Keep torch to the cores this process may use: by itself it counts those of the whole machine."""
    import torch

    cores = physical_cores()
    if torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


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
