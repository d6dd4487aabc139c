"""JobStore: jobs, transcripts, keys, known speakers, learned speeds and the audit trail in one SQLite database.

All SQL is in this folder: here, in ``job_search.py``, in a module for each other table, and for
the schema in ``migrations.py``. A statement that changes a job names the state that the job must be in, so only one of
two concurrent changes succeeds. When a method returns, its change is on the disk. The changes of ``claim``,
``set_trace``, ``mark_delivered`` and ``note_attempt`` survive the end of the process, but perhaps not a loss of power:
the job then runs again, its result stays longer, or a delivery is sent again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from whisper_api.errors import Portable
from whisper_api.job_values import JobState
from whisper_api.schema import Transcript
from whisper_api.store.audit import AuditTable
from whisper_api.store.database import BUSY_SECONDS, Database
from whisper_api.store.deliveries import DeliveryTable, forget_address
from whisper_api.store.job_search import SELECT_JOB, JobQueries, find_job
from whisper_api.store.keys import KeyTable
from whisper_api.store.metadata import searchable
from whisper_api.store.migrations import MIGRATIONS
from whisper_api.store.results import ResultTable, learn
from whisper_api.store.rows import JOB_COLUMNS, Job, Rates, job_of, text_of, values_of
from whisper_api.store.speakers import SpeakerTable
from whisper_api.store.tables import insert, marks, update
from whisper_api.store.texts import delete_text, digest, put_text, stored
from whisper_api.store.usage import CALLERS_FAULTS, Charge, UsageTable, charge_job, give_back, settle
from whisper_api.store.vocabularies import VocabularyTable
from whisper_api.trace_context import JobTrace

DATABASE_NAME = "jobs.db"

_WRITTEN = [name for name in JOB_COLUMNS if name != "seq"]
# The column ``place`` holds the order of the queue.
_INSERT_JOB = f"""
    INSERT INTO jobs ({", ".join(_WRITTEN)}, crashes, warnings, place)
    VALUES ({", ".join(f":{name}" for name in _WRITTEN)}, 0, '[]', (SELECT COALESCE(MAX(place), 0) + 1 FROM jobs))
"""
_INSERT_METADATA = "INSERT INTO job_metadata (owner, key, value, seq) VALUES (?, ?, ?, ?)"
UNFINISHED: tuple[JobState, ...] = ("Queued", "Processing")
# A job with the same content and options that waits, runs, or has just ended. Jobs with an idempotency key are never
# joined: the key itself finds the job again, and a different payload under the same key is an error.
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
    """The owner has a job with this idempotency key already, or a job to be joined.

    Args:
        job: the existing job.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.job_id} was submitted before")
        self.job = job


class JobStore(JobQueries, ResultTable, KeyTable, SpeakerTable, VocabularyTable, UsageTable, AuditTable, DeliveryTable):
    """The job database of one data directory. Every method may be called from any thread.

    Args:
        path: path of the file, which is made when it does not exist.
        busy_seconds: how long to wait while another process writes.

    Attributes:
        database: runs the SQL.

    Raises:
        StorageError: the file cannot be opened, is damaged, or was written by a newer version. Every method may raise
            StorageError, StorageFull or StorageLocked, and has then changed nothing.
    """

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        super().__init__(Database(path, MIGRATIONS, busy_seconds=busy_seconds))

    def add(
        self,
        job: Job,
        *,
        join_after: float | None = None,
        not_to_join: Collection[str] = (),
        charge: Charge | None = None,
    ) -> Job:
        """Add a job behind all others.

        Args:
            job: not in the store yet.
            join_after: do not add the job if the owner has an equal one that waits, runs, or was Completed at this time
                (seconds since 1970) or later and was not delivered; None to add the job in any case.
            not_to_join: ids of jobs that must not be joined.
            charge: what the owner is charged for the job; None for nothing.

        Returns:
            The same job with ``seq`` set.

        Raises:
            AlreadyThere: the owner has a job with this idempotency key, or a job to be joined.
            OverQuota: the owner's quotas have no room for the job.
        """
        with self.database.write() as connection:
            there = None
            if job.idempotency_key is not None:
                key = digest(job.idempotency_key)
                there = find_job(connection, "owner = ? AND idempotency_key = ?", job.owner, key)
            if there is None and join_after is not None:
                there = _to_join(connection, job, join_after, not_to_join)
            if there is not None:
                raise AlreadyThere(there)
            if charge is not None:
                charge_job(connection, job.job_id, job.owner, job.created_at, charge)
            seq = connection.execute(_INSERT_JOB, values_of(job)).lastrowid or 0
            put_text(connection, seq, text_of(job))
            if job.metadata:
                rows = [(job.owner, digest(key), digest(value), seq) for key, value in searchable(job.metadata)]
                connection.executemany(_INSERT_METADATA, rows)
            return job_of(connection.execute(f"{SELECT_JOB} WHERE seq = ?", (seq,)).fetchone())

    def to_join(self, job: Job, join_after: float, not_to_join: Collection[str] = ()) -> Job | None:
        """The job that :meth:`add` would find to be joined.

        Args:
            job: as with :meth:`add`.
            join_after: as with :meth:`add`.
            not_to_join: as with :meth:`add`.
        """
        with self.database.read() as connection:
            return _to_join(connection, job, join_after, not_to_join)

    def claim(self, job_id: str, now: float) -> Job | None:
        """Queued -> Processing.

        Args:
            job_id: id of the job.
            now: seconds since 1970, as in every method.

        Returns:
            The changed job; None when it is no longer Queued.
        """
        with self.database.write(synced=False) as connection:
            claimed = connection.execute(
                "UPDATE jobs SET state = 'Processing', started_at = ? WHERE job_id = ? AND state = 'Queued'",
                (now, job_id),
            )
            return find_job(connection, "job_id = ?", job_id) if claimed.rowcount else None

    def complete(self, job_id: str, transcript: Transcript, now: float, rates: Rates | None = None) -> bool:
        """Processing -> Completed, with the transcript. Its warnings are added to those of the submission.

        Args:
            job_id: id of the job.
            transcript: transcript of the job.
            now: seconds since 1970.
            rates: speed of the job, for the means.

        Returns:
            False when the job is not Processing; the transcript is not stored then.
        """
        content, length = stored(transcript), transcript.duration
        with self._ending(job_id, ("Processing",), "Completed", now, audio_seconds=length) as (connection, job):
            if job is None:
                return False
            warnings = (*job.warnings, *transcript.warnings)
            put_text(connection, job.seq, text_of(replace(job, hf_token=None, warnings=warnings, trace=None)))
            insert(connection, "transcripts", {"seq": job.seq, "content": content})
            if rates is not None:
                learn(connection, rates)
            work = sum(seconds for stage, seconds in transcript.timings.items() if stage != "load")
            settle(connection, job_id, audio_seconds=length, compute_seconds=work)
        return True

    def fail(self, job_id: str, error_name: str, error: str, now: float, compute_seconds: float = 0.0) -> bool:
        """Queued or Processing -> Failed.

        Args:
            job_id: id of the job.
            error_name: the class of the error.
            error: the reason, in a sentence for people.
            now: seconds since 1970.
            compute_seconds: seconds of work for the job.

        Returns:
            False when the job had ended already.
        """
        with self._ending(job_id, UNFINISHED, "Failed", now, error_name=error_name) as (connection, job):
            if job is None:
                return False
            put_text(connection, job.seq, text_of(replace(job, hf_token=None, error=error, trace=None)))
            if error_name in CALLERS_FAULTS:
                settle(connection, job_id, compute_seconds=compute_seconds)
            else:
                give_back(connection, job_id, compute_seconds=compute_seconds)
        return True

    def cancel(
        self,
        job_id: str,
        now: float,
        *,
        states: tuple[JobState, ...] = ("Queued",),
        reason: str | None = None,
        compute_seconds: float = 0.0,
    ) -> bool:
        """Queued or Processing -> Canceled. The client's texts are deleted.

        Args:
            job_id: id of the job.
            now: seconds since 1970.
            states: states in which the job is canceled.
            reason: the server's reason, in a sentence for people; None when the client asked for it.
            compute_seconds: seconds of work for the job.

        Returns:
            False when the job is in another state.
        """
        with self._ending(job_id, states, "Canceled", now) as (connection, job):
            if job is None:
                return False
            delete_text(connection, job.seq, error=reason)
            if job.state == "Queued":
                give_back(connection, job_id)
            else:
                settle(connection, job_id, compute_seconds=compute_seconds)
        return True

    @contextmanager
    def _ending(
        self, job_id: str, states: tuple[JobState, ...], state: JobState, now: float, **columns: object
    ) -> Iterator[tuple[sqlite3.Connection, Job | None]]:
        """A transaction that ends a job and stores the deliveries of its event.

        Args:
            job_id: id of the job.
            states: unfinished states; a job in another one stays as it is.
            state: the final state.
            now: seconds since 1970.
            columns: further columns to change.

        Yields:
            The connection, and the job as it was before; None in another state.
        """
        announced = False
        with self.database.write() as connection:
            unfinished = f"job_id = ? AND finished_at IS NULL AND state IN ({marks(states)})"
            job = find_job(connection, unfinished, job_id, *states)
            if job is not None:
                update(connection, "jobs", {"state": state, "finished_at": now, **columns}, "seq", job.seq)
                announced = self.announce(connection, job, state, now)
            yield connection, job
        if announced:
            self.announced()

    def erase(self, job_id: str) -> bool:
        """Remove the transcript of a job and its client's texts; state, times and figures stay.

        Returns:
            Whether there was a transcript.
        """
        with self.database.write() as connection:
            row = connection.execute("SELECT seq FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
            if row is None:
                return False
            delete_text(connection, row["seq"])
            forget_address(connection, job_id)
            return connection.execute("DELETE FROM transcripts WHERE seq = ?", (row["seq"],)).rowcount > 0

    def drop_result(self, job_id: str) -> bool:
        """Remove the transcript of a job, its prompt, hotwords, vocabulary, names of known speakers and webhook URL.

        The job stays, with the file name and the metadata, so that its owner finds it.

        Returns:
            Whether there was a transcript.
        """
        with self.database.write() as connection:
            job = find_job(connection, "job_id = ?", job_id)
            if job is None:
                return False
            text = replace(
                text_of(job), prompt=None, hotwords=None, vocabulary=None, known_speakers=(), webhook_url=None
            )
            put_text(connection, job.seq, text)
            forget_address(connection, job_id)
            return connection.execute("DELETE FROM transcripts WHERE seq = ?", (job.seq,)).rowcount > 0

    def requeue(self, job_id: str, *, counted: bool = False, last: bool = False) -> bool:
        """Processing -> Queued.

        Args:
            job_id: id of the job.
            counted: whether the attempt that has ended counts.
            last: put the job behind all others, instead of back at its position.

        Returns:
            False when the job is not Processing.
        """
        order = "(SELECT MAX(place) + 1 FROM jobs)" if last else "place"
        return self._change(
            "UPDATE jobs SET state = 'Queued', started_at = NULL, attempts = attempts + ?,"
            f" place = {order} WHERE job_id = ? AND state = 'Processing'",
            counted,
            job_id,
        )

    def set_trace(self, job_id: str, trace: JobTrace) -> None:
        """Keep another span of a job that has not ended.

        Args:
            job_id: id of the job.
            trace: the trace with the new span.
        """
        with self.database.write(synced=False) as connection:
            job = find_job(connection, "job_id = ? AND finished_at IS NULL", job_id)
            if job is not None:
                put_text(connection, job.seq, text_of(replace(job, trace=trace)))

    def delete(self, job_id: str) -> None:
        """Remove a job and its transcript."""
        with self.database.write() as connection:
            connection.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
            forget_address(connection, job_id)


def _to_join(connection: sqlite3.Connection, job: Job, join_after: float, not_to_join: Collection[str]) -> Job | None:
    rows = connection.execute(f"{SELECT_JOB} WHERE {_TO_JOIN}", {**values_of(job), "join_after": join_after})
    found = (job_of(row) for row in rows.fetchall() if row["job_id"] not in not_to_join)
    # The column holds the options without prompt, hotwords and vocabulary.
    return next((each for each in found if each.options == job.options), None)
