"""Which engine gets a job: the one with the least audio before it, that has the job's model or can load it.

An engine whose machine lacks a model has to download it, which takes longer than most jobs: it gets such jobs when the
others are full. When its download has failed, it gets none while another engine can run them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Load", "Seat", "choose"]

# What a job costs besides its audio, and what loading a model costs, in seconds of audio. A CPU takes longer to load
# than a GPU and works slower, so the ratio is about the same.
JOB_SECONDS = 5.0
LOAD_SECONDS = 120.0


@dataclass
class Load:
    """A job that is placed on an engine, or waits for one.

    Attributes:
        call: number of the call.
        audio_seconds: length of the audio.
        model: name of the Whisper model.
        needs: what its models depend on.
        alone: whether the engine runs no other job meanwhile.
        fraction: share of the work that is done.
    """

    call: int
    audio_seconds: float
    model: str = ""
    needs: str = ""
    alone: bool = False
    fraction: float = 0.0

    @property
    def remaining(self) -> float:
        """Seconds of audio that remain."""
        return JOB_SECONDS + self.audio_seconds * (1.0 - self.fraction)


@dataclass(eq=False)
class Seat:
    """What the placement knows of an engine.

    Attributes:
        name: name of the engine.
        capacity: number of jobs that it runs at a time.
        open: whether it takes jobs.
        resident: names of the models in its memory.
        lacks: needs to the names of the models that its machine lacks for them, as far as they are known.
        unable: names of models whose download has failed here.
        loads: its jobs, by call.
        reserved: the call that waits until the engine is empty.
    """

    name: str
    capacity: int
    open: bool = True
    resident: frozenset[str] = frozenset()
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unable: set[str] = field(default_factory=set)
    loads: dict[int, Load] = field(default_factory=dict)
    reserved: int | None = None

    @property
    def queued(self) -> float:
        """Seconds of audio that its jobs have before them."""
        return sum(load.remaining for load in self.loads.values())

    def is_able(self, load: Load) -> bool:
        """Whether a job finds its models here, or can download them."""
        return self.unable.isdisjoint(self.lacks.get(load.needs, ()))

    def has_room(self, load: Load) -> bool:
        """Whether a job can begin here now."""
        if not self.open or self.reserved not in (None, load.call):
            return False
        if load.alone:
            return not self.loads
        return len(self.loads) < self.capacity and not any(each.alone for each in self.loads.values())


def choose(seats: Iterable[Seat], load: Load) -> Seat | None:
    """The engine for a job; None when it has to wait.

    A job that must be alone reserves an engine when none is empty: it gets no further jobs, and is free in a while.

    Args:
        seats: the engines.
        load: the job.
    """
    seats = [seat for seat in seats if seat.open]
    seats = [seat for seat in seats if seat.is_able(load)] or seats

    def cost(seat: Seat) -> tuple[int, float, str]:
        loading = 0.0 if not load.model or load.model in seat.resident else LOAD_SECONDS
        return len(seat.lacks.get(load.needs, ())), seat.queued + loading, seat.name

    free = [seat for seat in seats if seat.has_room(load)]
    if free:
        chosen = min(free, key=cost)
        for seat in seats:
            if seat.reserved == load.call:
                seat.reserved = None
        return chosen
    if load.alone and not any(seat.reserved == load.call for seat in seats):
        unreserved = [seat for seat in seats if seat.reserved is None]
        if unreserved:
            min(unreserved, key=cost).reserved = load.call
    return None
