"""Several devices: a worker and resident models for each, and which of them a job goes to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.worker import GpuWorker

__all__ = ["Station", "WorkerPool"]


@dataclass(frozen=True, eq=False)
class Station:
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
        stations: one for each device; the pool closes them.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, stations: Sequence[Station]) -> None:
        if not stations:
            raise ValueError("there are no devices")
        self.stations = tuple(stations)
        self._lock = threading.Lock()
        self._outstanding = dict.fromkeys(self.stations, 0.0)
        self._jobs = dict.fromkeys(self.stations, 0)

    @contextmanager
    def place(self, cost: float) -> Iterator[Station]:
        """Place a job: all its items go to this station while the context is open, and its models are leased there.

        Args:
            cost: how much work the job is, about, in seconds of audio; 0 where that is not known.

        Yields:
            The station with the least outstanding cost, of equals the one with the fewest jobs.
        """
        with self._lock:
            station = min(self.stations, key=lambda station: (self._outstanding[station], self._jobs[station]))
            self._outstanding[station] += cost
            self._jobs[station] += 1
        try:
            yield station
        finally:
            with self._lock:
                self._jobs[station] -= 1
                # Not what rounding leaves of the sum: it would count against the station for ever.
                self._outstanding[station] = self._outstanding[station] - cost if self._jobs[station] else 0.0

    def close(self) -> None:
        """Close every worker, then drop the models."""
        with ExitStack() as stack:
            for station in self.stations:
                stack.callback(station.models.close)
            for station in self.stations:
                stack.callback(station.worker.close)
