"""Services that run on the fake executor, and stores whose disk is full."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from whisper_api.config import Config
from whisper_api.errors import StorageError, StorageFull
from whisper_api.job_values import FINAL_STATES, JobStatus
from whisper_api.jobs.admission import Reservation, Submission
from whisper_api.jobs.service import JobService
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Transcript
from whisper_api.store.jobs import DATABASE_NAME, JobStore
from whisper_api.store.rows import Job, Rates
from whisper_api.telemetry import Tracing
from whisper_api.testing import FakeExecutor

T = TypeVar("T")

DEADLINE = 60.0


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until a condition holds that must come true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"it has not happened: {what}"
        time.sleep(0.002)


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait on an event loop until a condition holds that must come true, often through another thread."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"it has not happened: {what}"
        await asyncio.sleep(0.002)


def config_in(directory: Path, **settings: Any) -> Config:
    """A configuration whose files are all in one directory."""
    return Config(data_dir=directory / "data", tmp_dir=directory / "uploads", **settings)


def new_service(
    directory: Path,
    executor: Any = None,
    *,
    store: Callable[[Path], JobStore] = JobStore,
    retry: float = 0.02,
    tracing: Tracing | None = None,
    **settings: Any,
) -> JobService:
    """A service that is not started."""
    config = config_in(directory, **settings)
    opened = store(config.data_dir / DATABASE_NAME)
    opened.exclusive()
    return JobService(
        config,
        opened,
        executor if executor is not None else FakeExecutor(),
        preload_retry_seconds=(retry,),
        write_retry_seconds=retry,
        tracing=tracing,
    )


class Services:
    """A context manager that starts services on one directory. Each start closes the service before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last: JobService | None = None

    def __call__(self, executor: FakeExecutor | None = None, **settings: Any) -> JobService:
        self.close()
        self._last = new_service(self._directory, executor, **settings)
        self._last.start()
        return self._last

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def close(self) -> None:
        if self._last is not None:
            self._last.close()


def holding(event: threading.Event) -> Callable[[FakeExecutor, Job], None]:
    """A behaviour that ignores cancellation: the job runs until the event is set."""

    def behave(executor: FakeExecutor, job: Job) -> None:
        assert event.wait(DEADLINE)

    return behave


class FaultyStore(JobStore):
    """A store whose disk can be full.

    Attributes:
        broken: methods that cannot be used.
        tried: methods that were called while they could not be used.
        after: methods that do their work, and then say that they could not.
    """

    broken: set[str]
    tried: set[str]
    after: set[str]

    def __init__(self, path: Path) -> None:
        self.broken, self.tried, self.after = set(), set(), set()
        super().__init__(path)

    def add(self, job: Job, **joining: Any) -> Job:
        return self._faulty("add", functools.partial(super().add, job, **joining))

    def claim(self, job_id: str, now: float) -> Job | None:
        return self._faulty("claim", functools.partial(super().claim, job_id, now))

    def complete(self, job_id: str, transcript: Transcript, now: float, rates: Rates | None = None) -> bool:
        return self._faulty("complete", functools.partial(super().complete, job_id, transcript, now, rates))

    def cancel(self, job_id: str, now: float, **states: Any) -> bool:
        return self._faulty("cancel", functools.partial(super().cancel, job_id, now, **states))

    def requeue(self, job_id: str, **counts: Any) -> bool:
        return self._faulty("requeue", functools.partial(super().requeue, job_id, **counts))

    def _faulty(self, name: str, action: Callable[[], T]) -> T:
        if name in self.broken:
            self.tried.add(name)
            raise StorageFull("No space is left on the disk")
        result = action()
        if name in self.after:
            self.after.discard(name)
            raise StorageError("The job database cannot be used: disk I/O error")
        return result


def faulty(service: JobService) -> FaultyStore:
    assert isinstance(service.store, FaultyStore)
    return service.store


def ids_in(store: JobStore) -> set[str]:
    """Ids of all jobs."""
    return {job.job_id for job in store.page(None, limit=1_000_000)}


def queued_in(store: JobStore) -> list[str]:
    """Ids of the waiting jobs in the order of the queue."""
    return [job.job_id for job in store.in_state("Queued")]


def transcript_in(store: JobStore, job_id: str) -> Transcript | None:
    """The transcript of a job without corrections."""
    result = store.result(job_id)
    return None if result is None else result[0]


def watched_jobs(service: JobService) -> set[str]:
    """Ids of the jobs that requests wait for or watch."""
    return {watch.job_id for watch in tuple(service.events.watches)}


def submission(reservation: Reservation, text: str = "hello", **fields: Any) -> Submission:
    """A submission whose upload is there.

    Args:
        reservation: of the upload.
        text: of the transcript.
        fields: of the submission, or of its options.
    """
    reservation.directory.mkdir(mode=0o700, parents=True)
    (reservation.directory / "audio").write_text(text)
    names = set(TranscriptionOptions.__struct_fields__)
    options = TranscriptionOptions(**{name: fields.pop(name) for name in list(fields) if name in names})
    values = {"output_format": "txt", "audio_bytes": len(text), "audio_seconds": 10.0, **fields}
    return Submission(job_id=reservation.job_id, owner=reservation.owner, options=options, **values)


def submit(service: JobService, text: str = "hello", *, owner: str = "", **fields: Any) -> str:
    """Submit a job; its id. The arguments are those of :func:`submission`."""
    with service.reserve(owner) as place:
        return service.submit(submission(place, text, **fields), place).job_id


def ended(service: JobService, job_id: str) -> JobStatus:
    """Wait until a job has ended and its upload is removed; its status then."""
    until(lambda: service.status(job_id, None).status in FINAL_STATES, "the job has ended")
    until(lambda: service.running.get(job_id) is None, "the job runs no more")
    return service.status(job_id, None)


def running(service: JobService, *job_ids: str) -> None:
    """Wait until jobs run."""
    until(lambda: all(service.status(each, None).status == "Processing" for each in job_ids), "jobs run")


def idle(service: JobService) -> None:
    """Wait until nothing waits or runs."""
    until(lambda: not service.store.in_state("Queued", "Processing") and service.counts() == (0, 0), "all is done")


def text_of(service: JobService, job_id: str) -> str:
    """The text of a job's result."""
    return service.result(job_id, None)[1].text


def run_one(service: JobService, text: str) -> str:
    """Submit a job and wait until it has ended; the text of its result."""
    job_id = submit(service, text)
    ended(service, job_id)
    return text_of(service, job_id)


def uploads(directory: Path) -> list[str]:
    """The names of the directories that hold uploads."""
    return sorted(path.name for path in (directory / "uploads").glob("*"))


def by_prompt(executor: FakeExecutor, job: Job) -> None:
    """Crash the process in the way that the prompt of the job names."""
    words = (job.options.prompt or "").split()
    if "together" in words and not job.attempts:
        until(lambda: executor.active == 3, "three jobs at a time")
    match words:
        case ["segfault", *_]:
            ctypes.string_at(0)
        case ["abort", *_]:
            os.abort()
        case ["exit", *_]:
            os._exit(7)
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["kill", "once"] if not job.attempts:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["wait"] if not job.attempts:
            threading.Event().wait()
        case _:
            pass


def work(directory: Path, slots: int, attempts: int) -> int:
    """Run the jobs of a directory until all have ended. The main function of processes that crash."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    service = new_service(
        directory,
        FakeExecutor(behave=by_prompt),
        enable_concurrency=slots > 1,
        max_concurrent_jobs=slots,
        max_job_attempts=attempts,
    )
    service.start()
    for _ in itertools.count():
        if service.counts() == (0, 0) and not service.store.in_state("Queued", "Processing"):
            break
        time.sleep(0.01)
    service.close()
    return 0
