"""The job database survives kills, full disks, locks, damage and updates."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest
from fakes import ids_in, queued_in, transcript_in

from whisper_api.errors import StorageError, StorageFull, StorageLocked
from whisper_api.job_values import Correction, Corrections
from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.schema import Segment, Transcript
from whisper_api.store import jobs as store_module
from whisper_api.store.database import Database
from whisper_api.store.job_search import JobFilter
from whisper_api.store.jobs import AlreadyThere, JobStore
from whisper_api.store.metadata import searchable
from whisper_api.store.migrations import MIGRATIONS
from whisper_api.store.rows import Job
from whisper_api.store.texts import PAGE_BYTES, JobText, digest, put_text

ROOT = Path(__file__).parents[2]
WAIT = 60.0
ORDER = ("Queued", "Processing", "Completed")

# The beginning of the script of every process of these tests.
PREAMBLE = """
import itertools, os, resource, signal, sys
from pathlib import Path
from whisper_api.errors import StorageError
from whisper_api.store.jobs import Job, JobStore
from whisper_api.schema import Segment, Transcript, TranscriptionOptions

path, argument = Path(sys.argv[1]), sys.argv[2]
store = JobStore(path)

def new_job(job_id):
    options = TranscriptionOptions(prompt="p" * 500)
    return Job(job_id=job_id, owner="", options=options, output_format="txt", audio_bytes=1, created_at=1.0)

def transcript(text):
    segments = (Segment(id=0, start=0.0, end=1.0, text=text),)
    return Transcript(language="en", duration=1.0, segments=segments, model="base", options=TranscriptionOptions())
"""


def new_job(job_id: str, **changes: Any) -> Job:
    plain = Job(
        job_id=job_id, owner="", options=TranscriptionOptions(), output_format="txt", audio_bytes=1, created_at=1.0
    )
    return msgspec.structs.replace(plain, **changes)


def new_transcript(text: str) -> Transcript:
    segments = (Segment(id=0, start=0.0, end=1.0, text=text),)
    return Transcript(language="en", duration=1.0, segments=segments, model="base", options=TranscriptionOptions())


@contextmanager
def process(code: str, path: Path, argument: str = "") -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run another process that uses the database, and yield its output. The process ends with the context."""
    child = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code, str(path), argument],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    with child:
        assert child.stdout is not None
        try:
            yield child, child.stdout
        finally:
            child.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "jobs.db"


@pytest.fixture
def store(path: Path) -> Iterator[JobStore]:
    store = JobStore(path, busy_seconds=0.2)
    yield store
    store.close()


def test_a_write_that_need_not_survive_a_loss_of_power_does_not_sync(tmp_path: Path) -> None:
    def durability(*, synced: bool) -> str:
        with database.write(synced=synced) as connection:
            return {1: "NORMAL", 2: "FULL"}[connection.execute("PRAGMA synchronous").fetchone()[0]]

    database = Database(tmp_path / "jobs.db", MIGRATIONS)
    assert durability(synced=True) == "FULL"
    assert durability(synced=False) == "NORMAL"
    assert durability(synced=True) == "FULL"
    with pytest.raises(ZeroDivisionError), database.write(synced=False):
        raise ZeroDivisionError
    assert durability(synced=True) == "FULL"
    database.close()


# --- kills ---


def test_a_kill_loses_nothing_that_a_method_returned_from(path: Path) -> None:
    code = """
for number in itertools.count():
    job_id = f"{argument}-{number}"
    store.add(new_job(job_id))
    print(job_id, "Queued", flush=True)
    store.claim(job_id, 2.0)
    print(job_id, "Processing", flush=True)
    store.complete(job_id, transcript(job_id * 500), 3.0)
    print(job_id, "Completed", flush=True)
"""
    told: dict[str, str] = {}
    for kill in range(4):
        with process(code, path, str(kill)) as (child, lines):
            for _ in range(random.randint(1, 60)):
                job_id, state = lines.readline().split()
                told[job_id] = state
            child.kill()
            for line in lines:
                # The last line may be cut short, since the process was killed while it wrote.
                if len(words := line.split()) == 2 and words[1] in ORDER:
                    told[words[0]] = words[1]
    assert len(told) >= 4

    store = JobStore(path)
    jobs = {job.job_id: job for job in store.in_state("Queued", "Processing", "Completed")}
    for job_id, state in told.items():
        assert ORDER.index(jobs[job_id].state) >= ORDER.index(state)
    for job_id, job in jobs.items():
        kept = transcript_in(store, job_id)
        assert (kept is not None) == job.has_result == (job.state == "Completed")
        assert kept is None or kept.text == job_id * 500
    store.close()


@pytest.mark.parametrize("moment", ["BEGIN", "UPDATE", "INSERT", "COMMIT"])
def test_a_job_completes_with_its_transcript_or_not_at_all(path: Path, moment: str) -> None:
    code = """
store.add(new_job("job"))
store.claim("job", 2.0)

def kill(statement):
    if statement.strip().startswith(argument):
        os.kill(os.getpid(), signal.SIGKILL)

with store.database.write() as connection:
    pass
connection.set_trace_callback(kill)
store.complete("job", transcript("text"), 3.0)
"""
    with process(code, path, moment) as (child, _):
        assert child.wait(WAIT) == -signal.SIGKILL
    store = JobStore(path)
    job = store.get("job")
    assert job is not None
    assert (job.state, job.has_result, job.finished_at) == ("Processing", False, None)
    assert transcript_in(store, "job") is None
    assert store.complete("job", new_transcript("text"), 4.0)
    store.close()


# --- full disks ---


def limit_pages(store: JobStore, pages: int) -> None:
    with store.database.write() as connection:
        connection.execute(f"PRAGMA max_page_count={pages}").fetchall()


def fill(store: JobStore) -> set[str]:
    """Add jobs until the disk is full. Returns the ids of the added jobs."""
    added: set[str] = set()
    while len(added) < 10_000:
        job_id = f"job-{len(added)}"
        try:
            store.add(new_job(job_id, file_name="x" * 2000))
        except StorageFull:
            return added
        added.add(job_id)
    raise AssertionError("the disk is never full")


def test_a_full_disk_is_a_named_error_and_stored_jobs_stay(store: JobStore) -> None:
    store.add(new_job("first"))
    store.claim("first", 2.0)
    limit_pages(store, 60)
    added = fill(store)
    assert added
    assert ids_in(store) == added | {"first"}
    with pytest.raises(StorageFull):
        store.complete("first", new_transcript("x" * 100_000), 3.0)
    job = store.get("first")
    assert job is not None
    assert (job.state, job.has_result) == ("Processing", False)
    limit_pages(store, 1_000_000)
    assert store.complete("first", new_transcript("x" * 100_000), 3.0)


def test_a_full_disk_recovers_when_jobs_are_removed(store: JobStore) -> None:
    limit_pages(store, 60)
    added = fill(store)
    for job_id in added:
        store.delete(job_id)
    assert fill(store)


def test_a_file_that_may_not_grow_is_an_error(path: Path) -> None:
    code = """
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
number = 0
try:
    while True:
        store.add(new_job(f"job-{number}"))
        number += 1
except StorageError:
    print(number)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
store.add(new_job("last"))
"""
    with process(code, path) as (child, lines):
        [line] = lines
        assert child.wait(WAIT) == 0
    store = JobStore(path)
    assert ids_in(store) == {*(f"job-{number}" for number in range(int(line))), "last"}
    store.close()


# --- locks ---


def test_a_locked_database_is_a_named_error_and_can_be_read(store: JobStore, path: Path) -> None:
    store.add(new_job("job"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageLocked, match="Another process"):
        store.claim("job", 2.0)
    assert queued_in(store) == ["job"]
    other.execute("ROLLBACK")
    assert store.claim("job", 2.0) is not None
    other.close()


def test_readers_do_not_wait_for_the_writer(store: JobStore) -> None:
    store.add(new_job("job"))
    with store.database.write() as connection:
        connection.execute("UPDATE jobs SET state = 'Processing'")
        job = store.get("job")
    assert job is not None
    assert job.state == "Queued"


def test_a_reader_cannot_write(store: JobStore) -> None:
    with pytest.raises(StorageError), store.database.read() as connection:
        connection.execute("DELETE FROM jobs")


def test_only_one_server_works_on_a_directory(store: JobStore, path: Path) -> None:
    store.exclusive()
    # A command may use the database beside the server.
    other = JobStore(path)
    other.add(new_job("job"))
    with pytest.raises(StorageLocked, match="WHISPER_DATA_DIR"):
        other.exclusive()
    # Another thread may give the lock back than the one that took it.
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join(WAIT)
    other.exclusive()
    other.close()


def test_only_one_server_works_on_a_directory_of_uploads(store: JobStore, tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    store.exclusive(uploads)
    other = JobStore(tmp_path / "other" / "jobs.db")
    with pytest.raises(StorageLocked, match="WHISPER_TMP_FILES"):
        other.exclusive(uploads)
    other.close()
    store.close()
    third = JobStore(tmp_path / "third" / "jobs.db")
    third.exclusive(uploads)
    third.close()


def test_uploads_may_lie_beside_the_database(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    store.exclusive(tmp_path)
    store.close()


def test_the_lock_of_a_killed_server_is_free(path: Path) -> None:
    with process('store.exclusive(); print("locked", flush=True); signal.pause()', path) as (_, lines):
        assert lines.readline() == "locked\n"
        store = JobStore(path)
        with pytest.raises(StorageLocked):
            store.exclusive()
    store.exclusive()
    store.close()


@pytest.mark.parametrize("attempt", range(10))
def test_many_can_open_a_new_database_at_once(path: Path, attempt: int) -> None:
    begin = threading.Barrier(12)
    outcomes: list[object] = []

    def open_it(number: int) -> None:
        begin.wait(WAIT)
        try:
            store = JobStore(path)
            store.add(new_job(f"job-{number}"))
            store.close()
            outcomes.append(None)
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=open_it, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert outcomes == [None] * 12
    store = JobStore(path)
    assert len(ids_in(store)) == 12
    store.close()


def test_threads_share_a_store(store: JobStore) -> None:
    each, failures = 25, []

    def work(worker: int) -> None:
        try:
            for number in range(each):
                job_id = f"{worker}-{number}"
                store.add(new_job(job_id))
                assert store.claim(job_id, 2.0) is not None
                assert store.complete(job_id, new_transcript(job_id), 3.0)
                kept = transcript_in(store, job_id)
                assert kept is not None
                assert kept.text == job_id
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert failures == []
    assert len(store.in_state("Completed")) == 8 * each


def test_a_closed_store_raises_storage_errors_only(store: JobStore) -> None:
    store.add(new_job("job"))
    stopped: list[BaseException] = []
    reading = threading.Barrier(5)

    def read() -> None:
        store.get("job")
        reading.wait(WAIT)
        try:
            while True:
                assert store.get("job") is not None
        except BaseException as error:
            stopped.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    reading.wait(WAIT)
    store.close()
    store.close()
    for thread in threads:
        thread.join(WAIT)
    assert [type(error) for error in stopped] == [StorageError] * 4
    changes: list[Callable[[], object]] = [lambda: store.delete("job"), store.database.compact]
    for change in changes:
        with pytest.raises(StorageError, match="closed"):
            change()


# --- versions ---


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_a_database_of_an_earlier_version_is_brought_up_to_date(path: Path, version: int) -> None:
    path.parent.mkdir()
    earlier = sqlite3.connect(path)
    for migration in MIGRATIONS[:version]:
        for step in migration:
            step(earlier) if callable(step) else earlier.execute(step)
    # Versions before the fourth did not search metadata.
    metadata = {"case": "É\n7", "pages": 3.0, "tags": ["a"]} if version > 1 else None
    attempts = "attempts" if version >= 7 else "interruptions"
    insert = (
        "INSERT INTO jobs (place, job_id, owner, state, options, output_format, keep_result, audio_bytes, warnings,"
        f" created_at, finished_at, crashes, {attempts}, error_name, fingerprint)"
        """ VALUES (?, ?, 'ada', ?, '{"model":"base"}', 'srt', 1, 5, '["one"]', 1.5, ?, 0, 0, '', 'print')"""
    )
    earlier.execute(insert, (7, "job", "Queued", None))
    earlier.execute(insert, (6, "done", "Completed", 1.75))
    content = msgspec.json.encode(new_transcript("spoken"))
    earlier.execute("INSERT INTO transcripts (seq, content) VALUES (2, ?)", (content,))
    if version >= 5:
        # Texts are in their own table, and indexes hold digests.
        put_text(earlier, 1, JobText(warnings=("one",), metadata=metadata))
    elif metadata:
        earlier.execute("UPDATE jobs SET metadata = ? WHERE seq = 1", (msgspec.json.encode(metadata).decode(),))
    if metadata and version >= 4:
        hidden = digest if version >= 5 else str
        entries = [("ada", hidden(key), hidden(value), 1) for key, value in searchable(metadata)]
        earlier.executemany("INSERT INTO job_metadata (owner, key, value, seq) VALUES (?, ?, ?, ?)", entries)
    earlier.execute(f"PRAGMA user_version={version}")
    earlier.commit()
    earlier.close()

    store = JobStore(path)
    job = store.get("job")
    assert job is not None
    assert (job.owner, job.options.model, job.output_format, job.keep_result) == ("ada", "base", "srt", True)
    assert (job.warnings, job.has_result) == (("one",), False)
    assert (job.metadata, job.known_speakers) == (metadata, ())
    assert job.render_options == RenderOptions()
    assert store.result("done") == (new_transcript("spoken"), None)
    # New operations work with old rows and with new ones.
    corrections = Corrections(words=(Correction(segment=0, text="written"),))
    assert store.set_corrections("done", corrections)
    assert store.result("done") == (new_transcript("spoken"), corrections)
    found = [job] if metadata else []
    assert store.page("ada", JobFilter(metadata_key="case"), limit=10) == found
    assert store.page("ada", JobFilter(metadata_key="case", metadata_value="É\n7"), limit=10) == found
    assert store.page("ada", JobFilter(metadata_key="pages", metadata_value="3"), limit=10) == found
    assert store.page("ada", JobFilter(metadata_key="tags"), limit=10) == found
    added = store.add(new_job("new", owner="ada", metadata={"case": 1}, known_speakers=("Ada",)))
    assert added.seq == 3
    with sqlite3.connect(path) as reader:
        order = dict(reader.execute("SELECT job_id, place FROM jobs"))
    reader.close()
    assert (order["job"], order["new"]) == (7, 8)
    assert store.page("ada", JobFilter(metadata_key="case"), limit=10) == [added, *found]
    with pytest.raises(AlreadyThere) as caught:
        store.add(msgspec.structs.replace(job, job_id="again"), join_after=2.0)
    assert caught.value.job == job
    assert store.claim("job", 2.0) is not None
    store.close()


def test_an_update_keeps_the_rows_and_an_older_program_refuses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JobStore(path)
    before = store.add(new_job("job"))
    store.close()
    update = ("ALTER TABLE jobs ADD COLUMN note TEXT", "CREATE TABLE notes (text TEXT)")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, update))
        for _ in range(2):
            store = JobStore(path)
            assert store.get("job") == before
            store.close()
    with pytest.raises(StorageError, match="newer version"):
        JobStore(path)


def test_an_update_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    JobStore(path).close()
    update = ("CREATE TABLE notes (text TEXT)", "ALTER TABLE nowhere ADD COLUMN note TEXT")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, update))
        with pytest.raises(StorageError, match="nowhere"):
            JobStore(path)
    store = JobStore(path)
    with store.database.read() as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert "jobs" in tables
    assert "notes" not in tables
    store.close()


# --- files ---


@pytest.mark.parametrize("content", [b"", b"this is no database" * 500], ids=["empty", "text"])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    if content:
        with pytest.raises(StorageError, match=r"jobs\.db.*damaged"):
            JobStore(path)
        assert path.read_bytes() == content
    else:
        JobStore(path).close()


def test_a_damaged_database_is_a_named_error(path: Path) -> None:
    store = JobStore(path)
    for number in range(50):
        store.add(new_job(f"job-{number}", file_name="x" * 1000))
    store.close()
    with sqlite3.connect(path) as reader:
        ((page,),) = reader.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchall()
    reader.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(content)
    store = JobStore(path)
    with pytest.raises(StorageError, match="damaged"):
        store.in_state("Queued")
    store.close()


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        JobStore(tmp_path / "file" / "jobs.db")
    with pytest.raises(StorageError, match=f"{tmp_path.name}.*cannot"):
        JobStore(tmp_path)


def test_other_users_cannot_read_the_files(path: Path) -> None:
    previous = os.umask(0)
    try:
        store = JobStore(path)
        store.add(new_job("job"))
        store.exclusive()
        modes = {file.name: file.stat().st_mode & 0o777 for file in [path.parent, *path.parent.iterdir()]}
    finally:
        os.umask(previous)
    assert modes == {
        "data": 0o700,
        "jobs.db": 0o600,
        "jobs.db-wal": 0o600,
        "jobs.db-shm": 0o600,
        "server.lock": 0o600,
    }
    store.close()
    path.chmod(0o644)
    JobStore(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    JobStore(tmp_path / "jobs.db").close()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def bytes_of(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(directory.iterdir()))


def test_deleted_content_is_not_on_the_disk(store: JobStore, path: Path) -> None:
    prompts = [f"prompt-{number}-" * 60 for number in range(20)]
    for number, prompt in enumerate(prompts):
        options = TranscriptionOptions(prompt=prompt)
        store.add(new_job(f"job-{number}", hf_token=f"hf_secret_{number}", options=options))
        store.claim(f"job-{number}", 2.0)
    store.database.compact()
    assert b"hf_secret_0" in bytes_of(path.parent)
    for number in range(20):
        store.complete(f"job-{number}", new_transcript(f"spoken-{number} " * 2000), 3.0)
    store.database.compact()
    found = bytes_of(path.parent)
    assert b"hf_secret" not in found
    assert b"spoken-0" in found
    for number in range(10):
        store.drop_result(f"job-{number}")
    for number in range(10, 20):
        store.delete(f"job-{number}")
    store.database.compact()
    found = bytes_of(path.parent)
    assert b"spoken" not in found
    assert not [number for number in range(10, 20) if f"prompt-{number}-".encode() in found]
    # The data that a job needed only for its result is removed with the result.
    assert b"prompt-0-" not in found


def test_space_comes_back(store: JobStore, path: Path) -> None:
    for number in range(30):
        store.add(new_job(f"job-{number}", file_name="x" * 50_000))
    store.database.compact()
    full = path.stat().st_size
    for number in range(30):
        store.delete(f"job-{number}")
    store.database.compact()
    assert path.stat().st_size < full / 4
    assert path.with_name("jobs.db-wal").stat().st_size == 0


def test_changes_differ_after_each_commit_of_anybody(tmp_path: Path) -> None:
    database = Database(tmp_path / "jobs.db", MIGRATIONS)
    other = Database(tmp_path / "jobs.db", MIGRATIONS)
    for writer in (database, other, database):
        before = database.changes()
        with database.read() as connection:
            connection.execute("SELECT COUNT(*) FROM jobs").fetchall()
        assert database.changes() == before
        with writer.write(synced=False) as connection:
            connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES ('written', ?)", (str(writer),))
        assert database.changes() != before
    # It does not keep the log from being emptied.
    assert database.wipe()
    other.close()
    database.close()
    with pytest.raises(StorageError):
        database.changes()
