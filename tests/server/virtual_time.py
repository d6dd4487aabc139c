"""An event loop on which waiting takes no time: a test of what happens after minutes ends at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

__all__ = ["Inline", "run_at_once"]

T = TypeVar("T")


class Inline(Executor):
    """Does everything when it is submitted: threads know nothing of a clock that does not tick for them."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Selector(selectors.DefaultSelector):
    """Moves the clock instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(None if timeout is None else 0)
        if not events and timeout:
            self.now += timeout
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; whenever nothing else is to be done, its next timer is due."""
    loop = _Loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
