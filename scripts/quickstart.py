"""Starts the server, sends a recording over REST, prints the transcript and a command to try next."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

from whisper_api import Client, Config, JobStatus, RequestError, TranscriptionOptions
from whisper_api.access.keys import KeyRing
from whisper_api.cli.progress import ProgressLine
from whisper_api.store.jobs import JobStore

ROOT = Path(__file__).parents[1]
START_SECONDS = 120.0
STOP_SECONDS = 60.0
KEY_NAME = "quickstart"


def main() -> int:
    """Run the quickstart."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a recording; the default is a real telephone call")
    parser.add_argument("--once", action="store_true", help="exit after the transcript, even on a terminal")
    args = parser.parse_args()
    recording: Path = args.file or sample_call()
    if not recording.is_file():
        parser.error(f"there is no file {recording}")

    config = Config.load(ROOT / "whisper_api.conf").config
    port = free_port(config.host, config.port)
    key = make_key(config)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)
    server = subprocess.Popen(
        [sys.executable, "-m", "whisper_api", "serve", "--config", str(ROOT / "whisper_api.conf"), "--port", str(port)],
        env={"WHISPER_LOG_LEVEL": "warning", "WHISPER_MODEL": "base", **os.environ},
        # Ctrl-C then reaches this program only, which passes it on once: a second signal stops the server at once.
        start_new_session=True,
    )
    url = f"http://{config.host}:{port}"
    try:
        wait_until_ready(url, server)
        with Client(url, key) as client:
            show(client, recording)
        print_next_steps(url, key, recording)
        if not args.once and sys.stdout.isatty():
            print("\nThe server stays up; Ctrl-C stops it.", file=sys.stderr)
            return server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        stop(server)
    return 0


def sample_call() -> Path:
    """A telephone call between two people, which pyannote.audio ships."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"


def free_port(host: str, wanted: int) -> int:
    """The preferred port, or a free one when it is in use."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit(f"no port of {host} can be had")


def make_key(config: Config) -> str:
    """Make a key for this run, and revoke the key of the last run."""
    store = JobStore(config.data_dir / "jobs.db")
    try:
        keys = KeyRing(store)
        for key in keys.list():
            if key.name == KEY_NAME and key.revoked_at is None:
                keys.revoke(key.key_id)
        return keys.create(KEY_NAME, role="admin")[1]
    finally:
        store.close()


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the models are loaded."""
    until = time.monotonic() + START_SECONDS
    while not is_ready(url):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with exit code {server.returncode}")
        if time.monotonic() > until:
            raise SystemExit(f"the server was not ready after {START_SECONDS:.0f} s")
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    """The server responds and has loaded its models."""
    try:
        return bool(requests.get(f"{url}/readyz", timeout=5).ok)
    except requests.RequestException:
        return False


def show(client: Client, recording: Path) -> None:
    """Send the recording and print its transcript."""
    print(f"{recording.name}, sent to the server:\n", file=sys.stderr)
    with ProgressLine(sys.stderr) as line:

        def draw(status: JobStatus) -> None:
            line.update(recording.name, status.progress or 0.0, status.stage or status.status)

        try:
            job_id = client.submit(
                recording, TranscriptionOptions(language="auto", diarize=True), output_format="vtt", keep_result=True
            )
            client.wait(job_id, on_progress=draw)
            text = client.result(job_id).text
        except RequestError as error:
            raise SystemExit(str(error)) from None
    print(f"{text.rstrip()}\n", flush=True)


def print_next_steps(url: str, key: str, recording: Path) -> None:
    """Print the address, the key and a command to try."""
    print(f"URL  {url}\nKey  {key}\nTry  curl -H 'Authorization: Bearer {key}' -F file=@'{recording}' \\")
    print(f"          -F language=auto -F output_format=srt -F sync=true {url}/transcribe")


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server; kill it when it does not stop in time, or at a second Ctrl-C."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            server.kill()
            server.wait()


def interrupt(number: int, frame: object) -> None:
    """Handle other signals that end this program like Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
