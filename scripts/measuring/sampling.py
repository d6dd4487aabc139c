"""Samples: measurements of single runs, and runs of several sides in turn."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from measuring.machine import busy_seconds, own_seconds, reset_peak, usage_of

FIGURES = ("wall", "cpu", "peak_mb")


@dataclass
class Sample:
    """The figures of a run.

    Attributes:
        wall: seconds, 0 when unknown.
        cpu: CPU-seconds of the side's processes, 0 when unknown.
        peak_mb: peak resident memory of the side's processes, 0 when unknown.
        values: further figures; the table has their medians: ``words``, ``tokens``, ``errors``, ``DER`` ...
        text: the transcript; None for a side without a transcript.
        kept: further values for the record only.
        load: the machine's load average over one minute.
        others: share of the CPUs that other processes used during the run, 0 to 1; None when unknown.
    """

    wall: float = 0.0
    cpu: float = 0.0
    peak_mb: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    text: str | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    load: float = 0.0
    others: float | None = None


@contextlib.contextmanager
def sample(pids: Iterable[int] = ()) -> Iterator[Sample]:
    """Measure the work of processes during the ``with`` block.

    Args:
        pids: running processes that do the work; their descendants are included. This process and its children that
            end in the block are not included.

    Yields:
        The sample; its figures stand when it closes.
    """
    found = Sample()
    pids = list(pids)
    for pid in pids:
        reset_peak(pid)
    watch = Watch()
    before, _ = usage_of(pids) if pids else (0.0, 0.0)
    begun = time.perf_counter()
    yield found
    found.wall = time.perf_counter() - begun
    if pids:
        after, found.peak_mb = usage_of(pids)
        found.cpu = after - before
    watch.note(found)


class Watch:
    """Measures the share of the CPUs that other processes use."""

    def __init__(self) -> None:
        self._busy, self._own, self._begun = busy_seconds(), own_seconds(), time.perf_counter()

    def note(self, found: Sample, *, ended: bool = False) -> None:
        """Write the load and the others' share into a sample whose CPU-seconds are known.

        Args:
            found: the sample.
            ended: whether it was a child of this process that has ended, and so is counted with this process.
        """
        found.load = os.getloadavg()[0]
        busy, elapsed = busy_seconds(), time.perf_counter() - self._begun
        if busy is not None and self._busy is not None and elapsed > 0:
            own = own_seconds() - self._own
            used = (busy - self._busy - own - (0.0 if ended else found.cpu)) / (elapsed * (os.cpu_count() or 1))
            found.others = min(1.0, max(0.0, used))


def take_turns(
    sides: Mapping[str, Callable[[], Sample]], runs: int, *, discard: int = 1, progress: bool = True
) -> dict[str, list[Sample]]:
    """Run the sides in turn: A, B, A, B.

    Args:
        sides: name to the function that runs the side once.
        runs: number of measured runs of each side.
        discard: number of earlier rounds without a measurement, which fill caches.
        progress: whether to print the time of each run on standard error.

    Returns:
        Side to its kept samples.
    """
    kept: dict[str, list[Sample]] = {name: [] for name in sides}
    for number in range(discard + runs):
        for name, run in sides.items():
            found = run()
            if number >= discard:
                kept[name].append(found)
            if progress:
                which = f"run {number - discard + 1} of {runs}" if number >= discard else "not kept"
                print(f"  {name}, {which}: {found.wall:.2f} s, {found.cpu:.2f} CPU-s", file=sys.stderr, flush=True)
    return kept


def median(samples: Sequence[Sample], what: str) -> float | None:
    """The median of ``wall``, ``cpu``, ``peak_mb`` or one of the values; None when no sample has the figure."""
    # A zero means that the figure was not measured.
    found = [getattr(one, what) or None if what in FIGURES else one.values.get(what) for one in samples]
    known = [value for value in found if value is not None]
    return statistics.median(known) if known else None
