"""Empties a machine of the cluster: its engines end their jobs and take no others, then Ray ends on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from whisper_api.errors import ConfigError

# Of Ray's reasons, the one that a machine accepts while it works.
PREEMPTION = 2
ALIVE = 0
LOOK_SECONDS = 0.5
ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class Machine:
    """A machine of a cluster.

    Attributes:
        node_id: Ray's id.
        host: its host name.
        address: its address.
        alive: whether it belongs to the cluster now.
    """

    node_id: str
    host: str
    address: str
    alive: bool

    def is_called(self, name: str) -> bool:
        """Whether people mean this machine: by host name, address, id, or name in the status."""
        host, _, digits = name.partition("/")
        return name in (self.host, self.address) or (
            (host in ("", self.host) if digits else True)
            and len(digits or name) >= 6
            and self.node_id.startswith(digits or name)
        )


def machines(address: str) -> list[Machine]:
    """The machines of a cluster, also those that have left.

    Args:
        address: host and port of the head.

    Raises:
        ConfigError: nothing answers there.
    """
    try:
        found = _client(address).get_all_node_info(timeout=ANSWER_SECONDS)
    except Exception as error:
        raise ConfigError(f"RAY_ADDRESS {address}: nothing answers ({type(error).__name__})") from error
    return [
        Machine(node_id.hex(), info.node_manager_hostname, info.node_manager_address, info.state == ALIVE)
        for node_id, info in found.items()
    ]


def drain(address: str, name: str, wait_seconds: float, tell: Callable[[str], None]) -> bool:
    """Empty a machine, and wait until it has left the cluster.

    Args:
        address: host and port of the head.
        name: host name, address or id of the machine.
        wait_seconds: how long to wait.
        tell: receives sentences about what happens.

    Returns:
        Whether the machine has left.

    Raises:
        ConfigError: nothing answers, or the name is not that of exactly one machine.
    """
    alive = [machine for machine in machines(address) if machine.alive]
    meant = [machine for machine in alive if machine.is_called(name)]
    if len(meant) != 1:
        known = ", ".join(f"{each.host}/{each.node_id[:6]}" for each in alive)
        raise ConfigError(
            f"{name}: {'several machines have' if meant else 'no machine has'} this name; there are {known}"
        )
    machine = meant[0]
    accepted, reason = _client(address).drain_node(machine.node_id, PREEMPTION, "whisper-api cluster drain", 0)
    if not accepted:
        raise ConfigError(f"{name}: Ray refuses: {reason}")
    tell(f"{machine.host} takes no more jobs; waiting until its jobs have ended")
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline:
        if not any(each.alive and each.node_id == machine.node_id for each in machines(address)):
            tell(f"{machine.host} has left the cluster")
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _client(address: str) -> Any:
    # Ray has no public way to drain a machine; its own command `ray drain-node` does the same.
    return import_module("ray._raylet").GcsClient(address=address)
