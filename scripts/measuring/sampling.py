"""Samples: one run of one side, and the turns that the sides take."""

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
    """One run of one side.

    Attributes:
        wall: seconds, 0 when unknown.
        cpu: CPU-seconds of the side's processes, 0 when unknown.
        peak_mb: peak resident memory of the side's processes, 0 when unknown.
        values: figures of the run, told in the table as medians: ``words``, ``tokens``, ``errors``, ``DER`` ...
        text: what was heard, when that is what the side gives.
        kept: what else came back; it goes into the record and no further.
        load: the machine's load average over one minute.
        others: CPUs' share that processes of neither side used meanwhile, 0 to 1; None where that cannot be told.
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
    """Measure what is done while open.

    Args:
        pids: processes that do the work and stay, counted with their descendants. This process is not counted, nor are
            its own children that end meanwhile: it only asks.

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
    """Tells, from its making on, what share of the CPUs other processes use."""

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
        sides: name to what runs it once.
        runs: how often each side is run and kept.
        discard: how many rounds come before these and are not kept; they fill caches.
        progress: say on standard error what each run took.

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
    """The median of ``wall``, ``cpu``, ``peak_mb`` or one of the values; None when no sample has it."""
    # A zero is what was not measured.
    found = [getattr(one, what) or None if what in FIGURES else one.values.get(what) for one in samples]
    known = [value for value in found if value is not None]
    return statistics.median(known) if known else None
