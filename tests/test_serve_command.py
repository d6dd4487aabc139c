"""``whisper-api serve`` as a process: its output, errors and exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from server.harness import RunningServer, finish, submit

TOKEN = re.compile(r"wk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}")
PATIENCE_SECONDS = 120.0

MakeServer = Callable[..., RunningServer]
MODULE = ("-m", "whisper_api")


class Interpreter(RunningServer):
    """A server in a new interpreter, as users start it."""

    program: Sequence[str] = MODULE

    def launch(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *self.program, *arguments],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@pytest.fixture
def make_server(tmp_path: Path, models_dir: Path) -> Iterator[MakeServer]:
    """Makes servers in one directory that load models only when needed. They are not started."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: str, kind: type[RunningServer] = RunningServer, **settings: object) -> RunningServer:
            directory = tmp_path / "server"
            server = kind(directory, models_dir, {"PRELOAD_MODELS": False, **settings}, arguments=arguments)
            stack.callback(server.close)
            return server

        yield make


def refused(server: RunningServer) -> tuple[int, str]:
    """Start a server that must fail to start. Returns its exit code and its output."""
    server.start(wait=False)
    code = server.wait_stopped()
    return code, server.log


def connects(server: RunningServer) -> None:
    """Wait until the port is open, which is long before the server can respond."""
    while True:
        assert server.running, server.log
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS):
            return


# --- what it prints ---


def test_the_first_start_prints_the_address_and_a_key(make_server: MakeServer) -> None:
    server = make_server(kind=Interpreter)
    with server:
        assert f"Listening on http://127.0.0.1:{server.port}\n" in server.log
        (token,) = TOKEN.findall(server.log)
        with server.client(token) as client:
            jobs = client.get("/transcriptions")
            assert jobs.json() == {"jobs": [], "next": None}
        assert server.stop() == 0
        server.start()
        assert TOKEN.findall(server.log) == [token]
        with server.client(token) as client:
            assert client.get("/status").status_code == 200


def test_with_a_key_of_ones_own_none_is_made(make_server: MakeServer) -> None:
    server = make_server()
    token = server.user_key
    with server:
        assert not TOKEN.findall(server.log)
        with server.client(token) as client:
            assert client.get("/status").status_code == 200


def test_only_the_user_of_the_server_can_open_its_database(make_server: MakeServer) -> None:
    with make_server() as server:
        assert stat.S_IMODE((server.data_dir / "jobs.db").stat().st_mode) == 0o600


def test_each_line_of_its_log_is_json_when_asked_for(make_server: MakeServer) -> None:
    server = make_server("--log-format", "json")
    token = server.user_key
    with server:
        with server.client(token) as client:
            client.get("/status", headers={"X-Request-ID": "mine"})
        assert server.stop() == 0
        printed, *lines = server.log.splitlines()
        assert printed.startswith("Listening on ")
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, records))
        (request,) = [record for record in records if record.get("request_id") == "mine"]
        assert (request["method"], request["path"], request["status"]) == ("GET", "/status", 200)
        assert [record["message"] for record in records][-1] == "stopped"


def test_its_settings_can_be_given_as_flags(make_server: MakeServer, tmp_path: Path) -> None:
    with make_server("--data-dir", str(tmp_path / "elsewhere"), "--output-format", "vtt") as server:
        assert (tmp_path / "elsewhere" / "jobs.db").exists()
        (token,) = TOKEN.findall(server.log)
        with server.client(token) as client:
            assert client.get("/status").json()["processing"]["default_output_format"] == "vtt"


def test_check_shows_what_is_in_force_and_starts_nothing(make_server: MakeServer) -> None:
    server = make_server(WHISPER_API_PROT=1, HF_TOKEN="hf_private")
    done = server.command("serve", "--check", "--model", "tiny.en")
    assert done.returncode == 0
    assert re.search(r'^WHISPER_MODEL = "tiny.en" +# command line$', done.stdout, re.MULTILINE)
    assert re.search(rf"^WHISPER_API_PORT = {server.port} +# .*whisper_api.conf:\d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^MAX_QUEUED_JOBS = 1000 +# default$", done.stdout, re.MULTILINE)
    assert "hf_private" not in done.stdout + done.stderr
    assert "did you mean WHISPER_API_PORT?" in done.stderr
    assert not server.data_dir.exists()


# --- what it refuses ---


def test_a_port_that_is_taken(make_server: MakeServer) -> None:
    server = make_server()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        code, said = refused(server)
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{server.port}: another program listens there" in said
    assert "Traceback" not in said
    assert not server.data_dir.exists()


def test_a_public_host_without_authorization_needs_insecure(make_server: MakeServer) -> None:
    settings = {"ENABLE_AUTHORIZATION": False, "WHISPER_API_HOST": "0.0.0.0"}
    code, said = refused(make_server(**settings))
    assert code == 2
    assert "--insecure" in said
    with make_server("--insecure", **settings) as server, server.client(key="") as client:
        assert client.get("/status").json()["security"] == {"authorization_enabled": False, "role": None}


def test_half_of_tls(make_server: MakeServer) -> None:
    code, said = refused(make_server(WHISPER_TLS_CERT_FILE="cert.pem"))
    assert code == 2
    assert "WHISPER_TLS_KEY_FILE" in said


def test_a_second_server_on_the_same_data(make_server: MakeServer) -> None:
    with make_server() as first:
        code, said = refused(make_server())
        assert code == 1
        assert "Traceback" not in said
        assert "server" in said.splitlines()[-1]
        with first.client(key="") as client:
            assert client.get("/livez").status_code == 200


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_directory_that_cannot_be_made(make_server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, said = refused(make_server(WHISPER_DATA_DIR=str(tmp_path / "file" / "data")))
    assert code == 1
    assert "Traceback" not in said
    assert str(tmp_path / "file") in said


# --- how it ends ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(make_server: MakeServer, number: signal.Signals) -> None:
    with make_server(kind=Interpreter) as server:
        assert server.stop(number) == 0
        assert "Traceback" not in server.log
        assert server.log.splitlines()[-1].endswith(" stopped")


def test_a_signal_while_it_starts(make_server: MakeServer) -> None:
    server = make_server(kind=Interpreter)
    server.start(wait=False)
    connects(server)
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_second_signal_ends_it_at_once_and_the_job_is_not_lost(
    make_server: MakeServer, tiny_en_model_dir: Path, sample_call: Path
) -> None:
    number = signal.SIGTERM
    long = io.BytesIO()
    with wave.open(str(sample_call)) as call, wave.open(long, "wb") as out:
        out.setparams(call.getparams())
        out.writeframes(call.readframes(call.getnframes()) * 20)
    server = make_server(kind=Interpreter, WHISPER_SHUTDOWN_GRACE_SECONDS=3600, WHISPER_MODEL="tiny.en")
    with server:
        with server.client() as client:
            job_id = submit(client, long.getvalue())
            finish(client, job_id, "Processing")
            server.send(number)
            while client.get("/readyz").status_code != 503:
                pass
            assert server.running
        server.send(number)
        assert server.wait_stopped() == 128 + number
        server.start()
        with server.client() as client:
            assert client.get(f"/transcription/{job_id}").json()["status"] in ("Queued", "Processing")


def test_an_invalid_flag_is_reported_before_anything_is_loaded(tmp_path: Path) -> None:
    """The error of a flag needs no configuration, no models and no network."""
    done = subprocess.run(
        [sys.executable, "-m", "whisper_api", "serve", "--port", "many"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 2
    assert "--port" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_come_to_an_end_does_not_crash_the_process(tmp_path: Path, models_dir: Path) -> None:
    """The interpreter crashes at its end while native code still runs, so the process must exit before."""
    script = """
import atexit, os, sys, threading
from whisper_api.cli.main import main
from whisper_api.jobs import lifecycle
from whisper_api.jobs.local_executor import LocalExecutor

atexit.register(os._exit, 77)
lifecycle.STOP_SECONDS = 0.1
LocalExecutor.close = lambda self: threading.Event().wait()
sys.exit(main())
"""

    class Hanging(Interpreter):
        program = ("-c", script)

    with Hanging(tmp_path / "server", models_dir, {"PRELOAD_MODELS": False}) as server:
        assert server.stop() == 0
        assert "the device is still at work" in server.log
        assert server.log.rstrip().endswith("stopped")


def test_a_gpu_that_fails_ends_the_process_with_a_code_of_its_own_and_its_job_runs_in_the_next(
    tmp_path: Path, models_dir: Path, tiny_en_model_dir: Path, cut: Callable[[float, float], bytes]
) -> None:
    script = """
import atexit, os, sys
from whisper_api.cli.main import main
from whisper_api.engine.whisper.onnx.model import OnnxDecode

def fail(operation, inputs):
    raise RuntimeError("CUDA failed with error an illegal memory access was encountered")

atexit.register(os._exit, 77)
OnnxDecode.run = fail
sys.exit(main())
"""

    class Failing(Interpreter):
        program = ("-c", script)

    settings = {"PRELOAD_MODELS": False, "WHISPER_MODEL": "tiny.en"}
    server = Failing(tmp_path / "server", models_dir, settings)
    with server:
        with server.client() as client:
            job_id = submit(client, cut(12.0, 3.0), align=False, diarize=False)
        assert server.wait_stopped() == 75
        assert "the device is lost" in server.log
        assert "an illegal memory access was encountered" in server.log
        assert "job requeued" in server.log
        Failing.program = MODULE
        server.start()
        with server.client() as client:
            finish(client, job_id, "Completed")
