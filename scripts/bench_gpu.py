#!/usr/bin/env python3
"""Speed of this project and its peers on a GPU, with randomly initialised models of the original shapes.

    scripts/bench_gpu.py [--part turbo|hour|clients|align|sweep|all] [--shape NAME] [--device cuda:0] [--runs N]
                         [--models DIR] [--json FILE] [--plot FILE.png]

Every window of 30 s decodes the same number of tokens on every side, because the end of text is suppressed and the
length is fixed. So the times are comparable, and the texts have no meaning. The floor is the cost model's lower bound:
the arithmetic and memory reads of the model's shape divided by the measured speed of the device.

- turbo: recognition of many windows of 30 s, with half of --in-flight in each batch, beside whisperx resident and
  faster-whisper's BatchedInferencePipeline, which take batches of --in-flight.
- hour: one hour of telephone speech through all stages, compared with resident whisperx without diarization.
- clients: 32 clients with clips of 10 s, at once and one after the other; whisperx resident behind a lock.
- align: the alignment stage beside whisperx.align on the same random wav2vec 2.0 base.
- sweep: batch sizes, beams and lanes over the bare model.

Needs the package and a GPU; the models are made in a temporary directory (turbo takes 1.6 GB), or kept in --models.
``--device cpu --shape tiny --quick`` shows on any machine that all parts work. All parts take about 15 minutes on an
H100.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_floor import Ceiling, ceiling, wav2vec2_floor, whisper_floor
from gpu_gauge import require_cuda
from measuring import (
    Comparison,
    Pair,
    Report,
    Resident,
    Sample,
    arguments,
    needs,
    resident,
    take_turns,
)
from random_models import POSITIONS, SHAPES, make_models

OURS, WHISPERX, BATCHED = "whisper-api", "whisperx, resident", "BatchedInferencePipeline"
TARGET = "the target"
WINDOW = 30.0
PARTS = ("turbo", "hour", "clients", "align", "sweep")


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measurements.

    Attributes:
        windows: of 30 s, for recognition and alignment.
        seconds: of the long recording.
        clients: of the short ones.
        clip_seconds: of a short recording.
        segment_seconds: of a segment that is aligned.
        batches, lanes, beams: of the sweep.
    """

    windows: int = 384
    seconds: float = 3600.0
    clients: int = 32
    clip_seconds: float = 10.0
    segment_seconds: float = WINDOW
    batches: tuple[int, ...] = (1, 4, 16, 32, 64, 88)
    lanes: tuple[int, ...] = (1, 2)
    beams: tuple[int, ...] = (1, 5)


# CTranslate2's softmax counts the encoder's attention weights of a batch in 32 bits; beyond that results are wrong.
MOST_WEIGHTS = 2**32 - 1

QUICK = Sizes(1, 8.0, 2, 2.0, 6.0, (1, 2), (1,), (1,))


class Bench:
    """Shared state of the parts.

    Args:
        options: of the command line.
        report: takes the tables.
        models: the models directory.
        best: what the device does.
    """

    def __init__(self, options: Any, report: Report, models: Path, best: Ceiling) -> None:
        self.options = options
        self.report = report
        self.sizes = QUICK if options.quick else Sizes()
        self.best = best
        self.shape = SHAPES[options.model]
        # The targets apply to a GPU and a complete measurement.
        self.aims = options.device != "cpu" and not options.quick
        compute_type = options.compute_type or ("int8" if options.device == "cpu" else "float16")
        self.setting = {
            "models": str(models),
            "whisper": options.model,
            "device": options.device,
            "compute_type": compute_type,
            "tokens": options.tokens,
            "beam": options.beam,
        }

    def side(self, stack: contextlib.ExitStack, function: str, *, batch: int = 1, **settings: Any) -> Resident:
        """Start the process of a side, and wait until it is ready."""
        setting = {**self.setting, "batch": batch, **settings}
        return stack.enter_context(resident(f"gpu_sides:{function}", **setting))

    def turns(self, sides: Mapping[str, Callable[[], Sample]], floor: float | None = None) -> dict[str, list[Sample]]:
        """Run the sides in turn, and add the share of the floor."""
        samples = take_turns(sides, self.options.runs, discard=0 if self.options.quick else 1)
        for found in samples.values():
            for run in found:
                if floor is not None:
                    run.values["of the floor"] = floor / run.wall
        return samples

    def floor(self, windows: float, batch: int) -> float:
        """Least seconds for the recognition of a number of windows."""
        return windows * whisper_floor(
            self.shape, self.best, tokens=self.options.tokens, batch=batch, beam=self.options.beam
        )

    def target(self, samples: dict[str, list[Sample]], wall: float, ours: str = OURS) -> list[Pair]:
        """A row with a target time, and the comparison with it."""
        if not self.aims:
            return []
        samples[TARGET] = [Sample(wall)]
        return [Pair(ours, TARGET, "wall", 1.0)]

    def pair(self, peer: str, first: float, ours: str = OURS) -> Pair:
        """A ratio of wall times, with the target for a GPU."""
        return Pair(ours, peer, "wall", first if self.aims else None)

    @property
    def peers(self) -> bool:
        """Peers are measured too."""
        return not self.options.no_peers


def turbo(bench: Bench) -> None:
    """Many windows of 30 s."""
    windows, flight = bench.sizes.windows, bench.options.in_flight
    with contextlib.ExitStack() as stack:
        ours = bench.side(stack, "ours", batch=max(1, flight // 2), windows=windows)
        sides = {OURS: ours.run}
        if bench.peers:
            sides[WHISPERX] = bench.side(stack, "whisperx", batch=flight, windows=windows).run
            sides[BATCHED] = bench.side(stack, "batched", batch=flight, windows=windows).run
        samples = bench.turns(sides, bench.floor(windows, flight))
    pairs = [bench.pair(WHISPERX, 3.0), bench.pair(BATCHED, 1.25)]
    pairs += bench.target(samples, windows * WINDOW / 1500)
    title = f"{windows} windows of 30 s, {flight} in flight, beam {bench.options.beam}"
    bench.report.add(Comparison(title, samples, pairs, notes=[_tokens(bench)]))


def hour(bench: Bench) -> None:
    """A long recording through all stages."""
    seconds, batch = bench.sizes.seconds, max(1, bench.options.in_flight // 2)
    with contextlib.ExitStack() as stack:
        sides = {OURS: bench.side(stack, "ours_hour", batch=batch, seconds=seconds).run}
        if bench.peers:
            peer = f"{WHISPERX}, no diarization"
            sides[peer] = bench.side(stack, "whisperx_hour", batch=batch, seconds=seconds).run
        least = bench.floor(seconds / WINDOW, batch) + wav2vec2_floor(bench.best, seconds)
        samples = bench.turns(sides, least)
    pairs = bench.target(samples, 12.0)
    note = (
        "The windows are each side's own, so the numbers of tokens differ; the floor is that of recognition and "
        "alignment. The embeddings are random: how many speakers are found means nothing."
    )
    bench.report.add(Comparison(f"{seconds:.0f} s through all stages", samples, pairs, notes=[_tokens(bench), note]))


def clients(bench: Bench) -> None:
    """Short recordings, at once and one after the other."""
    count, batch = bench.sizes.clients, max(1, bench.options.in_flight // 2)
    at_once, alone = f"{OURS}, at once", f"{OURS}, one at a time"
    sizes: dict[str, Any] = {"clients": count, "seconds": bench.sizes.clip_seconds}
    with contextlib.ExitStack() as stack:
        ours = bench.side(stack, "ours_clients", batch=batch, **sizes)
        sides = {alone: lambda: ours.run(at_once=False), at_once: lambda: ours.run(at_once=True)}
        if bench.peers:
            sides[WHISPERX] = bench.side(stack, "whisperx_clients", batch=batch, **sizes).run
        samples = bench.turns(sides)
    pairs = [bench.pair(alone, 6.0, at_once), Pair(at_once, WHISPERX, "wall")]
    title = f"{count} clients with {bench.sizes.clip_seconds:.0f} s each, beam {bench.options.beam}"
    bench.report.add(Comparison(title, samples, pairs, notes=[_tokens(bench)]))


def align(bench: Bench) -> None:
    """The alignment stage."""
    count, seconds = bench.sizes.windows, bench.sizes.segment_seconds
    with contextlib.ExitStack() as stack:
        sides = {OURS: bench.side(stack, "ours_align", segments=count, seconds=seconds).run}
        if bench.peers:
            theirs = bench.side(stack, "whisperx_align", segments=count, seconds=seconds)
            sides["whisperx.align"] = theirs.run
        samples = bench.turns(sides, wav2vec2_floor(bench.best, count * seconds))
    pairs = [bench.pair("whisperx.align", 10.0)]
    title = f"alignment of {count} segments of {seconds:.0f} s, 100 words in 30 s"
    bench.report.add(Comparison(title, samples, pairs))


def sweep(bench: Bench) -> None:
    """Batch sizes over the bare model."""
    sizes = bench.sizes
    with contextlib.ExitStack() as stack:
        bare = bench.side(stack, "sweep", batch=max(sizes.batches))
        sides: dict[str, Callable[[], Sample]] = {}
        for beam in sizes.beams:
            for lanes in sizes.lanes:
                for batch in sizes.batches:
                    name = f"beam {beam}, {lanes} at once, batches of {batch}"
                    sides[name] = _bare(bare, beam=beam, lanes=lanes, batch=batch)
        samples = bench.turns(sides)
    for name, runs in samples.items():
        batch, beam = int(name.rpartition(" ")[2]), int(name.split()[1].rstrip(","))
        floor = whisper_floor(bench.shape, bench.best, tokens=bench.options.tokens, batch=batch, beam=beam)
        for run in runs:
            run.values["ms a window"] = 1000 * run.wall / max(1.0, run.values["windows"])
            run.values["of the floor"] = floor * run.values["windows"] / run.wall
    bench.report.add(Comparison("the bare model, from samples to tokens", samples, notes=[_tokens(bench)]))


def _bare(side: Resident, **job: int) -> Callable[[], Sample]:
    return lambda: side.run(rounds=1 if job["batch"] >= 64 else 2, **job)


def _tokens(bench: Bench) -> str:
    return f"Each window decodes {bench.options.tokens} tokens."


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--part", default="all", choices=(*PARTS, "all"))
    parser.add_argument("--shape", dest="model", choices=(*SHAPES, "turbo"), help="the same as --model")
    parser.add_argument("--device", default="auto", help="cpu or cuda:<index>; the first GPU where there is one")
    parser.add_argument("--compute-type", help="float16 on a GPU, int8 on a CPU")
    parser.add_argument("--tokens", type=int, help="of each window; 100, with --quick 8")
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=64, help="windows")
    parser.add_argument("--models", type=Path, metavar="DIR", help="make the models there, and use those that are")
    parser.set_defaults(model="large-v3-turbo")
    options = needs.parsed(parser, needs.WHISPERX)
    options.model = "large-v3-turbo" if options.model == "turbo" else options.model
    most = MOST_WEIGHTS // (SHAPES[options.model].heads * POSITIONS**2)
    if options.in_flight > most:
        parser.error(f"--in-flight: CTranslate2 takes at most {most} windows of this model in a batch")
    options.tokens = options.tokens or (8 if options.quick else 100)
    options.runs = 1 if options.quick else options.runs
    options.device = _device(options.device)
    require_cuda(options.device)
    report = Report("gpu", options, gpus=_gpus())
    best = ceiling(options.device, quick=options.quick)
    print(f"{options.device}: {best}\n", flush=True)
    if options.device == "cpu":
        print("A CPU: this shows that the parts work, and says nothing about a GPU.\n", flush=True)
    report.note("ceiling", vars(best))
    with contextlib.ExitStack() as stack:
        models = options.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (models / "whisper" / options.model / "tokenizer.json").exists():
            make_models(models, options.model)
        bench = Bench(options, report, models, best)
        for name in PARTS if options.part == "all" else (options.part,):
            {"turbo": turbo, "hour": hour, "clients": clients, "align": align, "sweep": sweep}[name](bench)
    return report.finish()


def _device(name: str) -> str:
    from whisper_api.engine.worker.device import choose_device
    from whisper_api.errors import DeviceUnavailable

    try:
        device = choose_device(name)
    except DeviceUnavailable as error:
        raise SystemExit(str(error)) from None
    if name == "auto" and device.kind == "cpu":
        raise SystemExit("there is no CUDA device here; --device cpu --shape tiny --quick shows that the parts work")
    return device.torch_name


def _gpus() -> Iterable[str]:
    """The report of nvidia-smi on each GPU; empty without nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,power.limit", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        return [line.strip() for line in found.splitlines() if line.strip()]
    return []


if __name__ == "__main__":
    sys.exit(main())
