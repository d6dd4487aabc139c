"""Whether jobs can be worked on, and why not."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Literal

import msgspec

from whisper_api.errors import StorageError, StorageFull
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.preload import Preload
from whisper_api.jobs.running import ProgressSnapshot, RunningJobs
from whisper_api.store.jobs import JobStore

__all__ = ["Health", "HealthWatch"]

log = logging.getLogger("whisper_api.jobs")

TICKS_PER_STALL = 4
MAX_TICK_SECONDS = 5.0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a service is.

    Attributes:
        ready: whether jobs are worked on now.
        state: in one word.
        reason: why it is not ready, and what to do; empty when it is. Anybody may read it.
        loading: what is still to come though jobs are worked on; empty when all is there.
    """

    ready: bool
    state: Literal["starting", "ready", "stalled", "draining", "disk_full", "failed"]
    reason: str = ""
    loading: str = ""


class HealthWatch:
    """Judges a service's health, and logs when a job stalls and when it goes on.

    Args:
        running: the jobs that run.
        preload: gets the executor ready.
        executor: says what it is busy with.
        store: says whether it can be written.
        stall_seconds: without progress, after which a job counts as stalled.
    """

    def __init__(
        self, running: RunningJobs, preload: Preload, executor: Executor, store: JobStore, stall_seconds: float
    ) -> None:
        self._running = running
        self._preload = preload
        self._executor = executor
        self._store = store
        self._stall_seconds = stall_seconds
        self._closing = threading.Event()
        # Used by the thread only.
        self._disk_trouble = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch for stalled jobs, in a thread of its own."""
        self._thread = threading.Thread(target=self._loop, name="stall-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def health(self) -> Health:
        """How the service is, as long as it is not stopping."""
        disk = self._store.trouble()
        if disk is not None:
            state: Literal["disk_full", "failed"] = "disk_full" if isinstance(disk, StorageFull) else "failed"
            return Health(ready=False, state=state, reason=f"{str(disk).rstrip('.')}.")
        live = self._running.live()
        trouble = next((each.trouble for each in live.values() if each.trouble), "")
        if trouble:
            return Health(ready=False, state="failed", reason=f"A result cannot be written. {trouble}")
        stalled = [each for each in live.values() if self._is_stalled(each)]
        if stalled:
            longest = max(stalled, key=lambda each: each.idle_seconds)
            reason = f"A job has made no progress for {longest.idle_seconds:.0f} s (stage {longest.progress.stage})."
            return Health(ready=False, state="stalled", reason=f"{reason} The log names it; restart the server.")
        if failure := self._preload.failure:
            return Health(ready=False, state="failed", reason=failure)
        if not self._preload.tried:
            return Health(ready=False, state="starting", reason=f"Models are being loaded{self._activity()}.")
        loading = f"models for word times and speakers{self._activity()}" if self._preload.warming_up else ""
        return Health(ready=True, state="ready", loading=loading)

    def _activity(self) -> str:
        activity = self._executor.activity
        return f": {activity}" if activity else ""

    def _is_stalled(self, live: ProgressSnapshot) -> bool:
        return live.idle_seconds > self._stall_seconds

    def _loop(self) -> None:
        known: set[str] = set()
        tick = min(self._stall_seconds / TICKS_PER_STALL, MAX_TICK_SECONDS)
        while not self._closing.wait(tick):
            self._look_at_disk()
            live = self._running.live()
            stalled = {job_id for job_id, each in live.items() if self._is_stalled(each)}
            for job_id in stalled - known:
                each = live[job_id]
                log.error(
                    "job stalled",
                    extra={"job_id": job_id, "stage": each.progress.stage, "seconds": round(each.idle_seconds, 1)},
                )
            for job_id in (known - stalled) & live.keys():
                log.info("job goes on", extra={"job_id": job_id})
            known = stalled

    def _look_at_disk(self) -> None:
        """Try whether the database can be written again, and log when that changes."""
        trouble = self._store.trouble()
        if trouble is not None:
            with contextlib.suppress(StorageError):
                self._store.try_to_write()
            trouble = self._store.trouble()
        if trouble is not None and not self._disk_trouble:
            log.error("not ready: %s", trouble)
        elif trouble is None and self._disk_trouble:
            log.info("the job database can be written again")
        self._disk_trouble = trouble is not None
