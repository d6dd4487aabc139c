"""Closing an engine, and cancelling a job, end the waits for a silent server and for what another process holds.

Each wait would last for ever: what holds the job up does so until the test has seen that the job has ended. Downloads
that drip, pip and the commands are in ``test_download_watch.py``.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import DEADLINE, until
from hub_server import REPO

from whisper_api import Canceled, Engine, EngineClosed, TranscriptionOptions
from whisper_api.engine.models import hub
from whisper_api.engine.models.store import ModelStore

HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a file's lock while the context is open."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
            assert process.poll() is None, "the lock was held to the end"
        finally:
            process.kill()


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[str, Callable[[], int]]]:
    """A server that takes connections and says nothing: its address, and how many there were."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", lambda: len(taken)
        for each in taken:
            each.close()


class Cancel:
    """A ``check`` function that raises once it is told to."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        self._asked.set()

    def __call__(self) -> None:
        if self._asked.is_set():
            raise Canceled("canceled by the test")


def ends_when_asked(work: Callable[[Cancel], object], begun: Callable[[], object]) -> None:
    """Run something in a thread, cancel it once it has begun, and see it end although nothing lets go of it."""
    cancel = Cancel()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(work, cancel)
        until(lambda: begun() or job.done(), "the job waits")
        assert not job.done(), job.exception()
        cancel.ask()
        with pytest.raises(Canceled):
            job.result(DEADLINE)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Neither the hub nor the index can be reached, and the caches are empty."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def loading() -> bool:
    return any(thread.name == "load-model" for thread in threading.enumerate())


def fetching() -> bool:
    return any(thread.name.startswith("fetch ") for thread in threading.enumerate())


def test_a_server_that_says_nothing_can_be_left(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setattr(hub, "ANSWER_SECONDS", 2 * DEADLINE)
    with silent_server() as (url, taken):
        environment.setenv("HF_ENDPOINT", url)
        store = ModelStore(tmp_path / "models")
        ends_when_asked(lambda check: store.ensure(REPO, check=check), taken)


@contextlib.contextmanager
def engine_on(models_dir: Path, root: Path) -> Iterator[Engine]:
    """An engine whose Whisper model lies in a directory of its own, without the graphs that are made from it."""
    model = root / "whisper" / "base"
    model.mkdir(parents=True)
    for file in (models_dir / "whisper" / "base").iterdir():
        if file.is_file() and not file.name.startswith("."):
            (model / file.name).symlink_to(file)
    with Engine(device="cpu", model="base", models_dir=root, offline=True) as engine:
        yield engine


@pytest.fixture
def graphs_lock(tmp_path: Path) -> Path:
    """The lock under which a model's graphs are made."""
    return tmp_path / "models" / "whisper" / "base" / ".onnx-int8.lock"


@pytest.mark.cpu("a GPU needs no graphs")
@pytest.mark.models
def test_a_job_that_waits_for_graphs_that_another_process_makes_can_be_canceled(
    models_dir: Path, base_model_dir: Path, sample_call: Path, graphs_lock: Path, tmp_path: Path
) -> None:
    cancel = threading.Event()
    with engine_on(models_dir, tmp_path / "models") as engine, held(graphs_lock), ThreadPoolExecutor(1) as pool:
        job = pool.submit(engine.transcribe, sample_call, TranscriptionOptions(language="en"), cancel=cancel)
        until(lambda: loading() or job.done(), "the model is loaded")
        cancel.set()
        with pytest.raises(Canceled):
            job.result(DEADLINE)
        # Closing ends the load itself.
        engine.close()
        until(lambda: not loading(), "the load has ended")


@pytest.mark.cpu("a GPU needs no graphs")
@pytest.mark.models
def test_closing_an_engine_ends_jobs_and_preloads_that_wait(
    models_dir: Path, base_model_dir: Path, sample_call: Path, graphs_lock: Path, tmp_path: Path
) -> None:
    with engine_on(models_dir, tmp_path / "models") as engine, held(graphs_lock), ThreadPoolExecutor(2) as pool:
        waiting: list[Future[Any]] = [
            pool.submit(engine.transcribe, sample_call, TranscriptionOptions(language="en")),
            pool.submit(engine.preload),
        ]
        until(loading, "the model is loaded")
        engine.close()
        for each in waiting:
            with pytest.raises(EngineClosed):
                each.result(DEADLINE)


@pytest.mark.cpu("a GPU needs no graphs")
@pytest.mark.parametrize("what", ["transcribe", "preload", "rest"])
def test_closing_an_engine_ends_a_wait_for_the_lock_of_a_download(
    what: str, environment: pytest.MonkeyPatch, sample_call: Path, tmp_path: Path
) -> None:
    lock = "diarization--campplus.lock" if what == "rest" else "whisper--base.lock"
    with (
        held(tmp_path / "models" / ".locks" / lock),
        Engine(device="cpu", model="base", models_dir=tmp_path / "models", offline=True) as engine,
        ThreadPoolExecutor(1) as pool,
    ):
        work: dict[str, Callable[[], object]] = {
            "transcribe": lambda: engine.transcribe(sample_call),
            "preload": engine.preload,
            "rest": engine.preload_rest,
        }
        waiting = pool.submit(work[what])
        until(lambda: fetching() or waiting.done(), "the lock is waited for")
        engine.close()
        with pytest.raises(EngineClosed):
            waiting.result(DEADLINE)
