#!/usr/bin/env python3
"""Diarization error rate of the open models, for each recording and pooled.

    scripts/eval_diarization.py [FOLDER] [--sensitivity] [--fp32]

FOLDER holds a manifest.json, a list of {"file"} with the reference beside each file as .rttm; the telephone call in
pyannote.audio's package is always measured. No collar, overlapping speech counted. ``--sensitivity`` repeats the
clustering with other settings and prints the pooled error rate of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from measuring import (
    needs,
)
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

from whisper_api import Engine
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.context import JobContext
from whisper_api.engine.diarize import pipeline as diarize
from whisper_api.engine.diarize.clustering import ClusteringOptions, SpeakerBounds
from whisper_api.engine.worker.worker import GpuWorker

SETTINGS = {
    "max_gap": (0.1, 0.12, 0.14, 0.15, 0.16, 0.17, 0.18, 0.2, 0.22, 0.24),
    "initial_distance": (0.35, 0.4, 0.45, 0.5, 0.55, 0.6),
    "min_seconds": (0.8, 0.9, 1.0, 1.1, 1.2),
    "duplicate_similarity": (0.7, 0.75, 0.8, 0.9),
    "min_spans": (2, 3, 4, 5, 6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--sensitivity", action="store_true")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16, whatever the CPU can do")
    arguments = needs.parsed(parser)
    if arguments.fp32:
        diarize.embedding_dtype = lambda device: "float32"
    recordings = list(_recordings(arguments.folder))
    analyses = _analyze(recordings)
    _report(recordings, analyses)
    if arguments.sensitivity:
        _vary(recordings, analyses)


def _recordings(folder: Path | None) -> Iterator[tuple[str, Path, Path]]:
    """Name, audio and reference of each recording."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    call = Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"
    yield "sample call", call, call.with_suffix(".rttm")
    if folder is not None:
        for item in json.loads((folder / "manifest.json").read_text(encoding="utf-8")):
            audio = folder / item["file"]
            if audio.with_suffix(".rttm").exists():
                yield audio.stem, audio, audio.with_suffix(".rttm")


def _analyze(recordings: list[tuple[str, Path, Path]]) -> list[tuple[diarize.Analysis, float]]:
    models = Path(os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache").absolute()
    found = []
    with Engine(device="cpu", models_dir=models) as engine:
        worker = GpuWorker()
        for warm_up in (True, False):
            used = heard = 0.0
            for _, path, _ in recordings[:1] if warm_up else recordings:
                decoded = decode(path)
                ctx = JobContext(
                    options=engine.resolve(None),
                    device=engine.device,
                    worker=worker,
                    models=engine.models,
                    store=engine.store,
                )
                begun = time.process_time()
                analysis = diarize.analyze(ctx, decoded.audio)
                analysis.turns(analysis.speakers(SpeakerBounds()))
                used += time.process_time() - begun
                heard += decoded.duration
                ctx.close()
                if not warm_up:
                    found.append((analysis, decoded.duration))
        worker.close()
    print(f"{used / heard:.3f} CPU seconds for each second of audio\n")
    return found


def _errors(
    recordings: list[tuple[str, Path, Path]],
    analyses: list[tuple[diarize.Analysis, float]],
    options: ClusteringOptions,
) -> Iterator[tuple[str, dict[str, float], int, int]]:
    """The name of each recording, its error components in seconds, and the found and true numbers of speakers."""
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    for (name, _, rttm), (analysis, duration) in zip(recordings, analyses, strict=True):
        reference, hypothesis = Annotation(), Annotation()
        for index, line in enumerate(rttm.read_text(encoding="utf-8").splitlines()):
            fields = line.split()
            reference[Segment(float(fields[3]), float(fields[3]) + float(fields[4])), index] = fields[7]
        for index, turn in enumerate(analysis.turns(analysis.speakers(SpeakerBounds(), options))):
            hypothesis[Segment(turn.start, turn.end), index] = turn.speaker
        everything = Timeline([Segment(0.0, duration)])
        parts = metric(reference, hypothesis, uem=everything, detailed=True)
        yield name, parts, len(hypothesis.labels()), len(reference.labels())


def _report(recordings: list[tuple[str, Path, Path]], analyses: list[tuple[diarize.Analysis, float]]) -> None:
    print(f"{'recording':14} {'DER':>6} {'missed':>7} {'false':>6} {'wrong':>6} {'speech':>7}  speakers")
    sums = dict.fromkeys(("missed detection", "false alarm", "confusion", "total"), 0.0)
    for name, parts, found, there in _errors(recordings, analyses, ClusteringOptions()):
        for key in sums:
            sums[key] += parts[key]
        print(_row(name, parts), f" {found} of {there}")
    print(_row("pooled", sums))


def _row(name: str, parts: dict[str, float]) -> str:
    missed, false, wrong, total = (parts[key] for key in ("missed detection", "false alarm", "confusion", "total"))
    return f"{name:14} {(missed + false + wrong) / total:6.3f} {missed:7.2f} {false:6.2f} {wrong:6.2f} {total:7.2f}"


def _vary(recordings: list[tuple[str, Path, Path]], analyses: list[tuple[diarize.Analysis, float]]) -> None:
    for setting, values in SETTINGS.items():
        print(f"\n{setting:16}", *(f"{value:>6}" for value in values))
        pooled = []
        for value in values:
            options = ClusteringOptions(**(dataclasses.asdict(ClusteringOptions()) | {setting: value}))
            parts = [parts for _, parts, _, _ in _errors(recordings, analyses, options)]
            wrong = sum(part[key] for part in parts for key in ("missed detection", "false alarm", "confusion"))
            pooled.append(wrong / sum(part["total"] for part in parts))
        print(f"{'pooled DER':16}", *(f"{rate:6.3f}" for rate in pooled))


if __name__ == "__main__":
    main()
