"""A database of every version of the schema, as SQL: ``golden/schema-NN.sql``, with rows in every table.

The files are what earlier versions of the program have written; they never change. After a new entry in
``MIGRATIONS``, run this module to write the file of the new version: ``python tests/store/golden_databases.py``.
It takes the file of the version before, brings it up to date and adds a row to each new table.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from whisper_api.store.database import Migration
from whisper_api.store.migrations import MIGRATIONS

__all__ = ["GOLDEN", "golden_file", "load", "migrate", "schema_of", "tables_of"]

GOLDEN = Path(__file__).parent / "golden"
# Rows of the first version; later versions have them as their migrations have left them.
FIRST_ROWS = """
INSERT INTO jobs (place, job_id, owner, state, options, output_format, keep_result, file_name, audio_bytes,
    audio_seconds, hf_token, warnings, created_at, started_at, finished_at, crashes, interruptions, error, error_name,
    delivered_at, idempotency_key, fingerprint)
VALUES
    (1, '11111111-1111-4111-8111-111111111111', 'aaaaaaaa', 'Completed',
        '{"language":"en","model":"base","prompt":"golden prompt"}', 'srt', 1, 'golden.wav', 32044, 1.0, NULL,
        '["golden warning"]', 1700000000.0, 1700000001.0, 1700000002.0, 0, 0, NULL, '', NULL, 'golden key', 'print'),
    (2, '22222222-2222-4222-8222-222222222222', 'aaaaaaaa', 'Failed', '{}', 'txt', 0, NULL, 5, NULL, NULL, '[]',
        1700000003.0, 1700000004.0, 1700000005.0, 1, 2, 'golden error', 'InvalidAudio', NULL, NULL, NULL),
    (3, '33333333-3333-4333-8333-333333333333', 'bbbbbbbb', 'Canceled', '{}', 'txt', 0, 'golden.wav', 5, NULL, NULL,
        '[]', 1700000006.0, NULL, 1700000007.0, 0, 0, NULL, '', NULL, NULL, NULL),
    (4, '44444444-4444-4444-8444-444444444444', 'aaaaaaaa', 'Queued', '{"diarize":false}', 'json', 0, 'golden.mp3', 7,
        3.5, 'hf_golden', '[]', 1700000008.0, NULL, NULL, 0, 1, NULL, '', NULL, NULL, NULL);
INSERT INTO transcripts (seq, content) VALUES (1, CAST('{"language":"en","duration":1.0,"segments":[{"id":0,'
    || '"start":0.0,"end":1.0,"text":" golden text"}],"model":"base","options":{"language":"en"}}' AS BLOB));
INSERT INTO keys (key_id, name, role, created_at, revoked_at, digest) VALUES
    ('aaaaaaaa', 'golden user', 'user', 1700000000.0, NULL, x'0102'),
    ('bbbbbbbb', 'golden admin', 'admin', 1700000000.5, 1700000009.0, x'0304');
INSERT INTO stage_rates (model, device, stage, rate, samples) VALUES ('base', 'cpu', 'asr', 0.25, 3);
INSERT INTO facts (name, value) VALUES ('written', '1700000000.0');
"""
# Version to the changes of older rows by new columns.
CHANGES = {
    1: FIRST_ROWS,
    2: """
        UPDATE jobs SET metadata = '{"case":"golden case"}', known_speakers = '["golden speaker"]' WHERE seq IN (1, 4);
        UPDATE transcripts SET corrections =
            CAST('{"words":[{"segment":0,"text":"golden correction"}],"speakers":{}}' AS BLOB);
    """,
}
# Rows of tables that later versions bring. The digests are those of "golden voice" and of "golden".
ROWS = {
    "job_metadata": "INSERT INTO job_metadata (owner, key, value, seq) VALUES ('aaaaaaaa', 'case', 'golden case', 1);",
    "speakers": """
        INSERT INTO speakers (speaker_id, owner, name, content) VALUES (
            '55555555-5555-4555-8555-555555555555', 'aaaaaaaa', 'c9e3f57aa389ab72e6a79b559b9ab82f',
            CAST(printf('%4096s', '') || '{"speaker_id":"55555555-5555-4555-8555-555555555555","owner":"aaaaaaaa",'
                || '"name":"golden voice","voice":{"model":"ecapa","revision":null,"samples":[{"seconds":3.0,'
                || '"vector":[1.0,0.0]}]},"created_at":1700000010.0,"updated_at":1700000010.0}' AS BLOB));
    """,
    "vocabularies": """
        INSERT INTO vocabularies (owner, name, content) VALUES ('aaaaaaaa', 'e400c30bc0c57b7de30c6b3cb756c382',
            CAST(printf('%4096s', '') || '{"name":"golden","terms":["golden term"]}' AS BLOB));
    """,
    "webhook_endpoints": """
        INSERT INTO webhook_endpoints (endpoint_id, owner, content) VALUES (
            '66666666-6666-4666-8666-666666666666', 'aaaaaaaa',
            CAST(printf('%4096s', '') || '{"endpoint_id":"66666666-6666-4666-8666-666666666666","owner":"aaaaaaaa",'
                || '"url":"https://example.com/golden","events":["transcription.completed"],'
                || '"secrets":{"secret":"whsec_Z29sZGVu"},"created_at":1700000012.0,"updated_at":1700000012.0}'
            AS BLOB));
    """,
    "webhook_secrets": """
        INSERT INTO webhook_secrets (owner, content) VALUES ('aaaaaaaa',
            CAST(printf('%4096s', '') || '{"secret":"whsec_Z29sZGVu"}' AS BLOB));
    """,
    "webhook_deliveries": """
        INSERT INTO webhook_deliveries (delivery_id, owner, job_id, endpoint_id, type, created_at, target, state,
            attempts, step, next_attempt_at, last_attempt_at, last_status, last_error, ended_at, content) VALUES
            ('msg_golden1', 'aaaaaaaa', '11111111-1111-4111-8111-111111111111', '66666666-6666-4666-8666-666666666666',
                'transcription.completed', 1700000013.0, 'golden', 'Pending', 1, 1, 1700000018.0, 1700000013.0, 500,
                'golden error', NULL, NULL),
            ('msg_golden2', 'aaaaaaaa', '11111111-1111-4111-8111-111111111111', NULL, 'transcription.completed',
                1700000013.0, 'golden', 'Delivered', 1, 1, NULL, 1700000013.0, 204, NULL, 1700000013.0,
                CAST(printf('%4096s', '') || '{"url":"https://example.com/golden"}' AS BLOB));
    """,
    "audit": """
        INSERT INTO audit (time, action, actor, key_id, name, role, target, address, request_id, status, error, count)
        VALUES (1700000011.0, 'job.read', 'key', 'aaaaaaaa', 'golden user', 'user',
            '11111111-1111-4111-8111-111111111111', '192.0.2.1', 'golden request', 200, NULL, 1);
    """,
}
_PADDED = re.compile(r"X'(?:20){4096}((?:[0-9A-F]{2})*)'")


def golden_file(version: int) -> Path:
    """The file of a version."""
    return GOLDEN / f"schema-{version:02}.sql"


def load(path: Path, version: int) -> None:
    """Make a database from the file of a version.

    Args:
        path: path of the new database.
        version: the version.
    """
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.executescript(golden_file(version).read_text(encoding="utf-8"))
    connection.close()


def tables_of(connection: sqlite3.Connection) -> dict[str, int]:
    """Name to the number of rows of each table."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {name: connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for (name,) in rows.fetchall()}


def schema_of(connection: sqlite3.Connection) -> dict[str, str]:
    """Name to the statement of each table, index and trigger."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: " ".join(sql.split()) for name, sql in rows}


def migrate(connection: sqlite3.Connection, migration: Migration) -> None:
    """Take the steps of a migration."""
    for step in migration:
        if callable(step):
            step(connection)
        else:
            connection.execute(step)


def _fill(connection: sqlite3.Connection, table: str) -> None:
    """Add the rows of a new table; else one of values that say nothing, which its constraints must allow."""
    if table in ROWS:
        connection.executescript(ROWS[table])
        return
    values = {"TEXT": "golden", "INTEGER": 1, "REAL": 1.0, "BLOB": b"{}"}
    columns = {name: kind for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})")}
    marks = ", ".join("?" * len(columns))
    connection.execute(f"INSERT INTO {table} VALUES ({marks})", [values[kind] for kind in columns.values()])


def _write(version: int) -> None:
    connection = sqlite3.connect(":memory:")
    if version > 1:
        connection.executescript(golden_file(version - 1).read_text(encoding="utf-8"))
    migrate(connection, MIGRATIONS[version - 1])
    connection.commit()
    connection.executescript(CHANGES.get(version, ""))
    for table, rows in tables_of(connection).items():
        if not rows:
            _fill(connection, table)
    connection.commit()
    dump = "\n".join([*connection.iterdump(), f"PRAGMA user_version={version};\n"])
    golden_file(version).write_text(_PADDED.sub(_readable, dump), encoding="utf-8")


def _readable(blob: re.Match[str]) -> str:
    """A text with a padding, as the store writes it."""
    text = bytes.fromhex(blob[1]).decode().replace("'", "''")
    return f"CAST(printf('%4096s', '') || '{text}' AS BLOB)"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for number in range(1, len(MIGRATIONS) + 1):
        if not golden_file(number).exists():
            _write(number)
