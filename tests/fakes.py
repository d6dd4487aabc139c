"""An executor without an engine, for what the queue does with jobs; and services that run on it."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from whisper_api.config import Config
from whisper_api.errors import Canceled, EngineClosed, StorageError, StorageFull
from whisper_api.jobs.executor import ExecutorFacts, OnPartial, OnProgress
from whisper_api.jobs.service import JobService, Reservation, Submission
from whisper_api.schema import JobStatus, Progress, Segment, Transcript, TranscriptionOptions
from whisper_api.store.jobs import DATABASE_NAME, Job, JobStore, Rates

T = TypeVar("T")

DEADLINE = 60.0


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"it has not happened: {what}"
        time.sleep(0.002)


class FakeExecutor:
    """Gives every job the text of its upload.

    Args:
        held: jobs run until they are released, or canceled.
        behave: called in a job's thread while it runs; what it raises is what the job ends with.

    Attributes:
        started: ids of the jobs, in the order in which they were run.
        active, most_active: how many jobs run now, and ran at a time.
        preload_errors: what the next calls of ``preload`` raise.
        preload_gate: ``preload`` waits for it.
        warm_up_errors: what the next calls of ``warm_up`` raise.
        warm_up_gate: ``warm_up`` waits for it.
        warmed: how often ``warm_up`` was called.
        refusal: what ``check`` raises.
        missing_models: models that must be downloaded before jobs that name them can run.
        downloads: models whose download was begun, in order.
        download_gate: ``download_model`` waits for it.
        download_errors: what ``download_model`` raises, by model.
        beats: whether jobs that are held tell of themselves all the time.
    """

    device = "cpu"
    activity = ""

    def __init__(self, *, held: bool = False, behave: Callable[[FakeExecutor, Job], None] | None = None) -> None:
        self.held = held
        self.behave = behave
        self.started: list[str] = []
        self.active = 0
        self.most_active = 0
        self.together: dict[str, int] = {}
        self.preload_errors: list[BaseException] = []
        self.preload_gate = threading.Event()
        self.preload_gate.set()
        self.warm_up_errors: list[BaseException] = []
        self.warm_up_gate = threading.Event()
        self.warm_up_gate.set()
        self.warmed = 0
        self.refusal: Exception | None = None
        self.missing_models: set[str] = set()
        self.downloads: list[str] = []
        self.download_gate = threading.Event()
        self.download_gate.set()
        self.download_errors: dict[str, Exception] = {}
        self.beats = False
        self.closed = False
        self.used_after_close = False
        self.timings: dict[str, float] = {}
        self._released: set[str] = set()
        self._lock = threading.Lock()

    def facts(self) -> ExecutorFacts:
        return ExecutorFacts(device=self.device, model="fake", compute_type="none")

    def model_name(self, options: TranscriptionOptions) -> str:
        return options.model or "fake"

    def missing_model(self, options: TranscriptionOptions) -> str | None:
        return options.model if options.model in self.missing_models else None

    def download_model(self, name: str, cancel: threading.Event) -> None:
        self._touch()
        self.downloads.append(name)
        while not self.download_gate.wait(0.005):
            if cancel.is_set():
                raise Canceled("the download was canceled")
        if name in self.download_errors:
            raise self.download_errors[name]
        self.missing_models.discard(name)

    def preload(self) -> None:
        self._touch()
        self.preload_gate.wait()
        if self.preload_errors:
            raise self.preload_errors.pop(0)

    def warm_up(self) -> None:
        self._touch()
        self.warmed += 1
        self.warm_up_gate.wait()
        if self.warm_up_errors:
            raise self.warm_up_errors.pop(0)

    def check(self, options: TranscriptionOptions, hf_token: str | None) -> None:
        if self.refusal is not None:
            raise self.refusal

    def run(
        self, job: Job, audio: Path, *, on_progress: OnProgress, on_partial: OnPartial, cancel: threading.Event
    ) -> Transcript:
        self._touch()
        with self._lock:
            self.started.append(job.job_id)
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            self.together[job.job_id] = self.active
        try:
            on_progress(Progress(0.5, "asr"))
            if self.behave is not None:
                self.behave(self, job)
            while self.held and job.job_id not in self._released:
                if self.beats:
                    on_progress(Progress(0.6, "asr"))
                if cancel.wait(0.002):
                    raise Canceled("the job was canceled")
            if cancel.is_set():
                raise Canceled("the job was canceled")
            return transcript(audio.read_text(), job.options, timings=self.timings)
        finally:
            with self._lock:
                self.active -= 1

    def close(self) -> None:
        self.closed = True

    def release(self, *job_ids: str) -> None:
        """Let these jobs end; without any, all jobs."""
        if job_ids:
            self._released.update(job_ids)
        else:
            self.held = False

    def _touch(self) -> None:
        if self.closed:
            self.used_after_close = True
            raise EngineClosed("the executor is closed")


def transcript(
    text: str, options: TranscriptionOptions | None = None, *, timings: dict[str, float] | None = None
) -> Transcript:
    """A transcript of one segment, ten seconds long."""
    return Transcript(
        language="en",
        duration=10.0,
        segments=(Segment(id=0, start=0.0, end=10.0, text=text),),
        model=(options and options.model) or "fake",
        options=options or TranscriptionOptions(),
        timings=timings or {},
    )


def config_in(directory: Path, **settings: Any) -> Config:
    """A configuration whose files are all in one directory."""
    return Config(data_dir=directory / "data", tmp_dir=directory / "uploads", **settings)


def new_service(
    directory: Path,
    executor: Any = None,
    *,
    store: Callable[[Path], JobStore] = JobStore,
    retry: float = 0.02,
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
    )


class Services:
    """Starts services on one directory. Only the last one lives; a context manager, which closes it in the end."""

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
    """A behaviour that heeds no cancel: the job goes on until the event is set."""

    def behave(executor: FakeExecutor, job: Job) -> None:
        assert event.wait(DEADLINE)

    return behave


class FaultyStore(JobStore):
    """A store whose disk can be full.

    Attributes:
        broken: methods that cannot be used.
        after: methods that do their work, and then say that they could not.
    """

    broken: set[str]
    after: set[str]

    def __init__(self, path: Path) -> None:
        self.broken, self.after = set(), set()
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
            raise StorageFull("No space is left on the disk")
        result = action()
        if name in self.after:
            self.after.discard(name)
            raise StorageError("The job database cannot be used: disk I/O error")
        return result


def faulty(service: JobService) -> FaultyStore:
    assert isinstance(service.store, FaultyStore)
    return service.store


def submission(place: Reservation, text: str = "hello", **fields: Any) -> Submission:
    """A submission for a place, its upload there.

    Args:
        place: where it goes.
        text: what the transcript will be.
        fields: of the submission, or of its options.
    """
    place.directory.mkdir(mode=0o700, parents=True)
    (place.directory / "audio").write_text(text)
    names = set(TranscriptionOptions.__struct_fields__)
    options = TranscriptionOptions(**{name: fields.pop(name) for name in list(fields) if name in names})
    values = {"output_format": "txt", "audio_bytes": len(text), "audio_seconds": 10.0, **fields}
    return Submission(job_id=place.job_id, owner=place.owner, options=options, **values)


def submit(service: JobService, text: str = "hello", *, owner: str = "", **fields: Any) -> str:
    """Submit a job; its id. The arguments are those of :func:`submission`."""
    with service.reserve(owner) as place:
        return service.submit(submission(place, text, **fields), place).job_id


def ended(service: JobService, job_id: str) -> JobStatus:
    """Wait until a job has ended; where it stands then."""
    status = service.wait(job_id, None, DEADLINE)
    assert status.status in ("Completed", "Failed", "Canceled")
    return status


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
    """Do what a job's prompt says: bring the process down in one of several ways."""
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


def serve(directory: str, slots: str, attempts: str) -> None:
    """Work on what is in a directory until all is done. The main function of processes that are brought down."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    service = new_service(
        Path(directory),
        FakeExecutor(behave=by_prompt),
        enable_concurrency=int(slots) > 1,
        max_concurrent_jobs=int(slots),
        max_job_attempts=int(attempts),
    )
    service.start()
    for _ in itertools.count():
        if service.counts() == (0, 0) and not service.store.in_state("Queued", "Processing"):
            break
        time.sleep(0.01)
    service.close()


if __name__ == "__main__":
    serve(*sys.argv[1:])
