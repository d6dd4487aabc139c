"""The parts of a running service, and how they start and stop together."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from whisper_api.access.audit import AuditTrail
from whisper_api.access.keys import KeyRing
from whisper_api.config import Config, LiveConfig
from whisper_api.errors import DeviceLost, StorageError
from whisper_api.jobs import revocations
from whisper_api.jobs.admission import Reservations
from whisper_api.jobs.estimates import Estimates
from whisper_api.jobs.events import JobEvents, event_of
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.health import Health, HealthWatch
from whisper_api.jobs.model_downloads import ModelDownloads
from whisper_api.jobs.outcomes import Failed, PutBack, after_crash
from whisper_api.jobs.parts import Parts
from whisper_api.jobs.periodic import Periodic
from whisper_api.jobs.preload import RETRY_SECONDS, Preload
from whisper_api.jobs.queue import JobQueue
from whisper_api.jobs.retention import Retention, remove_upload
from whisper_api.jobs.running import RunningJobs
from whisper_api.jobs.traces import fail_trace
from whisper_api.jobs.usage import FLUSH_SECONDS, UsageLog
from whisper_api.jobs.webhook_requests import Bodies
from whisper_api.jobs.webhook_sender import WebhookSender
from whisper_api.jobs.webhooks import Webhooks
from whisper_api.jobs.worker import Worker
from whisper_api.outbound.connecting import hosts_in
from whisper_api.permissions import exposed_files
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job
from whisper_api.telemetry import Metrics, ServiceState, Tracing, start_tracing

log = logging.getLogger("whisper_api.jobs")

# A job that was asked to stop has this long. A work item takes less, unless the device hangs.
STOP_SECONDS = 30.0
WRITE_RETRY_SECONDS = 3.0
DRAINING_RETRY_SECONDS = 10.0
# The last uses of all keys are written together, so that a request costs no write.
KEY_USES_SECONDS = 60.0


class Lifecycle(Parts):
    """Makes, starts and stops the parts of a service; :class:`~whisper_api.jobs.service.JobService` adds operations.

    Args:
        config: limits, directories and times.
        store: the job database. Call its ``exclusive`` before :meth:`start`. Closed with the service.
        executor: runs the jobs. Closed with the service.
        preload_retry_seconds: pauses after each failed attempt to get the executor ready; the last one repeats.
        write_retry_seconds: pause between two attempts to write to a database that cannot be written.
        tracing: the traces, closed with the service; None for those that the environment configures.

    Attributes:
        keys: the keys of callers, which are in the same database.
        audit: the audit trail, for those who let callers in.
        usage: what keys use, and their quotas.
        hangs: whether the executor was still at work when the service was closed.
        fault: the error of the device that has failed, after which no job runs in this process; else None.
    """

    def __init__(
        self,
        config: Config,
        store: JobStore,
        executor: Executor,
        *,
        preload_retry_seconds: Sequence[float] = RETRY_SECONDS,
        write_retry_seconds: float = WRITE_RETRY_SECONDS,
        tracing: Tracing | None = None,
    ) -> None:
        self.store = store
        self.tracing = start_tracing() if tracing is None else tracing
        self.keys = KeyRing(store)
        self.hangs = False
        self.fault: DeviceLost | None = None
        self._fault_lock = threading.Lock()
        # Guarded by _fault_lock:
        self._on_fault: list[Callable[[], None]] = []
        self._process = os.getpid()
        self.settings = LiveConfig(config)
        self.audit = AuditTrail(store, config)
        self.executor = executor
        slots = self._jobs_per_engine = config.max_concurrent_jobs if config.enable_concurrency else 1
        self.queue = JobQueue(
            config.max_queued_jobs, slots, draining_seconds=config.shutdown_grace_seconds + DRAINING_RETRY_SECONDS
        )
        self.running = RunningJobs(slots)
        self.events = JobEvents(self.queue.positions)
        self.estimates = Estimates(store, lambda: executor.device, executor.model_name, slots)
        self._retention = Retention(
            store,
            config.tmp_dir,
            retention_seconds=config.job_retention_hours * 3600,
            grace_seconds=config.result_grace_seconds,
        )
        self._reservations = Reservations(self.queue, store, self._retention, config.tmp_dir, config.max_jobs_per_key)
        self.preload = Preload(executor, preload_retry_seconds, lambda: self.counts() == (0, 0), self._lose_device)
        self.metrics = Metrics(self._state)
        self.usage = UsageLog(store, config)
        private_hosts = hosts_in(config.webhook_private_hosts)
        self._webhook_sender = WebhookSender(
            store, self.metrics, Bodies(store).body_of, Webhooks(store).secrets_of, private_hosts=private_hosts
        )
        if config.enable_webhooks:
            store.on_deliveries = self._webhook_sender.wake
        self.downloads = ModelDownloads(executor, self.queue, self.metrics)
        self.on_device_lost = self._lose_device
        self.retry_seconds = write_retry_seconds
        self.stopping = threading.Event()
        self.turn = threading.Lock()
        self._watch = HealthWatch(self)
        self._workers_lock = threading.Lock()
        # Guarded by _workers_lock:
        self._workers: list[threading.Thread] = []
        # Held while the service is started, stopped or closed.
        self._lock = threading.Lock()
        self._periodic: list[Periodic] = []
        self._started = False
        self._draining = False
        self._stopped = False
        self._closed = False
        self.settings.register(self._take_settings)

    @property
    def _config(self) -> Config:
        return self.settings.config

    def start(self) -> None:
        """Put interrupted jobs back into the queue, remove orphans and begin to work; models are loaded meanwhile.

        Raises:
            StorageError: the database or the upload directory cannot be used.
            ForkedProcess: the service was made before this process was forked.
        """
        self.store.database.check_process()
        with self._lock:
            if self._started or self._draining:
                return
            uploads_dir = self._config.tmp_dir
            try:
                uploads_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"Cannot make {uploads_dir}: {error.strerror}") from error
            for warning in exposed_files(self._config):
                log.warning("%s", warning)
            self._recover()
            self._started = True
            self.audit.start()
            self._retention.start(self._config.cleanup_interval_hours * 3600)
            revoked = "jobs of revoked keys could not be canceled"
            self._repeat("revocations", self.end_revoked, revocations.POLL_SECONDS, revoked)
            self._repeat("usage", self.usage.write, FLUSH_SECONDS, "the usage of keys cannot be written")
            self._repeat("key-uses", self.keys.write_uses, KEY_USES_SECONDS, "the last uses of keys are not written")
            self._repeat("stall-watch", self._watch.check, self._watch.tick_seconds, "stalled jobs were not looked for")
            if self._config.enable_webhooks:
                self._webhook_sender.start()
            self.preload.start()
            self.executor.on_engines(self._resize)

    def _repeat(self, name: str, step: Callable[[], None], seconds: float, failure: str) -> None:
        periodic = Periodic(name, step, failure)
        self._periodic.append(periodic)
        periodic.start(seconds)

    def end_revoked(self) -> None:
        """Cancel the jobs of revoked keys now, instead of some seconds later.

        Raises:
            StorageError: the database cannot be used; it happens later.
        """
        revocations.end_revoked(self, self._after_cancel)

    def on_fault(self, callback: Callable[[], None]) -> None:
        """Call a function, in any thread, when the device has failed. End the process then: no job runs in it."""
        with self._fault_lock:
            self._on_fault.append(callback)
            happened = self.fault is not None
        if happened:
            callback()

    def drain(self) -> None:
        """Refuse new work, and start no more jobs; running jobs go on."""
        self._draining = True
        self.queue.close()
        self.running.close()
        self.preload.close()
        self.downloads.close()

    def stop(self, grace: float) -> None:
        """Drain, let running jobs end, and put those that have not ended back into the queue.

        Args:
            grace: seconds that running jobs have.

        Raises:
            ForkedProcess: the service was made before this process was forked.
        """
        self.store.database.check_process()
        if not self._draining:
            self.drain()
        with self._lock:
            if self._stopped:
                return
            running = self.running
            running.wait_until_empty(grace)
            self.stopping.set()
            for each in running.all():
                running.ask(each, "stop")
            deadline = time.monotonic() + STOP_SECONDS
            with self._workers_lock:
                workers = list(self._workers)
            for thread in workers:
                thread.join(max(0.0, deadline - time.monotonic()))
            for each in running.all():
                log.error("a job did not stop: it runs again after the next start", extra={"job_id": each.job_id})
            self._stopped = True

    def close(self) -> None:
        """Stop at once unless the service has stopped, and free everything. Further calls do nothing.

        In a forked process nothing happens: the service belongs to the parent process and goes on there.
        """
        if self._process != os.getpid():
            return
        self.stop(0.0)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._webhook_sender.close()
            for each in self._periodic:
                each.close()
            self._retention.close()
            self.keys.write_uses()
            self.usage.write()
            # In a thread, because a device that hangs must not keep the process from ending.
            closing = threading.Thread(target=self.executor.close, name="close", daemon=True)
            closing.start()
            closing.join(STOP_SECONDS)
            self.hangs = closing.is_alive()
            if self.hangs:
                log.error("the device is still at work and is left behind")
            self.preload.join()
            self.audit.close()
            self.store.close()
            self.tracing.close()

    def health(self) -> Health:
        """Whether the service runs jobs, and the reason when it does not."""
        if self.fault is not None:
            reason = f"{str(self.fault).capitalize().rstrip('.')}. The jobs are back in the queue; restart the server."
            return Health(ready=False, state="device_lost", reason=reason)
        if self._draining:
            return Health(ready=False, state="draining", reason="The server is stopping and takes no new work.")
        if not self._started:
            return Health(ready=False, state="starting", reason="The server is starting.")
        return self._watch.health()

    def counts(self, owner: str | None = None) -> tuple[int, int]:
        """The numbers of waiting and of running jobs.

        Args:
            owner: owner of the jobs; None for the jobs of all owners.
        """
        if owner is not None:
            return self.store.unfinished_by_state(owner)
        waiting = self.queue.positions()
        return len(waiting), sum(each.job_id not in waiting for each in self.running.all())

    def _resize(self, engines: int) -> None:
        """Let as many jobs run as the engines take. Threads are added and never ended: one without a job only waits."""
        slots = engines * self._jobs_per_engine
        self.queue.set_slots(slots)
        self.estimates.resize(slots)
        self.running.resize(slots)
        with self._workers_lock:
            while len(self._workers) < slots and not self._draining:
                thread = threading.Thread(target=self._work, name=f"job-{len(self._workers)}", daemon=True)
                self._workers.append(thread)
                thread.start()

    def oldest_wait(self, owner: str | None = None) -> float | None:
        """Seconds since the submission of the oldest job that waits; None when none waits.

        Args:
            owner: owner of the jobs; None for the jobs of all owners.
        """
        submitted = self.store.oldest_waiting(owner)
        return None if submitted is None else max(0.0, time.time() - submitted)

    def _lose_device(self, error: DeviceLost) -> None:
        """Start no more jobs after the device has failed."""
        with self._fault_lock:
            if self.fault is not None:
                return
            self.fault = error.with_traceback(None)
            callbacks = list(self._on_fault)
        log.critical("not ready: %s", error)
        self.drain()
        for callback in callbacks:
            callback()

    def _take_settings(self, config: Config) -> None:
        self.queue.resize(config.max_queued_jobs)
        self._reservations.per_owner = config.max_jobs_per_key
        self._retention.retention_seconds = config.job_retention_hours * 3600
        self._retention.grace_seconds = config.result_grace_seconds
        self.usage.configure(config)
        self.audit.take_settings(config)

    def _state(self) -> ServiceState:
        from whisper_api.engine.audio.process import DECODERS

        queued, running = self.counts()
        facts = self.executor.facts()
        return ServiceState(
            ready=self.health().ready,
            queued_jobs=queued,
            running_jobs=running,
            stalled_jobs=self._watch.stalled(),
            open_uploads=len(self._reservations),
            open_streams=len(self.events.watches),
            resident_models=facts.resident_models,
            resident_bytes=facts.resident_bytes,
            lost_decoders=DECODERS.lost,
            devices=facts.devices,
            engines=facts.engines,
            pending_deliveries=self.store.pending_deliveries() if self._config.enable_webhooks else 0,
        )

    def _recover(self) -> None:
        """Put interrupted jobs back, and fill the queue."""
        now = time.time()
        for job in recover(self.store, self._config.max_job_attempts, now):
            remove_upload(self._config.tmp_dir, job.job_id)
            fail_trace(self.tracing, job)
        # Before the queue is filled, because a key may have been revoked while no server ran.
        self.end_revoked()
        for job in self.store.in_state("Queued"):
            self.estimates.expect(job)
            self.queue.put(job.job_id, reserved=False)
        try:
            self._retention.sweep(now)
        except StorageError as error:
            log.error("expired jobs and results could not be removed: %s", error)

    def _work(self) -> None:
        # Start jobs only after the first load, so that a crash during loading is not counted against a job.
        self.preload.wait_until_tried()
        Worker(self).loop()

    def _after_cancel(self, job_id: str) -> None:
        """Clean up after a job that was canceled while no worker ran it."""
        log.info("job canceled", extra={"job_id": job_id})
        self.metrics.job_ended("canceled")
        self.tracing.job_ended(job_id, "Canceled", {})
        self.estimates.forget(job_id)
        self.downloads.forget(job_id)
        remove_upload(self._config.tmp_dir, job_id)
        job = self.store.get(job_id)
        if job is not None:
            self.events.publish(event_of(job))
        self.events.update_positions()


def recover(store: JobStore, max_attempts: int, now: float) -> list[Job]:
    """Put the running jobs back into the queue, or fail those that were tried too often.

    If the process ends during the recovery, the next start repeats it: each job is put back together with its count.

    Args:
        store: the store of the jobs.
        max_attempts: number of attempts at a job.
        now: seconds since 1970.

    Returns:
        The failed jobs, as they were before.
    """
    failed = []
    for job in store.in_state("Processing"):
        about = {"job_id": job.job_id}
        match after_crash(job, max_attempts, "the server ended"):
            case PutBack(counted, last):
                store.requeue(job.job_id, counted=counted, last=last)
                log.warning("job requeued after attempt %d of %d", job.attempts + 1, max_attempts, extra=about)
            case Failed(error_name, reason):
                store.fail(job.job_id, error_name, reason, now)
                failed.append(job)
                log.error("job failed: %s", reason, extra=about)
    return failed
