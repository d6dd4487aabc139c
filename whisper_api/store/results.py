"""The tables of what jobs gave: transcripts with their corrections, and what was learned from running them."""

from __future__ import annotations

import sqlite3

import msgspec

from whisper_api.errors import StorageError
from whisper_api.schema import Corrections, Transcript
from whisper_api.store.rows import Rates
from whisper_api.store.tables import Tables

__all__ = ["ResultTable", "learn"]

# Counts for a fifth of the mean at least, so that what was learned on a busy day is forgotten.
_LEARN_RATE = """
    INSERT INTO stage_rates (model, device, stage, rate, samples) VALUES (?, ?, ?, ?, 1)
    ON CONFLICT (model, device, stage) DO UPDATE SET
        rate = rate + (excluded.rate - rate) * MAX(0.2, 1.0 / (samples + 1)),
        samples = samples + 1
"""


class ResultTable(Tables):
    """Transcripts and speeds."""

    def transcript(self, job_id: str) -> Transcript | None:
        """The transcript of a job as it was recognised, when it is there."""
        found = self.result(job_id)
        return None if found is None else found[0]

    def result(self, job_id: str) -> tuple[Transcript, Corrections | None] | None:
        """The transcript of a job, when it is there, and what is to be corrected in it."""
        rows = self._rows("SELECT content, corrections FROM transcripts JOIN jobs USING (seq) WHERE job_id = ?", job_id)
        if not rows:
            return None
        content, corrections = rows[0]
        try:
            transcript = msgspec.json.decode(content, type=Transcript)
            return transcript, None if corrections is None else msgspec.json.decode(corrections, type=Corrections)
        except msgspec.DecodeError as error:
            raise StorageError(f"The transcript of job {job_id} cannot be read: {error}") from error

    def set_corrections(self, job_id: str, corrections: Corrections) -> bool:
        """Note what is to be corrected in a transcript, in the place of what was noted before.

        Returns:
            False when it is not there.
        """
        return self._change(
            "UPDATE transcripts SET corrections = ? WHERE seq = (SELECT seq FROM jobs WHERE job_id = ?)",
            msgspec.json.encode(corrections),
            job_id,
        )

    def mark_delivered(self, job_id: str, now: float) -> None:
        """Note that the result was sent in full. Only the first time counts."""
        with self._database.write(synced=False) as connection:
            connection.execute(
                "UPDATE jobs SET delivered_at = ? WHERE job_id = ? AND state = 'Completed' AND delivered_at IS NULL",
                (now, job_id),
            )

    def expired_results(self, before: float) -> list[str]:
        """Ids of the jobs whose result is there, was delivered before then and need not be kept."""
        return self._column(
            "SELECT job_id FROM jobs JOIN transcripts USING (seq) WHERE delivered_at < ? AND NOT keep_result", before
        )

    def stage_rates(self) -> dict[tuple[str, str, str], float]:
        """Seconds of work for a second of audio, by model, device and stage."""
        rows = self._rows("SELECT model, device, stage, rate FROM stage_rates")
        return {(row["model"], row["device"], row["stage"]): row["rate"] for row in rows}


def learn(connection: sqlite3.Connection, rates: Rates) -> None:
    """Let one job count towards the means, in the transaction that completes it."""
    rows = [(rates.model, rates.device, stage, rate) for stage, rate in rates.seconds.items()]
    connection.executemany(_LEARN_RATE, rows)
