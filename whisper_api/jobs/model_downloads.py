"""Downloads of the models that jobs need. A job waits for its models in the queue, so that other jobs run meanwhile."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from whisper_api.errors import Canceled
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.queue import JobQueue
from whisper_api.store.rows import Job
from whisper_api.telemetry import Metrics

log = logging.getLogger("whisper_api.jobs")


class WaitsForModel(Exception):
    """A running job has to go back to the queue, because a model that it needs has to be downloaded first."""


@dataclass
class _Needs:
    """The downloads that a job needs.

    Attributes:
        required: models that the job asked for while it ran.
        given_up: model that could not be downloaded for the job, to the error.
    """

    required: list[str] = field(default_factory=list)
    given_up: dict[str, BaseException] = field(default_factory=dict)


@dataclass
class _Download:
    """A download, for all jobs that wait for it."""

    name: str
    hf_token: str | None
    job_ids: set[str]
    cancel: threading.Event = field(default_factory=threading.Event)


class ModelDownloads:
    """Holds jobs in the queue until the models that they need are on this machine.

    One thread downloads a model for all jobs that need it. When the download fails, the jobs run without the model; a
    job without its Whisper model ends with :meth:`failure`.

    Args:
        executor: knows which models a job needs, and downloads them.
        metrics: counts the downloads.
        queue: the waiting jobs.
    """

    def __init__(self, executor: Executor, queue: JobQueue, metrics: Metrics) -> None:
        self._executor = executor
        self._metrics = metrics
        self._queue = queue
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._needs: dict[str, _Needs] = {}
        self._downloads: dict[tuple[str, str | None], _Download] = {}
        self._closed = False

    def hold_back(self, job: Job) -> bool:
        """Return a job to its position in the queue when it needs a download, and begin the download.

        Args:
            job: a job that was just taken from the queue.

        Returns:
            Whether the job is in the queue again. Otherwise the job can run.
        """
        found = self._executor.missing_models(job.options, job.hf_token)
        whisper = self._executor.model_name(job.options)
        with self._lock:
            needs = self._needs.get(job.job_id, _Needs())
            missing = [name for name in (*found, *needs.required) if name not in needs.given_up]
            if not missing or whisper in needs.given_up:
                return False
            self._needs[job.job_id] = needs
            self._queue.hold(job.job_id)
            key = (missing[0], job.hf_token)
            if key in self._downloads:
                self._downloads[key].job_ids.add(job.job_id)
                return True
            download = self._downloads[key] = _Download(*key, {job.job_id})
            if self._closed:
                download.cancel.set()
        log.info("job waits for a model", extra={"job_id": job.job_id, "model": download.name})
        threading.Thread(target=self._run, args=(download,), name=f"download-{download.name}", daemon=True).start()
        return True

    def require(self, job: Job, name: str) -> None:
        """Send a running job back to the queue, because a model is missing.

        When an earlier download of the model for this job has failed, the call returns, and the job goes on without it.

        Args:
            job: the running job.
            name: the model.

        Raises:
            WaitsForModel: ends the run; :meth:`hold_back` begins the download when the job is taken again.
        """
        with self._lock:
            needs = self._needs.setdefault(job.job_id, _Needs())
            if name in needs.given_up:
                return
            if name not in needs.required:
                needs.required.append(name)
        raise WaitsForModel(name)

    def failure(self, job: Job) -> BaseException | None:
        """Why the Whisper model of a job could not be downloaded; None when that did not happen."""
        whisper = self._executor.model_name(job.options)
        with self._lock:
            return self._needs.get(job.job_id, _Needs()).given_up.get(whisper)

    def forget(self, job_id: str) -> None:
        """Drop what is known of a job that has ended, and stop a download for which no other job waits."""
        with self._lock:
            self._needs.pop(job_id, None)
            for download in self._downloads.values():
                download.job_ids.discard(job_id)
                if not download.job_ids:
                    download.cancel.set()

    def close(self) -> None:
        """Stop all downloads. The jobs stay in the queue."""
        with self._lock:
            self._closed = True
            for download in self._downloads.values():
                download.cancel.set()

    def _run(self, download: _Download) -> None:
        name = download.name
        failure: BaseException | None = None
        try:
            self._executor.download_model(name, download.cancel, download.hf_token)
        except BaseException as error:
            failure = error
            log.warning("model not downloaded: %s", error, extra={"model": name})
        self._metrics.download_ended(
            "completed" if failure is None else "canceled" if isinstance(failure, Canceled) else "failed"
        )
        with self._lock:
            del self._downloads[name, download.hf_token]
            download.cancel.set()
            for job_id in download.job_ids:
                needs = self._needs[job_id]
                needs.required = [each for each in needs.required if each != name]
                # A job that comes after a canceled download begins another one.
                if failure is not None and not isinstance(failure, Canceled):
                    needs.given_up[name] = failure
                if not self._closed:
                    self._queue.release(job_id)
