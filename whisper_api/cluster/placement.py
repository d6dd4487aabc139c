"""Where a cluster has engines, and which of them gets a job.

It is the one with the least audio before it, that has the job's model or can load it.
An engine whose machine lacks a model has to download it, which takes longer than most jobs: it gets such jobs when the
others are full. When its download has failed, it gets none while another engine can run them.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whisper_api.cluster.actor import EngineStatus
from whisper_api.jobs.executor import EngineFacts
from whisper_api.records import made_of

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


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        node_id: Ray's id of the machine.
        name: its host name or address; with ``/`` and the beginning of its id where others have the same.
        resources: resource to the amount that the machine offers.
    """

    node_id: str
    name: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Post:
    """A place for one engine.

    Attributes:
        node: the machine.
        number: number of the place on the machine.
        needs: resource to the amount that the engine takes.
    """

    node: Node
    number: int
    needs: Mapping[str, float]

    @property
    def name(self) -> str:
        """The engine's name, which stays the same when another machine of the same host name joins."""
        return f"{self.node.name.partition('/')[0]}-{self.node.node_id[:6]}-{self.number}"


def parse_resources(text: str | None) -> dict[str, float]:
    """The resources of ``WHISPER_WORKER_RESOURCES``: name to amount."""
    parts = (part.partition("=") for part in (text or "").split(",") if part.strip())
    return {name.strip(): float(amount) for name, _, amount in parts}


def posts(nodes: Sequence[Node], resources: Mapping[str, float], workers: int | None = None) -> list[Post]:
    """The places for engines, one machine after the other, so that few engines are spread over many machines.

    When one machine has a GPU or the resources name one, machines without a GPU get no engine; with ``GPU`` 0 in the
    resources, GPUs are not used.

    Args:
        nodes: the machines that take engines.
        resources: what an engine takes: ``CPU``, ``GPU`` and the cluster's own resources.
        workers: number of engines; None for as many as there is room for. More engines than room is left for wait for
            further machines; machines without GPUs take several.
    """
    nodes = sorted(nodes, key=lambda node: node.node_id)
    gpu = resources.get("GPU", 1.0)
    on_gpus = gpu > 0 and ("GPU" in resources or any(node.resources.get("GPU", 0) >= gpu for node in nodes))
    per_node: list[list[Post]] = []
    for node in nodes:
        needs = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU") and amount > 0}
        if on_gpus:
            needs["GPU"] = gpu
        if "CPU" in resources:
            needs["CPU"] = resources["CPU"]
        room = min(
            (math.floor(node.resources.get(name, 0) / need) for name, need in needs.items() if need), default=None
        )
        if room is None:
            # Nothing bounds the engines of a machine without GPU but the number of them that is asked for.
            room = 1 if workers is None else math.ceil(workers / len(nodes))
        if room and "CPU" not in resources:
            # Ray lets an actor compute with as many threads as it takes CPUs.
            needs["CPU"] = float(math.floor(node.resources.get("CPU", 0) / room))
        per_node.append([Post(node, number, needs) for number in range(room)])
    rounds = range(max(map(len, per_node), default=0))
    found = [row[number] for number in rounds for row in per_node if number < len(row)]
    return found[:workers]


# The speed of an engine is the mean of this time.
SPEED_SECONDS = 300.0


def difference(status: EngineStatus, version: str, revisions: dict[str, str]) -> str:
    """Why an engine must not be used beside the front and the other engines; empty when it may.

    Args:
        status: what the engine says of itself.
        version: the front's version.
        revisions: model to revision of the front and of the engines before; the engine's further models are added.
    """
    if status.version != version:
        return f"This machine has whisper-api {status.version}, the front has {version}"
    for name, revision in status.revisions.items():
        if revisions.setdefault(name, revision) != revision:
            return (
                f"This machine has revision {revision[:20]} of the model {name}, the others have "
                f"{revisions[name][:20]}: `whisper-api models pull {name}` on all of them"
            )
    return ""


@dataclass(eq=False)
class Engine:
    """An actor and what is known of it.

    Attributes:
        post: its place.
        actor: Ray's handle.
        seat: what the placement knows.
        status: its last status; None until it answers, and again when its process has ended.
        heard_at: when it answered last.
        question: the reference of the status that it was asked for.
        refusal: why it is not used.
        draining: whether it gets no further jobs and ends when it has none.
        done: times and lengths of the jobs that it has completed lately.
        audio_seconds: seconds of audio of all jobs that it has completed.
    """

    post: Post
    actor: Any
    seat: Seat
    status: EngineStatus | None = None
    heard_at: float = 0.0
    question: Any = None
    refusal: str = ""
    draining: bool = False
    done: collections.deque[tuple[float, float]] = field(default_factory=collections.deque)
    audio_seconds: float = 0.0

    def facts(self, now: float) -> EngineFacts:
        """What people see of it."""
        status = self.status or EngineStatus()
        while self.done and now - self.done[0][0] > SPEED_SECONDS:
            self.done.popleft()
        reason = self.refusal or status.failure
        return made_of(
            status,
            EngineFacts,
            name=self.post.name,
            node=self.post.node.name,
            state="refused"
            if self.refusal
            else "draining"
            if self.draining
            else "lost"
            if self.status is None and self.heard_at
            else "ready"
            if self.seat.open
            else "starting",
            reason=reason,
            running_jobs=len(self.seat.loads),
            queued_audio_seconds=round(self.seat.queued if self.seat.loads else 0.0, 1),
            resident_models=status.models,
            audio_seconds=round(self.audio_seconds, 1),
            audio_seconds_per_second=round(sum(seconds for _, seconds in self.done) / SPEED_SECONDS, 2),
        )
