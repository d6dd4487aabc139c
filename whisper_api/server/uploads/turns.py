"""Shares of one caller, so that there is room for other callers: turns to be at work, and bytes on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from starlette.types import Scope

from whisper_api.server.sockets import network_of

__all__ = ["Amounts", "Turns", "client_network"]


@dataclass
class _Turn:
    semaphore: asyncio.Semaphore
    users: int = 0


class Turns:
    """Bounds how many requests of each caller are at work; more of the same caller wait. To be used on one event loop.

    Args:
        most: of each caller; 0 for no bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # Of the callers that have requests now.
        self._by_caller: dict[str, _Turn] = {}

    @contextlib.asynccontextmanager
    async def taken(self, caller: str, seconds: float) -> AsyncIterator[None]:
        """Wait for a turn and keep it while the ``with`` is open.

        Args:
            caller: whose turn it is; the empty string is nobody, and never waits.
            seconds: how long to wait at most.

        Raises:
            asyncio.TimeoutError: other requests of this caller hold all of its turns.
        """
        if not self._most or not caller:
            yield
            return
        turn = self._by_caller.setdefault(caller, _Turn(asyncio.Semaphore(self._most)))
        turn.users += 1
        try:
            await asyncio.wait_for(turn.semaphore.acquire(), seconds)
            try:
                yield
            finally:
                turn.semaphore.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._by_caller[caller]

    def __len__(self) -> int:
        """How many callers have requests now."""
        return len(self._by_caller)


class Amounts:
    """Bounds how much of something each caller has in use, in all of its requests together. Safe from any thread.

    Args:
        most: for each caller; 0 for no bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._used: Counter[str] = Counter()

    @contextlib.contextmanager
    def using(self, caller: str) -> Iterator[Callable[[int], bool]]:
        """Count what one request uses, until the ``with`` ends.

        Args:
            caller: whose request it is; the empty string is nobody, and has no bound.

        Yields:
            Takes some more, and says whether there was room for it.
        """
        used = 0

        def take(amount: int) -> bool:
            nonlocal used
            with self._lock:
                if self._most and caller and self._used[caller] + amount > self._most:
                    return False
                self._used[caller] += amount
                used += amount
                return True

        try:
            yield take
        finally:
            with self._lock:
                self._used[caller] -= used
                if not self._used[caller]:
                    del self._used[caller]


def client_network(scope: Scope) -> str:
    """The network that a request comes from, as :func:`network_of` names it; empty when there is no address."""
    client = scope.get("client")
    return network_of(str(client[0])) if client else ""
