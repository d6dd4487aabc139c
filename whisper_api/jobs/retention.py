"""Removal of delivered results, of old jobs and webhook deliveries, and of uploads that belong to no job.

Deleted content also disappears from the database's write-ahead log: within ``WIPE_SECONDS``, unless another process
still reads an old state of the database.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from whisper_api.jobs.periodic import Periodic
from whisper_api.store.jobs import JobStore

log = logging.getLogger(__name__)

# The only names in the directory of an upload: the file during the upload and after it, and known speakers.
UPLOAD_FILES = re.compile(r"audio(\.part)?|speaker-\d+")
MIN_TICK_SECONDS = 1.0
# Deleted content stays in the write-ahead log for this long. Emptying the log costs two fsyncs.
WIPE_SECONDS = 10.0
# A warning is logged when the write-ahead log could not be emptied for this time.
OVERDUE_SECONDS = 60.0


class Swept(msgspec.Struct, frozen=True):
    """The numbers of a sweep's removals.

    Attributes:
        results: transcripts whose jobs stay.
        jobs: jobs with their transcripts.
        files: directories of uploads.
        deliveries: webhook deliveries that had ended.
    """

    results: int
    jobs: int
    files: int
    deliveries: int = 0


class Retention:
    """Removes what has expired.

    Args:
        store: the store of the jobs.
        uploads_dir: holds one directory for each upload, named by its job's id. A directory with another name, or with
            other files, does not belong to the server and stays.
        retention_seconds: how long a job, or a webhook delivery, stays after its end.
        grace_seconds: how long a result stays after its delivery, unless the job keeps its result.

    Attributes:
        retention_seconds, grace_seconds: may be changed at any time.
    """

    def __init__(
        self,
        store: JobStore,
        uploads_dir: Path,
        *,
        retention_seconds: float,
        grace_seconds: float,
    ) -> None:
        self._store = store
        self._uploads_dir = uploads_dir
        self.retention_seconds = retention_seconds
        self.grace_seconds = grace_seconds
        failure = "expired jobs and results could not be removed"
        self._periodic = Periodic("retention", self._remove_and_wipe, failure)
        # Used by the thread only: the times of sweeps, the time since when the write-ahead log could not be emptied,
        # and whether that was logged.
        self._interval = self._next_sweep = math.inf
        self._unwiped_since: float | None = None
        self._overdue = False
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._protected: set[str] = set()

    def protect(self, job_id: str) -> None:
        """Keep the directory of an upload that belongs to no job yet. Call this before the directory is made."""
        with self._lock:
            self._protected.add(job_id)

    def unprotect(self, job_id: str) -> None:
        """Stop protecting a directory: its job is in the store, or the directory was removed."""
        with self._lock:
            self._protected.discard(job_id)

    def sweep(self, now: float) -> Swept:
        """Remove everything that has expired.

        Args:
            now: seconds since 1970.

        Raises:
            StorageError: the database cannot be written. The orphaned uploads were removed before, which makes room on
                a full disk.
        """
        files = self._remove_orphans()
        results = self._remove_results(now)
        deliveries = self._store.delete_deliveries(now - self.retention_seconds)
        jobs = self._store.expired_jobs(now - self.retention_seconds)
        for job_id in jobs:
            self._store.delete(job_id)
            log.info("job removed", extra={"job_id": job_id})
        self._store.database.compact()
        return Swept(results, len(jobs), files, deliveries)

    def start(self, interval: float) -> None:
        """Start a thread that sweeps from time to time.

        Every ``WIPE_SECONDS``, or more often if the grace or the interval is shorter, the thread also removes results
        whose grace is over and uploads that belong to no job, and wipes deleted content from the write-ahead log.

        Args:
            interval: seconds between two sweeps; the first comes after one interval.
        """
        self._interval, self._next_sweep = interval, time.monotonic() + interval
        self._periodic.start(min(interval, WIPE_SECONDS, max(self.grace_seconds, MIN_TICK_SECONDS)))

    def close(self) -> None:
        """End the thread once it has finished its current step."""
        self._periodic.close()

    def _remove_and_wipe(self) -> None:
        try:
            if time.monotonic() >= self._next_sweep:
                self._next_sweep = time.monotonic() + self._interval
                self.sweep(time.time())
            else:
                self._remove_orphans()
                self._remove_results(time.time())
        finally:
            self.wipe()

    def wipe(self) -> None:
        """Remove deleted text from the database's log; warn once when another program prevents this for long."""
        now = time.monotonic()
        if self._store.database.wipe():
            self._unwiped_since, self._overdue = None, False
        elif self._unwiped_since is None:
            self._unwiped_since = now
        elif now - self._unwiped_since >= OVERDUE_SECONDS and not self._overdue:
            self._overdue = True
            log.warning(
                "deleted text is still in the job database's log: another program (a backup, a database shell) keeps "
                "reading jobs.db; the text goes when that program ends its transaction"
            )

    def _remove_orphans(self) -> int:
        return sum(1 for directory in self._orphans() if _remove(directory))

    def _remove_results(self, now: float) -> int:
        removed = 0
        for job_id in self._store.expired_results(now - self.grace_seconds):
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
        # The order matters. A directory is protected before it is made, and its job is stored before the protection
        # ends. So a listed directory is protected or belongs to a job, unless the job has ended.
        with self._lock:
            protected = set(self._protected)
        others = [path for path in directories if path.name not in protected]
        owned = self._store.unfinished_ids() if others else set()
        yield from (path for path in others if path.name not in owned)


def _is_upload(path: Path) -> bool:
    try:
        return str(uuid.UUID(path.name)) == path.name and path.is_dir() and not path.is_symlink()
    except ValueError:
        return False


def _remove(directory: Path) -> bool:
    """Remove the directory of an upload, and return whether it existed."""
    try:
        files = list(directory.iterdir())
        if not all(UPLOAD_FILES.fullmatch(path.name) for path in files):
            return False
        for path in files:
            path.unlink(missing_ok=True)
        directory.rmdir()
    except FileNotFoundError:
        return False  # another thread has removed it
    except OSError as error:
        log.warning("an upload that no job owns could not be removed: %s", error.strerror)
        return False
    log.info("upload removed", extra={"job_id": directory.name})
    return True


def remove_upload(uploads_dir: Path, job_id: str) -> None:
    """Remove the files of a job's upload. If that fails, the next sweep removes them.

    Args:
        uploads_dir: holds one directory for each upload.
        job_id: id of the job.
    """
    directory = uploads_dir / job_id
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("an upload could not be removed: %s", error.strerror, extra={"job_id": job_id})
