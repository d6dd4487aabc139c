"""The audit trail: who did what, from where, with which outcome. Entries wait in memory and are written in batches.

An entry whose action is in :data:`~whisper_api.audit_records.DURABLE` is on the disk before the client gets its
response. The other entries wait for ``BATCH_SECONDS``, and are written together without a sync of the disk: a killed
process loses the entries of the last seconds, a loss of power those since the last commit of a job. Failed
authentications are counted by address, so that a stranger cannot fill the disk.
"""

from __future__ import annotations

import functools
import getpass
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from whisper_api.audit_records import Action, AuditFilter, AuditRecord
from whisper_api.config import Config
from whisper_api.errors import StorageError
from whisper_api.store.job_search import page_of

if TYPE_CHECKING:
    from whisper_api.store.jobs import JobStore

log = logging.getLogger(__name__)

BATCH_SECONDS = 3.0
# Most entries that wait while the database cannot be written. Further entries are lost; one entry gives their number.
MAX_WAITING = 10_000
# The status of the response to a failed authentication, and the error.
RefusalStatus = Literal[401, 429]
REFUSALS = {401: "unauthorized", 429: "rate_limit_exceeded"}
# The failed authentications of an address with one status in this time are one entry. Addresses beyond the first ones
# share an entry.
REFUSAL_SECONDS = 60.0
REFUSED_ADDRESSES = 20
RETRY_SECONDS = 10.0
SWEEP_SECONDS = 3600.0
DAY_SECONDS = 86400.0


class AuditTrail:
    """The audit trail of a job database. Every method may be called from any thread.

    Args:
        store: the job database.
        config: ``audit_retention_days`` says how long entries are kept; 0 records nothing.
    """

    def __init__(self, store: JobStore, config: Config) -> None:
        self._store = store
        self._days = config.audit_retention_days
        self._thread = threading.Thread(target=self._loop, name="audit", daemon=True)
        self._woken = threading.Event()
        self._closing = threading.Event()
        # Held while entries are written, so that they are in the order in which they were added.
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._waiting: list[AuditRecord] = []
        self._lost = 0
        self._refusals: dict[str | None, Counter[int]] = {}
        self._refused_since = 0.0

    @property
    def recording(self) -> bool:
        """Whether entries are recorded."""
        return self._days > 0

    def take_settings(self, config: Config) -> None:
        """Use the retention of a new configuration."""
        self._days = config.audit_retention_days

    def start(self) -> None:
        """Start the thread that writes entries and removes old ones."""
        self._thread.start()

    def close(self) -> None:
        """Write the waiting entries, and end the thread."""
        self._closing.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._try_to_write(closing=True)

    def add(self, record: AuditRecord) -> None:
        """Add an entry that is written soon. Does not touch the disk."""
        if not self.recording:
            return
        with self._lock:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(record)
            else:
                self._lost += 1
        self._woken.set()

    def write(self, record: AuditRecord) -> None:
        """Add an entry, and return when it is on the disk. An entry that cannot be written waits; the log says so."""
        if not self.recording:
            return
        try:
            self._write([record], synced=True)
        except StorageError as error:
            log.error("an entry of the audit trail could not be written yet: %s", error)

    def refused(self, address: str | None, status: RefusalStatus = 401) -> None:
        """Count a failed authentication.

        Args:
            address: address of the client; None when it is unknown.
            status: status of the response: 401, or 429 for an attempt that the limit of wrong keys has refused.
        """
        if not self.recording:
            return
        with self._lock:
            if not self._refusals:
                self._refused_since = time.monotonic()
            if address not in self._refusals and len(self._refusals) >= REFUSED_ADDRESSES:
                address = None
            self._refusals.setdefault(address, Counter())[status] += 1
        self._woken.set()

    def page(
        self, filter: AuditFilter, *, limit: int, after: str | None = None
    ) -> tuple[list[AuditRecord], str | None]:
        """A page of entries, the newest first. Waiting entries are written first.

        Args:
            filter: conditions.
            limit: most entries on the page, up to 1000.
            after: the cursor of the page before; None for the first page.

        Returns:
            The entries, and the cursor for the next page; None on the last one.

        Raises:
            InvalidOption: ``limit`` or ``after`` is wrong.
        """
        if after is None:
            self._try_to_write()
        return page_of(functools.partial(self._store.audit_page, filter), limit, after)

    def _loop(self) -> None:
        next_sweep = 0.0
        while not self._closing.is_set():
            now = time.monotonic()
            if now >= next_sweep:
                next_sweep = now + SWEEP_SECONDS
                self._try_to_expire()
            self._woken.wait(self._until(next_sweep))
            self._closing.wait(BATCH_SECONDS if self._woken.is_set() else 0.0)
            # Cleared before the writing, so that an entry added during the writing wakes the thread again.
            self._woken.clear()
            if not self._try_to_write():
                self._woken.set()
                self._closing.wait(RETRY_SECONDS)

    def _until(self, next_sweep: float) -> float:
        with self._lock:
            due = self._refused_since + REFUSAL_SECONDS if self._refusals else next_sweep
        return max(0.0, min(due, next_sweep) - time.monotonic())

    def _try_to_write(self, *, closing: bool = False) -> bool:
        self._end_refusals(closing)
        try:
            self._write([], synced=False)
        except StorageError as error:
            log.error("entries of the audit trail could not be written yet: %s", error)
            return False
        return True

    def _write(self, more: Sequence[AuditRecord], *, synced: bool) -> None:
        with self._writing:
            with self._lock:
                batch, self._waiting = [*self._waiting, *more], []
                lost, self._lost = self._lost, 0
            if lost:
                batch.append(server_record("audit.lose", count=lost))
            if not batch:
                return
            try:
                self._store.add_audit(batch, synced=synced)
            except StorageError:
                with self._lock:
                    kept = batch[: len(batch) - bool(lost)]
                    self._waiting = [*kept, *self._waiting]
                    self._lost += lost
                raise

    def _end_refusals(self, closing: bool) -> None:
        """Make an entry for each address and status of failed authentications, when ``REFUSAL_SECONDS`` are over."""
        with self._lock:
            if not self._refusals or not (closing or time.monotonic() >= self._refused_since + REFUSAL_SECONDS):
                return
            refusals, self._refusals = self._refusals, {}
            self._waiting += [
                AuditRecord(
                    time=utc_now(),
                    action="authentication.fail",
                    actor="anyone",
                    address=address,
                    status=status,
                    error=REFUSALS[status],
                    count=count,
                )
                for address, counts in refusals.items()
                for status, count in sorted(counts.items())
            ]

    def _try_to_expire(self) -> None:
        # The database refuses to remove entries of the last day.
        days = max(self._days, 1.0)
        try:
            self._store.expire_audit(time.time() - days * DAY_SECONDS - 1.0)
        except StorageError as error:
            log.error("old entries of the audit trail could not be removed: %s", error)


def utc_now() -> datetime:
    """The current time, with its zone."""
    return datetime.now(timezone.utc)


def server_record(action: Action, target: str | None = None, *, count: int = 1) -> AuditRecord:
    """An entry for an action of the server itself.

    Args:
        action: the action.
        target: id of the thing.
        count: how often.
    """
    return AuditRecord(time=utc_now(), action=action, actor="server", target=target, count=count)


def record_command(store: JobStore, config: Config, action: Action, target: str | None = None) -> None:
    """Add an entry for what this machine's user has done by a command, and return when it is on the disk.

    Args:
        store: the job database, which a server may use at the same time.
        config: says whether entries are recorded.
        action: the action.
        target: id of the thing.

    Raises:
        StorageError: the entry could not be written.
    """
    if not config.audit_retention_days:
        return
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        # The system has no name for the user's id.
        user = None
    record = AuditRecord(time=utc_now(), action=action, actor="command line", name=user, target=target)
    store.add_audit([record], synced=True)
