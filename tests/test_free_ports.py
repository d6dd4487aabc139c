"""A port that a test or a script has chosen stays its own before its server listens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from unittest import mock

import free_ports
import pytest
from conftest import REPOSITORY

ASK = "import sys; sys.path.insert(0, 'scripts'); import free_ports; free_ports.PORTS = {}; {}"


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """The only ports there are."""
    names: list[int] = []
    with mock.patch.object(free_ports, "_names", names):
        found = [free_ports.free_port() for _ in range(6)]
        close(names)
        with mock.patch.object(free_ports, "PORTS", found):
            yield found
        close(names)


def close(names: list[int]) -> None:
    while names:
        os.close(names.pop())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that end with a process")
def test_no_process_gets_a_port_that_another_one_holds(ports: list[int]) -> None:
    held = {free_ports.free_port() for _ in range(4)}
    assert len(held) == 4
    code = ASK.format(ports, "print(free_ports.free_port(), free_ports.free_port())")
    other = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rest = {int(port) for port in other.stdout.split()}
    assert len(rest) == 2
    assert held.isdisjoint(rest)
    # It has ended, so its ports are free again.
    assert {free_ports.free_port(), free_ports.free_port()} == set(ports) - held
