"""A backup is one state of a working server, and a restore brings that state back."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import config_in, ended, idle, submit, text_of, transcript_in, until

from whisper_api.config import Config
from whisper_api.errors import StorageError, StorageLocked
from whisper_api.jobs.backup import back_up, restore
from whisper_api.jobs.service import JobService
from whisper_api.store import backup as store_backup
from whisper_api.store.jobs import DATABASE_NAME, JobStore
from whisper_api.store.migrations import MIGRATIONS
from whisper_api.testing import FakeExecutor

LOAD_THREADS = 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "backup.db"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Config:
    """A configuration with directories that are not there yet."""
    return config_in(tmp_path / "elsewhere")


@contextlib.contextmanager
def running(config: Config, executor: FakeExecutor | None = None) -> Iterator[JobService]:
    service = JobService.open(config, executor or FakeExecutor())
    try:
        service.start()
        yield service
    finally:
        service.close()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[JobStore]:
    store = JobStore(path)
    try:
        yield store
    finally:
        store.close()


@pytest.mark.parametrize("audio", [True, False], ids=["with audio", "without audio"])
def test_a_backup_of_a_server_under_load_is_whole(tmp_path: Path, elsewhere: Config, file: Path, audio: bool) -> None:
    config = config_in(tmp_path, enable_concurrency=True, max_concurrent_jobs=3, max_jobs_per_key=0)
    loading = threading.Event()
    texts: dict[str, str] = {}

    def load(service: JobService, name: str) -> None:
        number = 0
        while not loading.is_set():
            text = f"{name} {number} " * 200
            texts[submit(service, text, keep_result=True)] = text
            number += 1
            # The queue stays short, so that jobs also end while the backup is made.
            until(lambda: service.counts()[0] < 20)

    # The transcript of a job is the content of its upload.
    with running(config, FakeExecutor(text=None)) as service:
        threads = [threading.Thread(target=load, args=(service, f"t{number}")) for number in range(LOAD_THREADS)]
        for thread in threads:
            thread.start()
        until(lambda: len(texts) > 50)
        before = {job.job_id for job in service.store.in_state("Completed")}
        made = back_up(config, file, audio=audio)
        count = len(texts)
        until(lambda: len(texts) > count + 20)
        loading.set()
        for thread in threads:
            thread.join()
        idle(service)
        transcripts = {job_id: text_of(service, job_id) for job_id in texts}
    assert file.stat().st_mode & 0o777 == 0o600
    assert made.with_audio == (made.unfinished if audio else 0)
    assert made.unfinished

    done = restore(elsewhere, file)
    assert (done.waiting, done.failed) == ((made.unfinished, 0) if audio else (0, made.unfinished))
    assert done.replaced is None
    path = elsewhere.data_dir / DATABASE_NAME
    assert path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT name FROM sqlite_master WHERE name LIKE 'backup%'").fetchall() == []
    database.close()
    with running(elsewhere, FakeExecutor(text=None)) as service:
        idle(service)
        jobs = {job.job_id: job for job in service.store.in_state("Completed", "Failed")}
        assert before < jobs.keys() <= texts.keys()
        completed = {job_id for job_id, job in jobs.items() if job.state == "Completed"}
        assert {job_id: text_of(service, job_id) for job_id in completed} == {
            job_id: transcripts[job_id] for job_id in completed
        }
        failed = [job for job in jobs.values() if job.state == "Failed"]
        assert len(failed) == done.failed
        assert {job.error_name for job in failed} <= {"UploadMissing"}
        assert all("without the audio" in (job.error or "") for job in failed)


def test_the_copied_state_is_that_of_one_moment(
    tmp_path: Path, file: Path, elsewhere: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends while its upload is about to be opened is a finished one; what comes later is not there."""
    config = config_in(tmp_path)
    executor = FakeExecutor(held=True)
    with running(config, executor) as service:
        first, second = submit(service, "first", keep_result=True), submit(service, "second", keep_result=True)
        inner, later = store_backup.begin_reading, []

        def begin(source: sqlite3.Connection, database: Path, open_uploads: store_backup.OpenUploads | None) -> object:
            def open_late(job_ids: list[str]) -> list[store_backup.OpenUpload]:
                if first in job_ids:
                    executor.release(first)
                    ended(service, first)
                    until(lambda: not (config.tmp_dir / first).exists())
                assert open_uploads is not None
                return open_uploads(job_ids)

            found = inner(source, database, open_late)
            # These come after the state that is copied.
            executor.release(second)
            ended(service, second)
            later.append(submit(service, "later"))
            return found

        monkeypatch.setattr(store_backup, "begin_reading", begin)
        made = back_up(config, file, audio=True)
        assert (made.unfinished, made.with_audio) == (1, 1)
    restore(elsewhere, file)
    with opened(elsewhere.data_dir / DATABASE_NAME) as store:
        assert transcript_in(store, first) is not None
        assert [job.job_id for job in store.in_state("Queued", "Processing")] == [second]
        assert store.get(later[0]) is None
    assert (elsewhere.tmp_dir / second / "audio").read_text() == "second"
    assert (elsewhere.tmp_dir / second / "audio").stat().st_mode & 0o777 == 0o600
    assert (elsewhere.tmp_dir / second).stat().st_mode & 0o777 == 0o700


def test_a_restore_keeps_what_was_there_and_uses_audio_that_is_still_there(tmp_path: Path, file: Path) -> None:
    config = config_in(tmp_path)
    executor = FakeExecutor(held=True)
    with running(config, executor) as service:
        waiting = [submit(service, "waits") for _ in range(2)]
        back_up(config, file, audio=False)
        lost = submit(service, "came after the backup")
    (config.tmp_dir / waiting[1] / "audio").unlink()
    done = restore(config, file)
    assert (done.waiting, done.failed) == (1, 1)
    assert done.replaced is not None
    with opened(config.data_dir / DATABASE_NAME) as store:
        assert store.get(lost) is None
        gone = store.get(waiting[1])
        assert gone is not None
        assert (gone.state, gone.error_name) == ("Failed", "UploadMissing")
        assert [each.action for each in store.audit_records()] == ["backup.restore"]
    with opened(done.replaced) as store:
        assert {job.job_id for job in store.in_state("Queued")} == {*waiting, lost}
        assert [each.action for each in store.audit_records()] == ["backup.create"]
    assert not list(config.data_dir.glob("*restoring*"))


def test_a_directory_in_use_is_refused_and_stays_as_it_is(tmp_path: Path, file: Path) -> None:
    config = config_in(tmp_path)
    with running(config) as service:
        job_id = submit(service, "hello", keep_result=True)
        ended(service, job_id)
        back_up(config, file, audio=True)
        other = config_in(tmp_path / "other")
        shared = Config(data_dir=other.data_dir, tmp_dir=config.tmp_dir)
        for used in (config, shared):
            with pytest.raises(StorageLocked, match="Another server"):
                restore(used, file)
        assert text_of(service, job_id)
    assert sorted(path.name for path in config.data_dir.iterdir()) == [DATABASE_NAME, "server.lock"]


def unusable(path: Path, kind: str) -> str:
    """Make a file that cannot be restored. Returns what the error says."""
    if kind == "text":
        path.write_text("no database" * 100)
        return "damaged"
    if kind == "other":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE jobs (x)")
        database.close()
        return "no job database"
    JobStore(path).close()
    if kind == "newer":
        with sqlite3.connect(path) as database:
            database.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
        database.close()
        return "newer version"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return "damaged"


@pytest.mark.parametrize("kind", ["text", "other", "newer", "half"])
def test_a_file_that_is_no_usable_backup_is_refused_by_name(tmp_path: Path, file: Path, kind: str) -> None:
    config = config_in(tmp_path)
    with opened(config.data_dir / DATABASE_NAME):
        pass
    before = (config.data_dir / DATABASE_NAME).read_bytes()
    with pytest.raises(StorageError, match=unusable(file, kind)):
        restore(config, file)
    assert (config.data_dir / DATABASE_NAME).read_bytes() == before
    assert not list(config.data_dir.glob("*replaced*"))


def test_files_from_a_backup_stay_in_the_directory_of_uploads(tmp_path: Path, file: Path, elsewhere: Config) -> None:
    config = config_in(tmp_path)
    with running(config, FakeExecutor(held=True)) as service:
        submit(service, "waits")
        back_up(config, file, audio=True)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE backup_uploads SET job_id = '../../../outside'")
    database.close()
    with pytest.raises(StorageError, match="no upload"):
        restore(elsewhere, file)
    assert not list(tmp_path.rglob("outside"))


def test_a_backup_replaces_no_file_and_leaves_none_behind(tmp_path: Path, file: Path) -> None:
    config = config_in(tmp_path)
    with pytest.raises(StorageError, match="no file"):
        back_up(config, file, audio=False)
    with opened(config.data_dir / DATABASE_NAME):
        pass
    file.write_text("precious")
    with pytest.raises(StorageError, match="exists already"):
        back_up(config, file, audio=False)
    assert file.read_text() == "precious"
    with pytest.raises(StorageError, match="Cannot write"):
        back_up(config, tmp_path / "nowhere" / "backup.db", audio=False)
    assert {path.name for path in tmp_path.iterdir()} == {"backup.db", "data"}
