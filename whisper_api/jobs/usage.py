"""What keys use: requests, jobs, audio and work. Counts only, which stay when a job is deleted."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone

from whisper_api.access.quotas import Quotas, charged_seconds
from whisper_api.config import Config
from whisper_api.errors import InvalidOption, QuotaExceeded, StorageError
from whisper_api.records import made_of
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import JobRequest
from whisper_api.store.usage import Charge, OverQuota, day_of
from whisper_api.usage_records import QuotaUse, Usage

log = logging.getLogger(__name__)

# A process that is killed loses the requests of this time. Jobs and audio are on the disk with their job.
FLUSH_SECONDS = 10.0
DAY_SECONDS = 86400
MAX_DAYS = 366


class UsageLog:
    """The usage of the keys. Safe to use from any thread.

    Args:
        store: keeps the usage.
        config: says for how long.
        clock: seconds since 1970.

    Attributes:
        quotas: the quotas of the keys.
        records: whether usage is recorded; otherwise only jobs of keys with a quota are charged.
    """

    def __init__(self, store: JobStore, config: Config, clock: Callable[[], float] = time.time) -> None:
        self.quotas = Quotas(store, config, clock)
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by _lock; owner and day since 1970 to requests:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._pruned = ""
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Use the quota and the retention of a configuration from now on.

        Raises:
            InvalidOption: the quota cannot be read.
        """
        self.quotas.configure(config)
        self.records = config.usage_retention_days > 0
        self._days = config.usage_retention_days
        self._longest = config.max_audio_seconds

    def count_request(self, owner: str) -> None:
        """Count a request. Touches no disk.

        Args:
            owner: id of the key; empty without authorization.
        """
        if self.records:
            with self._lock:
                self._requests[owner, int(self._clock() // DAY_SECONDS)] += 1

    def charge(self, job: JobRequest, model: str) -> Charge | None:
        """What a new job is charged; None for nothing.

        Args:
            job: the job.
            model: name of the model that the job uses.
        """
        allowances = self.quotas.allowances(job.owner)
        if not self.records and not allowances:
            return None
        return Charge(model_label(model), charged_seconds(job, self._longest), allowances)

    def refusal(self, full: OverQuota, job: JobRequest) -> QuotaExceeded:
        """The error for a job that does not fit into the quotas of its key.

        Args:
            full: the quotas without room.
            job: the job.
        """
        seconds = charged_seconds(job, self._longest)
        return self.quotas.exceeded(full.used, seconds, stated=job.audio_seconds is not None)

    def report(self, owner: str | None, since: date | None = None, until: date | None = None) -> Usage:
        """The usage of some days.

        Args:
            owner: id of the key; None for all keys.
            since: the first day, in UTC; None for the first of the current month.
            until: the last day; None for the current day.

        Raises:
            InvalidOption: the days are more than a year, or in the wrong order.
        """
        today = datetime.fromtimestamp(self._clock(), timezone.utc).date()
        until = until or today
        since = since or min(today.replace(day=1), until)
        if not timedelta() <= until - since < timedelta(days=MAX_DAYS):
            raise InvalidOption("since", f"expected a day up to {MAX_DAYS} days before the last day ({until})")
        self.flush()
        rows = tuple(self._store.usage(since.isoformat(), until.isoformat(), owner))
        return Usage(
            since=since.isoformat(),
            until=until.isoformat(),
            rows=rows,
            requests=sum(row.requests for row in rows),
            jobs=sum(row.jobs for row in rows),
            audio_seconds=round(sum(row.audio_seconds for row in rows), 3),
            compute_seconds=round(sum(row.compute_seconds for row in rows), 3),
            quotas=() if owner is None else self._quota_uses(owner),
        )

    def flush(self) -> None:
        """Write the counted requests.

        Raises:
            StorageError: the database cannot be written; the next call tries again.
        """
        with self._lock:
            requests, self._requests = self._requests, Counter()
        if not requests:
            return
        try:
            self._store.count_requests(
                {(owner, day_of(day * DAY_SECONDS)): count for (owner, day), count in requests.items()}
            )
        except StorageError:
            with self._lock:
                self._requests.update(requests)
            raise

    def _quota_uses(self, owner: str) -> tuple[QuotaUse, ...]:
        return tuple(made_of(each, QuotaUse) for each in self.quotas.standings(owner))

    def write(self) -> None:
        """Write the counted requests, and delete what is too old; call it from time to time."""
        try:
            self.flush()
            self._prune()
        except StorageError as error:
            log.error("the usage of keys cannot be written: %s", error)

    def _prune(self) -> None:
        """Delete what is too old, once a day. The current month stays, because quotas need it."""
        now = self._clock()
        today = day_of(now)
        if today != self._pruned:
            self._store.delete_usage(min(day_of(now - self._days * DAY_SECONDS), f"{today[:7]}-01"))
            self._pruned = today


def model_label(name: str) -> str:
    """A model as the catalogue names it. Other names may be paths of this machine, and have no bound."""
    from whisper_api.engine.models.files import model_facts

    entry = model_facts(name)
    return "other" if entry is None else entry.name
