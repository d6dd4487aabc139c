#!/usr/bin/env python3
"""The cost of HTTP and the queue: short clips from many clients at a time, compared with the engine alone.

    scripts/bench_server.py [--clients 8] [--jobs 6] [--runs N] [--json FILE] [--plot FILE.png]

Both sides transcribe the same clips of ten seconds, the same number at a time, with the same options: no word times, no
speakers, beam 5. The engine has a thread for each client. The server has a connection for each client, first with
synchronous requests and then with jobs that the client submits, awaits and fetches. The CPU-seconds are those of the
engine's or the server's process; the clients run on the same machine, and so increase the wall time. A further row has
a single client, which shows the latency of the job queue on disk.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    resident,
    sample,
    served,
    take_turns,
)

ENGINE, SYNC, ASYNC = "engine", "over HTTP, sync", "over HTTP, submit and fetch"
MAX_OVERHEAD, THEN = 1.05, 1.02


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=6, help="of each client, in one run")
    options = needs.parsed(parser, needs.MODEL)
    jobs = 1 if options.quick else options.jobs
    report = Report("server", options)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        audio = clip(folder).path
        engine = stack.enter_context(
            resident("bench_server:engine_side", models=str(models_dir()), model=options.model, path=str(audio))
        )
        server = stack.enter_context(
            served(
                folder / "server",
                models_dir(),
                WHISPER_MODEL=options.model,
                ENABLE_CONCURRENCY=True,
                MAX_CONCURRENT_JOBS=options.clients,
            )
        )
        settled(server.url)
        for clients in dict.fromkeys((options.clients, 1)):
            # The same number of jobs, so that both tables compare the same work.
            each = jobs if clients > 1 else jobs * 2

            def through(way: Callable[[Client], str], clients: int = clients, each: int = each) -> Sample:
                with sample([server.pid]) as run, ThreadPoolExecutor(clients) as pool:
                    texts = list(pool.map(lambda _: work(server.url, audio, way, each), range(clients)))
                return judged(run, [text for some in texts for text in some])

            def alone(clients: int = clients, each: int = each) -> Sample:
                run = engine.run(threads=clients, jobs=each)
                return judged(run, run.kept.pop("texts"))

            sides = {
                ENGINE: alone,
                SYNC: lambda: through(lambda client: client.transcribe()),
                ASYNC: lambda: through(lambda client: client.submit_and_fetch()),
            }
            samples = take_turns(sides, options.runs, discard=0 if options.quick else 1)
            first, then = (MAX_OVERHEAD, THEN) if clients > 1 else (None, None)
            pairs = [
                Pair(side, ENGINE, by, first, then, lower=True) for side in (SYNC, ASYNC) for by in ("cpu", "wall")
            ]
            title = f"{clients} at a time, {each} clips of 10 s each" if clients > 1 else f"one at a time, {each} clips"
            report.add(Comparison(title, samples, pairs))
    return report.finish()


def work(url: str, audio: Path, way: Callable[[Client], str], jobs: int) -> list[str]:
    """Run the requests of a client and return their texts."""
    with contextlib.closing(Client(url, audio, align=False)) as client:
        return [way(client) for _ in range(jobs)]


def judged(run: Sample, texts: list[str]) -> Sample:
    """Record the number of texts, and check that all are equal, so that no side skips work."""
    different = len({" ".join(text.split()) for text in texts})
    if different != 1:
        raise SystemExit(f"the same clip gave {different} texts")
    run.values["clips per s"] = len(texts) / run.wall
    run.values["CPU-ms per clip"] = 1000 * run.cpu / len(texts)
    return run


def engine_side(models: str, model: str, path: str) -> Callable[..., dict[str, Any]]:
    """The bare engine in a child process; see :func:`measuring.resident`."""
    from whisper_api import Engine, TranscriptionOptions

    engine = Engine(device="cpu", models_dir=models, offline=True)
    options = TranscriptionOptions(model=model, language="en", align=False, diarize=False, beam_size=5)

    def run(threads: int, jobs: int) -> dict[str, Any]:
        with ThreadPoolExecutor(threads) as pool:
            return {"texts": list(pool.map(lambda _: engine.transcribe(path, options).text, range(threads * jobs)))}

    return run


if __name__ == "__main__":
    sys.exit(main())
