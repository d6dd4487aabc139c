#!/usr/bin/env python3
"""The latency of a short clip while the server works on a long recording, and on an idle server.

    scripts/bench_fairness.py [--audio DIR] [--runs N] [--clips 8] [--json FILE] [--plot FILE.png]

The script sends a clip of ten seconds repeatedly, without word times and with word times from the decoder's attention:
to the idle server, during the transcription of ten minutes, and from four clients at a time during that transcription.
The peer is the same server with ENABLE_CONCURRENCY off, on which a clip waits for the end of the long recording. The
script also measures the time of the long recording with and without clips.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clients import Client, settled
from measuring import (
    Comparison,
    Pair,
    Report,
    Sample,
    arguments,
    clip,
    models_dir,
    needs,
    recording,
    sample,
    served,
    take_turns,
)

IDLE, BESIDE, FOUR = "idle server", "beside ten minutes", "four clients beside ten minutes"
ALONE, TOGETHER = "ten minutes, alone", "ten minutes, beside clips"
QUEUED = "one job at a time: behind ten minutes"
AT_MOST, THEN = 3.0, 2.0
# Progress of the recording at which the clips begin, after its decoding and voice activity detection.
WELL_UNDER_WAY = 0.1
MANY = 4


def main() -> int:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--clips", type=int, default=8, help="sent in one run")
    parser.add_argument("--seconds", type=float, help="of the long recording; 600, with --quick 240")
    options = needs.parsed(parser, needs.MODEL)
    clips = 1 if options.quick else options.clips
    report = Report("fairness", options)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        short = clip(folder).path
        long = recording(folder, options.seconds or (240.0 if options.quick else 600.0), options.audio).path
        fair = stack.enter_context(
            served(folder / "fair", models_dir(), WHISPER_MODEL=options.model, ENABLE_CONCURRENCY=True)
        )
        settled(fair.url)

        def latencies(url: str, align: bool, pid: int, clients: int = 1) -> Sample:
            with sample([pid]) as run, ThreadPoolExecutor(clients) as pool:
                each = list(pool.map(lambda _: send(url, short, align, clips), range(clients)))
            return judged(run, [seconds for some in each for seconds in some])

        def beside(url: str, align: bool, pid: int, clients: int = 1) -> Sample:
            with running(url, long):
                return latencies(url, align, pid, clients)

        def behind(align: bool) -> Sample:
            with served(folder / "fifo", models_dir(), WHISPER_MODEL=options.model) as fifo:
                settled(fifo.url)
                # One run is enough to know how long the recording takes.
                with running(fifo.url, long), sample([fifo.pid]) as run:
                    seconds = send(fifo.url, short, align, 1)
            return judged(run, seconds)

        for align in (False, True):
            sides: dict[str, Callable[[], Sample]] = {
                IDLE: functools.partial(latencies, fair.url, align, fair.pid),
                BESIDE: functools.partial(beside, fair.url, align, fair.pid),
                FOUR: functools.partial(beside, fair.url, align, fair.pid, MANY),
            }
            samples = take_turns(sides, options.runs, discard=0 if options.quick else 1)
            if not options.no_peers and not align:
                samples |= take_turns({QUEUED: functools.partial(behind, align)}, 1, discard=0)
            pairs = [Pair(BESIDE, IDLE, "s, median", AT_MOST, THEN, lower=True)]
            pairs += [Pair(BESIDE, IDLE, "s, longest", lower=True), Pair(FOUR, IDLE, "s, median", lower=True)]
            pairs += [Pair(BESIDE, QUEUED, "s, median")]
            words = "with word times" if align else "without word times"
            report.add(Comparison(f"A clip of 10 s, {words}", samples, pairs))

        samples = {
            ALONE: [whole(fair.url, fair.pid, long, short, 0)],
            TOGETHER: [whole(fair.url, fair.pid, long, short, 1)],
        }
        report.add(Comparison("The long recording", samples, [Pair(TOGETHER, ALONE, "wall", lower=True)]))
    return report.finish()


def send(url: str, audio: Path, align: bool, count: int) -> list[float]:
    """Send a clip several times in sequence, and return the seconds of each request."""
    taken = []
    with contextlib.closing(Client(url, audio, align=align)) as client:
        for _ in range(count):
            begun = time.perf_counter()
            client.transcribe()
            taken.append(time.perf_counter() - begun)
    return taken


def judged(run: Sample, seconds: list[float]) -> Sample:
    """Add the latencies of a run to its sample."""
    run.values["s, median"] = statistics.median(seconds)
    run.values["s, longest"] = max(seconds)
    run.kept["latencies"] = seconds
    return run


@contextlib.contextmanager
def running(url: str, long: Path) -> Iterator[None]:
    """While open, a server works on a long recording. The measurement is invalid if the recording ends before."""
    with contextlib.closing(Client(url, long, align=False)) as client:
        job_id = client.submit()
        while (status := client.status(job_id))["progress"] < WELL_UNDER_WAY:
            time.sleep(0.1)
        yield
        status = client.status(job_id)
        client.stop(job_id)
    if status["status"] == "Completed":
        print("  the long recording had ended before the clips: use a longer one", file=sys.stderr)


def whole(url: str, pid: int, long: Path, short: Path, clients: int) -> Sample:
    """Time the long recording from its submission to its end, while several clients send clips without a pause."""
    ended = False

    def pester() -> int:
        count = 0
        while not ended:
            count += len(send(url, short, False, 1))
        return count

    with ThreadPoolExecutor(max(1, clients)) as pool:
        pestering = [pool.submit(pester) for _ in range(clients)]
        with sample([pid]) as run, contextlib.closing(Client(url, long, align=False)) as client:
            client.submit_and_fetch()
        ended = True
        run.values["clips meanwhile"] = float(sum(each.result() for each in pestering))
    return run


if __name__ == "__main__":
    sys.exit(main())
