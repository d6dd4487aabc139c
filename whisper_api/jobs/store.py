"""JobStore: jobs, transcripts, keys and what was learned about speed, in one SQLite database.

The only SQL, beside that of the tables themselves in ``migrations.py``. A job is changed by one statement that names
the state it must be in, so that of two who want it one gets it. Whatever a method returned from is on the disk; what
``claim`` and ``mark_delivered`` note outlives the process, but perhaps not a loss of power: the job is then run again,
or its result kept for longer.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from whisper_api.errors import StorageError
from whisper_api.jobs.database import BUSY_SECONDS, Database
from whisper_api.jobs.migrations import MIGRATIONS
from whisper_api.jobs.rows import JOB_COLUMNS, KEY_COLUMNS, Job, Key, Rates, job_of, key_of, values_of, warnings_text
from whisper_api.schema import JobState, Transcript

__all__ = ["DATABASE_NAME", "AlreadyThere", "Job", "JobStore", "Key", "Rates"]

DATABASE_NAME = "jobs.db"

_WRITTEN = [name for name in JOB_COLUMNS if name not in ("seq", "place")]
_INSERT_JOB = f"""
    INSERT INTO jobs ({", ".join(_WRITTEN)}, place)
    VALUES ({", ".join(f":{name}" for name in _WRITTEN)}, (SELECT COALESCE(MAX(place), 0) + 1 FROM jobs))
"""
_SELECT_JOB = f"""
    SELECT {", ".join(JOB_COLUMNS)},
        EXISTS (SELECT 1 FROM transcripts WHERE transcripts.seq = jobs.seq) AS has_result
    FROM jobs
"""
_SELECT_KEY = f"SELECT {', '.join(KEY_COLUMNS)}, digest FROM keys"
# Counts for a fifth of the mean at least, so that what was learned on a busy day is forgotten.
_LEARN_RATE = """
    INSERT INTO stage_rates (model, device, stage, rate, samples) VALUES (?, ?, ?, ?, 1)
    ON CONFLICT (model, device, stage) DO UPDATE SET
        rate = rate + (excluded.rate - rate) * MAX(0.2, 1.0 / (samples + 1)),
        samples = samples + 1
"""


class AlreadyThere(Exception):
    """A job with this owner and this idempotency key is there already.

    Args:
        job: that job.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.job_id} was submitted with this idempotency key")
        self.job = job


class JobStore:
    """The job database of one data directory. Every method may be called from any thread.

    Args:
        path: the file; made when it is not there.
        busy_seconds: how long to wait for another process that writes.

    Raises:
        StorageError: it cannot be opened, is damaged, or was written by a newer version. Every method raises this
            too, or StorageFull, or StorageLocked; then nothing was changed.
    """

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self._database = Database(path, MIGRATIONS, busy_seconds=busy_seconds)

    def exclusive(self, uploads_dir: Path | None = None) -> None:
        """Be the only server on this data directory, and on that of the uploads, until the store is closed.

        Two servers with one upload directory would each remove what the other has accepted.

        Raises:
            StorageLocked: another one is.
        """
        self._database.lock_directories(*([uploads_dir] if uploads_dir is not None else []))

    def compact(self) -> None:
        """Give space back, and wipe what was deleted from the database's log."""
        self._database.compact()

    def close(self) -> None:
        """Close the database. Calling it twice is fine."""
        self._database.close()

    # --- jobs ---

    def add(self, job: Job) -> Job:
        """Add a job behind all others.

        Returns:
            The same with ``seq`` and ``place`` set.

        Raises:
            AlreadyThere: the owner has a job with this idempotency key.
        """
        with self._database.write() as connection:
            if job.idempotency_key is not None:
                there = _job(connection, "owner = ? AND idempotency_key = ?", job.owner, job.idempotency_key)
                if there is not None:
                    raise AlreadyThere(there)
            seq = connection.execute(_INSERT_JOB, values_of(job)).lastrowid
            row = connection.execute(f"{_SELECT_JOB} WHERE seq = ?", (seq,)).fetchone()
        return job_of(row)

    def get(self, job_id: str) -> Job | None:
        """One job, without its transcript."""
        with self._database.read() as connection:
            return _job(connection, "job_id = ?", job_id)

    def by_idempotency_key(self, owner: str, key: str) -> Job | None:
        """The job that an owner submitted with this idempotency key."""
        with self._database.read() as connection:
            return _job(connection, "owner = ? AND idempotency_key = ?", owner, key)

    def queued(self) -> list[str]:
        """Ids of the jobs that wait, in the order in which they are taken."""
        return self._column("SELECT job_id FROM jobs WHERE state = 'Queued' ORDER BY place")

    def in_state(self, *states: JobState) -> list[Job]:
        """The jobs in any of these states, in the order of the queue."""
        marks = ", ".join("?" * len(states))
        return [job_of(row) for row in self._rows(f"{_SELECT_JOB} WHERE state IN ({marks}) ORDER BY place", *states)]

    def ids(self) -> set[str]:
        """Ids of all jobs."""
        return set(self._column("SELECT job_id FROM jobs"))

    def unfinished(self, owner: str) -> int:
        """How many jobs of an owner wait or run."""
        return int(self._rows("SELECT COUNT(*) FROM jobs WHERE owner = ? AND finished_at IS NULL", owner)[0][0])

    def page(self, *, owner: str | None, state: JobState | None, limit: int, before_seq: int | None) -> list[Job]:
        """Jobs, the newest first.

        Args:
            owner: whose; None for everybody's.
            state: in which state; None for any.
            limit: how many at most.
            before_seq: only those submitted before this one; None to begin with the newest.
        """
        wanted = {"owner = ?": owner, "state = ?": state, "seq < ?": before_seq}
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        rows = self._rows(f"{_SELECT_JOB} {where} ORDER BY seq DESC LIMIT ?", *given.values(), limit)
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
        content = msgspec.json.encode(transcript)
        with self._database.write() as connection:
            job = _job(connection, "job_id = ? AND state = 'Processing'", job_id)
            if job is None:
                return False
            connection.execute(
                "UPDATE jobs SET state = 'Completed', finished_at = ?, hf_token = NULL, audio_seconds = ?, warnings = ?"
                " WHERE seq = ?",
                (now, transcript.duration, warnings_text((*job.warnings, *transcript.warnings)), job.seq),
            )
            connection.execute("INSERT INTO transcripts (seq, content) VALUES (?, ?)", (job.seq, content))
            if rates is not None:
                _learn(connection, rates)
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
        return self._change(
            "UPDATE jobs SET state = 'Failed', finished_at = ?, hf_token = NULL, error_name = ?, error = ?"
            " WHERE job_id = ? AND finished_at IS NULL",
            now,
            error_name,
            error,
            job_id,
        )

    def cancel(self, job_id: str, now: float, *, states: tuple[JobState, ...] = ("Queued",)) -> bool:
        """Queued or Processing -> Canceled.

        Args:
            job_id: which.
            now: seconds since 1970.
            states: from which of the two.

        Returns:
            False when the job is in another state.
        """
        return self._change(
            "UPDATE jobs SET state = 'Canceled', finished_at = ?, hf_token = NULL"
            f" WHERE job_id = ? AND finished_at IS NULL AND state IN ({', '.join('?' * len(states))})",
            now,
            job_id,
            *states,
        )

    def requeue(self, job_id: str, *, crashes: int = 0, interruptions: int = 0, last: bool = False) -> bool:
        """Processing -> Queued.

        Args:
            job_id: which.
            crashes, interruptions: to add to the job's counters.
            last: put it behind all others, instead of back in its place.

        Returns:
            False when the job is not Processing.
        """
        place = "(SELECT MAX(place) + 1 FROM jobs)" if last else "place"
        return self._change(
            "UPDATE jobs SET state = 'Queued', started_at = NULL, crashes = crashes + ?,"
            f" interruptions = interruptions + ?, place = {place} WHERE job_id = ? AND state = 'Processing'",
            crashes,
            interruptions,
            job_id,
        )

    def delete(self, job_id: str) -> None:
        """Remove a job and its transcript without a trace."""
        self._change("DELETE FROM jobs WHERE job_id = ?", job_id)

    # --- results ---

    def transcript(self, job_id: str) -> Transcript | None:
        """The transcript of a job, when it is there."""
        rows = self._rows("SELECT content FROM transcripts JOIN jobs USING (seq) WHERE job_id = ?", job_id)
        try:
            return msgspec.json.decode(rows[0][0], type=Transcript) if rows else None
        except msgspec.DecodeError as error:
            raise StorageError(f"The transcript of job {job_id} cannot be read: {error}") from error

    def mark_delivered(self, job_id: str, now: float) -> None:
        """Note that the result was sent in full. Only the first time counts."""
        with self._database.write(synced=False) as connection:
            connection.execute(
                "UPDATE jobs SET delivered_at = ? WHERE job_id = ? AND state = 'Completed' AND delivered_at IS NULL",
                (now, job_id),
            )

    def drop_result(self, job_id: str) -> bool:
        """Remove the transcript; the job stays.

        Returns:
            Whether there was one.
        """
        return self._change("DELETE FROM transcripts WHERE seq = (SELECT seq FROM jobs WHERE job_id = ?)", job_id)

    def expired_results(self, before: float) -> list[str]:
        """Ids of the jobs whose result is there, was delivered before then and need not be kept."""
        return self._column(
            "SELECT job_id FROM jobs JOIN transcripts USING (seq) WHERE delivered_at < ? AND NOT keep_result", before
        )

    def expired_jobs(self, before: float) -> list[str]:
        """Ids of the jobs that ended before then."""
        return self._column("SELECT job_id FROM jobs WHERE finished_at < ?", before)

    # --- what was learned, and what is to be remembered ---

    def stage_rates(self) -> dict[tuple[str, str, str], float]:
        """Seconds of work for a second of audio, by model, device and stage."""
        rows = self._rows("SELECT model, device, stage, rate FROM stage_rates")
        return {(row["model"], row["device"], row["stage"]): row["rate"] for row in rows}

    def fact(self, name: str) -> str | None:
        """Something that was noted with :meth:`set_fact`."""
        values = self._column("SELECT value FROM facts WHERE name = ?", name)
        return values[0] if values else None

    def set_fact(self, name: str, value: str | None) -> None:
        """Note something that outlives the process; None to forget it."""
        if value is None:
            self._change("DELETE FROM facts WHERE name = ?", name)
        else:
            self._change("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", name, value)

    # --- keys ---

    def add_key(self, key: Key, digest: bytes) -> bool:
        """Add a key.

        Args:
            key: its row.
            digest: hash of its secret.

        Returns:
            False when a key that is not revoked has its name, or any key its id.
        """
        with self._database.write() as connection:
            taken = connection.execute(
                "SELECT 1 FROM keys WHERE key_id = ? OR (name = ? AND revoked_at IS NULL)", (key.key_id, key.name)
            ).fetchone()
            if taken is None:
                connection.execute(
                    "INSERT INTO keys (key_id, name, role, created_at, revoked_at, digest) VALUES (?, ?, ?, ?, ?, ?)",
                    (*(getattr(key, name) for name in KEY_COLUMNS), digest),
                )
        return taken is None

    def keys(self) -> list[Key]:
        """All keys, revoked ones too, the oldest first."""
        return [key_of(row) for row in self._rows(f"{_SELECT_KEY} ORDER BY created_at, rowid")]

    def key(self, key_id: str) -> tuple[Key, bytes] | None:
        """A key and the hash of its secret."""
        rows = self._rows(f"{_SELECT_KEY} WHERE key_id = ?", key_id)
        return (key_of(rows[0]), bytes(rows[0]["digest"])) if rows else None

    def revoke_key(self, key_id: str, now: float) -> bool:
        """Refuse a key from now on.

        Returns:
            False when there is none, or it was revoked before.
        """
        return self._change("UPDATE keys SET revoked_at = ? WHERE key_id = ? AND revoked_at IS NULL", now, key_id)

    def _change(self, statement: str, *values: object) -> bool:
        """Run one statement in a transaction of its own; whether it changed a row."""
        with self._database.write() as connection:
            return connection.execute(statement, values).rowcount > 0

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._database.read() as connection:
            return connection.execute(query, values).fetchall()

    def _column(self, query: str, *values: object) -> list[str]:
        return [row[0] for row in self._rows(query, *values)]


def _learn(connection: sqlite3.Connection, rates: Rates) -> None:
    rows = [(rates.model, rates.device, stage, rate) for stage, rate in rates.seconds.items()]
    connection.executemany(_LEARN_RATE, rows)


def _job(connection: sqlite3.Connection, condition: str, *values: str) -> Job | None:
    row = connection.execute(f"{_SELECT_JOB} WHERE {condition}", values).fetchone()
    return None if row is None else job_of(row)
