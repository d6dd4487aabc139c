"""The queries for jobs: they change nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from whisper_api.job_values import JobState
from whisper_api.store.job_search import ALL_JOBS, JobFilter, conditions
from whisper_api.store.rows import JOB_COLUMNS, Job, job_of
from whisper_api.store.tables import Tables
from whisper_api.store.texts import digest

__all__ = ["SELECT_JOB", "JobQueries", "find_job"]

SELECT_JOB = f"""
    SELECT {", ".join(JOB_COLUMNS)},
        (SELECT content FROM job_texts WHERE job_texts.seq = jobs.seq) AS text,
        EXISTS (SELECT 1 FROM transcripts WHERE transcripts.seq = jobs.seq) AS has_result
    FROM jobs
"""


class JobQueries(Tables):
    """Finds jobs, without their transcripts."""

    def get(self, job_id: str) -> Job | None:
        """A job, without its transcript."""
        with self.database.read() as connection:
            return find_job(connection, "job_id = ?", job_id)

    def by_idempotency_keys(self, owner: str, keys: Collection[str]) -> dict[str, Job]:
        """The jobs of an owner with any of these idempotency keys, by key; a few hundred keys at most.

        Args:
            owner: owner of the jobs.
            keys: idempotency keys.
        """
        by_digest = {digest(key): key for key in keys}
        marks = ", ".join("?" * len(by_digest))
        rows = self._rows(f"{SELECT_JOB} WHERE owner = ? AND idempotency_key IN ({marks})", owner, *by_digest)
        return {by_digest[row["idempotency_key"]]: job_of(row) for row in rows}

    def in_state(self, *states: JobState) -> list[Job]:
        """The jobs in any of these states, in the order of the queue."""
        marks = ", ".join("?" * len(states))
        return [job_of(row) for row in self._rows(f"{SELECT_JOB} WHERE state IN ({marks}) ORDER BY place", *states)]

    def unfinished_ids(self) -> set[str]:
        """Ids of the jobs that wait or run."""
        return set(self._column("SELECT job_id FROM jobs WHERE finished_at IS NULL"))

    def unfinished(self, owner: str) -> int:
        """The number of an owner's jobs that wait or run."""
        return int(self._rows("SELECT COUNT(*) FROM jobs WHERE owner = ? AND finished_at IS NULL", owner)[0][0])

    def unfinished_by_state(self, owner: str) -> tuple[int, int]:
        """The numbers of an owner's waiting and running jobs."""
        rows = self._rows(
            "SELECT state, COUNT(*) FROM jobs WHERE owner = ? AND finished_at IS NULL GROUP BY state", owner
        )
        counts = {row[0]: int(row[1]) for row in rows}
        return counts.get("Queued", 0), counts.get("Processing", 0)

    def oldest_waiting(self, owner: str | None) -> float | None:
        """When the oldest job was submitted that waits; seconds since 1970, None when none waits.

        Args:
            owner: owner of the jobs; None for the jobs of all owners.
        """
        whose, values = ("", ()) if owner is None else (" AND owner = ?", (owner,))
        found = self._rows(f"SELECT MIN(created_at) FROM jobs WHERE state = 'Queued'{whose}", *values)
        moment: float | None = found[0][0]
        return moment

    def page(
        self, owner: str | None, filter: JobFilter = ALL_JOBS, *, limit: int, before_seq: int | None = None
    ) -> list[Job]:
        """Jobs, the newest first.

        Args:
            owner: owner of the jobs; None for the jobs of all owners.
            filter: further conditions.
            limit: most jobs to return.
            before_seq: only jobs submitted before the job with this number; None to begin with the newest.
        """
        where, values = conditions(owner, filter, before_seq)
        rows = self._rows(f"{SELECT_JOB} {where} ORDER BY seq DESC LIMIT ?", *values, limit)
        return [job_of(row) for row in rows]

    def expired_jobs(self, before: float) -> list[str]:
        """Ids of the jobs that ended before a time."""
        return self._column("SELECT job_id FROM jobs WHERE finished_at < ?", before)


def find_job(connection: sqlite3.Connection, condition: str, *values: str) -> Job | None:
    """The first job that meets a condition.

    Args:
        connection: a connection in a transaction.
        condition: the condition in SQL, with a question mark for each value.
        values: the values.
    """
    row = connection.execute(f"{SELECT_JOB} WHERE {condition}", values).fetchone()
    return None if row is None else job_of(row)
