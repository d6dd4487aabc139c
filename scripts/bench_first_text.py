#!/usr/bin/env python3
"""The time to the first text of a long recording: in the event stream, compared with the complete result.

    scripts/bench_first_text.py [--seconds 120] [--language en] [--runs N] [--audio DIR] [--json FILE] [--plot FILE.png]

Both sides send the same recording to a server with the default settings, which include diarization. The time starts
when the server accepts the job, so it includes decoding, voice activity detection and, with --language auto, language
detection. "after asr" starts at the first event of the stage asr, which may be a second late.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

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

FIRST, WHOLE = "first text", "whole text"
MAX_SECONDS = 3.0
WAIT_SECONDS = 600.0


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, help="of the recording; 120, with --quick 40")
    parser.add_argument("--language", default="en", help="of the recording; auto: it is judged first")
    options = needs.parsed(parser, needs.MODEL)
    report = Report("first_text", options)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        what = recording(folder, options.seconds or (40.0 if options.quick else 120.0), options.audio)
        server = stack.enter_context(served(folder / "server", models_dir(), WHISPER_MODEL=options.model))
        settled(server.url)
        sides = {
            FIRST: lambda: until(server.url, what.path, options.language, "segment"),
            WHOLE: lambda: until(server.url, what.path, options.language, "completed"),
        }
        samples = take_turns(sides, options.runs, discard=0 if options.quick else 1)
        pairs = [Pair(FIRST, WHOLE, "wall"), Pair(FIRST, by="wall", first=MAX_SECONDS, lower=True)]
        report.add(Comparison(f"{what.seconds:.0f} s of speech, language {options.language}", samples, pairs))
    return report.finish()


def until(url: str, path: Path, language: str, wanted: str) -> Sample:
    """Send a recording, and follow its job until the first event of the expected kind.

    Raises:
        SystemExit: the server refused it, or the job ends without that event.
    """
    import requests

    with requests.Session() as session, path.open("rb") as file:
        answer = session.post(
            f"{url}/transcribe", data={"language": language}, files={"file": file}, timeout=WAIT_SECONDS
        )
        if not answer.ok:
            raise SystemExit(f"the server answered {answer.status_code}: {answer.text[:500]}")
        found = False
        with session.get(f"{url}{answer.json()['status_url']}/events", stream=True, timeout=WAIT_SECONDS) as stream:
            events = (json.loads(line[6:]) for line in stream.iter_lines(chunk_size=1) if line.startswith(b"data: "))
            with sample() as run:
                recognising: float | None = None
                for event in events:
                    if event["event"] == "progress" and event["stage"] == "asr" and recognising is None:
                        recognising = time.perf_counter()
                    if found := event["event"] == wanted:
                        break
                if recognising is not None:
                    run.values["after asr"] = time.perf_counter() - recognising
            for _ in events:
                pass
    if not found:
        raise SystemExit(f"the job has ended without the event {wanted}")
    return run


if __name__ == "__main__":
    sys.exit(main())
