"""The tables of transcripts with their corrections, and of learned speeds."""

from __future__ import annotations

import sqlite3

import msgspec

from whisper_api.job_values import Corrections
from whisper_api.schema import Transcript
from whisper_api.store.rows import Rates
from whisper_api.store.tables import Tables
from whisper_api.store.texts import read

# Each new sample counts for at least a fifth of the mean, so that the slow samples of a busy day are forgotten.
_LEARN_RATE = """
    INSERT INTO stage_rates (model, device, stage, rate, samples) VALUES (?, ?, ?, ?, 1)
    ON CONFLICT (model, device, stage) DO UPDATE SET
        rate = rate + (excluded.rate - rate) * MAX(0.2, 1.0 / (samples + 1)),
        samples = samples + 1
"""


class ResultTable(Tables):
    """Transcripts and speeds."""

    def result(self, job_id: str) -> tuple[Transcript, Corrections | None] | None:
        """The transcript of a job and its corrections; None when there is no transcript."""
        rows = self._rows("SELECT content, corrections FROM transcripts JOIN jobs USING (seq) WHERE job_id = ?", job_id)
        if not rows:
            return None
        content, corrections = rows[0]
        what = f"The transcript of job {job_id}"
        return read(content, Transcript, what), None if corrections is None else read(corrections, Corrections, what)

    def set_corrections(self, job_id: str, corrections: Corrections) -> bool:
        """Store the corrections of a transcript instead of the earlier ones.

        Args:
            job_id: id of the job.
            corrections: the new corrections.

        Returns:
            False when there is no transcript.
        """
        return self._change(
            "UPDATE transcripts SET corrections = ? WHERE seq = (SELECT seq FROM jobs WHERE job_id = ?)",
            msgspec.json.encode(corrections),
            job_id,
        )

    def mark_delivered(self, job_id: str, now: float) -> None:
        """Note when the result was sent in full; a second time is not noted.

        Args:
            job_id: id of the job.
            now: seconds since 1970.
        """
        with self.database.write(synced=False) as connection:
            connection.execute(
                "UPDATE jobs SET delivered_at = ? WHERE job_id = ? AND state = 'Completed' AND delivered_at IS NULL",
                (now, job_id),
            )

    def expired_results(self, before: float) -> list[str]:
        """Ids of the jobs whose result was delivered before a time and need not be kept."""
        return self._column(
            "SELECT job_id FROM jobs JOIN transcripts USING (seq) WHERE delivered_at < ? AND NOT keep_result", before
        )

    def stage_rates(self) -> dict[tuple[str, str, str], float]:
        """Seconds of work for a second of audio, by model, device and stage."""
        rows = self._rows("SELECT model, device, stage, rate FROM stage_rates")
        return {(row["model"], row["device"], row["stage"]): row["rate"] for row in rows}


def learn(connection: sqlite3.Connection, rates: Rates) -> None:
    """Add the speed of one job to the means, in the transaction that completes the job.

    Args:
        connection: a connection in a transaction.
        rates: speed of the job.
    """
    rows = [(rates.model, rates.device, stage, rate) for stage, rate in rates.seconds.items()]
    connection.executemany(_LEARN_RATE, rows)
