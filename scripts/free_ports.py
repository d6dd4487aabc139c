"""Ports for the servers that the scripts and the tests start."""

from __future__ import annotations

import contextlib
import random
import socket
import sys

__all__ = ["free_port"]

# Systems give connections ports from 32768 (Linux) or 49152 on: one of those may be taken before a server listens.
PORTS = range(10_000, 32_000)
# Descriptors that hold the names of the ports that this process has given out. Until this process ends, free_port()
# returns none of them to another process, whether a server listens by then or not.
_names: list[int] = []


def free_port() -> int:
    """Find a free TCP port of this machine. No other caller of this function gets the port while this process runs."""
    chance = random.SystemRandom()
    while True:
        port = chance.choice(PORTS)
        with contextlib.suppress(OSError):
            _reserve(port)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
            return port


def _reserve(port: int) -> None:
    """Take the port's name in the abstract namespace of Linux, which a process loses when it ends.

    Raises:
        OSError: the port is given out.
    """
    if sys.platform != "linux":
        return
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0whisper-api-port-{port}")
    except OSError:
        name.close()
        raise
    _names.append(name.detach())
