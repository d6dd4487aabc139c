"""Retention removes what has expired, and keeps everything else."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import ids_in, transcript_in

from whisper_api.errors import StorageLocked
from whisper_api.jobs.retention import Retention, Swept
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Transcript
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job

WAIT = 60.0
HOUR = 3600.0
NOW = 1_000_000.0
GRACE = 300.0
TRANSCRIPT = Transcript(language="en", duration=1.0, segments=(), model="base", options=TranscriptionOptions())


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    return uploads


@pytest.fixture
def retention(store: JobStore, uploads: Path) -> Iterator[Retention]:
    retention = Retention(store, uploads, retention_seconds=48 * HOUR, grace_seconds=GRACE)
    yield retention
    retention.close()


def add(store: JobStore, *, finished_at: float | None = None, **changes: Any) -> str:
    plain = Job(
        job_id=str(uuid.uuid4()),
        owner="",
        options=TranscriptionOptions(),
        output_format="txt",
        audio_bytes=1,
        created_at=1.0,
    )
    job_id = store.add(msgspec.structs.replace(plain, **changes)).job_id
    if finished_at is not None:
        store.claim(job_id, finished_at)
        store.complete(job_id, TRANSCRIPT, finished_at)
    return job_id


def upload(uploads: Path, job_id: str, name: str = "audio") -> Path:
    directory = uploads / job_id
    directory.mkdir()
    (directory / name).write_bytes(b"sound")
    return directory


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_delivered_results_go_after_the_grace_and_the_job_stays(store: JobStore, retention: Retention) -> None:
    past, recent, kept, unread = (
        add(store, finished_at=NOW - HOUR, keep_result=kept) for kept in (False, False, True, False)
    )
    store.mark_delivered(past, NOW - GRACE - 1)
    store.mark_delivered(kept, NOW - GRACE - 1)
    store.mark_delivered(recent, NOW - GRACE + 1)
    assert retention.sweep(NOW) == Swept(results=1, jobs=0, files=0)
    assert ids_in(store) == {past, recent, kept, unread}
    assert [transcript_in(store, job_id) is None for job_id in (past, recent, kept, unread)] == [
        True,
        False,
        False,
        False,
    ]
    assert retention.sweep(NOW) == Swept(results=0, jobs=0, files=0)


def test_jobs_go_after_the_retention_time_however_they_ended(store: JobStore, uploads: Path) -> None:
    retention = Retention(store, uploads, retention_seconds=HOUR, grace_seconds=GRACE)
    add(store, finished_at=NOW - HOUR - 1)
    add(store, finished_at=NOW - HOUR - 1, keep_result=True)
    failed, canceled = add(store), add(store)
    store.fail(failed, "Error", "why", NOW - HOUR - 1)
    store.cancel(canceled, NOW - HOUR - 1)
    new = add(store, finished_at=NOW - HOUR + 1)
    waiting, running = add(store), add(store)
    store.claim(running, 2.0)
    assert retention.sweep(NOW) == Swept(results=0, jobs=4, files=0)
    assert ids_in(store) == {new, waiting, running}


def test_uploads_stay_while_their_job_waits_or_runs(store: JobStore, uploads: Path, retention: Retention) -> None:
    waiting, running, ended = add(store), add(store), add(store, finished_at=NOW)
    store.claim(running, 2.0)
    stay = {upload(uploads, waiting), upload(uploads, running)}
    upload(uploads, ended)
    upload(uploads, str(uuid.uuid4()), "audio.part")
    known = upload(uploads, str(uuid.uuid4()))
    for number in range(2):
        (known / f"speaker-{number}").write_bytes(b"voice")
    (uploads / str(uuid.uuid4())).mkdir()
    assert retention.sweep(NOW).files == 4
    assert set(uploads.iterdir()) == stay
    assert all((directory / "audio").read_bytes() == b"sound" for directory in stay)


def test_uploads_under_way_stay(uploads: Path, retention: Retention) -> None:
    coming = str(uuid.uuid4())
    retention.protect(coming)
    directory = upload(uploads, coming, "audio.part")
    assert retention.sweep(NOW).files == 0
    assert directory.exists()
    retention.unprotect(coming)
    retention.unprotect(coming)
    assert retention.sweep(NOW).files == 1
    assert not directory.exists()


def test_directories_that_are_no_uploads_stay(tmp_path: Path, uploads: Path, retention: Retention) -> None:
    # Other programs may use the directory of uploads as well.
    elsewhere = tmp_path / "elsewhere"
    upload(tmp_path, "elsewhere")
    upload(uploads, "mail")
    upload(uploads, str(uuid.uuid4()), "thesis.doc")
    upload(uploads, str(uuid.uuid4()), "speaker-")
    upload(uploads, uuid.uuid4().hex)
    upload(uploads, str(uuid.uuid4()).upper())
    (uploads / str(uuid.uuid4())).write_bytes(b"a file")
    (uploads / str(uuid.uuid4())).symlink_to(elsewhere, target_is_directory=True)
    nested = uploads / str(uuid.uuid4()) / "audio"
    nested.mkdir(parents=True)
    (nested / "deep").write_bytes(b"deep")
    before = sorted(tmp_path.rglob("*"))
    assert retention.sweep(NOW).files == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_no_uploads_yet_is_fine(store: JobStore, tmp_path: Path) -> None:
    retention = Retention(store, tmp_path / "nowhere", retention_seconds=HOUR, grace_seconds=GRACE)
    assert retention.sweep(NOW) == Swept(results=0, jobs=0, files=0)


def test_no_upload_is_swept_on_its_way_into_the_store(store: JobStore, uploads: Path, retention: Retention) -> None:
    lost: list[str] = []
    done = threading.Event()

    def submit() -> None:
        for _ in range(60):
            job_id = str(uuid.uuid4())
            retention.protect(job_id)
            directory = upload(uploads, job_id)
            add(store, job_id=job_id)
            retention.unprotect(job_id)
            if not (directory / "audio").exists():
                lost.append(job_id)

    def sweep() -> None:
        while not done.is_set():
            retention.sweep(NOW)

    sweeper = threading.Thread(target=sweep)
    submitters = [threading.Thread(target=submit) for _ in range(3)]
    for thread in [sweeper, *submitters]:
        thread.start()
    for thread in submitters:
        thread.join(WAIT)
    done.set()
    sweeper.join(WAIT)
    assert lost == []
    assert {directory.name for directory in uploads.iterdir()} == ids_in(store)


def test_the_thread_removes_results_and_orphans_long_before_the_next_sweep(store: JobStore, uploads: Path) -> None:
    retention = Retention(store, uploads, retention_seconds=HOUR, grace_seconds=0.0)
    job_id = add(store, finished_at=time.time() - 2 * HOUR)
    store.mark_delivered(job_id, time.time())
    orphan = upload(uploads, str(uuid.uuid4()))
    retention.start(HOUR)
    eventually(lambda: transcript_in(store, job_id) is None)
    retention.close()
    assert ids_in(store) == {job_id}
    assert not orphan.exists()


def test_the_thread_sweeps_at_every_interval(store: JobStore, uploads: Path, retention: Retention) -> None:
    job_id = add(store, finished_at=NOW)
    orphan = upload(uploads, str(uuid.uuid4()))
    retention.start(0.02)
    eventually(lambda: not orphan.exists() and job_id not in ids_in(store))
    orphan = upload(uploads, str(uuid.uuid4()))
    eventually(lambda: not orphan.exists())


def test_a_failure_does_not_stop_the_thread(
    store: JobStore,
    uploads: Path,
    retention: Retention,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = [RuntimeError("a first time"), RuntimeError("a second time")]
    delete = store.delete

    def fail_at_first(job_id: str) -> None:
        if failures:
            raise failures.pop()
        delete(job_id)

    monkeypatch.setattr(store, "delete", fail_at_first)
    for _ in range(4):
        add(store, finished_at=NOW)
    with caplog.at_level(logging.ERROR):
        retention.start(0.02)
        eventually(lambda: ids_in(store) == set())
        retention.close()
    assert len(caplog.records) == 2


def test_uploads_go_when_the_database_cannot_be_written(
    tmp_path: Path, uploads: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = JobStore(tmp_path / "jobs.db", busy_seconds=0.05)
    retention = Retention(store, uploads, retention_seconds=HOUR, grace_seconds=GRACE)
    job_id = add(store, finished_at=NOW)
    orphan = upload(uploads, str(uuid.uuid4()))
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageLocked):
        retention.sweep(NOW + 2 * HOUR)
    assert not orphan.exists()
    with caplog.at_level(logging.ERROR):
        retention.start(0.02)
        eventually(lambda: len(caplog.records) > 0)
    assert "Another process" in caplog.text
    assert ids_in(store) == {job_id}
    other.execute("ROLLBACK")
    eventually(lambda: ids_in(store) == set())
    retention.close()
    store.close()
    other.close()


def test_the_log_has_only_the_id_of_a_removed_job(
    store: JobStore, uploads: Path, retention: Retention, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = add(store, finished_at=NOW - HOUR, file_name="private.wav", options=TranscriptionOptions(prompt="private"))
    store.mark_delivered(job_id, NOW - HOUR)
    upload(uploads, job_id)
    with caplog.at_level(logging.INFO, logger="whisper_api.jobs"):
        retention.sweep(NOW)
        retention.sweep(NOW + 100 * HOUR)
    assert [(record.getMessage(), getattr(record, "job_id", None)) for record in caplog.records] == [
        ("upload removed", job_id),
        ("result removed", job_id),
        ("job removed", job_id),
    ]
