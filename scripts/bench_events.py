#!/usr/bin/env python3
"""The cost of event streams: a transcription without watchers, and with a hundred connections that watch its events.

    scripts/bench_events.py [--watchers 100] [--seconds 120] [--runs N] [--json FILE] [--plot FILE.png]

Both sides send the same recording with the same options and wait for the result in the same way. On the second side,
--watchers further connections follow the job's events from its submission to its end. The script fails unless each
connection receives text and the final event. The CPU-seconds are those of the server's process; the watchers run on the
same machine, and so increase the wall time.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

from clients import settled
from measuring import (
    Comparison,
    Pair,
    Report,
    Sample,
    arguments,
    models_dir,
    needs,
    recording,
    sample,
    served,
    take_turns,
)

ALONE = "nobody watches"
MAX_COST, THEN = 1.05, 1.02
WAIT_SECONDS = 600.0
FIELDS = {"language": "en", "output_format": "txt"}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the recording")
    options = needs.parsed(parser, needs.MODEL)
    report = Report("events", options)
    watched = f"{options.watchers} watch"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        what = recording(folder, 10.0 if options.quick else options.seconds, options.audio)
        server = stack.enter_context(served(folder / "server", models_dir(), WHISPER_MODEL=options.model))
        settled(server.url)

        def run(watchers: int) -> Sample:
            with sample([server.pid]) as run:
                fields = {**FIELDS, **({"diarize": "false"} if options.quick else {})}
                run.text, received = transcribed(server.url, what.path, watchers, fields)
            if watchers:
                run.values["kB per watcher"] = received / watchers / 1000
            return run

        samples = take_turns(
            {ALONE: lambda: run(0), watched: lambda: run(options.watchers)},
            options.runs,
            discard=0 if options.quick else 1,
        )
        pairs = [Pair(watched, ALONE, "cpu", MAX_COST, THEN, lower=True)]
        report.add(Comparison(f"{what.seconds:.0f} s of speech, {options.watchers} watchers", samples, pairs))
    return report.finish()


def transcribed(url: str, path: Path, watchers: int, fields: dict[str, str]) -> tuple[str, int]:
    """Send a recording while other connections watch the job.

    Returns:
        Its text, and how many bytes the watchers have received.

    Raises:
        SystemExit: the server refused it, or a watcher has missed something.
    """
    import requests

    with requests.Session() as session, path.open("rb") as file:
        answer = session.post(f"{url}/transcribe", data=fields, files={"file": file}, timeout=WAIT_SECONDS)
        if not answer.ok:
            raise SystemExit(f"the server answered {answer.status_code}: {answer.text[:500]}")
        place = f"{url}{answer.json()['status_url']}"
        streams: list[bytes] = []
        watching = threading.Thread(target=lambda: streams.extend(watch(f"{place}/events", watchers)))
        watching.start()
        status = {"status": "Queued"}
        while status["status"] in ("Queued", "Processing"):
            status = session.get(place, params={"wait": 60}, timeout=WAIT_SECONDS).json()
        watching.join(WAIT_SECONDS)
        result = session.get(f"{place}/result", timeout=WAIT_SECONDS).json()
    whole = [stream for stream in streams if b"event: segment" in stream and b"event: completed" in stream]
    if len(whole) != watchers:
        raise SystemExit(f"{len(whole)} of {watchers} watchers have had text and the end")
    return result["text"], sum(map(len, streams))


def watch(url: str, watchers: int) -> list[bytes]:
    """Follow a job over several connections in this thread, and return all that they have received."""
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode()
    received: dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(watchers):
            sock = stack.enter_context(socket.create_connection((parts.hostname or "", parts.port or 80)))
            sock.sendall(request)
            selector.register(sock, selectors.EVENT_READ)
            received[sock] = bytearray()
        while selector.get_map():
            for key, _ in selector.select():
                watcher = key.fileobj
                assert isinstance(watcher, socket.socket)
                data = watcher.recv(1 << 16)
                received[watcher] += data
                if not data:
                    selector.unregister(watcher)
    return [bytes(data) for data in received.values()]


if __name__ == "__main__":
    sys.exit(main())
