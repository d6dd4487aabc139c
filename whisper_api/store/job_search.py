"""Reading and searching jobs: the queries, the conditions of a page as SQL, and the cursor of the next page."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec

from whisper_api.errors import InvalidOption
from whisper_api.job_values import JobState
from whisper_api.store.metadata import searched
from whisper_api.store.rows import JOB_COLUMNS, Job, job_of
from whisper_api.store.tables import Tables, marks, where
from whisper_api.store.texts import digest

T = TypeVar("T")

# Most entries of a page.
MAX_PAGE = 1000


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to find; a field that is None sets no condition.

    Attributes:
        state: state of the job.
        metadata_key: a key at the top of the job's metadata.
        metadata_value: its value: text, or a number, true, false or null as JSON. Needs ``metadata_key``.
        created_after: the job was submitted then or later; seconds since 1970.
        created_before: the job was submitted earlier; seconds since 1970.
    """

    state: JobState | None = None
    metadata_key: str | None = None
    metadata_value: str | None = None
    created_after: float | None = None
    created_before: float | None = None


ALL_JOBS = JobFilter()


def conditions(owner: str | None, filter: JobFilter, before_seq: int | None) -> tuple[str, list[object]]:
    """A WHERE clause for the table of jobs, and its values.

    Args:
        owner: owner of the jobs; None for the jobs of all owners.
        filter: further conditions.
        before_seq: only jobs submitted before the job with this number; None for all.
    """
    searching = filter.metadata_key is not None
    possible: dict[str, object] = {
        # A search by metadata finds only the owner's jobs. With the owner as a condition here too, or without the plus
        # sign that hides the state from the query planner, SQLite would read an index of all jobs and sort the result.
        "owner = ?": None if searching else owner,
        "+state = ?" if searching else "state = ?": filter.state,
        "seq < ?": before_seq,
        "created_at >= ?": filter.created_after,
        "created_at < ?": filter.created_before,
    }
    if filter.metadata_key is not None:
        possible |= _with_metadata(owner, filter.metadata_key, filter.metadata_value)
    return where(possible)


def _cursor_of(seq: int) -> str:
    """The cursor for a job's number; opaque to clients."""
    return base64.urlsafe_b64encode(str(seq).encode()).decode().rstrip("=")


def page_of(read: Callable[..., list[T]], limit: int, after: str | None) -> tuple[list[T], str | None]:
    """A page of a list, and the cursor of the next page; None on the last one.

    Args:
        read: gives the entries, newest first: at most ``limit``, and only those before the number ``before_seq``.
        limit: most entries of a page.
        after: the cursor of the page before; None for the first page.

    Raises:
        InvalidOption: the limit or the cursor cannot be used.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidOption("limit", f"expected a whole number from 1 to {MAX_PAGE}")
    found = read(limit=limit + 1, before_seq=None if after is None else _seq_of(after))
    last: Any = found[limit - 1] if len(found) > limit else None
    return found[:limit], None if last is None else _cursor_of(last.seq)


def _seq_of(cursor: str) -> int:
    """The number in a cursor.

    Raises:
        InvalidOption: :func:`_cursor_of` does not give this cursor.
    """
    try:
        seq = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        seq = 0
    # Other texts can be decoded too, and SQLite has no larger integers.
    if not 0 < seq < 1 << 63 or _cursor_of(seq) != cursor:
        raise InvalidOption("after", "expected the value of next in a response")
    return seq


def _with_metadata(owner: str | None, key: str, value: str | None) -> dict[str, object]:
    texts = () if value is None else tuple(map(digest, searched(value)))
    # The index begins with the owner; without an owner SQLite reads all of the index.
    found, values = where({"owner = ?": owner, "key = ?": digest(key), f"value IN ({marks(texts)})": texts or None})
    return {f"seq IN (SELECT seq FROM job_metadata {found})": tuple(values)}


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
        found = f"{SELECT_JOB} WHERE owner = ? AND idempotency_key IN ({marks(by_digest)})"
        rows = self._rows(found, owner, *by_digest)
        return {by_digest[row["idempotency_key"]]: job_of(row) for row in rows}

    def in_state(self, *states: JobState) -> list[Job]:
        """The jobs in any of these states, in the order of the queue."""
        query = f"{SELECT_JOB} WHERE state IN ({marks(states)}) ORDER BY place"
        return [job_of(row) for row in self._rows(query, *states)]

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
        found, values = where({"state = 'Queued'": (), "owner = ?": owner})
        moment: float | None = self._rows(f"SELECT MIN(created_at) FROM jobs {found}", *values)[0][0]
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
        found, values = conditions(owner, filter, before_seq)
        rows = self._rows(f"{SELECT_JOB} {found} ORDER BY seq DESC LIMIT ?", *values, limit)
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
