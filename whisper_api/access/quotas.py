"""Quotas of audio and jobs for each calendar day and month, in UTC.

A job is charged in the transaction that accepts it, so that concurrent jobs cannot exceed a quota together. The charge
is given back when a waiting job is canceled, and when a job fails for another reason than its audio or options. When a
job is completed, the length of the decoded audio replaces the charged length.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone

from whisper_api.access.limit_values import QUOTA_UNITS, Period, Quota, Standing, parse_quota, quota_policy
from whisper_api.config import Config
from whisper_api.errors import QuotaExceeded
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import JobRequest, Key
from whisper_api.store.usage import Allowance

# A file that does not state its length is charged by its size, at this rate, until it is decoded. Nearly all
# recordings have a higher rate, so the charge is rarely too small, and the excess is given back.
LEAST_BYTES_PER_SECOND = 2000

_quotas = functools.lru_cache(maxsize=1024)(parse_quota)


def charged_seconds(job: JobRequest, longest: float) -> float:
    """The length for which a job is charged when it is accepted.

    Args:
        job: the job.
        longest: seconds that audio may last; 0 for any length.
    """
    if job.audio_seconds is not None:
        return job.audio_seconds
    seconds = job.audio_bytes / LEAST_BYTES_PER_SECOND
    return min(seconds, longest) if longest else seconds


class Quotas:
    """The quotas of keys. Safe to use from any thread.

    Args:
        store: has the keys and what they have used.
        config: names the quota of keys without one of their own.
        clock: seconds since 1970.
    """

    def __init__(self, store: JobStore, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Use the quota of a configuration from now on.

        Raises:
            InvalidOption: the quota cannot be read.
        """
        self._default = _quotas(config.quota or "")

    def of(self, owner: str) -> tuple[Quota, ...]:
        """The quotas of a key.

        Args:
            owner: id of the key; empty without authorization, and then there are none.
        """
        found = self._store.key(owner) if owner else None
        return () if found is None else self.of_key(found[0])

    def of_key(self, key: Key) -> tuple[Quota, ...]:
        """The quotas of a key: its own, or else those of the configuration."""
        return self._default if key.quota is None else _quotas(key.quota)

    def allowances(self, owner: str) -> tuple[Allowance, ...]:
        """The quotas of a key for the current day and month."""
        now = self._clock()
        return tuple(_allowance(quota, now) for quota in self.of(owner))

    def check(self, owner: str) -> None:
        """Refuse a key that has used up a quota, before its upload begins.

        Raises:
            QuotaExceeded: nothing is left of a quota.
        """
        full = [(allowance, used) for allowance, used in self._used(owner, self.of(owner)) if used >= allowance.amount]
        if full:
            raise self.exceeded(full)

    def standings(self, owner: str) -> tuple[Standing, ...]:
        """The quotas of a key, and what is left of them."""
        found = self._store.key(owner) if owner else None
        return () if found is None else self.standings_of(found[0])

    def standings_of(self, key: Key) -> tuple[Standing, ...]:
        """As :meth:`standings`, for a key that was read already."""
        now, owner = self._clock(), key.key_id
        found = []
        quotas = self.of_key(key)
        for quota, (allowance, used) in zip(quotas, self._used(owner, quotas), strict=True):
            first, after = _period(quota.period, now)
            found.append(
                Standing(
                    policy=allowance.policy,
                    unit=QUOTA_UNITS[quota.measure],
                    limit=allowance.amount,
                    window_seconds=round((after - first).total_seconds()),
                    remaining=max(0, math.floor(allowance.amount - used + 1e-6)),
                    reset_seconds=math.ceil(after.timestamp() - now),
                )
            )
        return tuple(found)

    def exceeded(
        self, used: Sequence[tuple[Allowance, float]], audio_seconds: float = 0.0, *, stated: bool = True
    ) -> QuotaExceeded:
        """The error for quotas without room.

        Args:
            used: each of these quotas, and how much of it is used.
            audio_seconds: length for which the refused recording would be charged.
            stated: whether its file states this length.
        """
        now = self._clock()
        sentences = []
        ends = []
        for allowance, amount in used:
            period: Period = "month" if allowance.policy.endswith("month") else "day"
            ends.append(_period(period, now)[1])
            if allowance.column == "jobs":
                sentences.append(_used_up(allowance.amount, "job", period))
            elif audio_seconds > 0 and amount < allowance.amount:
                left = _minutes(allowance.amount - amount, math.floor)
                sentences.append(
                    f"{left} of the {_minutes(allowance.amount)} minutes of this {period} are left, and the recording "
                    f"counts as {_minutes(audio_seconds, math.ceil)}"
                    + ("" if stated else " by its size, because its file does not state its length")
                )
            else:
                sentences.append(_used_up(_minutes(allowance.amount), "minute", period))
        after = max(ends)
        return QuotaExceeded(
            f"The quota of this key has no room for the job: {'; '.join(sentences)}. The next {period} begins at "
            f"{after:%Y-%m-%dT%H:%M:%SZ}",
            math.ceil(after.timestamp() - now),
            tuple(allowance.policy for allowance, _ in used),
        )

    def _used(self, owner: str, quotas: Sequence[Quota]) -> list[tuple[Allowance, float]]:
        """The allowance of each quota, and how much of it an owner has used."""
        now = self._clock()
        allowances = [_allowance(quota, now) for quota in quotas]
        return list(zip(allowances, self._store.used_of(owner, allowances), strict=True)) if allowances else []


def _used_up(amount: float | str, unit: str, period: Period) -> str:
    one = float(amount) == 1
    return f"the one {unit} of this {period} is used" if one else f"all {amount} {unit}s of this {period} are used"


def _allowance(quota: Quota, now: float) -> Allowance:
    first_day = _period(quota.period, now)[0].date().isoformat()
    if quota.measure == "jobs":
        return Allowance(quota_policy(quota), "jobs", quota.amount, first_day)
    return Allowance(quota_policy(quota), "audio_seconds", 60 * quota.amount, first_day)


def _period(period: Period, now: float) -> tuple[datetime, datetime]:
    """The begin of the current day or month, and the begin of the next one."""
    first = datetime.fromtimestamp(now, timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return first, first + timedelta(days=1)
    first = first.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1)


def _minutes(seconds: float, rounded: Callable[[float], int] = round) -> str:
    return f"{rounded(max(0.0, seconds) / 6) / 10}".removesuffix(".0")
