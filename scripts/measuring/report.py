"""Tables, records and plots of measurements."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from measuring.machine import Machine, machine
from measuring.sampling import Sample, median

MOST_OTHERS = 0.1
# Allowed excess over the peer's error rate in points, and the least number of words for the comparison.
MORE_ERRORS = {"WER %": 0.3, "DER %": 0.5}
FEW_WORDS = 300
UNIT = {"wall": "s", "cpu": "CPU-s"}


@dataclass(frozen=True)
class Pair:
    """A comparison of the medians of two sides, or of a side with a target.

    Attributes:
        ours, peer: names of the sides. Without a peer, the side's own figure is compared with the targets.
        by: the compared figure: ``wall``, ``cpu`` or one of the samples' values. The ratio is peer over ours.
        first, then: the first target of the ratio, and the next target; None for no target.
        lower: whether the target is an upper bound.
    """

    ours: str
    peer: str = ""
    by: str = "cpu"
    first: float | None = None
    then: float | None = None
    lower: bool = False

    def ratio(self, samples: dict[str, list[Sample]]) -> float | None:
        """Peer over ours, or ours over peer when lower is better; None when a side was not measured."""
        ours, peer = (median(samples.get(name, []), self.by) for name in (self.ours, self.peer))
        if not self.peer:
            return ours
        if not ours or not peer:
            return None
        return ours / peer if self.lower else peer / ours

    def __str__(self) -> str:
        """The two names, for messages."""
        return f"{self.ours} against {self.peer}" if self.peer else self.ours

    def met(self, ratio: float, wanted: float | None) -> bool:
        """The ratio meets the target."""
        return wanted is None or (ratio <= wanted if self.lower else ratio >= wanted)


@dataclass
class Comparison:
    """A table.

    Attributes:
        title: title of the table.
        samples: side to its samples, from :func:`~measuring.sampling.take_turns`.
        pairs: the comparisons.
        floors: side to the lower bound of its CPU-seconds.
        notes: sentences below the table, on skipped sides and common conditions.
    """

    title: str
    samples: dict[str, list[Sample]]
    pairs: Sequence[Pair] = ()
    floors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The tables as Markdown."""
        sides = {name: samples for name, samples in self.samples.items() if samples}
        named = list(dict.fromkeys(key for samples in sides.values() for one in samples for key in one.values))
        head = ["", "wall s", "CPU-s", "peak MB", *named, *(["of the floor"] if self.floors else [])]
        rows = []
        for name, samples in sides.items():
            row = [name, *(_figure(median(samples, what)) for what in ("wall", "cpu", "peak_mb", *named))]
            if self.floors:
                cpu, floor = median(samples, "cpu"), self.floors.get(name)
                row.append(f"{floor / cpu:.0%} of {_figure(floor)}" if cpu and floor else "")
            rows.append(row)
        text = f"### {self.title}\n\n{table(head, rows)}"
        compared = [(pair, ratio) for pair in self.pairs if (ratio := pair.ratio(self.samples)) is not None]
        if compared:
            ratios = [
                [pair.ours, pair.peer, UNIT.get(pair.by, pair.by), f"{ratio:.2f}", *_wanted(pair, ratio)]
                for pair, ratio in compared
            ]
            text += f"\n\n{table(['ours', 'peer', 'of', 'ratio', 'target', 'then'], ratios)}"
        busiest = max((one.others or 0.0 for samples in sides.values() for one in samples), default=0.0)
        notes = list(self.notes)
        if busiest > MOST_OTHERS:
            notes.append(
                f"WARNING: other processes used up to {busiest:.0%} of the CPUs during a run: trust CPU-seconds only."
            )
        loads = [one.load for samples in sides.values() for one in samples]
        if loads:
            notes.append(
                f"Load average {min(loads):.1f} to {max(loads):.1f}; others used up to {busiest:.0%} of the CPUs."
            )
        return text + "".join(f"\n\n{note}" for note in notes)

    def missed(self) -> list[str]:
        """Sentences about missed targets, and about more errors than the peer's."""
        return [*self._slow(), *self._wrong()]

    def _slow(self) -> Iterator[str]:
        for pair in self.pairs:
            ratio = pair.ratio(self.samples)
            if ratio is not None and pair.first and not pair.met(ratio, pair.first):
                yield f"{self.title}: {pair}: {ratio:.2f}, wanted {_sign(pair)} {pair.first:g}"

    def _wrong(self) -> Iterator[str]:
        for pair in self.pairs:
            for what, allowed in MORE_ERRORS.items():
                ours, peer = (median(self.samples.get(name, []), what) for name in (pair.ours, pair.peer))
                if ours is None or peer is None or ours - peer <= allowed + 1e-9:
                    continue
                # In a short clip, a single word changes the rate by several points.
                if all(run.kept.get("reference words", FEW_WORDS) >= FEW_WORDS for run in self.samples[pair.ours]):
                    found = f"{what} {ours:.1f}, the peer's {peer:.1f}"
                    yield f"{self.title}: {pair}: {found}: {allowed} points more are allowed"


class Report:
    """All tables of a script. Each table is printed at once; the record and the plot are written at the end.

    Args:
        name: name of the script, without ``bench_``.
        options: the parsed arguments of :func:`~measuring.options.arguments`.
        gpus: names of the CUDA devices in use.
    """

    def __init__(self, name: str, options: argparse.Namespace, gpus: Iterable[str] = ()) -> None:
        self._name = name
        self._options = options
        self._comparisons: list[Comparison] = []
        self._more: dict[str, Any] = {}
        self.machine: Machine = machine(gpus)
        print(f"## {name}\n\n{self.machine}; {options.runs} runs, medians\n", flush=True)

    def add(self, comparison: Comparison) -> None:
        """Print a table and keep it."""
        self._comparisons.append(comparison)
        print(f"{comparison}\n", flush=True)

    def note(self, key: str, value: Any) -> None:
        """Add a JSON value to the record."""
        self._more[key] = value

    def record(self) -> dict[str, Any]:
        """The machine and all tables as JSON values."""
        found = []
        for one in self._comparisons:
            pairs = [{**dataclasses.asdict(pair), "ratio": pair.ratio(one.samples)} for pair in one.pairs]
            samples = {name: [dataclasses.asdict(run) for run in runs] for name, runs in one.samples.items()}
            found.append(
                {"title": one.title, "pairs": pairs, "floors": one.floors, "notes": one.notes, "samples": samples}
            )
        options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self._options).items()}
        return {
            "name": self._name,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": dataclasses.asdict(self.machine),
            "options": options,
            **self._more,
            "comparisons": found,
        }

    def finish(self) -> int:
        """Print the missed targets, and write the files of --json and --plot.

        Returns:
            1 when a target was missed, else 0: the script's exit status.
        """
        missed = [line for comparison in self._comparisons for line in comparison.missed()]
        print("\n".join(f"MISSED: {line}" for line in missed) or "No target was missed.")
        if self._options.json:
            self._options.json.write_text(json.dumps(self.record(), indent=1) + "\n", encoding="utf-8")
        if self._options.plot:
            plot(self._comparisons, self._options.plot, str(self.machine))
        return 1 if missed else 0


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def plot(comparisons: Sequence[Comparison], path: Path, caption: str = "") -> None:
    """Draw the sides' medians and all samples of each comparison.

    Args:
        comparisons: the comparisons.
        path: path of the picture.
        caption: text below the picture.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None
    drawn = [one for one in comparisons if any(one.samples.values())]
    rows = sum(len(one.samples) + 1 for one in drawn)
    figure = Figure(figsize=(9, 0.9 + 0.45 * rows), layout="constrained")
    axes = figure.subplots(
        max(1, len(drawn)), squeeze=False, height_ratios=[len(one.samples) + 1 for one in drawn] or None
    )
    for one, ax in zip(drawn, axes[:, 0], strict=False):
        by = one.pairs[0].by if one.pairs else "cpu"
        sides = [name for name, samples in one.samples.items() if samples and median(samples, by) is not None]
        for place, name in enumerate(sides):
            ours = any(pair.ours == name for pair in one.pairs)
            middle = median(one.samples[name], by) or 0.0
            ax.barh(place, middle, color="tab:blue" if ours else "tab:gray", alpha=0.7)
            every = [value for run in one.samples[name] if (value := median([run], by)) is not None]
            ax.plot(every, [place] * len(every), "k|", markersize=9)
            best = max(
                (r for p in one.pairs if p.peer == name and p.by == by and (r := p.ratio(one.samples))), default=0
            )
            ax.annotate(f" {_figure(middle)}" + (f"  ({best:.1f}x)" if best else ""), (middle, place), va="center")
        ax.set_yticks(range(len(sides)), sides)
        ax.invert_yaxis()
        ax.margins(x=0.2)
        ax.set_xlim(left=0)
        ax.set_title(f"{one.title} [{UNIT.get(by, by)}]", fontsize=10, loc="left")
    if caption:
        figure.supxlabel(textwrap.fill(caption, 150), fontsize=6)
    figure.savefig(path, dpi=150)


def _wanted(pair: Pair, ratio: float) -> list[str]:
    cells = []
    for wanted in (pair.first, pair.then):
        mark = "" if wanted is None else "reached" if pair.met(ratio, wanted) else "MISSED"
        cells.append("" if wanted is None else f"{_sign(pair)} {wanted:g} {mark}")
    return cells


def _sign(pair: Pair) -> Literal["at most", "at least"]:
    return "at most" if pair.lower else "at least"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    if value == int(value) or value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
