"""The state of a service at one moment, as gauges and counters that are read and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from whisper_api.engine.worker.statistics import DeviceStatistics


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
        lost_decoders: number of decoder processes that died or were killed over a file.
        devices: what each device has done.
        pending_deliveries: number of webhook deliveries that wait for an attempt.
        engines: :class:`~whisper_api.jobs.executor.EngineFacts` of each engine of a cluster.
    """

    ready: bool
    queued_jobs: int
    running_jobs: int
    stalled_jobs: int
    open_uploads: int
    open_streams: int
    resident_models: int
    resident_bytes: int
    lost_decoders: int
    devices: Sequence[DeviceStatistics]
    pending_deliveries: int
    engines: Sequence[Any] = ()


# Attribute to the name of its metric and the help text.
GAUGES = {
    "ready": ("whisper_api_ready", "Whether the server runs jobs; /readyz says why not"),
    "queued_jobs": ("whisper_api_queued_jobs", "Jobs that wait"),
    "running_jobs": ("whisper_api_running_jobs", "Jobs that run"),
    "stalled_jobs": ("whisper_api_stalled_jobs", "Running jobs without progress for WHISPER_STALL_SECONDS"),
    "open_uploads": ("whisper_api_open_uploads", "Uploads that have begun and are no jobs yet"),
    "open_streams": ("whisper_api_open_streams", "Watches of jobs: event streams and synchronous requests"),
    "pending_deliveries": (
        "whisper_api_pending_webhook_deliveries",
        "Webhook deliveries that wait for their first or next attempt",
    ),
    "resident_models": ("whisper_api_resident_models", "Models in memory"),
    "resident_bytes": ("whisper_api_resident_model_bytes", "Approximate memory of the resident models"),
}

LOST_DECODERS = ("whisper_api_lost_decoders", "Decoder processes that died, or were killed, over a file")
# Kind of metric, name, help text, and how to read it off a device or an engine; None leaves the device out.
Row = tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str, Callable[[Any], float | None]]
OF_DEVICES: tuple[Row, ...] = (
    (GaugeMetricFamily, "whisper_api_device_lanes", "Batches that may run at once", lambda d: d.lanes),
    (
        CounterMetricFamily,
        "whisper_api_device_busy_seconds",
        "Seconds in which lanes ran batches; divide the rate by the lanes for the busy share",
        lambda d: d.counts.busy_seconds,
    ),
    (CounterMetricFamily, "whisper_api_batches", "Batches that ran", lambda d: d.counts.batches),
    (CounterMetricFamily, "whisper_api_batch_items", "Work items in these batches", lambda d: d.counts.items),
    (
        CounterMetricFamily,
        "whisper_api_batch_room",
        "Work items that these batches could have held; items by room is how full they were",
        lambda d: d.counts.room,
    ),
    (
        CounterMetricFamily,
        "whisper_api_out_of_memory",
        "Batches that did not fit into memory and ran again",
        lambda d: d.counts.out_of_memory,
    ),
    (CounterMetricFamily, "whisper_api_model_loads", "Models that were loaded", lambda d: d.model_loads),
    (CounterMetricFamily, "whisper_api_model_unloads", "Models that were unloaded", lambda d: d.model_unloads),
    (GaugeMetricFamily, "whisper_api_device_free_bytes", "Free memory of a GPU", lambda d: d.free_bytes),
)

OF_ENGINES: tuple[Row, ...] = (
    (GaugeMetricFamily, "whisper_api_engine_ready", "Whether an engine takes jobs", lambda e: e.state == "ready"),
    (GaugeMetricFamily, "whisper_api_engine_running_jobs", "Jobs that an engine runs", lambda e: e.running_jobs),
    (
        GaugeMetricFamily,
        "whisper_api_engine_queued_audio_seconds",
        "Seconds of audio that the jobs of an engine have before them",
        lambda e: e.queued_audio_seconds,
    ),
    (
        CounterMetricFamily,
        "whisper_api_engine_audio_seconds",
        "Seconds of audio of the jobs that an engine has completed",
        lambda e: e.audio_seconds,
    ),
)


class StateCollector(Collector):
    """Reads the state of a service whenever the metrics are read.

    Args:
        read: returns the state; may block.
    """

    def __init__(self, read: Callable[[], ServiceState]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading the state, which may take long before the device is known."""
        yield from (GaugeMetricFamily(name, text) for name, text in GAUGES.values())
        yield CounterMetricFamily(*LOST_DECODERS)
        yield from (kind(name, text) for kind, name, text, _ in OF_DEVICES)
        yield from (kind(name, text) for kind, name, text, _ in OF_ENGINES)

    def collect(self) -> Iterator[Metric]:
        """The metrics with their values."""
        state = self._read()
        for attribute, (name, text) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=float(getattr(state, attribute)))
        yield CounterMetricFamily(*LOST_DECODERS, value=state.lost_decoders)
        # The engine of this process has no node, and its metrics have no such label.
        labels = 2 if any(device.node for device in state.devices) else 1
        yield from _families(OF_DEVICES, ("device", "node")[:labels], [((d.device, d.node), d) for d in state.devices])
        yield from _families(OF_ENGINES, ("engine", "node"), [((e.name, e.node), e) for e in state.engines])


def _families(
    rows: Sequence[Row], labels: Sequence[str], items: Sequence[tuple[Sequence[str], Any]]
) -> Iterator[Metric]:
    """The metrics of devices or engines.

    Args:
        rows: the metrics.
        labels: names of the labels.
        items: values of the labels, and the device or engine.
    """
    for kind, name, text, read in rows:
        family = kind(name, text, labels=labels)
        for names, item in items:
            if (value := read(item)) is not None:
                family.add_metric(names[: len(labels)], value)
        yield family
