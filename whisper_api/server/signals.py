"""The signals of the process: SIGTERM and SIGINT stop the server, SIGHUP has it read its configuration again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Asked:
    """A request to the server, which any thread and a signal handler may make.

    Attributes:
        asked: whether the request was made; the one who waits may set it back.
    """

    def __init__(self) -> None:
        self.asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def ask(self) -> None:
        """Make the request."""
        # Without a lock, because the code that a signal interrupts might hold it.
        self.asked = True
        loop, event = self._loop, self._event
        if loop is not None and event is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        """Wait until the request is made; return at once when it was made before."""
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if not self.asked:
            await self._event.wait()


@contextlib.contextmanager
def signals_handled(stop: Asked, reload: Asked | None) -> Iterator[None]:
    """While open, signals make requests: the first one stops the server, and the second ends the process.

    Only in the main thread.

    Args:
        stop: the request to stop.
        reload: the request to read the configuration again, for SIGHUP; None leaves SIGHUP alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        if stop.asked:
            os._exit(128 + number)
        stop.ask()

    handlers: dict[int, Any] = {
        number: end for name in ("SIGINT", "SIGTERM", "SIGBREAK") if (number := getattr(signal, name, None))
    }
    if reload is not None and hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = _on_hangup(end, reload)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_hangup(end: Callable[[int, object], None], reload: Asked) -> Callable[[int, object], None]:
    """A handler of SIGHUP, which the system also sends when the terminal of a process closes."""
    # nohup ignores the signal, so that the program outlives its terminal.
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    had_terminal = not outlives and _has_terminal()

    def handle(number: int, frame: object) -> None:
        if had_terminal and not _has_terminal():
            end(number, frame)
        else:
            reload.ask()

    return handle


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
