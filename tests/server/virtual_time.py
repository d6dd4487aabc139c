"""An event loop on which waiting takes no time, so that a test of minutes ends at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

__all__ = ["Inline", "VirtualLoop", "run_at_once"]

T = TypeVar("T")


class Inline(Executor):
    """Runs each call when it is submitted, since a thread would not wait for the clock of the loop."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Selector(selectors.DefaultSelector):
    """Moves the clock where a selector would wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(None if timeout is None else 0)
        if not events and timeout:
            self.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that moves its clock to the next timer as soon as nothing else is to be done."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def skip(self, seconds: float) -> None:
        """Move the clock, as when the machine was asleep."""
        self._clock.now += seconds


def run_at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a :class:`VirtualLoop`."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
