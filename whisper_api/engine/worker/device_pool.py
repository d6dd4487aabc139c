"""The pool of devices, each with a worker and resident models, and the assignment of jobs to devices."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.device_errors import first_line, kind_of
from whisper_api.engine.worker.statistics import DeviceStatistics
from whisper_api.engine.worker.worker import GpuWorker

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DeviceRuntime:
    """A device with its worker and its models.

    Attributes:
        device: the device.
        worker: runs the work items of the jobs on this device.
        models: the cache of the models on this device.
    """

    device: Device
    worker: GpuWorker
    models: ModelCache

    def statistics(self) -> DeviceStatistics:
        """What the device has done since the engine was made."""
        return DeviceStatistics(
            device=self.device.torch_name,
            lanes=self.worker.lanes,
            counts=self.worker.counts,
            model_loads=self.models.loaded,
            model_unloads=self.models.unloaded,
            free_bytes=self._free_bytes(),
            encoder=next((model.encoder for model in self.models.resident() if model.encoder), ""),
        )

    def _free_bytes(self) -> int | None:
        """Free memory of a GPU. A lost device raises an error even here, and must not take the status page with it."""
        if self.device.kind == "cpu" or self.worker.fault.reported:
            return None
        try:
            return self.device.free_memory()
        except RuntimeError as error:
            log.warning("the free memory of %s cannot be read: %s", self.device.torch_name, first_line(error))
            if kind_of(error) == "sticky":
                self.worker.fault.report(error)
            return None


class WorkerPool:
    """Assigns each job to the device with the fewest jobs, for the whole job. The length of a job is not known before.

    Args:
        runtimes: one runtime for each device; the pool closes them.

    Raises:
        ValueError: ``runtimes`` is empty.
    """

    def __init__(self, runtimes: Sequence[DeviceRuntime]) -> None:
        if not runtimes:
            raise ValueError("there are no devices")
        self.runtimes = tuple(runtimes)
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._usable = self.runtimes
        self._jobs = dict.fromkeys(self.runtimes, 0)

    @property
    def usable(self) -> tuple[DeviceRuntime, ...]:
        """The runtimes that get jobs."""
        with self._lock:
            return self._usable

    def leave_out(self, runtime: DeviceRuntime) -> bool:
        """Assign no more jobs to a runtime, whose device has too little memory.

        Returns:
            False, and changes nothing, when no other runtime gets jobs.
        """
        with self._lock:
            others = tuple(each for each in self._usable if each is not runtime)
            self._usable = others or self._usable
            return bool(others)

    @contextmanager
    def assign(self) -> Iterator[DeviceRuntime]:
        """Assign a job to a runtime while the context is open."""
        with self._lock:
            runtime = min(self._usable, key=lambda runtime: self._jobs[runtime])
            self._jobs[runtime] += 1
        try:
            yield runtime
        finally:
            with self._lock:
                self._jobs[runtime] -= 1

    def close(self) -> None:
        """Close every worker, then unload the models."""
        with ExitStack() as stack:
            for runtime in self.runtimes:
                stack.callback(runtime.models.close)
            for runtime in self.runtimes:
                stack.callback(runtime.worker.close)
