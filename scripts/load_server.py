#!/usr/bin/env python3
"""The server under load: many clients poll, some upload, and a large upload arrives while a job runs.

    scripts/load_server.py [--seconds 30] [--pollers 200] [--uploaders 20] [--megabytes 500] [--json FILE]
    WHISPER_API_KEY=... scripts/load_server.py --url http://127.0.0.1:8181

Without --url, the script starts a server with a temporary configuration, and measures its memory too. A child process
of lower priority generates the load. This process measures the latency on a separate connection. For comparison, it
also measures the latency of /livez, which does no work, and the delay of its own sleeps, which is the scheduler's share
on a machine with few cores. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from free_ports import free_port
from load_generator import KEY_VARIABLE, authorization, form, generator, speech, summary

ROOT = Path(__file__).parent.parent
TARGET_P99_MS = 50.0
TARGET_UPLOAD_MB = 20.0
TARGET_LEFT_MB = 50.0
QUEUE = 100
PROBE_SECONDS = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a server that runs; its key is read from the environment")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--pollers", type=int, default=200)
    parser.add_argument("--uploaders", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=500, help="of the large upload")
    parser.add_argument("--uploads", type=int, default=3, help="how often it is sent, for more samples")
    parser.add_argument("--job", type=float, default=1800, help="seconds of audio of the job that runs meanwhile")
    parser.add_argument("--rest", type=float, default=5, help="seconds between two phases, in which memory is freed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.url:
            url, pid = arguments.url.rstrip("/"), None
        else:
            url, pid = stack.enter_context(started(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        figures = measure(url, pid, arguments)
    missed = report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if missed else 0


def measure(url: str, pid: int | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all phases in sequence."""
    api = Api(url)
    figures: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0], "latency": {}, "codes": {}}
    warm = api.submit(speech(3.0))
    api.finish(warm)
    time.sleep(arguments.rest)
    memory = Memory(pid)

    with memory.phase("idle"), probing(figures, "idle", url, warm):
        time.sleep(arguments.rest)

    with memory.phase("large upload, no job"):
        # Not audio, so that its job takes no memory before the memory of the upload is measured.
        figures["codes"]["large upload, no job"] = generator(url, large=arguments.megabytes, audible=False)["codes"]

    with memory.phase("load"), probing(figures, "load", url, warm):
        load = generator(
            url, seconds=arguments.seconds, pollers=arguments.pollers, uploaders=arguments.uploaders, known=[warm]
        )
    figures["codes"]["load"] = load["codes"]
    figures["seen by the pollers"] = load["latency"]
    api.cancel(load["jobs"])
    time.sleep(arguments.rest)
    memory.note("after the load")

    running = api.submit(speech(arguments.job))
    api.finish(running, "Processing")
    codes: Counter[str] = Counter()
    made = [running]
    with memory.phase("large upload while a job runs"), probing(figures, "large upload while a job runs", url, running):
        seconds: list[float] = []
        for _ in range(arguments.uploads):
            big = generator(url, large=arguments.megabytes)
            seconds.append(big["seconds"])
            codes.update(big["codes"])
            made += big["jobs"]
    figures["codes"]["large upload while a job runs"] = dict(codes)
    figures["upload_seconds"] = statistics.median(seconds)
    figures["job_still_ran"] = api.status(running)["status"] == "Processing"
    api.cancel([warm, *made])
    time.sleep(arguments.rest)
    memory.note("at the end")
    figures["memory_mb"] = memory.figures
    figures["load_after"] = os.getloadavg()[0]
    return figures


def report(figures: dict[str, Any]) -> list[str]:
    """Print the figures, and return the missed targets."""
    before, after = figures["load_before"], figures["load_after"]
    print(f"{figures['cpus']} CPUs, load average {before:.1f} before and {after:.1f} after\n")
    print("| latency in ms | p50 | p99 | longest | requests |\n|---|---|---|---|---|")
    for name, row in figures["latency"].items():
        print(f"| {name} | {row['p50']:.1f} | {row['p99']:.1f} | {row['max']:.1f} | {row['count']} |")
    row = figures["seen by the pollers"]
    print(f"| the pollers' own view | {row['p50']:.1f} | {row['p99']:.1f} | {row['max']:.1f} | {row['count']} |")
    print("\n| answers | |\n|---|---|")
    for phase, codes in figures["codes"].items():
        print(f"| {phase} | {', '.join(f'{code}: {count}' for code, count in sorted(codes.items()))} |")
    if figures["memory_mb"]:
        print("\n| memory of the server in MB | at the start | at its peak | at the end |\n|---|---|---|---|")
        for phase, row in figures["memory_mb"].items():
            print(f"| {phase} | {row['start']:.0f} | {row['peak']:.0f} | {row['end']:.0f} |")
    print(f"\nOne large upload took {figures['upload_seconds']:.1f} s.")
    missed = [*misses(figures)]
    print("\n".join(f"MISSED: {line}" for line in missed) or "All targets are met.")
    return missed


def misses(figures: dict[str, Any]) -> Iterator[str]:
    codes: Counter[str] = Counter()
    for counted in figures["codes"].values():
        codes.update(counted)
    for code, count in codes.items():
        if code == "broken" or (code[:1] == "5" and code != "503 Retry-After"):
            yield f"{count} answers: {code}"
    if not figures["job_still_ran"]:
        yield "the job had ended before the large uploads had: nothing was measured"
    p99 = figures["latency"]["large upload while a job runs: status"]["p99"]
    if p99 > TARGET_P99_MS:
        yield f"the status took {p99:.0f} ms at the 99th percentile, {TARGET_P99_MS:.0f} are allowed"
    memory = figures["memory_mb"]
    if memory:
        idle = memory["idle"]["end"]
        rise = memory["large upload, no job"]["peak"] - memory["large upload, no job"]["start"]
        if rise > TARGET_UPLOAD_MB:
            yield f"a large upload took {rise:.0f} MB of memory, {TARGET_UPLOAD_MB:.0f} are allowed"
        left = memory["after the load"]["end"] - idle
        if left > TARGET_LEFT_MB:
            yield f"{left:.0f} MB were not given back after the load, {TARGET_LEFT_MB:.0f} are allowed"


# --- the server ---


@contextlib.contextmanager
def started(folder: Path) -> Iterator[tuple[str, int]]:
    """Start a server for this script; yields its URL and process id. The key goes to the environment."""
    port = free_port()
    models = Path(os.environ.get("WHISPER_MODELS_DIR") or ROOT / "models_cache").absolute()
    settings = {
        "WHISPER_API_PORT": port,
        "WHISPER_MODELS_DIR": str(models),
        "WHISPER_MODEL": "base",
        "WHISPER_LANGUAGE": "en",
        "MAX_QUEUED_JOBS": QUEUE,
    }
    config = folder / "whisper_api.conf"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    program = [sys.executable, "-m", "whisper_api"]
    create = [*program, "keys", "create", "load", "--role", "admin", "--config", str(config)]
    created = subprocess.run(create, capture_output=True, text=True)
    if created.returncode:
        raise SystemExit(created.stderr)
    os.environ[KEY_VARIABLE] = created.stdout.strip()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*program, "serve", "--config", str(config)], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(OSError):
                status, body = Api(url).get("/readyz")
                # Wait for all models: the server is ready before, and their memory must not count as the load's.
                if status == 200 and not body.get("loading"):
                    break
            if process.poll() is not None:
                raise SystemExit(f"the server has ended:\n{(folder / 'server.log').read_text()}")
            time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


class Api:
    """A plain client for requests that are not measured."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)

    def get(self, path: str, method: str = "GET") -> tuple[int, Any]:
        connection = connect(self._parts.netloc, self._parts.scheme)
        with contextlib.closing(connection):
            connection.request(method, self._parts.path + path, headers=authorization())
            response = connection.getresponse()
            body = response.read()
            return response.status, json.loads(body) if body else None

    def submit(self, audio: bytes) -> str:
        head, tail, content_type = form()
        connection = connect(self._parts.netloc, self._parts.scheme)
        with contextlib.closing(connection):
            headers = {**authorization(), "Content-Type": content_type}
            connection.request("POST", f"{self._parts.path}/transcribe", head + audio + tail, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        if response.status != 202:
            raise SystemExit(f"the server refused a job: {answer}")
        return str(answer["job_id"])

    def status(self, job_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/transcription/{job_id}?wait=5")[1]
        return answer

    def finish(self, job_id: str, *states: str) -> None:
        while (state := self.status(job_id)["status"]) not in (states or ("Completed",)):
            if state == "Failed":
                raise SystemExit(f"job {job_id} has failed")

    def cancel(self, jobs: list[str]) -> None:
        """Cancel those of the jobs that wait or run, and remove the results of the others."""
        # In reverse order, so that no waiting job begins meanwhile.
        for job_id in reversed(jobs):
            self.get(f"/transcription/{job_id}?force=true", "DELETE")


def connect(place: str, scheme: str) -> http.client.HTTPConnection:
    return (http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection)(place, timeout=120)


# --- measurements ---


class Memory:
    """Resident memory of a process; no figures for a server that the script has not started."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self.figures: dict[str, dict[str, float]] = {}

    def note(self, name: str) -> None:
        if self._pid is not None:
            now = self._megabytes()
            self.figures[name] = {"start": now, "peak": now, "end": now}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch the memory while open."""
        if self._pid is None:
            yield
            return
        begun = self._megabytes()
        samples = [begun]

        def watch(ended: threading.Event) -> None:
            while not ended.wait(0.1):
                samples.append(self._megabytes())

        with beside(watch):
            yield
        now = self._megabytes()
        self.figures[name] = {"start": begun, "peak": max(*samples, now), "end": now}

    def _megabytes(self) -> float:
        status = Path(f"/proc/{self._pid}/status")
        if status.exists():
            (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
            return int(line.split()[1]) / 1024
        command = ["ps", "-o", "rss=", "-p", str(self._pid)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """While open, work in a thread until an event is set; an error of the thread is raised at the end."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work(ended)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def probing(figures: dict[str, Any], phase: str, url: str, job_id: str) -> Iterator[None]:
    """While open, request a status and /livez in turn, and record the latencies."""
    parts = urlsplit(url)
    paths = {"status": f"{parts.path}/transcription/{job_id}", "livez": f"{parts.path}/livez"}
    taken: dict[str, list[float]] = {"status": [], "livez": [], "this process": []}

    def probe(ended: threading.Event) -> None:
        connection = connect(parts.netloc, parts.scheme)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.closing(connection):
            while not ended.is_set():
                for name, path in paths.items():
                    begun = time.perf_counter()
                    connection.request("GET", path, headers=authorization())
                    response = connection.getresponse()
                    response.read()
                    taken[name].append(time.perf_counter() - begun)
                    if response.status != 200:
                        raise SystemExit(f"GET {path} was answered with {response.status}")
                    begun = time.perf_counter()
                    time.sleep(PROBE_SECONDS)
                    taken["this process"].append(time.perf_counter() - begun - PROBE_SECONDS)

    with beside(probe):
        yield
    for name, seconds in taken.items():
        figures["latency"][f"{phase}: {name}"] = summary(seconds)


if __name__ == "__main__":
    sys.exit(main())
