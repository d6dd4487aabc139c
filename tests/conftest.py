"""Real models and real speech for the tests: what an install brings along, and what the package index has."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib.util
import io
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
import wave
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from scheduling import SHARED, unit_of

if TYPE_CHECKING:
    from whisper_api import Engine
    from whisper_api.engine.context import JobContext

# No example fails for being slow; what is run for others tries the same examples every time.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")

REPOSITORY = Path(__file__).parent.parent
# Tests use parts of the scripts.
sys.path.insert(0, str(REPOSITORY / "scripts"))


# Temporary files of a run are in memory, in a folder of its own with this name in front, where so many bytes are free.
# The name is short, since the sockets of Ray lie deep in the folder, and their paths have at most 107 characters.
IN_MEMORY = Path("/dev/shm")
ROOM_IN_MEMORY = 12 << 30
RUN = "wapi-tests-"
# The folders and files that take longest, longest first: the other processes work through the short ones meanwhile.
LONG = (
    *SHARED,
    "tests/test_scripts.py",
    "tests/test_gpu_acceptance.py",
    "tests/engine/test_optional_stages.py",
    "tests/server/test_doc_examples.py",
    "tests/server/test_schemathesis.py",
    "tests/engine/test_pretended_gpu.py",
    "tests/engine/test_fork.py",
    "tests/server/test_crash.py",
    "tests/server/test_slow_uploads.py",
    "tests/server/test_webhook_crash.py",
    "tests/server/test_contract_fields.py",
    "tests/server/test_openai_formats.py",
    "tests/server/test_connections.py",
    "tests/server/test_openai_strict.py",
    "tests/server/test_event_streams.py",
    "tests/engine/audio/test_process.py",
    "tests/engine/audio/test_decode.py",
    "tests/engine/test_pipeline.py",
    "tests/test_try_clients.py",
    "tests/client/test_api.py",
    "tests/engine/align/test_ahead.py",
    "tests/engine/align/test_align.py",
)


def pytest_configure() -> None:
    """Set the environment for this process and those that the tests start.

    Temporary files are kept in memory where there is room: hundreds of tests wait for a database's disk otherwise. And
    a thread of OpenMP that waits for the others of its team sleeps: when the test processes have more threads than the
    machine has cores, threads that spin take the time that the others need. And an interrupt that the shell ignores for
    its background jobs is heeded again: programs that the tests start inherit it, and must end at Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "TMPDIR" not in os.environ and IN_MEMORY.is_dir():
        remove_ended_runs(IN_MEMORY)
        if free_memory(IN_MEMORY) >= ROOM_IN_MEMORY:
            os.environ["TMPDIR"] = tempfile.tempdir = folder_of_run(IN_MEMORY)


def free_memory(folder: Path) -> int:
    """How many bytes may be written to a file system in memory: its own limit may be all memory that there is."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(shutil.disk_usage(folder).free, available)


def folder_of_run(parent: Path) -> str:
    """Make the folder of this run, which this process locks until it ends, however it ends."""
    folder = tempfile.mkdtemp(prefix=RUN, dir=parent)
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
    return folder


def remove_ended_runs(parent: Path) -> None:
    """Remove what runs left in memory that have ended: those that were killed, and those whose failures were kept."""
    for folder in parent.glob(f"{RUN}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the folder of this run unless a test failed: what the test wrote stays to be read until the next run."""
    folder = Path(tempfile.gettempdir())
    if not hasattr(session.config, "workerinput") and folder.name.startswith(RUN) and exitstatus == 0:
        # Only after multiprocessing has removed its own folder there, which has a priority of -100.
        Finalize(None, shutil.rmtree, (folder, True), exitpriority=-200)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pretend-gpu", action="store_true", help="run every engine of the test process on a pretended GPU"
    )


@pytest.fixture(scope="session", autouse=True)
def _pretended_gpu(pytestconfig: pytest.Config) -> Iterator[None]:
    """With ``--pretend-gpu``, every engine of this process runs on a pretended GPU, whichever device it is given."""
    if not pytestconfig.getoption("pretend_gpu"):
        yield
        return
    from pretended_gpu import pretend_gpus

    with pytest.MonkeyPatch.context() as patch:
        pretend_gpus(patch)
        yield


@pytest.fixture(scope="session")
def decode_operation(pytestconfig: pytest.Config) -> type[Any]:
    """The operation that decodes windows: of CTranslate2 on a pretended GPU, else of ONNX Runtime."""
    from whisper_api.engine.whisper.ctranslate2 import Ct2Decode
    from whisper_api.engine.whisper.onnx.model import OnnxDecode

    return Ct2Decode if pytestconfig.getoption("pretend_gpu") else OnnxDecode


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("pretend_gpu"):
        for item in items:
            marker = item.get_closest_marker("cpu")
            if marker is not None:
                item.add_marker(pytest.mark.skip(reason=f"only on a CPU: {marker.args[0]}"))
    if gone := [name for name in LONG if not (REPOSITORY / name).exists()]:
        raise pytest.UsageError(f"LONG of tests/conftest.py names what does not exist: {', '.join(gone)}")
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(unit_of(item.nodeid), len(ranks)))


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking at modules and tests, again and again: they stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Return the memory of a file's models to the system when the file has ended: other processes need it."""
    if nextitem is None or nextitem.path != item.path:
        from whisper_api.freed_memory import return_freed_memory

        return_freed_memory()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile``, a process gets one unit after the other."""
    if config.getvalue("dist") != "loadfile":
        return None
    from scheduling import Units

    return Units(config, log)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo the logging set-up of a command, so that later tests do not see it."""
    loggers = [logging.getLogger(name) for name in ("", "whisper_api")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    hook = threading.excepthook
    with warnings.catch_warnings():
        yield
    threading.excepthook = hook
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The models directory that the tests share with the user, so that nothing is fetched twice."""
    return Path(os.environ.get("WHISPER_MODELS_DIR") or REPOSITORY / "models_cache")


def _model(models_dir: Path, name: str) -> Path:
    from whisper_api.engine.models.store import ModelStore

    return ModelStore(models_dir).ensure(name).path


@pytest.fixture(scope="session")
def base_model_dir(models_dir: Path) -> Path:
    """Whisper base, multilingual."""
    return _model(models_dir, "base")


@pytest.fixture(scope="session")
def tiny_en_model_dir(models_dir: Path) -> Path:
    """Whisper tiny.en."""
    return _model(models_dir, "tiny.en")


@pytest.fixture(scope="session")
def ecapa_path(models_dir: Path) -> Path:
    """The checkpoint of ECAPA-TDNN. The models that diarization prefers to it are there, too."""
    for name in ("segmentation-3.0", "campplus"):
        _model(models_dir, name)
    return _model(models_dir, "ecapa")


@pytest.fixture(scope="module")
def random_alignment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory ``align`` of a models directory: a small model for English, with random weights.

    For one file of tests only, because torchaudio loads no model of the true shape meanwhile.
    """
    from small_alignment import save_bundle

    root = tmp_path_factory.mktemp("alignment")
    with pytest.MonkeyPatch.context() as patch:
        save_bundle(root / "align" / "en", "en", patch)
        yield root / "align"


@pytest.fixture(scope="session")
def campplus_path(models_dir: Path) -> Path:
    """The checkpoint of CAM++."""
    return _model(models_dir, "campplus")


@pytest.fixture(scope="session")
def sample_call() -> Path:
    """Thirty seconds of a telephone call between two people, with its .rttm and .stm beside it."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"


@pytest.fixture(scope="session")
def cut(sample_call: Path) -> Callable[[float, float], bytes]:
    """A piece of the sample call as a WAV file: from when on, and how many seconds."""

    def piece(begin: float, seconds: float) -> bytes:
        file = io.BytesIO()
        with wave.open(str(sample_call)) as call, wave.open(file, "wb") as out:
            out.setparams(call.getparams())
            call.setpos(int(begin * call.getframerate()))
            out.writeframes(call.readframes(int(seconds * call.getframerate())))
        return file.getvalue()

    return piece


@pytest.fixture(scope="session")
def short_call(cut: Callable[[float, float], bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of the sample call in which both people speak, of New Jersey and of Chicago."""
    path = tmp_path_factory.mktemp("call") / "short.wav"
    path.write_bytes(cut(12.0, 8.0))
    return path


@pytest.fixture(scope="session")
def engine(models_dir: Path, base_model_dir: Path) -> Iterator[Engine]:
    """An engine on the CPU for all tests that need no special settings."""
    from whisper_api import Engine

    with Engine(device="cpu", model="base", models_dir=models_dir) as engine:
        yield engine


@pytest.fixture
def ctx(engine: Engine) -> Iterator[JobContext]:
    """A job of that engine with the default options and a worker of its own."""
    from whisper_api import TranscriptionOptions
    from whisper_api.engine.context import JobContext
    from whisper_api.engine.worker.worker import GpuWorker

    with contextlib.closing(GpuWorker()) as worker:
        yield JobContext(
            options=engine.resolve(TranscriptionOptions()),
            device=engine.device,
            worker=worker,
            models=engine.models,
            store=engine.store,
        )
