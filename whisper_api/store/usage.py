"""The tables of usage by key, and of the charges of unfinished jobs. They hold counts and no text."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from whisper_api import errors
from whisper_api.errors import InvalidInput, Portable
from whisper_api.store.tables import Tables, insert
from whisper_api.usage_records import UsageRow

# A job that fails with one of these errors stays charged, because its audio or options are to blame.
CALLERS_FAULTS = frozenset(name for name in errors.__all__ if issubclass(getattr(errors, name), InvalidInput))
# Charging and giving back seconds adds up rounding errors, up to this size.
ROUNDING_SECONDS = 1e-6

_ADD = """
    INSERT INTO usage (owner, day, model, requests, jobs, audio_seconds, compute_seconds)
    VALUES (:owner, :day, :model, :requests, :jobs, :audio_seconds, :compute_seconds)
    ON CONFLICT (owner, day, model) DO UPDATE SET
        requests = requests + excluded.requests,
        jobs = jobs + excluded.jobs,
        audio_seconds = audio_seconds + excluded.audio_seconds,
        compute_seconds = compute_seconds + excluded.compute_seconds
"""


@dataclass(frozen=True)
class Allowance:
    """The part of a quota that is counted from one day on.

    Attributes:
        policy: name of the quota.
        column: the column that is counted.
        amount: most jobs, or seconds of audio.
        first_day: the first day that counts, as :func:`day_of` writes it.
    """

    policy: str
    column: Literal["jobs", "audio_seconds"]
    amount: int
    first_day: str


@dataclass(frozen=True)
class Charge:
    """The charge for a job, made when the job is accepted.

    Attributes:
        model: name of the model, for the usage.
        audio_seconds: length of the audio, or an estimate.
        allowances: quotas of the owner that must have room for the job.
    """

    model: str
    audio_seconds: float
    allowances: tuple[Allowance, ...] = ()


class OverQuota(Portable):
    """A job does not fit into the quotas of its owner.

    Args:
        used: each allowance without room, and how much of it is used.
    """

    def __init__(self, used: Sequence[tuple[Allowance, float]]) -> None:
        super().__init__(", ".join(allowance.policy for allowance, _ in used))
        self.used = tuple(used)


class UsageTable(Tables):
    """Usage by owner, day and model. The usage of jobs is written in the transactions that accept and end them."""

    def count_requests(self, requests: Mapping[tuple[str, str], int]) -> None:
        """Add requests to the usage.

        Args:
            requests: owner and day to the number of requests.
        """
        nothing = {"model": "", "jobs": 0, "audio_seconds": 0.0, "compute_seconds": 0.0}
        # Not synced: the counts survive a loss of power after the next synced commit.
        with self.database.write(synced=False) as connection:
            rows = (
                {"owner": owner, "day": day, "requests": count, **nothing} for (owner, day), count in requests.items()
            )
            connection.executemany(_ADD, rows)

    def used_of(self, owner: str, allowances: Sequence[Allowance]) -> list[float]:
        """How much an owner has used of each allowance, all read at one moment."""
        with self.database.read() as connection:
            return [_used(connection, owner, each.first_day)[each.column == "audio_seconds"] for each in allowances]

    def usage(self, since: str, until: str, owner: str | None = None) -> list[UsageRow]:
        """The usage by day, key and model, in this order.

        Args:
            since: the first day, as :func:`day_of` writes it.
            until: the last day.
            owner: id of the key; None for all keys.
        """
        rows = self._rows(
            "SELECT day, owner AS key_id, COALESCE(name, '') AS key_name, model, requests, jobs,"
            " ROUND(audio_seconds, 3) AS audio_seconds, ROUND(compute_seconds, 3) AS compute_seconds"
            " FROM usage LEFT JOIN keys ON key_id = owner"
            " WHERE day BETWEEN ? AND ? AND (? IS NULL OR owner = ?)"
            " AND (requests OR jobs OR usage.compute_seconds) ORDER BY day, owner, model",
            since,
            until,
            owner,
            owner,
        )
        return [UsageRow(**dict(row)) for row in rows]

    def delete_usage(self, before: str) -> None:
        """Delete the usage of the days before a day."""
        if self._rows("SELECT 1 FROM usage WHERE day < ? LIMIT 1", before):
            self._change("DELETE FROM usage WHERE day < ?", before)


def day_of(seconds: float) -> str:
    """The day of a time, in UTC, as in ``2026-03-31``.

    Args:
        seconds: seconds since 1970.
    """
    return datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()


def charge_job(connection: sqlite3.Connection, job_id: str, owner: str, created_at: float, charge: Charge) -> None:
    """Charge a job in the transaction that accepts it, so that two jobs cannot both use the rest of a quota.

    Args:
        connection: a connection in a transaction.
        job_id: id of the job.
        owner: id of the key.
        created_at: seconds since 1970.
        charge: what the job is charged.

    Raises:
        OverQuota: an allowance has no room for the job.
    """
    wanted = {"jobs": 1, "audio_seconds": charge.audio_seconds}
    full = []
    for allowance in charge.allowances:
        jobs, audio_seconds = _used(connection, owner, allowance.first_day)
        used = jobs if allowance.column == "jobs" else audio_seconds
        if used + wanted[allowance.column] > allowance.amount + ROUNDING_SECONDS:
            full.append((allowance, float(used)))
    if full:
        raise OverQuota(full)
    row = {"owner": owner, "day": day_of(created_at), "model": charge.model, **wanted}
    connection.execute(_ADD, {**row, "requests": 0, "compute_seconds": 0.0})
    row.pop("jobs")
    insert(connection, "charges", {"job_id": job_id, **row})


def settle(
    connection: sqlite3.Connection,
    job_id: str,
    *,
    audio_seconds: float | None = None,
    compute_seconds: float = 0.0,
) -> None:
    """Make the charge of a job final, in the transaction that ends the job.

    Args:
        connection: a connection in a transaction.
        job_id: id of the job; nothing happens when it has no charge.
        audio_seconds: length of the decoded audio, which replaces the charged length; None to keep the charged length.
        compute_seconds: seconds of work for the job.
    """
    row = _taken(connection, job_id)
    if row is not None:
        more = 0.0 if audio_seconds is None else audio_seconds - row["audio_seconds"]
        _change(connection, row, 0, more, compute_seconds)


def give_back(connection: sqlite3.Connection, job_id: str, *, compute_seconds: float = 0.0) -> None:
    """Give back what a job was charged, in the transaction that ends the job. The work for the job counts all the same.

    Args:
        connection: a connection in a transaction.
        job_id: id of the job; nothing happens when it has no charge.
        compute_seconds: seconds of work for the job.
    """
    row = _taken(connection, job_id)
    if row is not None:
        _change(connection, row, -1, -row["audio_seconds"], compute_seconds)


def _used(connection: sqlite3.Connection, owner: str, first_day: str) -> tuple[int, float]:
    jobs, audio_seconds = connection.execute(
        "SELECT COALESCE(SUM(jobs), 0), COALESCE(SUM(audio_seconds), 0.0) FROM usage WHERE owner = ? AND day >= ?",
        (owner, first_day),
    ).fetchone()
    return int(jobs), float(audio_seconds)


def _taken(connection: sqlite3.Connection, job_id: str) -> sqlite3.Row | None:
    """Remove the charge of a job, and return it; None when there is none."""
    row: sqlite3.Row | None = connection.execute("SELECT * FROM charges WHERE job_id = ?", (job_id,)).fetchone()
    if row is not None:
        connection.execute("DELETE FROM charges WHERE job_id = ?", (job_id,))
    return row


def _change(
    connection: sqlite3.Connection, row: sqlite3.Row, jobs: int, audio_seconds: float, compute_seconds: float
) -> None:
    # An UPDATE and no INSERT: when retention has removed the day, nothing is counted.
    connection.execute(
        "UPDATE usage SET jobs = jobs + ?, audio_seconds = audio_seconds + ?, compute_seconds = compute_seconds + ?"
        " WHERE owner = ? AND day = ? AND model = ?",
        (jobs, audio_seconds, compute_seconds, row["owner"], row["day"], row["model"]),
    )
