"""Describes this machine, its load, and the resource use of processes."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "whisper-api", "whisperx", "faster-whisper", "ctranslate2", "onnxruntime", "torch", "pyannote.audio", "numpy"
)  # fmt: skip
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement.

    Attributes:
        cpu: the processor's name.
        cpus: number of CPUs that this process may use.
        memory_gb: memory of the machine in GB.
        system, python: names and versions.
        versions: versions of the compared packages.
        gpus: names of the CUDA devices in use; empty for measurements on the CPU.
    """

    cpu: str
    cpus: int
    memory_gb: float
    system: str
    python: str
    versions: dict[str, str]
    gpus: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        gpus = "".join(f", {name}" for name in self.gpus)
        return f"{self.cpus} x {self.cpu}, {self.memory_gb:.0f} GB{gpus}; Python {self.python}; {packages}"


def machine(gpus: Iterable[str] = ()) -> Machine:
    """Describe this machine. Reads package versions without an import of the packages."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Machine(name, cpus, memory, platform.platform(), platform.python_version(), versions, tuple(gpus))


def busy_seconds() -> float | None:
    """CPU-seconds that all processes of the machine have used, and those that its host took; None off Linux."""
    try:
        counts = [int(count) for count in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = counts
    return (user + nice + system + interrupts + soft + stolen) / TICKS


def own_seconds() -> float:
    """CPU-seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def exact_seconds(pid: int) -> float:
    """CPU-seconds of a running process so far, without its children, to the nanosecond. Linux only; 0 elsewhere."""
    if sys.platform != "linux":
        return 0.0
    # The kernel's number of the clock that clock_getcpuclockid(3) returns.
    return time.clock_gettime((~pid << 3) | 2)


def usage_of(pids: Iterable[int]) -> tuple[float, float]:
    """The resource use of running processes and all their descendants.

    Args:
        pids: the processes.

    Returns:
        CPU-seconds so far, and the sum of the peaks of their resident memory in MB. Zeros where there is no /proc.
    """
    parents: dict[int, list[int]] = {}
    cpu: dict[int, float] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            # The name is in parentheses and may contain any character, also spaces.
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(directory.name))
        # User and system time of the process and of its children that have ended.
        cpu[int(directory.name)] = sum(int(value) for value in fields[11:15]) / TICKS
    wanted, seconds, peak = list(pids), 0.0, 0.0
    while wanted:
        pid = wanted.pop()
        wanted += parents.get(pid, [])
        seconds += cpu.get(pid, 0.0)
        peak += peak_memory(pid)
    return seconds, peak


def peak_memory(pid: int | str = "self") -> float:
    """Peak resident memory of a process in MB; 0 after its end and on systems without /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def reset_peak(pid: int | str = "self") -> None:
    """Reset a process's peak of memory to its current memory. Only Linux supports this; other systems do nothing."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return


def megabytes(usage: resource.struct_rusage) -> float:
    """Peak resident memory of a process that has ended; Linux counts it in kilobytes, macOS in bytes."""
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
