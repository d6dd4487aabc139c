#!/usr/bin/env python3
"""Proves or refutes, on a machine with a GPU, what the code for a GPU promises, in ten minutes.

    scripts/gpu_acceptance.py [--device cuda:0] [--minutes 10] [--only NAME ...] [--report PATH] [--models DIR]

Needs the package with its development dependencies, and no weights: it makes random models of the original shapes,
whose windows decode a fixed number of tokens. Word times are compared with Whisper base from the package index where it
can be had. Writes PATH.md and PATH.json, and exits with 1 when a bound is not met.

Each probe runs in a process of its own with a time limit, so what crashes or hangs is a row of the report. When the
minutes are spent, the other probes are skipped and named. ``--device cpu --tiny`` runs everything with the smallest
shapes: it shows that the probes work, and says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from acceptance.conditions import Conditions
from acceptance.rows import Row, read
from acceptance.speed import POOL, SHARED_POOL, TORCH_POOL
from measuring import machine, needs
from measuring.children import SCRIPTS, environment

MINUTES = 10.0
# Seconds for a probe that hangs to write the stacks of its threads, and lines of its output in the report.
ABORT_SECONDS = 5.0
LOG_LINES = 25


@dataclass(frozen=True)
class Probe:
    """A probe.

    Attributes:
        name: for --only.
        function: ``module:function`` in the folder of the scripts.
        seconds: its time limit in a run of ten minutes.
        variables: environment variables of its process.
    """

    name: str
    function: str
    seconds: float = 60.0
    variables: Mapping[str, str] = field(default_factory=dict)


# The quick probes and those that tell most come first, because the time may run out before the last ones.
PROBES = (
    # The driver may have to compile kernels.
    Probe("machine", "acceptance.machine:devices", 240),
    Probe("models", "acceptance.machine:models"),
    Probe("tests", "acceptance.machine:tests", 150),
    Probe("word-times", "acceptance.numerics:word_times"),
    Probe("encoders", "acceptance.numerics:encoders"),
    Probe("lanes", "acceptance.numerics:lanes"),
    Probe("wav2vec2", "acceptance.numerics:wav2vec2"),
    Probe("tf32", "acceptance.numerics:tf32"),
    Probe("out-of-memory", "acceptance.memory:out_of_memory"),
    Probe("eviction", "acceptance.memory:eviction"),
    Probe("assert", "acceptance.faults:device_assert", 120),
    Probe("gpus", "acceptance.faults:several_gpus"),
    Probe("turbo", "acceptance.throughput:turbo", 120),
    Probe("clients", "acceptance.throughput:clients", 150),
    Probe("hour", "acceptance.throughput:hour", 150),
    Probe("align", "acceptance.throughput:align", 120),
    Probe("large", "acceptance.throughput:large", 150),
    # With its own allocator, torch holds nothing of the pool that is measured.
    Probe("bytes", "acceptance.memory:row_bytes", 120, {POOL: TORCH_POOL}),
    Probe("speed, torch's allocator", "acceptance.speed:encoder_and_decoder", 90, {POOL: TORCH_POOL}),
    Probe("speed, shared pool", "acceptance.speed:encoder_and_decoder", 90, {POOL: SHARED_POOL}),
)


@dataclass(frozen=True)
class Outcome:
    """What a probe has found.

    Attributes:
        probe: its name.
        seconds: how long it ran.
        rows: of the report.
        log: the end of its output, when it did not end by itself.
    """

    probe: str
    seconds: float
    rows: list[Row]
    log: str = ""


def main() -> int:
    names = [probe.name for probe in PROBES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:<index> or cpu")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="wall-clock budget")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--report", type=Path, default=Path("gpu-acceptance"), metavar="PATH", help="without suffix")
    parser.add_argument("--models", type=Path, metavar="DIR", help="make random models there, and use those that are")
    parser.add_argument("--tiny", action="store_true", help="the smallest shapes: to see that it works")
    options = needs.parsed(parser, needs.WHISPERX)
    if options.device == "cuda":
        options.device = "cuda:0"
    if options.device != "cpu":
        _check(parser, options.device)
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        models = options.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        share = options.minutes / MINUTES
        conditions = Conditions(options.device, str(models.absolute()), options.tiny, share)
        outcomes = []
        for probe in PROBES:
            if probe.name not in options.only:
                continue
            left = 60 * options.minutes - (time.perf_counter() - begun)
            outcomes.append(run(probe, conditions, min(left, probe.seconds * max(1.0, share))))
            _tell(outcomes[-1])
    seconds = time.perf_counter() - begun
    report(options.report, conditions, outcomes, seconds)
    counts = Counter(row.verdict for outcome in outcomes for row in outcome.rows)
    found = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
    print(f"\n{seconds:.0f} s: {found}. The report: {options.report}.md and .json")
    return 1 if counts["fail"] else 0


def _check(parser: argparse.ArgumentParser, device: str) -> None:
    """Exit with status 2 where there is no such GPU. A GPU that exists but cannot be used is for the report."""
    import ctranslate2

    kind, _, index = device.partition(":")
    if kind != "cuda" or not index.isdecimal():
        parser.error(f"--device: {device} is neither cpu nor cuda:<index>")
    if int(index) >= ctranslate2.get_cuda_device_count():
        parser.error("there is no such CUDA device here; --device cpu --tiny shows that the probes work")


def run(probe: Probe, conditions: Conditions, seconds: float) -> Outcome:
    """Run a probe in a process of its own.

    Args:
        probe: the probe.
        conditions: device, sizes and models.
        seconds: the time limit; at most 0 when the budget is spent.

    Returns:
        Its rows. A crash, an error and a hang give a row that fails.
    """
    if seconds <= 0:
        reason = f"the budget is spent; --only {json.dumps(probe.name)} runs it"
        return Outcome(probe.name, 0.0, [Row("the probe", "", reason, "skipped")])
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        rows, log = Path(directory) / "rows", Path(directory) / "log"
        code = "from acceptance.child import main; main()"
        command = [sys.executable, "-c", code, probe.function, json.dumps(asdict(conditions)), str(rows)]
        paths = os.pathsep.join(filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH"))))
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=environment(**{**probe.variables, "PYTHONPATH": paths}),
                start_new_session=True,
            )
        try:
            ended = f"ended with status {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            ended = f"did not end within {seconds:.0f} s"
            # The child's fault handler writes where each thread is.
            process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ABORT_SECONDS)
        finally:
            # The sides and servers of the probe too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found, is_complete = read(rows)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = "" if is_complete else "\n".join(lines[-LOG_LINES:])
    if not is_complete:
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        found.append(Row("the probe", "ends by itself", f"{ended}: {reason}"[:500], "fail"))
    return Outcome(probe.name, time.perf_counter() - begun, found, last)


def _tell(outcome: Outcome) -> None:
    print(f"{outcome.probe} ({outcome.seconds:.1f} s)", flush=True)
    for row in outcome.rows:
        expected = f" (expected: {row.expected})" if row.expected else ""
        print(f"  {row.verdict:8} {row.what}: {row.found}{expected}", flush=True)


def report(path: Path, conditions: Conditions, outcomes: Sequence[Outcome], seconds: float) -> None:
    """Write the report as Markdown and JSON.

    Args:
        path: of the two files, without suffix.
        conditions: of the run.
        outcomes: of the probes.
        seconds: of the run.
    """
    here = machine()
    when = time.strftime("%Y-%m-%d %H:%M")
    described: dict[str, Any] = {"date": when, "machine": asdict(here), "conditions": asdict(conditions)}
    described |= {"seconds": seconds, "probes": [asdict(outcome) for outcome in outcomes]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    lines = ["# GPU acceptance", "", f"{when}, {conditions.device}, {seconds:.0f} s. {here}", ""]
    if not conditions.is_gpu or conditions.tiny:
        lines += ["This run shows that the probes work. It says nothing about a GPU.", ""]
    rows = [(outcome.probe, row) for outcome in outcomes for row in outcome.rows]
    if failed := [(name, row) for name, row in rows if row.verdict == "fail"]:
        lines += ["## Probes with unexpected results", "", *_table(failed), ""]
    for outcome in outcomes:
        lines += [f"## {outcome.probe} ({outcome.seconds:.0f} s)", "", *_table([("", row) for row in outcome.rows]), ""]
        if outcome.log:
            lines += ["```", outcome.log.replace("```", "'''"), "```", ""]
    path.with_name(f"{path.name}.md").write_text("\n".join(lines), encoding="utf-8")


def _table(rows: Sequence[tuple[str, Row]]) -> list[str]:
    lines = ["| what | expected | found | verdict |", "|---|---|---|---|"]
    for probe, row in rows:
        cells = (f"{probe}: {row.what}" if probe else row.what, row.expected, row.found, row.verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
