"""Metrics for Prometheus, named by its conventions: base units, ``_total`` for counters, ``_seconds``, ``_bytes``.

A label never has a job id, a key, an address or text: the number of series is bounded, and a metric says nothing about
one caller. Routes appear as templates (``/transcription/{job_id}``), and models as the catalogue names them.

Source: https://prometheus.io/docs/practices/naming, and OpenTelemetry's convention for the duration of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from whisper_api.telemetry.state import ServiceState, StateCollector

# Upper bounds in seconds. A status takes milliseconds; a synchronous request and an event stream many minutes.
REQUEST_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
WAIT_SECONDS = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
STAGE_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
# Seconds of audio for each second that a job runs.
SPEEDS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# Methods with a label of their own: a client may invent others.
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER = "other"
ENDS = ("completed", "failed", "canceled", "requeued")
DOWNLOADS = ("completed", "failed", "canceled")
ATTEMPTS = ("delivered", "retried", "failed")


class Metrics:
    """The metrics of one service. Any thread may call the methods; each takes a few microseconds.

    Args:
        read_state: returns the state of the service; called by :meth:`render` only.
    """

    def __init__(self, read_state: Callable[[], ServiceState]) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._histogram(
            "http_server_request_duration_seconds",
            "Time from the head of a request to the end of its response",
            REQUEST_SECONDS,
            ("method", "route", "status"),
        )
        self._submitted = self._counter("whisper_api_submitted_jobs", "Jobs that were accepted")
        self._upload_bytes = self._counter("whisper_api_upload_bytes", "Bytes of the accepted uploads")
        self._ended = self._counter(
            "whisper_api_jobs",
            "Jobs that ended, by status; requeued ones run again after the end of a process or an engine",
            "status",
            ENDS,
        )
        self._waits = self._histogram("whisper_api_queue_wait_seconds", "Time from acceptance to start", WAIT_SECONDS)
        self._stages = self._histogram(
            "whisper_api_stage_duration_seconds",
            "Time of each stage of a completed job",
            STAGE_SECONDS,
            ("stage", "model"),
        )
        self._audio = self._counter("whisper_api_audio_seconds", "Seconds of audio of the completed jobs")
        self._speech_speed = self._histogram(
            "whisper_api_job_speed_ratio", "Seconds of audio for each second that a completed job ran", SPEEDS
        )
        self._downloads = self._counter(
            "whisper_api_model_downloads", "Downloads of models that jobs waited for, by outcome", "outcome", DOWNLOADS
        )
        self._webhooks = self._counter(
            "whisper_api_webhook_deliveries",
            "Attempts to deliver webhooks, by outcome; retried ones come again, failed ones were the last",
            "outcome",
            ATTEMPTS,
        )
        self._registry.register(StateCollector(read_state))
        ProcessCollector(registry=self._registry)

    def request_ended(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: method of the request.
            route: template of the path; None for a path that does not exist.
            status: status of the response; 499 when the client has gone.
            seconds: from the head of the request to the end of the response.
        """
        method = method if method in METHODS else OTHER
        self._requests.labels(method, route or OTHER, status).observe(seconds)

    def job_submitted(self, upload_bytes: int) -> None:
        """Count a job that was accepted.

        Args:
            upload_bytes: size of its upload.
        """
        self._submitted.inc()
        self._upload_bytes.inc(upload_bytes)

    def job_started(self, waited: float) -> None:
        """Count a job that starts to run.

        Args:
            waited: seconds since the job was accepted.
        """
        self._waits.observe(max(0.0, waited))

    def job_ended(self, status: str) -> None:
        """Count a job that ended or goes back to the queue.

        Args:
            status: completed, failed, canceled or requeued.
        """
        self._ended.labels(status).inc()

    def job_completed(self, model: str, stages: Mapping[str, float], audio: float, seconds: float) -> None:
        """Count a job that has its transcript.

        Args:
            model: name of the Whisper model in the catalogue, or ``other``.
            stages: stage to seconds of wall time.
            audio: seconds of audio.
            seconds: seconds that the job ran.
        """
        self.job_ended("completed")
        self._audio.inc(audio)
        if seconds > 0:
            self._speech_speed.observe(audio / seconds)
        for stage, time in stages.items():
            self._stages.labels(stage, model).observe(time)

    def download_ended(self, outcome: str) -> None:
        """Count a download of a model.

        Args:
            outcome: completed, failed or canceled.
        """
        self._downloads.labels(outcome).inc()

    def webhook_attempted(self, outcome: str) -> None:
        """Count an attempt to deliver a webhook.

        Args:
            outcome: delivered; retried, when another attempt will come; failed, when none will.
        """
        self._webhooks.labels(outcome).inc()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, or in OpenMetrics where the caller accepts it. May block.

        Args:
            accept: the header ``Accept`` of the request.

        Returns:
            The text, and its media type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _counter(self, name: str, text: str, label: str = "", values: tuple[str, ...] = ()) -> Counter:
        """A counter; with a label, it counts from 0 for each of the label's values."""
        counter = Counter(name, text, (label,) if label else (), registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)
