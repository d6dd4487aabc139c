"""Downloads of the models that waiting jobs name. A job waits for its model in the queue, and other jobs go ahead."""

from __future__ import annotations

import logging
import threading

from whisper_api.errors import Canceled
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.queue import JobQueue
from whisper_api.store.rows import Job

__all__ = ["ModelDownloads"]

log = logging.getLogger("whisper_api.jobs")

# How often a download is compared with the jobs that wait for it: it ends when the last of them was canceled.
LOOK_SECONDS = 0.5


class ModelDownloads:
    """Holds jobs back in the queue until their models are on this machine. One thread downloads each model.

    Args:
        executor: knows which model a job needs, and downloads it.
        queue: the waiting jobs.
    """

    def __init__(self, executor: Executor, queue: JobQueue) -> None:
        self._executor = executor
        self._queue = queue
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._waiting: dict[str, set[str]] = {}
        self._cancels: dict[str, threading.Event] = {}
        self._failures: dict[str, BaseException] = {}
        self._closed = False

    def hold_back(self, job: Job) -> bool:
        """Return a job to the queue when its model has to be downloaded first, and begin the download.

        Args:
            job: just taken from the queue.

        Returns:
            Whether the job is in the queue again. Otherwise it can run, or ends with :meth:`failure`.
        """
        with self._lock:
            if job.job_id in self._failures:
                return False
        name = self._executor.missing_model(job.options)
        if name is None:
            return False
        with self._lock:
            self._queue.hold(job.job_id)
            if name in self._waiting:
                self._waiting[name].add(job.job_id)
                return True
            self._waiting[name] = {job.job_id}
            cancel = self._cancels[name] = threading.Event()
            if self._closed:
                cancel.set()
        log.info("job waits for its model", extra={"job_id": job.job_id, "model": name})
        for target in (self._download, self._watch):
            threading.Thread(target=target, args=(name, cancel), name=f"download-{name}", daemon=True).start()
        return True

    def failure(self, job_id: str) -> BaseException | None:
        """Why the download that a job has waited for failed. Forgets it."""
        with self._lock:
            return self._failures.pop(job_id, None)

    def close(self) -> None:
        """Break off all downloads. The jobs stay in the queue."""
        with self._lock:
            self._closed = True
            for cancel in self._cancels.values():
                cancel.set()

    def _download(self, name: str, cancel: threading.Event) -> None:
        failure: BaseException | None = None
        try:
            self._executor.download_model(name, cancel)
        except BaseException as error:
            failure = error
            log.warning("model not downloaded: %s", error, extra={"model": name})
        with self._lock:
            waiting = self._waiting.pop(name)
            del self._cancels[name]
            cancel.set()
            for job_id in waiting:
                # A job that comes after a canceled download begins another one.
                if failure is not None and not isinstance(failure, Canceled):
                    self._failures[job_id] = failure
                if not self._closed:
                    self._queue.release(job_id)

    def _watch(self, name: str, cancel: threading.Event) -> None:
        """Break a download off when no job waits for it any more."""
        while not cancel.wait(LOOK_SECONDS):
            with self._lock:
                if not any(self._queue.position(job_id) for job_id in self._waiting.get(name, ())):
                    cancel.set()
