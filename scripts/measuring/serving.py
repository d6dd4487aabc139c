"""Starts a server for a measurement, and sends it recordings."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from free_ports import free_port

from measuring.children import environment
from measuring.machine import usage_of
from measuring.sampling import Sample, Watch, sample

START_SECONDS = 120.0
# Without a network, a missing model fails at once instead of after timeouts.
NO_NETWORK = {"HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
NO_NETWORK |= {"NO_PROXY": "127.0.0.1,localhost"}


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        url: URL without a slash at the end.
        process: the process.
        started: the figures from the start of the process until the server was ready.
    """

    url: str
    process: subprocess.Popen[bytes]
    started: Sample

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self.process.pid

    @property
    def start_seconds(self) -> float:
        """Wall seconds from the start of the process until the server was ready."""
        return self.started.wall

    def send(self, path: Path, **fields: Any) -> Sample:
        """Send a recording, wait for the response, and measure the request.

        Args:
            path: path of the recording.
            fields: fields of the form: ``align=False``, ``beam_size=1`` ...

        Returns:
            The figures of the server's process; ``text`` is the transcript in the requested format.

        Raises:
            SystemExit: the server refused the request, or the job failed.
        """
        import requests

        form = {name: str(value).lower() if isinstance(value, bool) else value for name, value in fields.items()}
        with sample([self.pid]) as run, path.open("rb") as file:
            given = {"language": "en", "diarize": "false", "output_format": "txt", "sync": "true", **form}
            answer = requests.post(f"{self.url}/transcribe", data=given, files={"file": file}, timeout=3600)
            body = answer.text
        if not answer.ok:
            raise SystemExit(f"the server answered {answer.status_code}: {body[:500]}")
        run.text = json.loads(body)["text"]
        return run


@contextlib.contextmanager
def served(
    folder: Path,
    models: Path,
    *,
    program: Sequence[str] = ("-m", "whisper_api"),
    variables: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """Start ``whisper-api serve``, wait until its models are loaded, and stop it afterwards.

    Args:
        folder: an empty folder for the configuration, the database and the log.
        models: the models directory.
        program: Python's arguments in place of the server's own program.
        variables: environment variables in addition to those of this process.
        settings: settings of the configuration file: ``ENABLE_CONCURRENCY=True`` ...

    Raises:
        SystemExit: the server does not start; the message has its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = free_port()
    every = {
        "WHISPER_API_HOST": "127.0.0.1",
        "WHISPER_API_PORT": number,
        "WHISPER_MODELS_DIR": str(models),
        "WHISPER_DATA_DIR": str(folder / "data"),
        "WHISPER_TMP_FILES": str(folder / "uploads"),
        "WHISPER_MODEL": "base",
        "WHISPER_LANGUAGE": "en",
        "ENABLE_AUTHORIZATION": False,
        **settings,
    }
    config = folder / "whisper_api.conf"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in every.items()))
    watch, begun = Watch(), time.perf_counter()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *program, "serve", "--config", str(config)],
            stdout=log,
            stderr=log,
            # Variables win over the configuration file.
            env=environment(**{**NO_NETWORK, "WHISPER_MODELS_DIR": str(models), **(variables or {})}),
        )
    url = f"http://127.0.0.1:{number}"
    try:
        while not _is_ready(url):
            if process.poll() is not None or time.perf_counter() - begun > START_SECONDS:
                raise SystemExit(f"the server did not start:\n{(folder / 'server.log').read_text()}")
            time.sleep(0.02)
        started = Sample(wall=time.perf_counter() - begun)
        started.cpu, started.peak_mb = usage_of([process.pid])
        watch.note(started)
        yield Served(url, process, started)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    import requests

    try:
        return bool(requests.get(f"{url}/readyz", timeout=5).ok)
    except requests.RequestException:
        return False
