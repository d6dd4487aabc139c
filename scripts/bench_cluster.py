#!/usr/bin/env python3
"""How a cluster scales, with engines that sleep as long as a GPU would take.

    scripts/bench_cluster.py [--engines 1,2,4,8,16] [--seconds 20] [--svg docs/images/cluster-scaling.svg] [--json FILE]

For each number of engines: long jobs (an hour each, two for each engine at any time) and short ones (30 seconds each,
at random times) go through a real service, the driver process and Ray's actors. The audio that the engines have
processed is compared with that of one engine; the time of short jobs is from submission to the stored transcript. Exits
with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from loopback_cluster import cluster, environment
from simulated_engine import NOTES, WINDOW_SECONDS

LONG_SECONDS, SHORT_SECONDS = 3600.0, 30.0
LONG_JOBS = 2
SHORT_JOBS_PER_SECOND = 0.5
WARM_SECONDS = 3.0
TARGET_EFFICIENCY = 0.95
TARGET_P99_GROWTH = 1.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="1,2,4,8,16")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    with tempfile.TemporaryDirectory() as folder:
        numbers = [int(each) for each in arguments.engines.split(",")]
        figures = [scaled(Path(folder), number, arguments.seconds) for number in numbers]
    missed = report(figures)
    if arguments.svg:
        arguments.svg.write_text(drawing(figures), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return int(missed)


def scaled(folder: Path, engines: int, seconds: float) -> dict[str, float]:
    """Measure a number of engines."""
    notes = folder / f"notes-{engines}"
    notes.mkdir()
    with (
        mock.patch.dict(os.environ, {**environment(), NOTES: str(notes)}),
        cluster(folder / f"machines-{engines}", machines=0) as loopback,
    ):
        loopback.add(cpus=max(engines, 2), variables={NOTES: str(notes)})
        with service(folder / f"front-{engines}", loopback.address, engines) as jobs:
            figures = loaded(jobs, engines, seconds, notes)
    print(json.dumps(figures), flush=True)
    return figures


@contextlib.contextmanager
def service(folder: Path, address: str, engines: int) -> Iterator[Any]:
    """A service on a cluster, once its engines run."""
    from whisper_api.cluster.executor import RayExecutor
    from whisper_api.config import Config
    from whisper_api.jobs.service import JobService

    config = Config(
        data_dir=folder / "data",
        tmp_dir=folder / "uploads",
        executor="ray",
        ray_address=address,
        cluster_workers=engines,
        model="large-v3",
        device="cpu",
        enable_concurrency=True,
        max_queued_jobs=100_000,
        max_jobs_per_key=0,
    )
    executor = RayExecutor(config, "simulated_engine:SimulatedEngine")
    found = JobService.open(config, executor)
    try:
        found.start()
        while executor.engines().running < engines:
            time.sleep(0.2)
        yield found
    finally:
        found.close()


def submit(jobs: Any, seconds: float) -> str:
    """Submit a job of this length, whose upload is small."""
    from whisper_api.jobs.admission import Submission
    from whisper_api.options import TranscriptionOptions

    with jobs.reserve("") as place:
        place.directory.mkdir(mode=0o700, parents=True)
        (place.directory / "audio").write_bytes(b"x" * 1000)
        options = TranscriptionOptions(language="en", diarize=False)
        given: dict[str, Any] = {"output_format": "txt", "audio_bytes": 1000, "audio_seconds": seconds}
        job_id: str = jobs.submit(Submission(job_id=place.job_id, owner="", options=options, **given), place).job_id
        return job_id


def loaded(jobs: Any, engines: int, seconds: float, notes: Path) -> dict[str, float]:
    """Load the engines, and say what they have done."""
    short: list[str] = []
    stop = threading.Event()
    chance = random.Random(engines)

    def feed_long() -> None:
        longs = [submit(jobs, LONG_SECONDS) for _ in range(LONG_JOBS * engines)]
        while not stop.wait(0.1):
            for number, job_id in enumerate(longs):
                if jobs.status(job_id, None).status not in ("Queued", "Processing"):
                    longs[number] = submit(jobs, LONG_SECONDS)

    def feed_short() -> None:
        while not stop.wait(chance.expovariate(SHORT_JOBS_PER_SECOND * engines)):
            short.append(submit(jobs, SHORT_SECONDS))

    threads = [threading.Thread(target=each) for each in (feed_long, feed_short)]
    for thread in threads:
        thread.start()
    time.sleep(min(WARM_SECONDS, seconds))
    begin, cpu = time.time(), time.process_time()
    time.sleep(seconds)
    end, used = time.time(), time.process_time() - cpu
    stop.set()
    for thread in threads:
        thread.join()
    lines = (line.split() for file in notes.iterdir() for line in file.read_text().splitlines())
    windows = sum(int(count) for at, count in lines if begin <= float(at) <= end)
    deadline = time.monotonic() + 30
    rows = [jobs.store.get(job_id) for job_id in short]
    while any(row.finished_at is None for row in rows) and time.monotonic() < deadline:
        time.sleep(0.2)
        rows = [jobs.store.get(job_id) for job_id in short]
    times = sorted(row.finished_at - row.created_at for row in rows if row.finished_at and row.created_at >= begin)
    return {
        "engines": engines,
        "audio_seconds_per_second": round(windows * WINDOW_SECONDS / (end - begin), 1),
        "short_jobs": len(times),
        "short_median_seconds": round(statistics.median(times), 3) if times else 0.0,
        "short_p99_seconds": round(times[min(len(times) - 1, int(len(times) * 0.99))], 3) if times else 0.0,
        "front_cpu_share": round(used / (end - begin), 3),
        "load": round(os.getloadavg()[0], 1),
    }


def report(figures: list[dict[str, float]]) -> bool:
    """Print the figures; whether a target was missed."""
    one = figures[0]["audio_seconds_per_second"] / figures[0]["engines"]
    missed = False
    print(f"{'engines':>8} {'audio s/s':>10} {'of linear':>10} {'short p50':>10} {'short p99':>10} {'front CPU':>10}")
    for each in figures:
        share = each["audio_seconds_per_second"] / one / each["engines"]
        missed |= share < TARGET_EFFICIENCY
        missed |= each["short_p99_seconds"] > figures[0]["short_p99_seconds"] * TARGET_P99_GROWTH
        print(
            f"{each['engines']:>8.0f} {each['audio_seconds_per_second']:>10.0f} {share:>10.1%} "
            f"{each['short_median_seconds']:>10.2f} {each['short_p99_seconds']:>10.2f} {each['front_cpu_share']:>10.1%}"
        )
    return missed


def drawing(figures: list[dict[str, float]]) -> str:
    """A plot of throughput and of the time of short jobs over the number of engines."""
    width, height, left, bottom = 640, 300, 60, 40
    most = max(each["engines"] for each in figures)
    one = figures[0]["audio_seconds_per_second"] / figures[0]["engines"]
    top = one * most * 1.1
    slowest = max(each["short_p99_seconds"] for each in figures) * 2.5 or 1.0

    def x(engines: float) -> float:
        return left + (width - 2 * left) * engines / most

    def y(share: float) -> float:
        return height - bottom - (height - bottom - 20) * share

    speed = [(x(each["engines"]), y(each["audio_seconds_per_second"] / top)) for each in figures]
    waits = [(x(each["engines"]), y(each["short_p99_seconds"] / slowest)) for each in figures]

    def line(points: list[tuple[float, float]], style: str) -> str:
        return f'<polyline fill="none" {style} points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'

    def text(a: float, b: float, words: str, more: str = "") -> str:
        return f'<text x="{a:.1f}" y="{b:.1f}" {more}>{words}</text>'

    marks = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="#3f51b5"/>' for a, b in speed)
    marks += "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="#e65100"/>' for a, b in waits)
    labels = "".join(
        text(x(each["engines"]), height - bottom + 18, f"{each['engines']:.0f}", 'text-anchor="middle"')
        + text(a, b - 9, f"{each['audio_seconds_per_second']:,.0f}", 'text-anchor="end" fill="#3f51b5"')
        + text(c, d + 17, f"{each['short_p99_seconds']:.2f} s", 'text-anchor="middle" fill="#e65100"')
        for each, (a, b), (c, d) in zip(figures, speed, waits, strict=True)
    )
    axes = f'<path d="M{left} 20V{height - bottom}H{width - left}" fill="none" stroke="#888"/>'
    blue, orange = ('fill="#3f51b5"', 'fill="#e65100"')
    parts = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>',
        axes,
        line([(x(0), y(0)), (x(most), y(one * most / top))], 'stroke="#bbb" stroke-dasharray="5 4"'),
        line(speed, 'stroke="#3f51b5" stroke-width="2"'),
        line(waits, 'stroke="#e65100" stroke-width="2"'),
        marks,
        labels,
        text(left + 8, 32, "seconds of audio per second (dashed: linear)", blue),
        text(left + 8, 48, "99th percentile of the time of short jobs", orange),
        text(width / 2, height - 6, "engines", 'text-anchor="middle"'),
        "</svg>",
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
