"""A database of every version of the schema opens, with what it has; a newer one is refused by name."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from fakes import config_in

from store.golden_databases import GOLDEN, golden_file, load, migrate, schema_of, tables_of
from whisper_api.access.keys import KeyRing
from whisper_api.errors import StorageError
from whisper_api.job_values import Correction
from whisper_api.jobs.backup import back_up, restore
from whisper_api.store.job_search import JobFilter
from whisper_api.store.jobs import DATABASE_NAME, JobStore
from whisper_api.store.migrations import MIGRATIONS

VERSIONS = range(1, len(MIGRATIONS) + 1)
COMPLETED, FAILED, CANCELED, QUEUED = (f"{n * 8}-{n * 4}-4{n * 3}-8{n * 3}-{n * 12}" for n in "1234")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def path(tmp_path: Path, version: int) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    path = tmp_path / "data" / DATABASE_NAME
    load(path, version)
    return path


def check(store: JobStore, version: int) -> None:
    """Everything that a database of a version has can be read."""
    done = store.get(COMPLETED)
    assert done is not None
    assert (done.state, done.owner, done.output_format, done.keep_result) == ("Completed", "aaaaaaaa", "srt", True)
    assert (done.options.language, done.options.model, done.options.prompt) == ("en", "base", "golden prompt")
    assert (done.file_name, done.warnings, done.audio_seconds) == ("golden.wav", ("golden warning",), 1.0)
    assert (done.created_at, done.finished_at) == (1700000000.0, 1700000002.0)
    assert store.by_idempotency_keys("aaaaaaaa", ["golden key"]) == {"golden key": done}
    result = store.result(COMPLETED)
    assert result is not None
    assert result[0].text == "golden text"
    failed = store.get(FAILED)
    assert failed is not None
    assert (failed.error, failed.error_name, failed.attempts) == ("golden error", "InvalidAudio", 3)
    canceled = store.get(CANCELED)
    assert canceled is not None
    assert canceled.state == "Canceled"
    queued = store.get(QUEUED)
    assert queued is not None
    assert (queued.options.diarize, queued.attempts, queued.hf_token) == (False, 1, "hf_golden")
    user, admin = KeyRing(store).list()
    assert (user.key_id, user.name, user.role, user.revoked_at) == ("aaaaaaaa", "golden user", "user", None)
    assert (admin.role, admin.revoked_at) == ("admin", 1700000009.0)
    assert store.key("aaaaaaaa") == (user, b"\1\2")
    assert store.stage_rates() == {("base", "cpu", "asr"): 0.25}
    if version >= 2:
        assert done.metadata == queued.metadata == {"case": "golden case"}
        assert done.known_speakers == ("golden speaker",)
        assert result[1] is not None
        assert result[1].words == (Correction(segment=0, text="golden correction"),)
        found = store.page("aaaaaaaa", JobFilter(metadata_key="case", metadata_value="golden case"), limit=9)
        assert found == [queued, done]
    if version >= 9:
        (speaker,) = store.speakers("aaaaaaaa")
        assert (speaker.name, speaker.voice.samples[0].vector) == ("golden voice", (1.0, 0.0))
    if version >= 10:
        vocabulary = store.vocabulary("aaaaaaaa", "golden")
        assert vocabulary is not None
        assert vocabulary.terms == ("golden term",)


def test_there_is_a_file_of_every_version_with_rows_in_every_table() -> None:
    """After a new migration: ``python tests/store/golden_databases.py``."""
    assert sorted(GOLDEN.iterdir()) == [golden_file(version) for version in VERSIONS]


def test_a_released_migration_was_not_changed(tmp_path: Path, version: int, path: Path) -> None:
    made = sqlite3.connect(":memory:")
    for migration in MIGRATIONS[:version]:
        migrate(made, migration)
    golden = sqlite3.connect(path)
    assert golden.execute("PRAGMA user_version").fetchone() == (version,)
    assert schema_of(golden) == schema_of(made)
    assert [table for table, rows in tables_of(golden).items() if not rows] == []
    for connection in (made, golden):
        connection.close()


def test_a_database_of_any_version_opens_with_what_it_has(path: Path, version: int) -> None:
    for _ in range(2):
        with contextlib.closing(JobStore(path)) as store:
            check(store, version)
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    database.close()


def test_a_database_of_any_version_is_backed_up_as_it_is_and_restored(path: Path, version: int, tmp_path: Path) -> None:
    config, elsewhere, file = config_in(tmp_path), config_in(tmp_path / "elsewhere"), tmp_path / "backup.db"
    (config.tmp_dir / QUEUED).mkdir(parents=True)
    (config.tmp_dir / QUEUED / "audio").write_bytes(b"golden")
    assert back_up(config, file, audio=True).with_audio == 1
    # The version of a backup that is made before an upgrade is the one that can be gone back to.
    for each in (file, path):
        with sqlite3.connect(each) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (version,)
        database.close()
    assert restore(elsewhere, file).waiting == 1
    with contextlib.closing(JobStore(elsewhere.data_dir / DATABASE_NAME)) as store:
        check(store, version)
    assert (elsewhere.tmp_dir / QUEUED / "audio").read_bytes() == b"golden"


def test_a_database_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    load(path, len(MIGRATIONS))
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(StorageError, match=f"newer version .*schema {len(MIGRATIONS) + 1}"):
        JobStore(path)
