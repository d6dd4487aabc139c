#!/usr/bin/env python3
"""The cost of keys, limits, quotas, audit trail, webhooks and traces: a server with all of it on, and one with none.

    scripts/bench_everything_on.py [--clips 10] [--pause 1] [--statuses 2000] [--only overhead]
                                   [--runs N] [--json FILE] [--plot FILE.png]

The servers transcribe the same clip of ten seconds in synchronous requests, text alone, with a pause after each clip,
in which webhooks are sent and the audit trail is written. With all on, each request has a key with a rate limit and
quotas, each job has a webhook, and all spans go to a collector. The receiver of both is another process, and does not
count: the CPU-seconds are those of the server and its processes. The second table is of servers whose jobs have a
made-up text: the difference is the same work, and the variation of the model's time does not hide it. The third table
is the latency of GET /status.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clients import Client, settled
from measuring import (
    Comparison,
    Pair,
    Report,
    Sample,
    Served,
    arguments,
    clip,
    exact_seconds,
    median,
    models_dir,
    needs,
    resident,
    sample,
    served,
    take_turns,
)

ON, OFF = "all on", "all off"
NOTHING = {"WHISPER_AUDIT_RETENTION_DAYS": 0, "WHISPER_AUTH_FAILURE_LIMIT": ""}
EVERYTHING = {
    "ENABLE_AUTHORIZATION": True,
    "WHISPER_RATE_LIMIT": "100000/minute",
    "WHISPER_QUOTA": "1000000 minutes/month; 1000000 jobs/day",
    "ENABLE_WEBHOOKS": True,
    "WEBHOOK_PRIVATE_HOSTS": "127.0.0.1",
}
MOST_CPU = 1.01
# The last webhooks and entries are written after the last clip.
SETTLE_SECONDS = 2.0
# The CPU time of the server's processes, which the system counts in steps of 10 ms, and that of its own process.
CPU, OWN = "CPU-ms per clip", "of these its own"
P50, P99 = "p50 ms", "p99 ms"


def main() -> int:
    if sys.argv[1:2] == ["serve"]:
        return serve_without_model()
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=10, help="of each run")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds after each clip")
    parser.add_argument("--statuses", type=int, default=2000, help="GET /status of each run")
    parser.add_argument("--only", choices=("overhead",), help="no model: the second and the third table")
    options = needs.parsed(parser, needs.MODEL)
    clips, pause, statuses = (1, 0.0, 20) if options.quick else (options.clips, options.pause, options.statuses)
    discard = 0 if options.quick else 1
    report = Report("everything_on", options)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        audio = clip(folder, 4.0 if options.quick else 10.0)
        receiver = stack.enter_context(resident("bench_everything_on:receiver"))
        port = int(receiver.run().values["port"])

        def both(name: str, program: tuple[str, ...]) -> dict[str, tuple[Served, Client]]:
            return {
                side: stack.enter_context(started(folder / f"{name} {side}", audio.path, program, port, side == ON))
                for side in (OFF, ON)
            }

        def transcribing(server: Served, client: Client) -> Callable[[], Sample]:
            def run() -> Sample:
                before = exact_seconds(server.pid)
                with sample([server.pid]) as found:
                    for _ in range(clips):
                        client.transcribe()
                        time.sleep(pause)
                    time.sleep(min(pause, 1.0) * SETTLE_SECONDS)
                found.values[CPU] = 1000 * found.cpu / clips
                found.values[OWN] = 1000 * (exact_seconds(server.pid) - before) / clips
                return found

            return run

        def asking(client: Client) -> Callable[[], Sample]:
            def run() -> Sample:
                with sample() as found:
                    seconds = sorted(timed(client.server_status) for _ in range(statuses))
                found.values[P50] = 1000 * seconds[len(seconds) // 2]
                found.values[P99] = 1000 * seconds[int(len(seconds) * 0.99)]
                return found

            return run

        real: dict[str, list[Sample]] = {}
        if options.only != "overhead":
            with_model = both("model", ("-m", "whisper_api"))
            real = take_turns(
                {side: transcribing(*pair) for side, pair in with_model.items()}, options.runs, discard=discard
            )
            title = f"{audio.seconds:.0f} s of speech, text alone"
            report.add(Comparison(title, real, [Pair(ON, OFF, CPU, MOST_CPU, lower=True)]))

        without = both("no model", (str(Path(__file__).absolute()),))
        made_up = take_turns(
            {side: transcribing(*pair) for side, pair in without.items()}, options.runs, discard=discard
        )
        more = difference(made_up)
        report.note("ms more", more)
        note = f"All on: {more:.1f} ms of CPU more for a clip."
        of_clip = median(real.get(OFF, []), CPU)
        if of_clip:
            note += f" With the model that is {more / of_clip:.2%} of the {of_clip:.0f} ms of all off."
        report.add(Comparison("the same without a model", made_up, notes=[note]))

        answered = take_turns(
            {side: asking(client) for side, (_, client) in without.items()}, options.runs, discard=discard
        )
        pairs = [Pair(ON, OFF, by, lower=True) for by in (P50, P99)]
        report.add(Comparison(f"GET /status, {statuses} requests a run", answered, pairs))
        counts = receiver.run().values
        report.note("receiver", counts)
        print(f"The receiver had {counts['hooks']:.0f} webhooks and {counts['traces']:.0f} batches of spans.\n")
    return report.finish()


def difference(samples: dict[str, list[Sample]]) -> float:
    """The median of the differences of the two sides, each between two runs that followed each other."""
    return statistics.median(
        on.values[OWN] - off.values[OWN] for off, on in zip(samples[OFF], samples[ON], strict=True)
    )


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


@contextlib.contextmanager
def started(
    folder: Path, audio: Path, program: tuple[str, ...], port: int, everything: bool
) -> Iterator[tuple[Served, Client]]:
    """A server with everything on or off, and a client that sends the audio."""
    fields: dict[str, Any] = {"align": False}
    variables = {}
    if everything:
        fields["webhook_url"] = f"http://127.0.0.1:{port}/hook"
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
    settings = EVERYTHING if everything else NOTHING
    with served(folder, models_dir(), program=program, variables=variables, **settings) as server:
        settled(server.url)
        # The first start of a server with keys makes one.
        found = re.search(r"wk_[0-9a-f]{8}_[\w-]{43}", (folder / "server.log").read_text())
        client = Client(server.url, audio, key=found[0] if found else None, **fields)
        with contextlib.closing(client):
            yield server, client


def receiver() -> Callable[[], dict[str, Any]]:
    """A side that takes webhooks and spans, and says how many."""
    counts = {"hooks": 0, "traces": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            counts["hooks" if self.path == "/hook" else "traces"] += 1
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return lambda: {"values": {"port": server.server_port, **counts}}


def serve_without_model() -> int:
    """Run the server with an executor that makes the text up."""
    from whisper_api.cli.main import main as command
    from whisper_api.jobs.local_executor import EXECUTORS
    from whisper_api.testing import FakeExecutor

    EXECUTORS["local"] = lambda _: FakeExecutor("This is what was said.")
    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
