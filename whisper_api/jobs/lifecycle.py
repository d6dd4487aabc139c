"""How a service begins and ends: recovery, threads, stopping in good order."""

from __future__ import annotations

import logging
import threading
import time

from whisper_api.config import Config
from whisper_api.errors import StorageError
from whisper_api.jobs.health import Health, HealthWatch
from whisper_api.jobs.outcomes import remove_upload
from whisper_api.jobs.preload import Preload
from whisper_api.jobs.recovery import recover
from whisper_api.jobs.retention import Retention
from whisper_api.jobs.revocations import Revocations
from whisper_api.jobs.worker import Worker, WorkerDeps
from whisper_api.permissions import exposed_places

__all__ = ["STOP_SECONDS", "Lifecycle"]

log = logging.getLogger("whisper_api.jobs")

# How long a job that was asked to stop is waited for: one work item takes no longer, unless the device hangs.
STOP_SECONDS = 30.0


class Lifecycle:
    """Starts and stops all threads of a service, and owns what must be closed with it.

    Args:
        config: directories and times.
        deps: what the workers share; its store and executor are closed in the end.
        preload: gets the executor ready.
        retention: removes what has expired.
        revocations: ends the jobs of revoked keys.

    Attributes:
        draining: no new work is taken.
        stopped: no job runs any more, nor will.
        hangs: the executor has not come to an end when it was closed.
    """

    def __init__(
        self, config: Config, deps: WorkerDeps, preload: Preload, retention: Retention, revocations: Revocations
    ) -> None:
        self.draining = False
        self.stopped = False
        self.hangs = False
        self._config = config
        self._deps = deps
        self._preload = preload
        self._retention = retention
        self._revocations = revocations
        self._watch = HealthWatch(deps.running, preload, deps.executor, deps.store, config.stall_seconds)
        self._workers: list[threading.Thread] = []
        # Held while the service is started, stopped or closed.
        self._lock = threading.Lock()
        self._started = False
        self._closed = False

    def start(self) -> None:
        """Recover, sweep, and begin to work.

        Raises:
            StorageError: the database or the upload directory cannot be used.
        """
        with self._lock:
            if self._started or self.draining:
                return
            try:
                self._deps.uploads_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"Cannot make {self._deps.uploads_dir}: {error.strerror}") from error
            for warning in exposed_places(self._config):
                log.warning("%s", warning)
            self._recover()
            self._started = True
            self._retention.start(self._config.cleanup_interval_hours * 3600)
            self._revocations.start()
            self._watch.start()
            self._preload.start()
            for number in range(self._deps.running.slots):
                thread = threading.Thread(target=self._work, name=f"job-{number}", daemon=True)
                self._workers.append(thread)
                thread.start()

    def drain(self) -> None:
        """Take nothing new."""
        self.draining = True
        self._deps.queue.close()
        self._deps.running.close()
        self._preload.close()
        self._deps.downloads.close()
        self._deps.events.wake()

    def stop(self, grace: float) -> None:
        """Drain, wait, put back what still runs.

        Args:
            grace: seconds.
        """
        if not self.draining:
            self.drain()
        with self._lock:
            if self.stopped:
                return
            running = self._deps.running
            running.wait_until_empty(grace)
            self._deps.stopping.set()
            for each in running.all():
                running.ask(each, "stop")
            deadline = time.monotonic() + STOP_SECONDS
            for thread in self._workers:
                thread.join(max(0.0, deadline - time.monotonic()))
            for each in running.all():
                log.error("a job did not stop: it runs again after the next start", extra={"job_id": each.job_id})
            self.stopped = True
            self._deps.events.wake()

    def close(self) -> None:
        """Stop at once if that was not done, and free everything."""
        self.stop(0.0)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._deps.events.close()
            self._watch.close()
            self._revocations.close()
            self._retention.close()
            # A device that hangs must not keep the process from ending.
            closing = threading.Thread(target=self._deps.executor.close, name="close", daemon=True)
            closing.start()
            closing.join(STOP_SECONDS)
            self.hangs = closing.is_alive()
            if self.hangs:
                log.error("the device is still at work and is left behind")
            self._preload.join()
            self._deps.store.close()

    def health(self) -> Health:
        """How the service is."""
        if self.draining:
            return Health(ready=False, state="draining", reason="The server is stopping and takes no new work.")
        if not self._started:
            return Health(ready=False, state="starting", reason="The server is starting.")
        return self._watch.health()

    def _recover(self) -> None:
        """Put back what was running, and fill the queue."""
        deps, now = self._deps, time.time()
        for job_id in recover(deps.store, deps.max_attempts, now):
            remove_upload(deps.uploads_dir, job_id)
        # Before the queue is filled: a key may have been revoked while no server ran.
        self._revocations.check()
        for job in deps.store.in_state("Queued"):
            deps.estimates.expect(job)
            deps.queue.put(job.job_id, reserved=False)
        try:
            self._retention.sweep(now)
        except StorageError as error:
            log.error("what has expired could not be removed: %s", error)

    def _work(self) -> None:
        # A crash while models are loaded for the first time is then not counted as an attempt at a job.
        self._preload.wait_until_tried()
        Worker(self._deps).loop()
