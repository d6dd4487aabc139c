#!/usr/bin/env python3
"""The latency of one caller: a recording sent over HTTP, compared with a `whisperx` process for each job.

    scripts/bench_latency.py [--only short|long] [--runs N] [--audio DIR] [--json FILE] [--plot FILE.png]

The recordings are a clip of ten seconds, with and without word times, and ten minutes with word times. The peer starts
a program for each job, which imports, loads and ends every time. Both sides use the same int8 weights. For alignment,
both use the same wav2vec 2.0 with random weights, so the word times have no meaning and are not compared. Without an
alignment model, this project takes word times from the decoder's attention; whisperx cannot, and uses alignment in that
comparison too. The table also has the word errors.

Needs an ffmpeg program for whisperx; takes 25 minutes on two cores, five with --only short.
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
    Recording,
    Report,
    Sample,
    arguments,
    clip,
    heard,
    models_dir,
    needs,
    recording,
    served,
    take_turns,
)

LONG_RUNS = 3
PLAIN, ATTENTION, ALIGNED = "over HTTP", "over HTTP, words by attention", "over HTTP, words aligned"
PEER_PLAIN, PEER_ALIGNED = "one whisperx process, --no_align", "one whisperx process"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=("short", "long"), help="the clip of 10 s, or the 10 minutes")
    options = needs.parsed(parser, needs.MODEL, needs.NORMALIZER, needs.WHISPERX, needs.FFMPEG)
    report = Report("latency", options)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = peers.without_alignment(folder / "bare", models_dir())
        full = peers.with_alignment(folder / "full", models_dir())
        weights = models_dir() / "whisper" / options.model
        reason = "whisperx was left out, as asked." if options.no_peers else None
        notes = [reason] if reason else []
        plain = stack.enter_context(served(folder / "server 1", bare, WHISPER_MODEL=options.model))
        aligning = stack.enter_context(served(folder / "server 2", full, WHISPER_MODEL=options.model))
        report.note("seconds from start to ready", [plain.start_seconds, aligning.start_seconds])

        def whisperx(what: Recording, align: bool) -> Sample:
            align_dir = peers.alignment_dir(full) if align else None
            return heard(peers.whisperx_process(what.path, weights, folder, align_dir=align_dir), what, weights)

        if options.only != "long":
            short = clip(folder, 4.0 if options.quick else 10.0)
            sides = {
                PEER_PLAIN: lambda: whisperx(short, False),
                PLAIN: lambda: heard(plain.send(short.path, align=False), short, weights),
                ATTENTION: lambda: heard(plain.send(short.path, align=True), short, weights),
                PEER_ALIGNED: lambda: whisperx(short, True),
                ALIGNED: lambda: heard(aligning.send(short.path, align=True), short, weights),
            }
            pairs = [
                Pair(PLAIN, PEER_PLAIN, "wall", 30, 45),
                Pair(ATTENTION, PEER_ALIGNED, "wall", 12, 18),
                Pair(ALIGNED, PEER_ALIGNED, "wall", 12, 18),
            ]
            if reason:
                sides = {name: run for name, run in sides.items() if name in (PLAIN, ATTENTION, ALIGNED)}
            samples = take_turns(sides, options.runs, discard=0 if options.quick else 1)
            report.add(Comparison(f"{short.seconds:.0f} s of speech, one caller", samples, pairs, notes=notes))

        if options.only != "short":
            long = recording(folder, 35.0 if options.quick else 600.0, options.audio)
            sides = {
                PEER_ALIGNED: lambda: whisperx(long, True),
                ALIGNED: lambda: heard(aligning.send(long.path, align=True), long, weights),
            }
            if reason:
                del sides[PEER_ALIGNED]
            runs = min(options.runs, LONG_RUNS)
            samples = take_turns(sides, runs, discard=0 if options.quick else 1)
            pairs = [Pair(ALIGNED, PEER_ALIGNED, "wall", 3, 4)]
            report.add(Comparison(f"{long.seconds:.0f} s of speech with word times", samples, pairs, notes=notes))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
