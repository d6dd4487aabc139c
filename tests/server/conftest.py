"""Two servers that most tests share, and audio to send to them."""

from __future__ import annotations

import contextlib
import io
import tempfile
import wave
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from server.harness import RunningServer, finish, submit, until
from whisper_api import Config

Start = Callable[..., RunningServer]
Busy = Callable[..., AbstractContextManager[str]]
MakeConfig = Callable[..., Config]


@pytest.fixture
def make_config(tmp_path: Path, models_dir: Path) -> MakeConfig:
    """A configuration with its own directory, on any free port, that loads no model."""

    def make(**changes: Any) -> Config:
        return Config(
            **{
                "port": 0,
                "data_dir": tmp_path / "data",
                "tmp_dir": tmp_path / "uploads",
                "models_dir": models_dir,
                "device": "cpu",
                "model": "base",
                "preload_models": False,
                **changes,
            }
        )

    return make


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    models_dir: Path,
    base_model_dir: Path,
    tiny_en_model_dir: Path,
    ecapa_path: Path,
) -> Iterator[RunningServer]:
    """The shared server, with shipped settings but for the model. A test must leave no waiting or running job."""
    with RunningServer(tmp_path_factory.mktemp("server"), models_dir) as server:
        yield server


@pytest.fixture(scope="session")
def strict(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, base_model_dir: Path) -> Iterator[RunningServer]:
    """A shared server with tight limits, two jobs at a time and no diarization model."""
    directory = tmp_path_factory.mktemp("strict")
    models = directory / "models"
    models.mkdir()
    (models / "whisper").symlink_to(models_dir / "whisper", target_is_directory=True)
    settings: dict[str, object] = {
        "WHISPER_MODELS_DIR": models,
        "PRELOAD_MODELS": False,
        "WHISPER_MODEL_DOWNLOADS": "administrators",
        "WHISPER_TMP_FILES": "uploads",
        "WHISPER_DATA_DIR": "data",
        "WHISPER_API_TIMEOUT": 3,
        "WHISPER_API_KEEPALIVE": 2,
        "HTTP_WORKER_NUMBER": 3,
        "WHISPER_LANGUAGE": "en",
        "WHISPER_OUTPUT_FORMAT": "srt",
        "MAX_FILE_SIZE": 4_000_000,
        "MAX_AUDIO_SECONDS": 12_000,
        "MAX_AUDIO_MEMORY": 0,
        "ENABLE_CONCURRENCY": True,
        "MAX_CONCURRENT_JOBS": 2,
        "MAX_QUEUED_JOBS": 3,
        "MAX_JOBS_PER_KEY": 3,
        "WHISPER_RESULT_GRACE_SECONDS": 0.5,
        "WHISPER_CLEANUP_INTERVAL_HOURS": 0.5 / 3600,
        "SYNC_REQUEST_TIMEOUT_SECONDS": 1,
        "WHISPER_LOG_FORMAT": "json",
    }
    with RunningServer(directory, models, settings) as server:
        yield server


@pytest.fixture
def start_server(tmp_path: Path, models_dir: Path, base_model_dir: Path) -> Iterator[Start]:
    """Starts servers with given settings, which end with the test. They load models at the first use."""
    with contextlib.ExitStack() as stack:

        def start(changes: Mapping[str, object] | None = None, *, wait: bool = True, **given: Any) -> RunningServer:
            server = RunningServer(tmp_path, models_dir, {"PRELOAD_MODELS": False, **(changes or {})}, **given)
            stack.callback(server.close)
            server.start(wait=wait)
            return server

        yield start


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    """A client of the shared server with the key of a user."""
    with server.client() as client:
        yield client


@pytest.fixture
def admin(server: RunningServer) -> Iterator[httpx.Client]:
    """A client of the shared server with the key of an administrator."""
    with server.client(server.admin_key) as client:
        yield client


@pytest.fixture
def stranger(server: RunningServer) -> Iterator[httpx.Client]:
    """A client of the shared server with the key of another user."""
    with server.client(server.key("tests-stranger")) as client:
        yield client


@pytest.fixture
def busy() -> Busy:
    """A context in which a job runs: yields the id of the job, and stops the job at the end."""

    @contextlib.contextmanager
    def run(client: httpx.Client, audio: bytes) -> Iterator[str]:
        job_id = submit(client, audio, file_name="long.mp3")
        try:
            finish(client, job_id, "Processing")
            yield job_id
        finally:
            stopped = client.delete(f"/transcription/{job_id}", params={"force": "true"})
            assert stopped.status_code == 200, stopped.text

    return run


@pytest.fixture
def unharmed(server: RunningServer) -> Iterator[None]:
    """Check after each file that the shared server is ready and has no unfinished jobs."""
    yield
    with server.client(server.admin_key) as client:
        assert client.get("/readyz").status_code == 200
        # The server cancels abandoned jobs after a while.
        until(lambda: not any(client.get("/status").json()["queue_state"].values()))
    assert "Traceback" not in server.log


@pytest.fixture
def no_speakers(server: RunningServer) -> None:
    """Delete the known speakers that tests of other files have left on the shared server."""
    with server.client(server.admin_key) as client:
        for speaker in client.get("/speakers").json()["speakers"]:
            assert client.delete(f"/speakers/{speaker['speaker_id']}").status_code == 200


# --- audio ---


@pytest.fixture(scope="session")
def hello(cut: Callable[[float, float], bytes]) -> bytes:
    """One second of speech: a greeting."""
    return cut(6.0, 1.0)


@pytest.fixture(scope="session")
def speech(cut: Callable[[float, float], bytes]) -> bytes:
    """Three seconds in which one person speaks."""
    return cut(20.0, 3.0)


@pytest.fixture(scope="session")
def conversation(cut: Callable[[float, float], bytes]) -> bytes:
    """Eight seconds in which two people speak in turn."""
    return cut(16.0, 8.0)


@pytest.fixture(scope="session")
def hello_mp3(cut: Callable[[float, float], bytes]) -> bytes:
    """Three seconds as an MP3 file."""
    return _mp3(cut(6.0, 3.0))


@pytest.fixture(scope="session")
def hours(cut: Callable[[float, float], bytes]) -> bytes:
    """Half an hour of speech, as an MP3 file of less than 4 MB: its job outlasts every test."""
    return _mp3(cut(0.0, 30.0)) * 60


def _mp3(wav: bytes) -> bytes:
    """An MP3 file of independent frames without a header, so that copies of it can be concatenated."""
    with wave.open(io.BytesIO(wav)) as source:
        rate = source.getframerate()
        samples = np.frombuffer(source.readframes(source.getnframes()), np.int16)[None]
    file = io.BytesIO()
    options = {"write_xing": "0", "id3v2_version": "0"}
    with av.open(file, "w", format="mp3", container_options=options) as container:
        stream = container.add_stream("libmp3lame", rate=rate, options={"reservoir": "0"})
        stream.layout = "mono"
        stream.bit_rate = 16_000
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


@pytest.fixture(scope="session")
def two_tracks(hello: bytes) -> bytes:
    """A file with silence on its first audio track and a greeting on the second."""
    with wave.open(io.BytesIO(hello)) as source:
        rate, samples = source.getframerate(), np.frombuffer(source.readframes(source.getnframes()), np.int16)[None]
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        streams = [output.add_stream("flac", rate=rate, layout="mono") for _ in range(2)]
        for stream, sound in zip(streams, (np.zeros_like(samples), samples), strict=True):
            frame = av.AudioFrame.from_ndarray(sound, "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture
def notify_socket() -> Iterator[str]:
    """The path of a socket for sd_notify(3). It has at most 107 characters, which a test's own folder may exceed."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/notify"
