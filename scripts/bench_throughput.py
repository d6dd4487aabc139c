#!/usr/bin/env python3
"""CPU-seconds of voice activity detection and recognition for ten minutes of speech, compared with resident peers.

    scripts/bench_throughput.py [--runs N] [--audio DIR] [--json FILE] [--plot FILE.png]

Each side is a process with its models loaded. "Same beam" is int8, beam 5, a thread for each core on all of them;
"defaults" sets only the language: whisperx.load_model then uses float32 and four threads on a CPU. The floor is the
cost model's lower bound: the arithmetic and memory reads for this audio and number of tokens, divided by the speed of
this machine's cores as measured in the run.

Takes 25 minutes on two cores.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from measuring import (
    SHAPES,
    Comparison,
    Pair,
    Report,
    Resident,
    Sample,
    arguments,
    heard,
    measured_ceilings,
    median,
    models_dir,
    needs,
    recording,
    resident,
    take_turns,
    whisper_floor,
)

BEAM = 5
OURS, DEFAULTS = "whisper-api, beam 5", "whisper-api, defaults"
WHISPERX, WHISPERX_DEFAULTS = "whisperx, int8", "whisperx, defaults"
BATCHED = "BatchedInferencePipeline"


def main() -> int:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--seconds", type=float, default=600.0, help="of speech")
    options = needs.parsed(parser, needs.MODEL, needs.NORMALIZER, needs.WHISPERX, needs.FFMPEG)
    report = Report("throughput", options)
    models = models_dir()
    weights = models / "whisper" / options.model
    found = measured_ceilings()
    report.note("ceilings", vars(found))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        audio = recording(folder, 35.0 if options.quick else options.seconds, options.audio)
        plain = {"model": options.model, "align": False, "diarize": False}

        def side(function: str, **settings: Any) -> Resident:
            return stack.enter_context(resident(f"peers:{function}", **settings))

        started = {
            OURS: side("ours", models=str(peers.without_alignment(folder / "models", models)), **plain, beam_size=BEAM),
            DEFAULTS: side("ours", models=str(folder / "models"), **plain),
        }
        if not options.no_peers:
            started[BATCHED] = side("batched", weights=str(weights), beam_size=BEAM)
            started[WHISPERX] = side("whisperx_resident", weights=str(weights))
            started[WHISPERX_DEFAULTS] = side("whisperx_resident", weights=str(weights), defaults=True)

        def run(name: str) -> Callable[[], Sample]:
            return lambda: heard(started[name].run(path=str(audio.path)), audio, weights)

        order = [name for name in (WHISPERX, OURS, BATCHED, WHISPERX_DEFAULTS, DEFAULTS) if name in started]
        samples = take_turns({name: run(name) for name in order}, options.runs)
    pairs = [
        Pair(OURS, WHISPERX, "cpu", 1.7, 2.2),
        Pair(OURS, BATCHED, "cpu", 1.25, 1.5),
        Pair(DEFAULTS, WHISPERX_DEFAULTS, "cpu", 2.3, 3),
        Pair(DEFAULTS, WHISPERX, "cpu"),
    ]
    shape, floors = SHAPES[options.model], {}
    for name, runs in samples.items():
        tokens, beam = median(runs, "tokens") or 0.0, BEAM
        parts = whisper_floor(shape, found, seconds=audio.speech_seconds, tokens=tokens, beam=beam)
        floors[name] = sum(parts.values())
    notes = [f"{found}. The floor is for beam {BEAM}, int8, one window at a time."]
    if options.no_peers:
        notes.append("whisperx and faster-whisper were left out, as asked.")
    report.add(Comparison(f"{audio.seconds:.0f} s of speech, VAD and recognition", samples, pairs, floors, notes))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
