"""Several devices: a worker and resident models for each, and which of them a job goes to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.worker import GpuWorker

__all__ = ["DeviceRuntime", "WorkerPool"]


@dataclass(frozen=True, eq=False)
class DeviceRuntime:
    """What runs models on one device.

    Attributes:
        device: which.
        worker: runs the items of the jobs that are placed here.
        models: where their models are leased.
    """

    device: Device
    worker: GpuWorker
    models: ModelCache


class WorkerPool:
    """Places each job on the device that has the least left to do, where it stays to its end.

    Args:
        runtimes: one for each device; the pool closes them.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, runtimes: Sequence[DeviceRuntime]) -> None:
        if not runtimes:
            raise ValueError("there are no devices")
        self.runtimes = tuple(runtimes)
        self._lock = threading.Lock()
        self._outstanding = dict.fromkeys(self.runtimes, 0.0)
        self._jobs = dict.fromkeys(self.runtimes, 0)

    @contextmanager
    def assign(self, cost: float) -> Iterator[DeviceRuntime]:
        """Place a job: all its items go to this runtime while the context is open, and its models are leased there.

        Args:
            cost: how much work the job is, about, in seconds of audio; 0 where that is not known.

        Yields:
            The runtime with the least outstanding cost, of equals the one with the fewest jobs.
        """
        with self._lock:
            runtime = min(self.runtimes, key=lambda runtime: (self._outstanding[runtime], self._jobs[runtime]))
            self._outstanding[runtime] += cost
            self._jobs[runtime] += 1
        try:
            yield runtime
        finally:
            with self._lock:
                self._jobs[runtime] -= 1
                # Not what rounding leaves of the sum: it would count against the runtime for ever.
                self._outstanding[runtime] = self._outstanding[runtime] - cost if self._jobs[runtime] else 0.0

    def close(self) -> None:
        """Close every worker, then drop the models."""
        with ExitStack() as stack:
            for runtime in self.runtimes:
                stack.callback(runtime.models.close)
            for runtime in self.runtimes:
                stack.callback(runtime.worker.close)
