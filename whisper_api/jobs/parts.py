"""The parts of a service that work together."""

from __future__ import annotations

import threading
from collections.abc import Callable

from whisper_api.config import LiveConfig
from whisper_api.errors import DeviceLost
from whisper_api.jobs.estimates import Estimates
from whisper_api.jobs.events import JobEvents
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.model_downloads import ModelDownloads
from whisper_api.jobs.preload import Preload
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.running import RunningJobs
from whisper_api.store.jobs import JobStore
from whisper_api.telemetry import Metrics, Tracing


class Parts:
    """What :class:`~whisper_api.jobs.lifecycle.Lifecycle` makes, for workers and other parts that need many of them.

    Attributes:
        store: the job database.
        events: the events of the jobs.
        metrics: the metrics of the service and of the server in front of it.
        tracing: the traces of both.
        settings: the configuration in force; parts that take new values register with it.
        on_device_lost: called when the device has failed, before the job is put back.
        retry_seconds: pause between two attempts to write to a database that cannot be written.
        stopping: set when no worker may wait any longer.
        turn: held by the worker that takes the next job, so that jobs start in the order of the queue.
    """

    store: JobStore
    queue: JobQueue
    executor: Executor
    downloads: ModelDownloads
    preload: Preload
    running: RunningJobs
    events: JobEvents
    estimates: Estimates
    metrics: Metrics
    tracing: Tracing
    settings: LiveConfig
    on_device_lost: Callable[[DeviceLost], None]
    retry_seconds: float
    stopping: threading.Event
    turn: threading.Lock
