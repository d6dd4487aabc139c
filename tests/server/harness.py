"""The server as its users run it: a process of its own, with its own directory, spoken to over a real socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
from forked import Forked
from free_ports import free_port

from whisper_api.access.keys import KeyRing
from whisper_api.cli.main import main
from whisper_api.config import settings
from whisper_api.store.jobs import DATABASE_NAME, JobStore

__all__ = ["RunningServer", "finish", "free_port", "job_of", "post", "problem", "submit", "transcribed", "until"]

ROOT = Path(__file__).parents[2]
# Options of tests that need only the text.
PLAIN_FIELDS = {"language": "en", "align": "false", "diarize": "false"}
TERMINAL = ("Completed", "Failed", "Canceled")
# A limit for busy machines. No test waits for the whole time.
PATIENCE_SECONDS = 180.0
# How long a server may take to stop when coverage is measured.
COVERAGE_SECONDS = 30.0


class RunningServer:
    """``whisper-api serve`` on a port of its own. Downloads nothing; knows no settings but those given.

    Args:
        directory: made if it is not there; holds the configuration, the log and what the server keeps.
        models_dir: where the models are.
        changes: configuration keys and values, over those of :meth:`defaults`; None leaves a key out.
        arguments: more of the command line, after ``serve --config FILE``.
        environment: more environment variables.
        authority: trusts the certificate of a server that speaks TLS.
    """

    def __init__(
        self,
        directory: Path,
        models_dir: Path,
        changes: Mapping[str, object] | None = None,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        authority: ssl.SSLContext | None = None,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.settings: dict[str, object] = {**self.defaults(models_dir), **(changes or {})}
        self.authority = authority
        self._arguments = tuple(arguments)
        self._environment = dict(environment or {})
        self._process: Forked | subprocess.Popen[bytes] | None = None
        self._keys: dict[str, str] = {}

    def defaults(self, models_dir: Path) -> dict[str, object]:
        """The settings that a server needs to run in a test."""
        return {
            "WHISPER_API_PORT": self.port,
            "WHISPER_MODELS_DIR": models_dir,
            "WHISPER_MODEL": "base",
            "WHISPER_DEVICE": "cpu",
            # Jobs with a missing model fail; some tests need such jobs.
            "WHISPER_MODEL_DOWNLOADS": "anyone",
        }

    # --- what it is ---

    @property
    def url(self) -> str:
        """The URL of the server, without a slash at the end."""
        return f"{'https' if self.authority else 'http'}://127.0.0.1:{self.port}"

    @property
    def config_file(self) -> Path:
        return self.directory / "whisper_api.conf"

    @property
    def data_dir(self) -> Path:
        return self.directory / str(self.settings.get("WHISPER_DATA_DIR", "var"))

    @property
    def uploads_dir(self) -> Path:
        return self.directory / str(self.settings.get("WHISPER_TMP_FILES", "var/tmp"))

    @property
    def log_file(self) -> Path:
        return self.directory / "server.log"

    @property
    def log(self) -> str:
        """Everything that the server has printed and logged since its first start."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # --- keys ---

    @property
    def admin_key(self) -> str:
        """The token of an administrator."""
        return self.key("tests-admin", "admin")

    @property
    def user_key(self) -> str:
        """The token of a user, who sees only its own jobs."""
        return self.key("tests-user")

    def key(self, name: str, role: Literal["user", "admin"] = "user") -> str:
        """The token of a key by its name; the first call makes the key as ``whisper-api keys create`` does."""
        if name not in self._keys:
            with contextlib.closing(JobStore(self.data_dir / DATABASE_NAME)) as store:
                self._keys[name] = KeyRing(store).create(name, role)[1]
        return self._keys[name]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of the program with this server's configuration."""
        self._write_config()
        given = [*arguments, "--config", str(self.config_file)]
        with tempfile.TemporaryDirectory() as directory:
            out, err = Path(directory, "out"), Path(directory, "err")
            code = Forked(main, ["whisper-api", *given], self.directory, self._env(), out, err).wait(PATIENCE_SECONDS)
            return subprocess.CompletedProcess(given, code, out.read_text("utf-8"), err.read_text("utf-8"))

    # --- its life ---

    def __enter__(self) -> RunningServer:
        self.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def start(self, *, wait: bool = True) -> None:
        """Start the server; with ``wait``, return when it is ready."""
        assert not self.running, "the server runs already"
        self._write_config()
        arguments = ["serve", "--config", str(self.config_file), *self._arguments]
        self._process = self.launch(arguments, self._env())
        if wait:
            self.wait_ready()

    def launch(self, arguments: list[str], environment: dict[str, str]) -> Forked | subprocess.Popen[bytes]:
        """Start the process; the log gets its output."""
        return Forked(main, ["whisper-api", *arguments], self.directory, environment, self.log_file, self.log_file)

    def configure(self, changes: Mapping[str, object]) -> None:
        """Change the settings and the configuration file, of which a running server knows nothing yet."""
        self.settings.update(changes)
        self._write_config()

    def wait_ready(self, *, settled: bool = False) -> None:
        """Wait until ``/readyz`` says that it serves.

        Args:
            settled: wait until nothing is being loaded any more, too.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self.client(key="") as client:
            while True:
                assert self.running, f"the server has ended with {self._exit_code()}:\n{self.log}"
                with contextlib.suppress(httpx.TransportError):
                    response = client.get("/readyz")
                    if response.status_code == 200 and not (settled and response.json().get("loading")):
                        return
                assert time.monotonic() < deadline, f"the server does not get ready:\n{self.log}"
                time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server, and do not wait."""
        os.kill(self.pid, number)

    def wait_stopped(self) -> int:
        """Wait until it has ended.

        Returns:
            Its exit code; minus the signal's number when a signal ended it.
        """
        assert self._process is not None, "the server was not started"
        return self._process.wait(PATIENCE_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the server and wait for its end. Returns the exit code."""
        if self.running:
            self.send(number)
        return self.wait_stopped()

    def kill(self) -> None:
        """Kill the server."""
        if self.running:
            self.send(signal.SIGKILL)
        self.wait_stopped()

    def restart(self, changes: Mapping[str, object] | None = None, *, wait: bool = True) -> None:
        """Stop the server if it runs, and start it with changed settings on the same port and directories."""
        if self.running:
            self.stop()
        self.settings.update(changes or {})
        self.start(wait=wait)

    def close(self) -> None:
        """End the server in any state."""
        if self._process is not None:
            if self.running and "COVERAGE_RUN" in os.environ:
                # A killed process cannot write which lines it has run.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.send(signal.SIGTERM)
                    self._process.wait(COVERAGE_SECONDS)
            self.kill()

    # --- speaking to it ---

    def client(self, key: str | None = None, **arguments: Any) -> httpx.Client:
        """A client; ``key`` None for the user's key, empty for none. Further arguments are those of httpx.Client."""
        if key is None:
            key = self.user_key if self.settings.get("ENABLE_AUTHORIZATION", True) else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        options: dict[str, Any] = {
            "base_url": self.url,
            "timeout": PATIENCE_SECONDS,
            "trust_env": False,
            # Loading the certificates of this machine takes longer than most requests.
            "verify": self.authority or False,
            **arguments,
        }
        return httpx.Client(**{**options, "headers": {**headers, **arguments.get("headers", {})}})

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """A plain socket, for bytes that no client library would send."""
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE_SECONDS)
        try:
            connection.connect(("127.0.0.1", self.port))
        except OSError:
            connection.close()
            raise
        return connection

    # --- inside ---

    def _write_config(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = [f"{key} = {_toml(value)}\n" for key, value in self.settings.items() if value is not None]
        self.config_file.write_text("".join(lines), encoding="utf-8")

    def _env(self) -> dict[str, str]:
        ours = {setting.key for setting in settings()} | {"RUST_LOG", "WHISPER_API_CONFIG", "WHISPER_API_KEY"}
        env = {name: value for name, value in os.environ.items() if name not in ours}
        path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
        # Nothing listens there, so no test depends on a download.
        nowhere = "http://127.0.0.1:9"
        return {
            **env,
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
            "http_proxy": nowhere,
            "https_proxy": nowhere,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "",
            **self._environment,
        }

    def _exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()


def post(
    client: httpx.Client,
    audio: bytes,
    *,
    path: str = "/transcribe",
    file_name: str = "clip.wav",
    headers: Any = None,
    **fields: Any,
) -> httpx.Response:
    """Upload audio with these form fields, over :data:`PLAIN_FIELDS`; None leaves a field out."""
    given = {name: value for name, value in {**PLAIN_FIELDS, **fields}.items() if value is not None}
    return client.post(path, data=given, files={"file": (file_name, audio)}, headers=headers)


def job_of(response: httpx.Response) -> str:
    """Upload audio and return the id of its job."""
    assert response.status_code == 202, response.text
    return str(response.json()["job_id"])


def submit(client: httpx.Client, audio: bytes, **arguments: Any) -> str:
    """Upload audio, as :func:`post` does; the upload must be accepted. Returns the id of the job."""
    return job_of(post(client, audio, **arguments))


def finish(client: httpx.Client, job_id: str, *states: str) -> dict[str, Any]:
    """Wait until a job is in one of these states, by default an end state. Returns its status."""
    wanted = states or TERMINAL
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        # The server waits for any change of the job, so ask again until the state is the right one.
        response = client.get(f"/transcription/{job_id}", params={} if states else {"wait": 10})
        assert response.status_code == 200, response.text
        status: dict[str, Any] = response.json()
        if status["status"] in wanted:
            return status
        assert status["status"] not in TERMINAL, f"{status} will not become {wanted}"
        assert time.monotonic() < deadline, f"{status} does not become {wanted}"
        time.sleep(0.05 if states else 0.0)


def transcribed(client: httpx.Client, audio: bytes, **arguments: Any) -> dict[str, Any]:
    """Upload audio, as :func:`post` does, in a request that waits for the result."""
    response = post(client, audio, sync="true", **arguments)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def problem(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The body of a response, which must be a valid problem (RFC 9457) of this status."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json", response.headers
    body: dict[str, Any] = response.json()
    jobs = body.pop("jobs", None)
    assert (jobs is not None) == (body["code"] == "no_file_accepted")
    assert set(body) == {"type", "title", "status", "detail", "error", "code", "request_id"}
    assert body["status"] == status
    assert body["detail"] == body["error"]
    assert all(isinstance(value, str) and value for key, value in body.items() if key != "status"), body
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert "Traceback" not in response.text
    assert code is None or body["code"] == code, body
    return body


def until(happens: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happens():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    return json.dumps(str(value))
