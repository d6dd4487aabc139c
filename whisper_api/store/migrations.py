"""The schema of the job database, as the steps from each version to the next."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from whisper_api.store.database import Migration
from whisper_api.store.metadata import searchable
from whisper_api.store.texts import JobText, digest, padded, put_text


def _enter_metadata(connection: sqlite3.Connection) -> None:
    """Fill the new table of metadata from the jobs of older versions."""
    rows = connection.execute("SELECT owner, seq, metadata FROM jobs WHERE metadata IS NOT NULL")
    connection.executemany(
        "INSERT OR IGNORE INTO job_metadata (owner, key, value, seq) VALUES (?, ?, ?, ?)",
        (
            (owner, key, value, seq)
            for owner, seq, text in rows
            for key, value in searchable(msgspec.json.decode(text, type=dict[str, Any]))
        ),
    )


def _move_texts(connection: sqlite3.Connection) -> None:
    """Move the texts of clients into the table of texts; those of canceled jobs are dropped."""
    columns = "file_name, hf_token, metadata, known_speakers, warnings, error, idempotency_key"
    rows = connection.execute(f"SELECT seq, owner, state, options, {columns} FROM jobs").fetchall()
    connection.execute("DELETE FROM job_metadata")
    for seq, owner, state, options, file_name, hf_token, metadata, speakers, warnings, error, key in rows:
        fields = msgspec.json.decode(options, type=dict[str, Any])
        text = JobText(
            prompt=fields.pop("prompt", None),
            hotwords=fields.pop("hotwords", None),
            file_name=file_name,
            hf_token=hf_token,
            metadata=None if metadata is None else msgspec.json.decode(metadata, type=dict[str, Any]),
            known_speakers=msgspec.json.decode(speakers, type=tuple[str, ...]),
            warnings=msgspec.json.decode(warnings, type=tuple[str, ...]),
            error=error,
            idempotency_key=key,
        )
        if state != "Canceled":
            put_text(connection, seq, text)
            connection.executemany(
                "INSERT OR IGNORE INTO job_metadata (owner, key, value, seq) VALUES (?, ?, ?, ?)",
                ((owner, digest(name), digest(value), seq) for name, value in searchable(text.metadata or {})),
            )
        connection.execute(
            "UPDATE jobs SET options = ?, idempotency_key = ?, file_name = NULL, hf_token = NULL, metadata = NULL,"
            " known_speakers = '[]', warnings = '[]', error = NULL WHERE seq = ?",
            (msgspec.json.encode(fields).decode(), None if key is None else digest(key), seq),
        )
    for (seq,) in connection.execute("SELECT seq FROM transcripts").fetchall():
        (content,) = connection.execute("SELECT content FROM transcripts WHERE seq = ?", (seq,)).fetchone()
        connection.execute("UPDATE transcripts SET content = ? WHERE seq = ?", (padded(bytes(content)), seq))


# Never change an entry that was released: a new version is a new entry.
MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            place INTEGER NOT NULL UNIQUE,
            job_id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('Queued', 'Processing', 'Completed', 'Failed', 'Canceled')),
            options TEXT NOT NULL,
            output_format TEXT NOT NULL,
            keep_result INTEGER NOT NULL,
            file_name TEXT,
            audio_bytes INTEGER NOT NULL,
            audio_seconds REAL,
            hf_token TEXT,
            warnings TEXT NOT NULL,
            created_at REAL NOT NULL,
            started_at REAL,
            finished_at REAL,
            crashes INTEGER NOT NULL,
            interruptions INTEGER NOT NULL,
            error TEXT,
            error_name TEXT NOT NULL,
            delivered_at REAL,
            idempotency_key TEXT,
            fingerprint TEXT,
            CHECK ((finished_at IS NULL) = (state IN ('Queued', 'Processing'))),
            CHECK (finished_at IS NULL OR hf_token IS NULL)
        )
        """,
        "CREATE INDEX jobs_by_state ON jobs (state, place)",
        "CREATE INDEX jobs_by_owner ON jobs (owner, seq)",
        "CREATE INDEX jobs_unfinished ON jobs (owner) WHERE finished_at IS NULL",
        "CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL",
        "CREATE INDEX jobs_delivered ON jobs (delivered_at) WHERE delivered_at IS NOT NULL",
        "CREATE UNIQUE INDEX jobs_idempotent ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL",
        """
        CREATE TABLE transcripts (
            seq INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
            content BLOB NOT NULL
        )
        """,
        """
        CREATE TABLE keys (
            key_id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('user', 'admin')),
            created_at REAL NOT NULL,
            revoked_at REAL,
            digest BLOB NOT NULL
        )
        """,
        "CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_at IS NULL",
        """
        CREATE TABLE stage_rates (
            model TEXT NOT NULL,
            device TEXT NOT NULL,
            stage TEXT NOT NULL,
            rate REAL NOT NULL,
            samples INTEGER NOT NULL,
            PRIMARY KEY (model, device, stage)
        ) WITHOUT ROWID
        """,
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN metadata TEXT",
        "ALTER TABLE jobs ADD COLUMN known_speakers TEXT NOT NULL DEFAULT '[]'",
        "CREATE INDEX jobs_by_fingerprint ON jobs (owner, fingerprint) WHERE fingerprint IS NOT NULL",
        "ALTER TABLE transcripts ADD COLUMN corrections BLOB",
    ),
    (
        # The top-level keys of each job's metadata, so that a search does not read all jobs of an owner.
        """
        CREATE TABLE job_metadata (
            owner TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            seq INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
            PRIMARY KEY (owner, key, value, seq)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX metadata_by_job ON job_metadata (seq)",
    ),
    (_enter_metadata,),
    (
        # Texts that may be deleted are in their own table; ``texts.py`` says why.
        """
        CREATE TABLE job_texts (
            seq INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
            content BLOB NOT NULL
        )
        """,
        _move_texts,
    ),
    ("ALTER TABLE jobs ADD COLUMN render_options TEXT NOT NULL DEFAULT '{}'",),
    (
        # A single counter for all ends of the process. The column of crashes stays, because SQLite before 3.35 cannot
        # drop columns.
        "ALTER TABLE jobs RENAME COLUMN interruptions TO attempts",
        "UPDATE jobs SET attempts = attempts + crashes, crashes = 0 WHERE crashes",
    ),
    (
        # SQLite cannot change a CHECK, so the table is made again. It names the roles of later versions too.
        """
        CREATE TABLE new_keys (
            key_id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('user', 'admin', 'metrics', 'operator')),
            created_at REAL NOT NULL,
            revoked_at REAL,
            digest BLOB NOT NULL
        )
        """,
        # In the order of the old table, which lists keys of the same moment in the order of their creation.
        "INSERT INTO new_keys SELECT key_id, name, role, created_at, revoked_at, digest FROM keys ORDER BY rowid",
        "DROP TABLE keys",
        "ALTER TABLE new_keys RENAME TO keys",
        "CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_at IS NULL",
    ),
    (
        """
        CREATE TABLE speakers (
            seq INTEGER PRIMARY KEY,
            speaker_id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            content BLOB NOT NULL,
            UNIQUE (owner, name)
        )
        """,
    ),
    (
        # ``name`` is a digest; ``texts.py`` says why.
        """
        CREATE TABLE vocabularies (
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            content BLOB NOT NULL,
            PRIMARY KEY (owner, name)
        )
        """,
    ),
    (
        # ``scopes`` is a JSON list, ``old_secrets`` the JSON of the secrets that rotations have replaced.
        "ALTER TABLE keys ADD COLUMN expires_at REAL",
        "ALTER TABLE keys ADD COLUMN last_used_at REAL",
        "ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE keys ADD COLUMN rate TEXT",
        "ALTER TABLE keys ADD COLUMN quota TEXT",
        "ALTER TABLE keys ADD COLUMN old_secrets TEXT NOT NULL DEFAULT '[]'",
    ),
    (
        # Counts only, so that they may stay when a job is deleted.
        """
        CREATE TABLE usage (
            owner TEXT NOT NULL,
            day TEXT NOT NULL,
            model TEXT NOT NULL,
            requests INTEGER NOT NULL,
            jobs INTEGER NOT NULL,
            audio_seconds REAL NOT NULL,
            compute_seconds REAL NOT NULL,
            PRIMARY KEY (owner, day, model)
        ) WITHOUT ROWID
        """,
        # What unfinished jobs were charged.
        """
        CREATE TABLE charges (
            job_id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            day TEXT NOT NULL,
            model TEXT NOT NULL,
            audio_seconds REAL NOT NULL
        ) WITHOUT ROWID
        """,
    ),
    (
        # ``audit.py`` says what the triggers are for. The id of an entry is never used again (AUTOINCREMENT).
        """
        CREATE TABLE audit (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL,
            action TEXT NOT NULL,
            actor TEXT NOT NULL,
            key_id TEXT,
            name TEXT,
            role TEXT,
            target TEXT,
            address TEXT,
            request_id TEXT,
            status INTEGER,
            error TEXT,
            count INTEGER NOT NULL
        )
        """,
        "CREATE INDEX audit_by_time ON audit (time)",
        """
        CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'entries of the audit trail are not changed'); END
        """,
        # INSERT OR REPLACE removes a row without the trigger of a removal.
        """
        CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit
        WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
        BEGIN SELECT RAISE(ABORT, 'entries of the audit trail are not replaced'); END
        """,
        """
        CREATE TRIGGER audit_loses_only_its_oldest BEFORE DELETE ON audit
        WHEN OLD.time > CAST(strftime('%s', 'now') AS REAL) - 86400 OR EXISTS (SELECT 1 FROM audit WHERE seq < OLD.seq)
        BEGIN SELECT RAISE(ABORT, 'the audit trail loses only its oldest entries, after a day'); END
        """,
    ),
    (
        """
        CREATE TABLE webhook_endpoints (
            seq INTEGER PRIMARY KEY,
            endpoint_id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            content BLOB NOT NULL
        )
        """,
        "CREATE INDEX webhook_endpoints_by_owner ON webhook_endpoints (owner, seq)",
        "CREATE TABLE webhook_secrets (owner TEXT PRIMARY KEY, content BLOB NOT NULL)",
        # No reference to the job: the event of a job that was removed is still delivered.
        """
        CREATE TABLE webhook_deliveries (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            delivery_id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            job_id TEXT,
            endpoint_id TEXT REFERENCES webhook_endpoints (endpoint_id) ON DELETE CASCADE,
            type TEXT NOT NULL,
            created_at REAL NOT NULL,
            target TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('Pending', 'Delivered', 'Failed')),
            attempts INTEGER NOT NULL,
            step INTEGER NOT NULL,
            next_attempt_at REAL,
            last_attempt_at REAL,
            last_status INTEGER,
            last_error TEXT,
            ended_at REAL,
            content BLOB,
            CHECK ((next_attempt_at IS NULL) = (state != 'Pending')),
            CHECK ((ended_at IS NULL) = (state = 'Pending'))
        )
        """,
        "CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_at) WHERE state = 'Pending'",
        "CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL",
        "CREATE INDEX webhook_deliveries_by_owner ON webhook_deliveries (owner, seq)",
        "CREATE INDEX webhook_deliveries_by_job ON webhook_deliveries (job_id)",
        "CREATE INDEX webhook_deliveries_by_endpoint ON webhook_deliveries (endpoint_id)",
    ),
)
