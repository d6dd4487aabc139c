"""Deleted text is gone from every file of the data directory within the deadline, for every kind of deletion."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import Services, ended, idle, new_service, running, submission, submit, text_of, until, uploads

from store.test_jobs import new_job
from whisper_api.access.keys import KeyRing
from whisper_api.errors import JobNotFound
from whisper_api.job_values import Correction, Corrections
from whisper_api.jobs import retention as retention_module
from whisper_api.jobs.retention import Retention
from whisper_api.jobs.service import JobService
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Segment, Transcript
from whisper_api.store import texts
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

# Seconds until the last byte of deleted content must be gone.
MINUTE = 60.0

# The files are read by another process: closing one of them in this process would drop SQLite's locks on it.
LOOK = """
import pathlib, sys
directory, *words = sys.argv[1:]
found = b""
for path in sorted(pathlib.Path(directory).rglob("*")):
    found += str(path).encode() + b"\\0"
    if path.is_file():
        try:
            found += path.read_bytes()
        except FileNotFoundError:
            pass
print(*(word for word in words if word.encode() in found))
"""
# Another process that keeps reading the state of the database at its beginning.
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT COUNT(*) FROM jobs").fetchall()
print("reading", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _wipe_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the interval of the wipe, since these tests wait for it."""
    assert retention_module.WIPE_SECONDS < MINUTE
    monkeypatch.setattr(retention_module, "WIPE_SECONDS", 0.2)
    monkeypatch.setattr(retention_module, "MIN_TICK_SECONDS", 0.1)


def on_disk(directory: Path, words: list[str]) -> set[str]:
    """The words that occur anywhere in a directory: in the content or the name of a file."""
    looked = subprocess.run(
        [sys.executable, "-c", LOOK, str(directory), *words], capture_output=True, text=True, check=True
    )
    return set(looked.stdout.split())


@contextmanager
def held_open(database: Path) -> Iterator[None]:
    """While open, another process reads the current state of the database."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "reading\n"
            yield
        finally:
            reader.kill()


class Plants:
    """Unique words in every field that a client may write."""

    def __init__(self, service: JobService) -> None:
        self.service = service
        self.words: list[str] = []

    def word(self) -> str:
        self.words.append(f"plant{uuid.uuid4().hex}")
        return self.words[-1]

    def submit(self, **fields: Any) -> str:
        values: dict[str, Any] = {
            "prompt": self.word(),
            "hotwords": self.word(),
            "vocabulary": (self.word(), self.word()),
            "file_name": f"{self.word()}.wav",
            "hf_token": self.word(),
            "metadata": {self.word(): self.word(), "nested": {"deep": [self.word()]}},
            "known_speakers": (self.word(),),
            "warnings": (f"Unknown field {self.word()}",),
            "idempotency_key": self.word(),
            "webhook_url": f"https://example.com/{self.word()}",
            "fingerprint": "0" * 64,
            **fields,
        }
        with self.service.reserve(values.pop("owner", "")) as place:
            coming = submission(place, self.word(), **values)
            (place.directory / "speaker-0").write_text(self.word())
            return self.service.submit(coming, place).job_id

    def gone(self, directory: Path) -> None:
        """Wait until none of the words is on the disk."""
        deadline = time.monotonic() + MINUTE
        while left := on_disk(directory, self.words):
            assert time.monotonic() < deadline, f"{len(left)} of {len(self.words)} are still there"
            time.sleep(0.05)


def poisoned(executor: FakeExecutor, job: Job) -> None:
    if job.options.temperature:
        raise ValueError(f"{job.file_name} cannot be used")


def test_deleted_content_is_gone_a_minute_later_in_every_way_of_deletion(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True, behave=poisoned)
    service = serve(executor, result_grace_seconds=0.0, enable_concurrency=True, max_concurrent_jobs=2)
    plants = Plants(service)
    store = service.store
    key, _ = KeyRing(store).create("leaving")
    # Two jobs run, so that the others wait.
    forced, revoked = plants.submit(), plants.submit(owner=key.key_id)
    running(service, forced, revoked)
    waiting, delivered, deleted, corrected, failed, expired = (
        plants.submit(temperature=0.5 * (number == 4)) for number in range(6)
    )
    assert len(on_disk(tmp_path, plants.words)) == len(plants.words)

    service.cancel(waiting, None)
    service.cancel(forced, None, force=True)
    assert {waiting, forced}.isdisjoint(uploads(tmp_path))
    KeyRing(store).revoke(key.key_id)
    assert ended(service, revoked).status == "Canceled"
    executor.release()
    assert ended(service, failed).status == "Failed"
    for job_id in (delivered, deleted, corrected, expired):
        assert ended(service, job_id).status == "Completed"
    idle(service)
    assert uploads(tmp_path) == []
    for text in (plants.word(), "another"):
        service.correct(corrected, None, Corrections(words=(Correction(segment=0, text=text),)))
    service.cancel(deleted, None)
    service.cancel(failed, None)
    with pytest.raises(JobNotFound):
        service.status(failed, None)
    # The file name and the metadata stay with the job, which its owner still finds in the list.
    service.mark_delivered(delivered)
    until(lambda: service.status(delivered, None).result_gone, "the grace is over")
    assert service.status(delivered, None).metadata is not None
    service.cancel(delivered, None)
    store.delete(expired)
    assert text_of(service, corrected) == "another"
    service.cancel(corrected, None)
    plants.gone(tmp_path)
    # The rows that stay are still listed, without any text of their clients.
    for job_id in (waiting, forced, revoked, delivered, deleted, corrected):
        status = service.status(job_id, None)
        assert (status.file_name, status.metadata, status.warnings) == (None, None, ())


def test_a_delivered_result_is_removed_with_prompt_and_token(serve: Services, tmp_path: Path) -> None:
    service = serve(result_grace_seconds=0.0)
    plants = Plants(service)
    job_id = plants.submit(file_name="call.wav", metadata={"case": 1}, idempotency_key=None, warnings=())
    ended(service, job_id)
    service.mark_delivered(job_id)
    plants.gone(tmp_path)
    status = service.status(job_id, None)
    assert (status.file_name, status.metadata, status.result_gone) == ("call.wav", {"case": 1}, True)


def test_a_deleted_job_still_answers_to_its_idempotency_key(serve: Services, tmp_path: Path) -> None:
    service = serve()
    plants = Plants(service)
    job_id = plants.submit(idempotency_key="again")
    ended(service, job_id)
    service.cancel(job_id, None)
    assert service.find_submitted("", {"again": "0" * 64})["again"].job_id == job_id
    assert plants.submit(idempotency_key="again") == job_id
    plants.gone(tmp_path)


def test_deletions_under_load_are_as_thorough(serve: Services, tmp_path: Path) -> None:
    service = serve()
    plants = Plants(service)
    stop = threading.Event()
    failures: list[BaseException] = []

    def load() -> None:
        try:
            while not stop.is_set():
                job_id = submit(service, "load" * 1000, metadata={"n": "load"})
                service.list_jobs(None, limit=20)
                ended(service, job_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            job_id = plants.submit()
            ended(service, job_id)
            service.cancel(job_id, None)
        plants.gone(tmp_path / "data")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_reader_delays_it_and_does_not_prevent_it(serve: Services, tmp_path: Path) -> None:
    service = serve()
    plants = Plants(service)
    job_id = plants.submit()
    ended(service, job_id)
    with held_open(tmp_path / "data" / "jobs.db"):
        service.cancel(job_id, None)
        assert not service.store.database.wipe()
        # Neither writers nor readers wait for that reader.
        assert ended(service, submit(service)).status == "Completed"
        assert on_disk(tmp_path / "data", plants.words)
    plants.gone(tmp_path)


def test_a_reader_that_blocks_the_wipe_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention_module, "OVERDUE_SECONDS", 0.0)
    store = JobStore(tmp_path / "jobs.db")
    retention = Retention(store, tmp_path / "uploads", retention_seconds=1.0, grace_seconds=1.0)
    store.add(new_job("job"))
    with held_open(tmp_path / "jobs.db"):
        store.delete("job")
        for _ in range(4):
            retention.wipe()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "another program" in caplog.text
    retention.wipe()
    assert (tmp_path / "jobs.db-wal").stat().st_size == 0
    store.close()


def churn(store: JobStore, seed: int) -> tuple[list[str], list[str]]:
    """Add, change and delete jobs in random order. Returns the words of deleted jobs and those of the others."""
    chance = random.Random(seed)
    alive: dict[str, str] = {}
    gone: list[str] = []
    for number in range(200):
        if alive and chance.random() < 0.45:
            job_id = chance.choice(list(alive))
            gone.append(alive.pop(job_id))
            chance.choice([store.delete, store.erase])(job_id)
            continue
        job_id, word = f"{chance.getrandbits(64):016x}", f"churn{number:05}x"
        options = TranscriptionOptions(prompt=word * chance.choice([1, 10, 100]))
        metadata = {word: word * chance.choice([1, 10])}
        store.add(new_job(job_id, options=options, file_name=word, metadata=metadata, idempotency_key=word))
        store.claim(job_id, 101.0)
        segments = (Segment(id=0, start=0.0, end=1.0, text=word * chance.choice([1, 30, 1000])),)
        store.complete(
            job_id,
            Transcript(language="en", duration=1.0, segments=segments, model="base", options=options),
            102.0,
        )
        alive[job_id] = word
    return gone, list(alive.values())


# With these seeds rows move between pages, which leaves copies behind unless texts are padded.
@pytest.mark.parametrize("seed", [8, 10])
def test_no_deleted_content_is_left_between_the_rows_of_other_jobs(tmp_path: Path, seed: int) -> None:
    store = JobStore(tmp_path / "jobs.db")
    gone, alive = churn(store, seed)
    assert store.database.wipe()
    assert on_disk(tmp_path, gone) == set()
    assert on_disk(tmp_path, alive) == set(alive)
    store.database.compact()
    assert on_disk(tmp_path, gone) == set()
    store.close()


def test_no_row_has_text_outside_its_overflow_pages(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    with store.database.read() as connection:
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    # At most one page of a row is outside of overflow pages: https://www.sqlite.org/fileformat2.html#b_tree_pages
    assert page_bytes == texts.PAGE_BYTES
    assert texts.padded(b"{}")[:page_bytes].isspace()
    store.close()


def test_uploads_that_could_not_be_removed_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Services
) -> None:
    import shutil

    remove: Callable[..., None] = shutil.rmtree
    failures = [OSError(16, "Device or resource busy")]

    def busy(path: Path) -> None:
        if failures:
            raise failures.pop()
        remove(path)

    service = serve()
    monkeypatch.setattr(shutil, "rmtree", busy)
    ended(service, submit(service))
    until(lambda: not failures and uploads(tmp_path) == [], "the upload goes")


def test_the_start_removes_what_a_killed_server_has_left(tmp_path: Path) -> None:
    service = new_service(tmp_path)
    plants = Plants(service)
    job_id = plants.submit()
    service.cancel(job_id, None)
    # The database was not closed, so the log is as after a kill.
    with held_open(tmp_path / "data" / "jobs.db"):
        service.close()
        assert on_disk(tmp_path, plants.words)
    again = new_service(tmp_path)
    again.start()
    assert on_disk(tmp_path, plants.words) == set()
    again.close()
