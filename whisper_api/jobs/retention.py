"""What is removed, and when: results that were delivered, jobs that are old, uploads that no job owns."""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from whisper_api.errors import StorageError
from whisper_api.jobs.store import JobStore

__all__ = ["UPLOAD_FILES", "Retention", "Swept"]

log = logging.getLogger(__name__)

# All that the directory of an upload ever holds: the file while it comes, and when it is whole; known speakers.
UPLOAD_FILES = re.compile(r"audio(\.part)?|speaker-\d+")
MIN_TICK_SECONDS = 1.0


class Swept(msgspec.Struct, frozen=True):
    """What one sweep removed.

    Attributes:
        results: transcripts of jobs that stay.
        jobs: jobs, with their transcripts.
        files: directories of uploads.
    """

    results: int
    jobs: int
    files: int


class Retention:
    """Removes what has expired.

    Args:
        store: where the jobs are.
        uploads_dir: holds one directory for each upload, named by its job's id. What has another name, or holds
            anything but an upload, is somebody else's and stays.
        retention_seconds: how long a job stays after it ended.
        grace_seconds: how long a result stays after it was delivered, unless its job said to keep it.
        on_removed: called with the id of each job that was removed.
    """

    def __init__(
        self,
        store: JobStore,
        uploads_dir: Path,
        *,
        retention_seconds: float,
        grace_seconds: float,
        on_removed: Callable[[str], None] = lambda job_id: None,
    ) -> None:
        self._store = store
        self._uploads_dir = uploads_dir
        self._retention_seconds = retention_seconds
        self._grace_seconds = grace_seconds
        self._on_removed = on_removed
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._protected: set[str] = set()

    def protect(self, job_id: str) -> None:
        """Leave the directory of an upload alone that no job owns yet. To be called before the directory is made."""
        with self._lock:
            self._protected.add(job_id)

    def unprotect(self, job_id: str) -> None:
        """The job is in the store, or its directory is gone."""
        with self._lock:
            self._protected.discard(job_id)

    def sweep(self, now: float) -> Swept:
        """Remove all that has expired.

        Args:
            now: seconds since 1970.

        Raises:
            StorageError: the database cannot be written. The uploads were removed before that, as on a full disk
                they make room.
        """
        files = sum(1 for directory in self._orphans() if _remove(directory))
        results = self._remove_results(now)
        jobs = self._store.expired_jobs(now - self._retention_seconds)
        for job_id in jobs:
            self._store.delete(job_id)
            log.info("job removed", extra={"job_id": job_id})
            self._on_removed(job_id)
        self._store.compact()
        return Swept(results, len(jobs), files)

    def start(self, interval: float) -> None:
        """Sweep from time to time, in a thread of its own.

        Results have a finer tick than the rest, as their grace is a matter of seconds: they are looked at as often as
        the grace is long (no oftener than every second, no more rarely than the rest), so that one stays for less than
        twice the grace.

        Args:
            interval: seconds between two sweeps; the first comes after one interval.
        """
        self._thread = threading.Thread(target=self._loop, args=(interval,), name="retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after what it is doing."""
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self, interval: float) -> None:
        tick = min(interval, max(self._grace_seconds, MIN_TICK_SECONDS))
        next_sweep = time.monotonic() + interval
        while not self._closing.wait(tick):
            everything = time.monotonic() >= next_sweep
            if everything:
                next_sweep = time.monotonic() + interval
            self._try(everything)

    def _try(self, everything: bool) -> None:
        try:
            if everything:
                self.sweep(time.time())
            elif self._remove_results(time.time()):
                self._store.compact()
        except StorageError as error:
            log.error("what has expired could not be removed: %s", error)
        except Exception:
            log.exception("what has expired could not be removed")

    def _remove_results(self, now: float) -> int:
        removed = 0
        for job_id in self._store.expired_results(now - self._grace_seconds):
            if self._store.drop_result(job_id):
                removed += 1
                log.info("result removed", extra={"job_id": job_id})
        return removed

    def _orphans(self) -> Iterator[Path]:
        try:
            directories = [path for path in self._uploads_dir.iterdir() if _is_upload(path)]
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("uploads that no job owns could not be looked for: %s", error.strerror)
            return
        # In this order. A directory is protected before it is there, and its job is in the store before it is not
        # protected any more: so one that was listed is seen in at least one of the two, unless its job has ended.
        with self._lock:
            protected = set(self._protected)
        owned = {job.job_id for job in self._store.in_state("Queued", "Processing")}
        yield from (path for path in directories if path.name not in protected | owned)


def _is_upload(path: Path) -> bool:
    try:
        return str(uuid.UUID(path.name)) == path.name and path.is_dir() and not path.is_symlink()
    except ValueError:
        return False


def _remove(directory: Path) -> bool:
    """Remove the directory of an upload; whether it was one."""
    try:
        files = list(directory.iterdir())
        if not all(UPLOAD_FILES.fullmatch(path.name) for path in files):
            return False
        for path in files:
            path.unlink(missing_ok=True)
        directory.rmdir()
    except FileNotFoundError:
        return False  # whoever ended the job was faster
    except OSError as error:
        log.warning("an upload that no job owns could not be removed: %s", error.strerror)
        return False
    log.info("upload removed", extra={"job_id": directory.name})
    return True
