"""The health of a service: whether it runs jobs, and the reason when it does not."""

from __future__ import annotations

import contextlib
import logging
from typing import Literal

import msgspec

from whisper_api.errors import StorageError, StorageFull
from whisper_api.jobs.parts import Parts
from whisper_api.jobs.running import ProgressSnapshot

log = logging.getLogger("whisper_api.jobs")

TICKS_PER_STALL = 4
MAX_TICK_SECONDS = 5.0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The health of a service.

    Attributes:
        ready: whether the service runs jobs now.
        state: the state in one word. ``degraded`` with fewer engines than are wanted; ready as long as one runs.
        reason: why the service is not ready or is degraded, and what to do; empty when all is well. Health checks need
            no key, so the text reveals nothing about jobs.
        loading: the models that are still being loaded while jobs run; empty when none are.
    """

    ready: bool
    state: Literal["starting", "ready", "stalled", "draining", "disk_full", "device_lost", "degraded", "failed"]
    reason: str = ""
    loading: str = ""


class HealthWatch:
    """Determines the health of a service, and logs when a job stalls and when it goes on.

    Args:
        parts: the parts of the service.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # Used by :meth:`check` only.
        self._disk_failed = False
        self._stalled: set[str] = set()

    @property
    def tick_seconds(self) -> float:
        """The pause between two calls of :meth:`check`."""
        return min(self._parts.settings.config.stall_seconds / TICKS_PER_STALL, MAX_TICK_SECONDS)

    def health(self) -> Health:
        """The health of a service that is not stopping."""
        disk = self._parts.store.database.write_error()
        if disk is not None:
            state: Literal["disk_full", "failed"] = "disk_full" if isinstance(disk, StorageFull) else "failed"
            return Health(ready=False, state=state, reason=f"{str(disk).rstrip('.')}.")
        live = self._parts.running.snapshots()
        write_error = next((each.write_error for each in live.values() if each.write_error), "")
        if write_error:
            return Health(ready=False, state="failed", reason=f"A result cannot be written. {write_error}")
        stalled = [each for each in live.values() if self._is_stalled(each)]
        if stalled:
            longest = max(stalled, key=lambda each: each.idle_seconds)
            reason = f"A job has made no progress for {longest.idle_seconds:.0f} s (stage {longest.progress.stage})."
            return Health(ready=False, state="stalled", reason=f"{reason} The log names it; restart the server.")
        engines = self._parts.executor.engines()
        shortage = f"{engines.running} of {engines.wanted} engines run. {engines.reason}".rstrip()
        if engines.running == 0 and (engines.reason or self._parts.preload.tried):
            return Health(ready=False, state="degraded", reason=f"{shortage} Jobs wait meanwhile.")
        if failure := self._parts.preload.failure:
            return Health(ready=False, state="failed", reason=failure)
        if not self._parts.preload.tried:
            return Health(ready=False, state="starting", reason=f"Models are being loaded{self._activity()}.")
        loading = f"models for word times and speakers{self._activity()}" if self._parts.preload.warming_up else ""
        if engines.running < engines.wanted:
            return Health(ready=True, state="degraded", reason=shortage, loading=loading)
        return Health(ready=True, state="ready", loading=loading)

    def stalled(self) -> int:
        """The number of running jobs that make no progress."""
        return sum(self._is_stalled(each) for each in self._parts.running.snapshots().values())

    def _activity(self) -> str:
        activity = self._parts.executor.activity
        return f": {activity}" if activity else ""

    def _is_stalled(self, live: ProgressSnapshot) -> bool:
        return live.idle_seconds > self._parts.settings.config.stall_seconds

    def check(self) -> None:
        """Log which jobs have stalled or go on, and whether the database can be written; call it from time to time."""
        self._check_disk()
        live = self._parts.running.snapshots()
        stalled = {job_id for job_id, each in live.items() if self._is_stalled(each)}
        for job_id in stalled - self._stalled:
            each = live[job_id]
            log.error(
                "job stalled",
                extra={"job_id": job_id, "stage": each.progress.stage, "seconds": round(each.idle_seconds, 1)},
            )
        for job_id in (self._stalled - stalled) & live.keys():
            log.info("job goes on", extra={"job_id": job_id})
        self._stalled = stalled

    def _check_disk(self) -> None:
        """Try whether the database can be written again, and log when that changes."""
        error = self._parts.store.database.write_error()
        if error is not None:
            with contextlib.suppress(StorageError):
                self._parts.store.try_to_write()
            error = self._parts.store.database.write_error()
        if error is not None and not self._disk_failed:
            log.error("not ready: %s", error)
        elif error is None and self._disk_failed:
            log.info("the job database can be written again")
        self._disk_failed = error is not None
