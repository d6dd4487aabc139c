#!/usr/bin/env python3
"""CPU-seconds of each stage, compared with the same stage of whisperx and of stock pyannote.

    scripts/bench_stages.py [--only NAME ...] [--runs N] [--audio DIR] [--json FILE] [--plot FILE.png]

decode: a recording as MP3 to samples. recognition: voice activity, features, encoder and decoder, each by itself; both
sides decode the same windows, with beam 5 and int8. alignment: the same segments, and one wav2vec 2.0 base of random
weights, so that word starts can be compared but mean nothing. diarization: the same two models, pyannote's pipeline
around them set up as its version 2.1; with --audio DIR also the files there that have an .rttm beside them; the error
rate has no collar and counts overlap.

Takes 15 minutes on two cores.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import peers
from measuring import (
    SHAPES,
    Ceilings,
    Comparison,
    Pair,
    Recording,
    Report,
    Resident,
    Sample,
    arguments,
    diarization_floor,
    heard,
    measured_ceilings,
    median,
    models_dir,
    needs,
    recording,
    resident,
    sample_call,
    take_turns,
    wav2vec2_floor,
    whisper_floor,
)

OURS, WHISPERX, PYANNOTE = "whisper-api", "whisperx", "pyannote, stock"
STAGES = ("decode", "recognition", "alignment", "diarization")
BEAM = 5


def main() -> int:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="of speech")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="NAME", help=", ".join(STAGES))
    options = needs.parsed(parser, needs.MODEL)
    # Diarization has another peer, and no words to count.
    of_words = set(options.only) - {"diarization"}
    if of_words:
        needs.require(parser, options, needs.WHISPERX, needs.FFMPEG)
    if "recognition" in options.only:
        needs.require(parser, options, needs.NORMALIZER)
    report = Report("stages", options)
    found = measured_ceilings()
    report.note("ceilings", vars(found))
    print(f"{found}\n", flush=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = (peers.with_alignment if of_words else peers.without_alignment)(folder / "models", models_dir())
        weights = models_dir() / "whisper" / options.model
        ours = stack.enter_context(resident("stage_sides:ours", models=str(models), model=options.model, beam=BEAM))
        theirs = None
        if not options.no_peers and of_words:
            aligner = str(peers.alignment_dir(models))
            theirs = stack.enter_context(
                resident("stage_sides:whisperx", weights=str(weights), align_dir=aligner, beam=BEAM)
            )
        bench = _Bench(report, options, found, folder, ours, theirs)
        for name in options.only:
            {"decode": bench.decode, "recognition": bench.recognition, "alignment": bench.alignment}.get(
                name, bench.diarization
            )()
    return report.finish()


class _Bench:
    def __init__(
        self,
        report: Report,
        options: Namespace,
        found: Ceilings,
        folder: Path,
        ours: Resident,
        theirs: Resident | None,
    ) -> None:
        self._report, self._options, self._found = report, options, found
        self._folder, self._ours, self._theirs = folder, ours, theirs
        self._weights = models_dir() / "whisper" / options.model
        self._audio: Recording = recording(folder, 35.0 if options.quick else options.seconds, options.audio)
        first = ours.run(stage="recognition", path=str(self._audio.path))
        # Both sides get our windows and our text.
        self._segments = folder / "segments.json"
        self._segments.write_text(json.dumps(first.kept["segments"]))
        self._speech = sum(segment["end"] - segment["start"] for segment in first.kept["segments"])

    def decode(self) -> None:
        path = write_mp3(self._audio.path, self._folder / "recording.mp3")
        samples = self._turns(lambda side: side.run(stage="decode", path=str(path)))
        self._add("decode: MP3 to samples", samples)

    def recognition(self) -> None:
        """Run four stages in one job, and make a table of the CPU-seconds of each stage."""

        def run(side: Resident) -> Sample:
            job = side.run(stage="recognition", path=str(self._audio.path), segments=str(self._segments))
            return heard(job, self._audio, self._weights)

        samples = self._turns(run)
        tokens = median(samples[OURS], "tokens") or 0.0
        floors = whisper_floor(SHAPES[self._options.model], self._found, seconds=self._speech, tokens=tokens, beam=BEAM)
        for part, title in PARTS.items():
            split = {name: [only(run, part) for run in runs] for name, runs in samples.items()}
            if all(one is not None for runs in split.values() for one in runs):
                known = {name: [one for one in runs if one is not None] for name, runs in split.items()}
                floor = {OURS: floors[part]} if part in floors else {}
                self._add(title, known, floors=floor)
        self._add("recognition, all of it", samples, floors={OURS: sum(floors.values())})

    def alignment(self) -> None:
        job = {"stage": "alignment", "path": str(self._audio.path), "segments": str(self._segments)}
        samples = self._turns(lambda side: side.run(**job))
        notes = []
        if WHISPERX in samples:
            notes.append(starts_apart(samples[OURS][-1], samples[WHISPERX][-1]))
        floor = {OURS: wav2vec2_floor(self._found, self._speech)}
        self._add("alignment", samples, (2, 3), floor, notes)

    def diarization(self) -> None:
        files = [beginning(self._folder, sample_call(), 12.0) if self._options.quick else sample_call()]
        if self._options.audio and not self._options.quick:
            files += sorted(path.with_suffix(".wav") for path in self._options.audio.glob("*.rttm"))
        paths = [str(path) for path in files]

        def judged(run: Sample) -> Sample:
            run.values |= error_rate(files, run.kept["turns"])
            return run

        sides = {OURS: lambda: judged(self._ours.run(stage="diarization", paths=paths))}
        with contextlib.ExitStack() as stack:
            if not self._options.no_peers:
                theirs = stack.enter_context(resident("stage_sides:pyannote", models=str(models_dir())))
                sides = {PYANNOTE: lambda: judged(theirs.run(paths=paths)), **sides}
            samples = take_turns(sides, self._options.runs, discard=0 if self._options.quick else 1)
        seconds = median(samples[OURS], "seconds of audio") or 0.0
        floors = {OURS: diarization_floor(self._found, seconds)}
        self._add("diarization", samples, (3, 6), floors)

    def _turns(self, run: Callable[[Resident], Sample]) -> dict[str, list[Sample]]:
        sides = {OURS: lambda: run(self._ours)}
        if self._theirs is not None:
            theirs = self._theirs
            sides = {WHISPERX: lambda: run(theirs), **sides}
        return take_turns(sides, self._options.runs)

    def _add(
        self,
        title: str,
        samples: dict[str, list[Sample]],
        wanted: tuple[float | None, float | None] = (None, None),
        floors: dict[str, float] | None = None,
        notes: list[str] | None = None,
    ) -> None:
        pairs = [Pair(OURS, name, "cpu", *wanted) for name in samples if name != OURS]
        title = f"{title} ({self._audio.seconds:.0f} s)" if not title.startswith("diarization") else title
        self._report.add(Comparison(title, samples, pairs, floors or {}, notes or []))


PARTS = {
    "vad": "voice activity detection",
    "mel": "mel features",
    "encoder": "encoder",
    "decoder": f"decoder and search, beam {BEAM}",
}


def only(run: Sample, part: str) -> Sample | None:
    """The CPU-seconds of a part of a job; None when the part was not measured separately."""
    seconds = run.kept.get("parts", {}).get(part)
    if seconds is None:
        return None
    values = {"tokens": run.values["tokens"]} if part == "decoder" else {}
    return Sample(cpu=seconds, values=values, load=run.load, others=run.others)


def starts_apart(ours: Sample, theirs: Sample) -> str:
    """A sentence on the distance between the word starts of both sides."""
    mine, other = ours.kept["words"], theirs.kept["words"]
    if [word for word, _ in mine] != [word for word, _ in other]:
        return f"The words are not the same: {len(mine)} here, {len(other)} there."
    apart = [abs(a - b) for (_, a), (_, b) in zip(mine, other, strict=True) if a is not None and b is not None]
    if not apart:
        return "No word has a time on both sides."
    frame = sum(seconds > 0.0205 for seconds in apart)
    return (
        f"Starts of {len(apart)} words: median difference {statistics.median(apart) * 1000:.0f} ms, "
        f"{sum(seconds > 0.0005 for seconds in apart)} differ, {frame} by more than a frame (20 ms)."
    )


def error_rate(files: list[Path], turns: dict[str, list[tuple[float, float, str]]]) -> dict[str, float]:
    """Diarization error rate over all files, and the length of their audio."""
    import wave

    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    total = 0.0
    for path in files:
        with wave.open(str(path)) as file:
            seconds = file.getnframes() / file.getframerate()
        reference, hypothesis = Annotation(), Annotation()
        for index, line in enumerate(path.with_suffix(".rttm").read_text(encoding="utf-8").splitlines()):
            fields = line.split()
            reference[Segment(float(fields[3]), float(fields[3]) + float(fields[4])), index] = fields[7]
        for index, (start, end, speaker) in enumerate(turns[str(path)]):
            hypothesis[Segment(start, end), index] = speaker
        metric(reference, hypothesis, uem=Timeline([Segment(0.0, seconds)]))
        total += seconds
    return {"DER %": 100 * abs(metric), "seconds of audio": total}


def beginning(folder: Path, call: Path, seconds: float) -> Path:
    """The first seconds of a recording, and the reference for them.

    Args:
        folder: where the copy goes.
        call: a WAV file with a reference beside it as .rttm.
        seconds: of the recording.
    """
    import wave

    path = folder / "beginning.wav"
    with wave.open(str(call)) as whole, wave.open(str(path), "wb") as copy:
        copy.setparams(whole.getparams())
        copy.writeframes(whole.readframes(int(seconds * whole.getframerate())))
    # The error rate counts only turns within the recording.
    shutil.copyfile(call.with_suffix(".rttm"), path.with_suffix(".rttm"))
    return path


def write_mp3(source: Path, path: Path) -> Path:
    """A recording as MP3."""
    import av
    import numpy as np
    from faster_whisper.audio import decode_audio

    samples: Any = (np.clip(decode_audio(str(source)), -1, 1) * 32767).astype(np.int16)[None]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        for begin in range(0, samples.shape[1], 1 << 16):
            frame = av.AudioFrame.from_ndarray(samples[:, begin : begin + (1 << 16)], format="s16p", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    sys.exit(main())
