"""Reports to systemd that the server is ready, that it stops, and that its event loop still runs.

Source: sd_notify(3) and systemd.service(5), ``Type=notify`` and ``WatchdogSec``. The protocol is one datagram for each
report, so no library is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator, Mapping


class Supervisor:
    """The service manager that has started this process, if any; else every report does nothing.

    Args:
        environment: variables of the process; NOTIFY_SOCKET names the manager's socket, and WATCHDOG_USEC the time in
            which it expects a sign of life.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "0") if mine else "0"
        self._watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0

    def report(self, *lines: str) -> None:
        """Send a report.

        Args:
            lines: assignments such as ``READY=1``.
        """
        if not self._address:
            return
        # The address of an abstract socket begins with a zero byte, for which @ stands.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        # A manager that has gone, or that does not read, must not stop the server.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(address)
            sock.sendall("\n".join(lines).encode())

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While open, send signs of life from the running event loop: a loop that hangs sends none."""
        if not (self._address and self._watchdog_seconds):
            yield
            return
        task = asyncio.get_running_loop().create_task(self._send_signs())
        try:
            yield
        finally:
            task.cancel()

    async def _send_signs(self) -> None:
        while True:
            self.report("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / 2)
