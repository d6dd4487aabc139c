"""The state of a service at one moment, as gauges and counters that are read and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["ServiceState", "StateCollector"]


@dataclass(frozen=True, kw_only=True)
class ServiceState:
    """The state of a job service.

    Attributes:
        ready: whether the service runs jobs.
        queued_jobs: number of waiting jobs.
        running_jobs: number of running jobs.
        stalled_jobs: number of running jobs without progress for too long.
        open_uploads: number of uploads that have begun and are no jobs yet.
        open_streams: number of watches of jobs: event streams and synchronous requests.
        resident_models: number of models in memory.
        resident_bytes: their approximate size.
    """

    ready: bool
    queued_jobs: int
    running_jobs: int
    stalled_jobs: int
    open_uploads: int
    open_streams: int
    resident_models: int
    resident_bytes: int


# Attribute to the name of its metric and the help text.
GAUGES = {
    "ready": ("whisper_api_ready", "Whether the server runs jobs; /readyz says why not"),
    "queued_jobs": ("whisper_api_queued_jobs", "Jobs that wait"),
    "running_jobs": ("whisper_api_running_jobs", "Jobs that run"),
    "stalled_jobs": ("whisper_api_stalled_jobs", "Running jobs without progress for WHISPER_STALL_SECONDS"),
    "open_uploads": ("whisper_api_open_uploads", "Uploads that have begun and are no jobs yet"),
    "open_streams": ("whisper_api_open_streams", "Watches of jobs: event streams and synchronous requests"),
    "resident_models": ("whisper_api_resident_models", "Models in memory"),
    "resident_bytes": ("whisper_api_resident_model_bytes", "Approximate memory of the resident models"),
}


class StateCollector(Collector):
    """Reads the state of a service whenever the metrics are read.

    Args:
        read: returns the state; may block.
    """

    def __init__(self, read: Callable[[], ServiceState]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading the state, which may take long before the device is known."""
        return (GaugeMetricFamily(name, text) for name, text in GAUGES.values())

    def collect(self) -> Iterator[Metric]:
        """The metrics with their values."""
        state = self._read()
        for attribute, (name, text) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=float(getattr(state, attribute)))
