#!/usr/bin/env python3
"""What one front takes, as processor time for each request, and what a cluster adds for each job.

    scripts/bench_front.py [--requests 300] [--cluster [--rounds 5]] [--json FILE]

A server whose engine computes nothing gets uploads, statuses and event streams over one connection. The engine reports
what one does for a recording of 30 s: progress, partial text twice, and a transcript with words. With --cluster, the
same uploads go to a second server as well, whose engine is on a cluster on loopback, in turn. There the processor time
of the server and of its driver process counts, without Ray's own services; what both take without any job is measured
apart and taken off.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from loopback_cluster import cluster, environment

ENGINE = "simulated_engine:ReportingEngine"
IDLE_SECONDS = 5.0
BOUNDARY = uuid.uuid4().hex


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="turns without and with a cluster")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "ADDRESS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if arguments.serve:
        return serve(Path(arguments.serve[0]), arguments.serve[1])
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, environment()):
        figures = measured(Path(folder), arguments.requests)
        if arguments.cluster:
            figures |= compared(Path(folder), arguments.requests, arguments.rounds)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0


def serve(folder: Path, address: str) -> int:
    """Run a server until standard input ends; on a cluster when an address is given."""
    from simulated_engine import ReportingEngine

    from whisper_api.config import Config
    from whisper_api.jobs import local_executor
    from whisper_api.server.run import Server

    def executor(config: Config) -> Any:
        if not address:
            return ReportingEngine(config)
        from whisper_api.cluster.executor import RayExecutor

        return RayExecutor(config, ENGINE)

    limits: dict[str, Any] = {"max_jobs_per_key": 0, "max_queued_jobs": 1_000_000, "max_uploads_per_address": 0}
    config = Config(
        port=0,
        data_dir=folder / "data",
        tmp_dir=folder / "uploads",
        executor="ray" if address else "local",
        ray_address=address or None,
        model="tiny.en",
        device="cpu",
        enable_authorization=False,
        enable_concurrency=True,
        log_level="error",
        **limits,
    )
    with mock.patch.dict(local_executor.EXECUTORS, {config.executor: executor}), Server(config) as url:
        print(url, flush=True)
        sys.stdin.read()
    return 0


class Front:
    """A server in a process of its own.

    Args:
        folder: holds its files.
        address: address of the cluster; empty for none.
    """

    def __init__(self, folder: Path, address: str = "") -> None:
        folder.mkdir()
        command = [sys.executable, __file__, "--serve", str(folder), address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        host, _, port = self._process.stdout.readline().decode().strip().removeprefix("http://").partition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self._ids: list[str] = []
        self.ended: list[str] = []
        sound = wave_file()
        self._body = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'.encode()
            + sound
            + f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="language"\r\n\r\nen\r\n'.encode()
            + f"--{BOUNDARY}--\r\n".encode()
        )
        while json.loads(self.call("GET", "/readyz", any_status=True))["status"] != "ready":
            time.sleep(0.2)

    def call(self, method: str, path: str, content: bytes | None = None, *, any_status: bool = False) -> bytes:
        """The body of an answer."""
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if content else {}
        self._connection.request(method, path, content, headers)
        response = self._connection.getresponse()
        data = response.read()
        assert any_status or response.status < 300, data
        return data

    def upload(self) -> None:
        """Submit a job."""
        self._ids.append(json.loads(self.call("POST", "/transcribe", self._body))["job_id"])

    def status(self) -> None:
        """Ask for a job."""
        self.call("GET", f"/transcription/{random.choice(self.ended)}")

    def stream(self) -> None:
        """Read the events of a job that has ended."""
        self.call("GET", f"/transcription/{random.choice(self.ended)}/events")

    def settle(self) -> None:
        """Wait until all jobs have ended."""
        for job_id in self._ids:
            while json.loads(self.call("GET", f"/transcription/{job_id}?wait=20"))["status"] != "Completed":
                pass
        self.ended += self._ids
        self._ids.clear()

    def processor_time(self) -> tuple[float, float]:
        """Seconds of processor time of the server's process, and of its driver process."""
        threads = Path(f"/proc/{self._process.pid}/task").iterdir()
        children = [int(each) for thread in threads for each in (thread / "children").read_text().split()]
        drivers = [each for each in children if b"cluster.driver" in Path(f"/proc/{each}/cmdline").read_bytes()]
        return clock(self._process.pid), sum(map(clock, drivers))

    def close(self) -> None:
        """End the server."""
        self._connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def front(folder: Path, address: str = "") -> Iterator[Front]:
    """A server while open."""
    found = Front(folder, address)
    try:
        yield found
    finally:
        found.close()


def measured(folder: Path, requests: int) -> dict[str, float]:
    """Processor time of each kind of request, without a cluster."""
    figures: dict[str, float] = {}
    with front(folder / "alone") as alone:
        for name, plural in (("upload", "uploads"), ("status", "statuses"), ("stream", "streams")):
            action: Callable[[], None] = getattr(alone, name)
            for _ in range(20):
                action()
            alone.settle()
            before, begin = alone.processor_time(), time.monotonic()
            for _ in range(requests):
                action()
            wall = time.monotonic() - begin
            if name == "upload":
                alone.settle()
            each = (alone.processor_time()[0] - before[0]) / requests
            figures[f"{name}_cpu_ms"] = round(each * 1000, 2)
            figures[f"{plural}_per_core_second"] = round(1 / each)
            figures[f"{plural}_per_second_one_client"] = round(requests / wall)
    return figures


def compared(folder: Path, requests: int, rounds: int) -> dict[str, float]:
    """Processor time of a job without and with a cluster, by turns."""
    samples: dict[str, list[float]] = {"alone": [], "server": [], "driver": []}
    with (
        cluster(folder / "machines", machines=1) as loopback,
        front(folder / "without") as alone,
        front(folder / "with", loopback.address) as clustered,
    ):
        for each in (alone, clustered):
            jobs(each, 20)
        before = clustered.processor_time()
        time.sleep(IDLE_SECONDS)
        idle = [(now - then) / IDLE_SECONDS for now, then in zip(clustered.processor_time(), before, strict=True)]
        for _ in range(rounds):
            samples["alone"].append(jobs(alone, requests)[0])
            server, driver, wall = jobs(clustered, requests)
            samples["server"].append(server - idle[0] * wall)
            samples["driver"].append(driver - idle[1] * wall)
    figures = {f"job_{name}_cpu_ms": round(statistics.median(found) * 1000, 2) for name, found in samples.items()}
    figures |= {"idle_server_cpu_share": round(idle[0], 4), "idle_driver_cpu_share": round(idle[1], 4)}
    together = figures["job_server_cpu_ms"] + figures["job_driver_cpu_ms"]
    return {**figures, "growth": round(together / figures["job_alone_cpu_ms"], 3)}


def jobs(server: Front, count: int) -> tuple[float, float, float]:
    """Run jobs; processor time of the server and of the driver, and wall time, for each."""
    before, begin = server.processor_time(), time.monotonic()
    for _ in range(count):
        server.upload()
    server.settle()
    after, end = server.processor_time(), time.monotonic()
    return (after[0] - before[0]) / count, (after[1] - before[1]) / count, (end - begin) / count


def wave_file() -> bytes:
    """Ten seconds of telephone sound."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(random.Random(1).randbytes(160_000))
    return file.getvalue()


def clock(process: int) -> float:
    """Seconds of processor time of a process, from its clock (clock_getcpuclockid)."""
    return time.clock_gettime((~process << 3) | 2)


if __name__ == "__main__":
    sys.exit(main())
