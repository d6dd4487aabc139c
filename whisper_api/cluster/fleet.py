"""Where engines belong: one on each GPU of the machines, or one on each machine where there is no GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Node", "Post", "parse_resources", "posts"]


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
