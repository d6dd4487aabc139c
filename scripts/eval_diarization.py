#!/usr/bin/env python3
"""Diarization error rate of the open models, for each recording and pooled.

    scripts/eval_diarization.py [FOLDER] [--voices FOLDER] [--seed N] [--stock] [--sensitivity] [--fp32] [--ecapa]

FOLDER holds a manifest.json, a list of {"file"} with the reference beside each file as .rttm; the telephone call in
pyannote.audio's package is always measured. ``--voices`` adds conversations made from the single speakers of a folder
(see ``conversations.py``), ``--seed`` others of the same kinds. No collar, overlapping speech counted. ``--stock`` also
runs pyannote's pipeline with segmentation-3.0 and CAM++. Beside the error rate stands the rate that perfect clustering
would leave: missed speech and false alarms. ``--sensitivity`` repeats clustering and assignment with other settings,
and prints the pooled error rate of each and the rate when every recording is measured with the setting that is best for
all the others, those of both kinds together. ``--ecapa`` embeds with ECAPA-TDNN in place of CAM++.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import conversations
import peers
from measuring import needs
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

from whisper_api import Engine
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.context import JobContext
from whisper_api.engine.diarize import activity
from whisper_api.engine.diarize import analysis as diarize
from whisper_api.engine.diarize.clustering import ClusteringOptions, SpeakerBounds
from whisper_api.engine.diarize.ecapa import EcapaSource
from whisper_api.engine.diarize.open_models import ECAPA, OpenModels, open_models
from whisper_api.engine.models.store import ModelStore
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.schema import Turn

# Fields of the clustering's options, then constants of the module activity. Each first value is the one in use.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "max_gap": (0.115, 0.09, 0.1, 0.12, 0.13),
    "small_gap": (2.0, 1.0, 1.5, 2.5, 3.0),
    "initial_distance": (0.45, 0.35, 0.4, 0.5),
    "min_seconds": (1.0, 0.8, 0.9, 1.1, 1.2),
    "duplicate_similarity": (0.9, 0.85, 0.95),
    "min_spans": (4, 3, 5, 6),
    "min_apart_spans": (3, 2, 4),
    "apart": (2.0, 1.5, 2.5),
    "SPEECH": (0.5, 0.45, 0.55),
    "OVERLAP": (0.45, 0.4, 0.5),
    "SECOND_WEIGHTS": ((0.7, 0.3), (0.5, 0.5), (0.6, 0.3), (0.8, 0.3), (0.7, 0.0)),
    "CHANGE_COST": (0.02, 0.01, 0.03, 0.05),
    "PAUSE": (1.0, 0.5, 2.0, 1e9),
}
ERRORS = ("missed detection", "false alarm", "confusion")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--voices", type=Path, help="a folder of recordings of single speakers")
    parser.add_argument("--seed", type=int, default=0, help="of the conversations made")
    parser.add_argument("--stock", action="store_true", help="pyannote's pipeline beside ours")
    parser.add_argument("--sensitivity", action="store_true")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16, whatever the CPU can do")
    parser.add_argument("--ecapa", action="store_true", help="embed with ECAPA-TDNN")
    arguments = needs.parsed(parser)
    if arguments.ecapa:
        mock.patch.object(diarize, "open_models", _with_ecapa).start()
    if arguments.fp32:
        diarize.embedding_dtype = lambda device: "float32"
    recordings = list(_recordings(arguments.folder))
    with tempfile.TemporaryDirectory() as made:
        parts = {"recorded": recordings}
        if arguments.voices:
            voices = conversations.read_voices(arguments.voices)
            parts["synthesised"] = list(conversations.write(voices, Path(made), arguments.seed))
        tried: list[list[dict[str, float]]] = []
        for title, part in parts.items():
            print(title)
            analyses = _analyze(part)
            _report(part, analyses, _stock(part) if arguments.stock else None)
            if arguments.sensitivity:
                varied = _vary(part, analyses)
                tried = [before + more for before, more in zip(tried or [[]] * len(varied), varied, strict=True)]
            print()
        if tried:
            _leave_out(tried, [len(part) for part in parts.values()])


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


def _stock(recordings: list[tuple[str, Path, Path]]) -> list[list[Turn]]:
    """The turns by pyannote's pipeline with the same weights."""
    models = _models_dir()
    store = ModelStore(models)
    job = peers.stock_diarization(str(store.ensure("segmentation-3.0").path), str(store.ensure("campplus").path))
    return [[Turn(*turn) for turn in job(str(path))] for _, path, _ in recordings]


def _with_ecapa(ctx: JobContext) -> OpenModels:
    model = ctx.fetch_model("ecapa")
    source = EcapaSource(str(model.path), ctx.device.torch_name)
    return dataclasses.replace(open_models(ctx), embedding=source, voiceprint=ECAPA, revision=model.revision)


def _models_dir() -> Path:
    return Path(os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache").absolute()


def _analyze(recordings: list[tuple[str, Path, Path]]) -> list[tuple[diarize.Analysis, float]]:
    found = []
    with Engine(device="cpu", models_dir=_models_dir()) as engine:
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


def _parts(rttm: Path, turns: list[Turn], duration: float) -> tuple[dict[str, float], int, int]:
    """Error components in seconds, and the number of speakers found and there are."""
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    reference, hypothesis = Annotation(), Annotation()
    for index, line in enumerate(rttm.read_text(encoding="utf-8").splitlines()):
        fields = line.split()
        reference[Segment(float(fields[3]), float(fields[3]) + float(fields[4])), index] = fields[7]
    for index, turn in enumerate(turns):
        hypothesis[Segment(turn.start, turn.end), index] = turn.speaker
    everything = Timeline([Segment(0.0, duration)])
    parts = metric(reference, hypothesis, uem=everything, detailed=True)
    return parts, len(hypothesis.labels()), len(reference.labels())


def _ours(
    recordings: list[tuple[str, Path, Path]],
    analyses: list[tuple[diarize.Analysis, float]],
    options: ClusteringOptions | None = None,
) -> list[tuple[dict[str, float], int, int]]:
    return [
        _parts(rttm, analysis.turns(analysis.speakers(SpeakerBounds(), options)), duration)
        for (_, _, rttm), (analysis, duration) in zip(recordings, analyses, strict=True)
    ]


def _pooled(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    listed = list(parts)
    return {key: sum(part[key] for part in listed) for key in (*ERRORS, "total")}


def _rate(parts: dict[str, float]) -> float:
    return sum(parts[key] for key in ERRORS) / parts["total"]


def _report(
    recordings: list[tuple[str, Path, Path]],
    analyses: list[tuple[diarize.Analysis, float]],
    stock: list[list[Turn]] | None,
) -> None:
    titles = f"{'recording':18} {'DER':>6} {'least':>6} {'missed':>7} {'false':>6} {'wrong':>6} {'speech':>7}"
    print(titles, " speakers  stock")
    ours = _ours(recordings, analyses)
    theirs = []
    for number, ((name, _, rttm), (parts, found, there)) in enumerate(zip(recordings, ours, strict=True)):
        beside = ""
        if stock is not None:
            theirs.append(_parts(rttm, stock[number], analyses[number][1])[0])
            beside = f"{_rate(theirs[-1]):.3f}"
        print(_row(name, parts), f" {found} of {there}   ", beside)
    print(_row("pooled", _pooled(parts for parts, _, _ in ours)), f"{_rate(_pooled(theirs)):18.3f}" if theirs else "")


def _row(name: str, parts: dict[str, float]) -> str:
    missed, false, wrong = (parts[key] for key in ERRORS)
    least = (missed + false) / parts["total"]
    return f"{name:18} {_rate(parts):6.3f} {least:6.3f} {missed:7.2f} {false:6.2f} {wrong:6.2f} {parts['total']:7.2f}"


def _vary(
    recordings: list[tuple[str, Path, Path]], analyses: list[tuple[diarize.Analysis, float]]
) -> list[list[dict[str, float]]]:
    """The error components of each recording with each setting."""
    tried: list[list[dict[str, float]]] = []
    for setting, values in SETTINGS.items():
        print(f"\n{setting:20}", *(f"{value!s:>10}" for value in values))
        for value in values:
            if setting.isupper():
                with mock.patch.object(activity, setting, value):
                    found = _ours(recordings, [(_afresh(analysis), duration) for analysis, duration in analyses])
            else:
                found = _ours(recordings, analyses, dataclasses.replace(ClusteringOptions(), **{setting: value}))
            tried.append([parts for parts, _, _ in found])
        print(f"{'pooled DER':20}", *(f"{_rate(_pooled(parts)):10.3f}" for parts in tried[-len(values) :]), flush=True)
    return tried


def _afresh(analysis: diarize.Analysis) -> diarize.Analysis:
    """The same analysis without what it has computed from the constants."""
    return dataclasses.replace(analysis, activity=dataclasses.replace(analysis.activity))


def _leave_out(tried: list[list[dict[str, float]]], sizes: list[int]) -> None:
    """Print the rates when every recording is measured with the setting that is best for the others."""
    count = len(tried[0])
    if count < 2:
        return
    left_out = []
    for number in range(count):
        best = min(tried, key=lambda parts: _rate(_pooled(parts[:number] + parts[number + 1 :])))
        left_out.append(best[number])
    groups = [left_out[sum(sizes[:number]) : sum(sizes[: number + 1])] for number in range(len(sizes))]
    rates = ", ".join(f"{_rate(_pooled(group)):.3f}" for group in groups)
    print(f"pooled DER, each recording with the best setting of all others: {rates}")


if __name__ == "__main__":
    main()
