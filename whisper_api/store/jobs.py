"""JobStore: jobs, transcripts, keys and what was learned about speed, in one SQLite database.

All SQL is here, in the parts that the store is made of (``result_table.py``, ``key_table.py``), in ``job_search.py``
and, for the tables themselves, in ``migrations.py``. A job is changed by one statement that names the state it must be
in, so that of two who want it one gets it. Whatever a method returned from is on the disk; what ``claim`` and
``mark_delivered`` note outlives the process, but perhaps not a loss of power: the job is then run again, or its result
kept for longer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from pathlib import Path

import msgspec
from msgspec.structs import replace

from whisper_api.errors import Portable
from whisper_api.schema import JobState, Transcript
from whisper_api.store.database import BUSY_SECONDS, Database
from whisper_api.store.job_search import conditions
from whisper_api.store.keys import KeyTable
from whisper_api.store.metadata import searchable
from whisper_api.store.migrations import MIGRATIONS
from whisper_api.store.results import ResultTable, learn
from whisper_api.store.rows import JOB_COLUMNS, Job, Key, Rates, job_of, text_of, values_of
from whisper_api.store.texts import delete_text, digest, padded, put_text

__all__ = ["DATABASE_NAME", "AlreadyThere", "Job", "JobStore", "Key", "Rates"]

DATABASE_NAME = "jobs.db"

_WRITTEN = [name for name in JOB_COLUMNS if name not in ("seq", "place")]
_INSERT_JOB = f"""
    INSERT INTO jobs ({", ".join(_WRITTEN)}, crashes, warnings, place)
    VALUES ({", ".join(f":{name}" for name in _WRITTEN)}, 0, '[]', (SELECT COALESCE(MAX(place), 0) + 1 FROM jobs))
"""
_SELECT_JOB = f"""
    SELECT {", ".join(JOB_COLUMNS)},
        (SELECT content FROM job_texts WHERE job_texts.seq = jobs.seq) AS text,
        EXISTS (SELECT 1 FROM transcripts WHERE transcripts.seq = jobs.seq) AS has_result
    FROM jobs
"""
_INSERT_METADATA = "INSERT INTO job_metadata (owner, key, value, seq) VALUES (?, ?, ?, ?)"
# A job that gives, or has just given, what another submission would: same content, and the same asked of it. One with
# an idempotency key is nobody else's: who has sent it comes back to it, and hears of it when the key comes with more.
_TO_JOIN = """
    owner = :owner AND fingerprint = :fingerprint AND options = :options AND output_format = :output_format
    AND idempotency_key IS NULL AND :idempotency_key IS NULL
    AND (
        finished_at IS NULL
        OR (state = 'Completed' AND has_result AND delivered_at IS NULL AND finished_at >= :join_after)
    )
    ORDER BY seq DESC
"""


class AlreadyThere(Portable):
    """A job with this owner and this idempotency key is there already, or one that is to be joined.

    Args:
        job: that job.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.job_id} was submitted before")
        self.job = job


class JobStore(ResultTable, KeyTable):
    """The job database of one data directory. Every method may be called from any thread.

    Args:
        path: the file; made when it is not there.
        busy_seconds: how long to wait for another process that writes.

    Raises:
        StorageError: it cannot be opened, is damaged, or was written by a newer version. Every method raises this
            too, or StorageFull, or StorageLocked; then nothing was changed.
    """

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        super().__init__(Database(path, MIGRATIONS, busy_seconds=busy_seconds))

    def check_process(self) -> None:
        """Refuse to go on in a process that was forked after the store was opened; see :class:`Database`.

        Raises:
            ForkedProcess: this is such a process.
        """
        self._database.check_process()

    def add(self, job: Job, *, join_after: float | None = None, not_to_join: Collection[str] = ()) -> Job:
        """Add a job behind all others.

        Args:
            job: not in the store yet.
            join_after: do not, if the owner has an equal job that waits, runs, or was Completed at this time (seconds
                since 1970) or later and not delivered yet; None to add it all the same.
            not_to_join: ids of jobs that do not count there.

        Returns:
            The same with ``seq`` and ``place`` set.

        Raises:
            AlreadyThere: the owner has a job with this idempotency key, or one to be joined.
        """
        with self._database.write() as connection:
            if job.idempotency_key is not None:
                there = _job(connection, "owner = ? AND idempotency_key = ?", job.owner, digest(job.idempotency_key))
                if there is not None:
                    raise AlreadyThere(there)
            if join_after is not None:
                there = _to_join(connection, job, join_after, not_to_join)
                if there is not None:
                    raise AlreadyThere(there)
            seq = connection.execute(_INSERT_JOB, values_of(job)).lastrowid
            assert seq is not None, "an INSERT has a row id"
            put_text(connection, seq, text_of(job))
            if job.metadata:
                rows = [(job.owner, digest(key), digest(value), seq) for key, value in searchable(job.metadata)]
                connection.executemany(_INSERT_METADATA, rows)
            row = connection.execute(f"{_SELECT_JOB} WHERE seq = ?", (seq,)).fetchone()
        return job_of(row)

    def to_join(self, job: Job, join_after: float, not_to_join: Collection[str] = ()) -> Job | None:
        """The job that :meth:`add` would say is there already, to be joined."""
        with self._database.read() as connection:
            return _to_join(connection, job, join_after, not_to_join)

    def get(self, job_id: str) -> Job | None:
        """One job, without its transcript."""
        with self._database.read() as connection:
            return _job(connection, "job_id = ?", job_id)

    def by_idempotency_key(self, owner: str, key: str) -> Job | None:
        """The job that an owner submitted with this idempotency key."""
        with self._database.read() as connection:
            return _job(connection, "owner = ? AND idempotency_key = ?", owner, digest(key))

    def by_idempotency_keys(self, owner: str, keys: Collection[str]) -> dict[str, Job]:
        """The jobs that an owner submitted with any of these idempotency keys, by key; a few hundred keys at most."""
        by_digest = {digest(key): key for key in keys}
        marks = ", ".join("?" * len(by_digest))
        rows = self._rows(f"{_SELECT_JOB} WHERE owner = ? AND idempotency_key IN ({marks})", owner, *by_digest)
        return {by_digest[row["idempotency_key"]]: job_of(row) for row in rows}

    def queued(self) -> list[str]:
        """Ids of the jobs that wait, in the order in which they are taken."""
        return self._column("SELECT job_id FROM jobs WHERE state = 'Queued' ORDER BY place")

    def in_state(self, *states: JobState) -> list[Job]:
        """The jobs in any of these states, in the order of the queue."""
        marks = ", ".join("?" * len(states))
        return [job_of(row) for row in self._rows(f"{_SELECT_JOB} WHERE state IN ({marks}) ORDER BY place", *states)]

    def unfinished_ids(self) -> set[str]:
        """Ids of the jobs that wait or run."""
        return set(self._column("SELECT job_id FROM jobs WHERE finished_at IS NULL"))

    def ids(self) -> set[str]:
        """Ids of all jobs."""
        return set(self._column("SELECT job_id FROM jobs"))

    def unfinished(self, owner: str) -> int:
        """How many jobs of an owner wait or run."""
        return int(self._rows("SELECT COUNT(*) FROM jobs WHERE owner = ? AND finished_at IS NULL", owner)[0][0])

    def unfinished_by_state(self, owner: str) -> tuple[int, int]:
        """How many jobs of an owner wait, and how many run."""
        rows = self._rows(
            "SELECT state, COUNT(*) FROM jobs WHERE owner = ? AND finished_at IS NULL GROUP BY state", owner
        )
        counts = {row[0]: int(row[1]) for row in rows}
        return counts.get("Queued", 0), counts.get("Processing", 0)

    def page(
        self,
        *,
        owner: str | None,
        state: JobState | None,
        limit: int,
        before_seq: int | None,
        metadata_key: str | None = None,
        metadata_value: str | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
    ) -> list[Job]:
        """Jobs, the newest first.

        Args:
            owner: whose; None for everybody's.
            state: in which state; None for any.
            limit: how many at most.
            before_seq: only those submitted before this one; None to begin with the newest.
            metadata_key: only those with this at the top of their metadata.
            metadata_value: only those with this as its value.
            created_after, created_before: only those submitted then or later, and earlier; seconds since 1970.
        """
        where, values = conditions(
            owner=owner,
            state=state,
            before_seq=before_seq,
            metadata_key=metadata_key,
            metadata_value=metadata_value,
            created_after=created_after,
            created_before=created_before,
        )
        rows = self._rows(f"{_SELECT_JOB} {where} ORDER BY seq DESC LIMIT ?", *values, limit)
        return [job_of(row) for row in rows]

    def claim(self, job_id: str, now: float) -> Job | None:
        """Queued -> Processing.

        Args:
            job_id: which.
            now: seconds since 1970, as in every method.

        Returns:
            The job as it is now; None when it is no longer Queued.
        """
        with self._database.write(synced=False) as connection:
            claimed = connection.execute(
                "UPDATE jobs SET state = 'Processing', started_at = ? WHERE job_id = ? AND state = 'Queued'",
                (now, job_id),
            )
            return _job(connection, "job_id = ?", job_id) if claimed.rowcount else None

    def complete(self, job_id: str, transcript: Transcript, now: float, rates: Rates | None = None) -> bool:
        """Processing -> Completed, with the transcript; what it warns of stands beside what the submission did.

        Args:
            job_id: which.
            transcript: what it gave.
            now: seconds since 1970.
            rates: what it took, to be learned from.

        Returns:
            False when the job is not Processing; then the transcript is not kept.
        """
        content = padded(msgspec.json.encode(transcript))
        with self._database.write() as connection:
            job = _job(connection, "job_id = ? AND state = 'Processing'", job_id)
            if job is None:
                return False
            connection.execute(
                "UPDATE jobs SET state = 'Completed', finished_at = ?, audio_seconds = ? WHERE seq = ?",
                (now, transcript.duration, job.seq),
            )
            warnings = (*job.warnings, *transcript.warnings)
            put_text(connection, job.seq, text_of(replace(job, hf_token=None, warnings=warnings)))
            connection.execute("INSERT INTO transcripts (seq, content) VALUES (?, ?)", (job.seq, content))
            if rates is not None:
                learn(connection, rates)
        return True

    def fail(self, job_id: str, error_name: str, error: str, now: float) -> bool:
        """Queued or Processing -> Failed.

        Args:
            job_id: which.
            error_name: the class of the error.
            error: why, in a sentence for people.
            now: seconds since 1970.

        Returns:
            False when the job had ended already.
        """
        with self._database.write() as connection:
            job = _job(connection, "job_id = ? AND finished_at IS NULL", job_id)
            if job is None:
                return False
            connection.execute(
                "UPDATE jobs SET state = 'Failed', finished_at = ?, error_name = ? WHERE seq = ?",
                (now, error_name, job.seq),
            )
            put_text(connection, job.seq, text_of(replace(job, hf_token=None, error=error)))
        return True

    def cancel(
        self, job_id: str, now: float, *, states: tuple[JobState, ...] = ("Queued",), reason: str | None = None
    ) -> bool:
        """Queued or Processing -> Canceled. All that the client wrote goes.

        Args:
            job_id: which.
            now: seconds since 1970.
            states: from which of the two.
            reason: why, in a sentence for people, unless the client asked for it.

        Returns:
            False when the job is in another state.
        """
        marks = ", ".join("?" * len(states))
        with self._database.write() as connection:
            row = connection.execute(
                f"SELECT seq FROM jobs WHERE job_id = ? AND finished_at IS NULL AND state IN ({marks})",
                (job_id, *states),
            ).fetchone()
            if row is None:
                return False
            connection.execute("UPDATE jobs SET state = 'Canceled', finished_at = ? WHERE seq = ?", (now, row["seq"]))
            delete_text(connection, row["seq"], error=reason)
        return True

    def erase(self, job_id: str) -> bool:
        """Remove the transcript of a job and all that its client wrote; state, times and figures stay.

        Returns:
            Whether there was a transcript.
        """
        with self._database.write() as connection:
            row = connection.execute("SELECT seq FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
            if row is None:
                return False
            delete_text(connection, row["seq"])
            return connection.execute("DELETE FROM transcripts WHERE seq = ?", (row["seq"],)).rowcount > 0

    def drop_result(self, job_id: str) -> bool:
        """Remove the transcript of a job and what only its making needed: prompt, hotwords, names of known speakers.

        The job stays, with the file name and the metadata by which its owner finds it.

        Returns:
            Whether there was a transcript.
        """
        with self._database.write() as connection:
            job = _job(connection, "job_id = ?", job_id)
            if job is None:
                return False
            text = replace(text_of(job), prompt=None, hotwords=None, known_speakers=())
            put_text(connection, job.seq, text)
            return connection.execute("DELETE FROM transcripts WHERE seq = ?", (job.seq,)).rowcount > 0

    def requeue(self, job_id: str, *, counted: bool = False, last: bool = False) -> bool:
        """Processing -> Queued.

        Args:
            job_id: which.
            counted: count the attempt that has ended.
            last: put it behind all others, instead of back in its place.

        Returns:
            False when the job is not Processing.
        """
        place = "(SELECT MAX(place) + 1 FROM jobs)" if last else "place"
        return self._change(
            "UPDATE jobs SET state = 'Queued', started_at = NULL, attempts = attempts + ?,"
            f" place = {place} WHERE job_id = ? AND state = 'Processing'",
            counted,
            job_id,
        )

    def delete(self, job_id: str) -> None:
        """Remove a job and its transcript without a trace."""
        self._change("DELETE FROM jobs WHERE job_id = ?", job_id)

    def expired_jobs(self, before: float) -> list[str]:
        """Ids of the jobs that ended before then."""
        return self._column("SELECT job_id FROM jobs WHERE finished_at < ?", before)


def _to_join(connection: sqlite3.Connection, job: Job, join_after: float, not_to_join: Collection[str]) -> Job | None:
    rows = connection.execute(f"{_SELECT_JOB} WHERE {_TO_JOIN}", {**values_of(job), "join_after": join_after})
    found = (job_of(row) for row in rows.fetchall() if row["job_id"] not in not_to_join)
    # The column has the options without prompt and hotwords.
    return next((each for each in found if each.options == job.options), None)


def _job(connection: sqlite3.Connection, condition: str, *values: str) -> Job | None:
    row = connection.execute(f"{_SELECT_JOB} WHERE {condition}", values).fetchone()
    return None if row is None else job_of(row)
