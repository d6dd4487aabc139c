#!/usr/bin/env python3
"""Start times: of a process that transcribes a short clip, and of the server until it is ready.

    scripts/bench_start.py [--runs N] [--json FILE] [--plot FILE.png]

On both sides, a new process transcribes the clip: a Python program with this library, and `whisperx`, with the same
int8 weights and beam 5, without word times and speakers. A further row has the same clip with a resident model. The
server is ready when /readyz succeeds and all models are loaded. whisperx needs an ffmpeg program; --no-peers skips it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import peers
from measuring import (
    Comparison,
    Pair,
    Report,
    Sample,
    arguments,
    clip,
    heard,
    models_dir,
    needs,
    one_process,
    resident,
    served,
    take_turns,
)

PROCESS, RESIDENT, WHISPERX, SERVER = "one process", "model resident", "one whisperx process", "server"
OURS = """
import sys
from whisper_api import Engine, TranscriptionOptions
options = TranscriptionOptions(model=sys.argv[2], language="en", align=False, diarize=False, beam_size=5)
with Engine(device="cpu", models_dir=sys.argv[3], offline=True) as engine:
    print(engine.transcribe(sys.argv[1], options).text, flush=True)
"""


def main() -> int:
    parser = arguments(__doc__)
    options = needs.parsed(parser, needs.MODEL, needs.NORMALIZER, needs.WHISPERX, needs.FFMPEG)
    report = Report("start", options)
    models, discard = models_dir(), 0 if options.quick else 1
    weights = models / "whisper" / options.model
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        audio = clip(folder)
        plain = {"model": options.model, "align": False, "diarize": False, "beam_size": 5}
        engine = stack.enter_context(resident("peers:ours", models=str(models), **plain))

        def one() -> Sample:
            run = one_process([sys.executable, "-c", OURS, str(audio.path), options.model, str(models)])
            run.values["s to the first line"] = run.kept["first"]
            return heard(run, audio)

        sides = {PROCESS: one, RESIDENT: lambda: heard(engine.run(path=str(audio.path)), audio)}
        reason = "whisperx was left out, as asked." if options.no_peers else None
        if reason is None:
            sides = {
                WHISPERX: lambda: heard(peers.whisperx_process(audio.path, weights, folder, align_dir=None), audio),
                **sides,
            }
        samples = take_turns(sides, options.runs, discard=discard)
        pairs = [Pair(PROCESS, WHISPERX, "wall"), Pair(RESIDENT, WHISPERX, "wall")]
        report.add(Comparison("10 s of speech", samples, pairs, notes=[reason] if reason else []))

        starts = take_turns({SERVER: lambda: start_server(folder)}, options.runs, discard=discard)
        report.add(Comparison("server, from its start to ready", starts, [Pair(SERVER, "", "wall", 3, 2, lower=True)]))
    return report.finish()


def start_server(folder: Path) -> Sample:
    """Start a server and stop it."""
    with tempfile.TemporaryDirectory(dir=folder) as own, served(Path(own), models_dir()) as server:
        return server.started


if __name__ == "__main__":
    sys.exit(main())
