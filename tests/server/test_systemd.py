"""The server as a service of systemd: its reports (sd_notify(3)) and the unit that is shipped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.conftest import Start
from server.harness import PATIENCE_SECONDS
from server.inside import on_a_loop
from whisper_api.server.systemd import Supervisor

UNIT = Path(__file__).parents[2] / "deploy/systemd/whisper-api.service"

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


def manager(address: str) -> socket.socket:
    """A socket that receives reports, as systemd's does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(PATIENCE_SECONDS)
    return sock


def test_a_server_reports_that_it_is_ready_that_it_lives_and_that_it_stops(
    start_server: Start, notify_socket: str
) -> None:
    with manager(notify_socket) as sock:
        environment = {"NOTIFY_SOCKET": notify_socket, "WATCHDOG_USEC": "200000"}
        server = start_server({"PRELOAD_MODELS": False}, environment=environment)
        assert [sock.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        server.stop()
        assert b"STOPPING=1" in iter(lambda: sock.recv(100), b"")


@on_a_loop
async def test_signs_of_life_do_not_wait_for_their_reader_and_end_with_the_server(notify_socket: str) -> None:
    with manager(notify_socket) as sock:
        with Supervisor({"NOTIFY_SOCKET": notify_socket, "WATCHDOG_USEC": "2000"}).watched():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0)
        sock.setblocking(False)
        # The system holds a few reports; more must not make the server wait.
        with contextlib.suppress(BlockingIOError):
            while True:
                assert sock.recv(100) == b"WATCHDOG=1"
        await asyncio.sleep(0.05)
        with pytest.raises(BlockingIOError):
            sock.recv(100)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid() + 1)},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "soon"},
    ],
    ids=["no manager", "gone", "watchdog of another process", "no number"],
)
@on_a_loop
async def test_reports_to_nobody_do_nothing(environment: dict[str, str]) -> None:
    supervisor = Supervisor(environment)
    with supervisor.watched():
        supervisor.report("READY=1")
        await asyncio.sleep(0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract sockets are Linux's")
def test_an_abstract_address_is_understood() -> None:
    name = f"whisper-api-test-{os.getpid()}"
    with manager(f"\0{name}") as sock:
        Supervisor({"NOTIFY_SOCKET": f"@{name}"}).report("READY=1", "STATUS=serving")
        assert sock.recv(100) == b"READY=1\nSTATUS=serving"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    # It checks that the program is there.
    text = UNIT.read_text(encoding="utf-8")
    assert "/opt/whisper-api/bin/whisper-api serve" in text
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/whisper-api/bin/whisper-api", sys.executable), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert complaints == []
