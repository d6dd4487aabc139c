"""Ports for the servers that the scripts start."""

from __future__ import annotations

import contextlib
import random
import socket

__all__ = ["free_port"]

# Systems give connections ports from 32768 (Linux) or 49152 on: one of those may be taken before a server listens.
PORTS = range(10_000, 32_000)


def free_port() -> int:
    """A free TCP port of this machine."""
    chance = random.SystemRandom()
    while True:
        port = chance.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
