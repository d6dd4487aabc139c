"""Bounds on one caller, so that other callers find room: requests at a time, and bytes on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from weakref import WeakValueDictionary

from starlette.types import Scope

from whisper_api.server.sockets import network_of


class Turns:
    """Bounds how many requests of each caller run at a time; further requests of the caller wait.

    All methods must run on the same event loop.

    Args:
        most: most requests of each caller; 0 for no bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # The requests of a caller keep its semaphore alive.
        self._by_caller: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def resize(self, most: int) -> None:
        """Change the bound for requests that begin now; those that run or wait keep theirs.

        Args:
            most: as for the constructor.
        """
        if most != self._most:
            self._most = most
            self._by_caller = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def taken(self, caller: str, seconds: float) -> AsyncIterator[None]:
        """Wait for a turn and keep it while the ``with`` is open.

        Args:
            caller: the caller; the empty string stands for an unknown caller, who never waits.
            seconds: longest time to wait.

        Raises:
            asyncio.TimeoutError: other requests of this caller hold all of its turns.
        """
        if not self._most or not caller:
            yield
            return
        semaphore = self._by_caller.setdefault(caller, asyncio.Semaphore(self._most))
        await asyncio.wait_for(semaphore.acquire(), seconds)
        try:
            yield
        finally:
            semaphore.release()

    def __len__(self) -> int:
        """The number of callers that have requests now."""
        return len(self._by_caller)


class Amounts:
    """Bounds an amount that each caller uses in all of its requests together. Any thread may call the methods.

    Args:
        most: greatest amount of each caller; 0 for no bound.

    Attributes:
        most: may be changed at any time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._used: Counter[str] = Counter()

    @contextlib.contextmanager
    def using(self, caller: str) -> Iterator[Callable[[int], bool]]:
        """Count the amount that one request uses, until the ``with`` ends.

        Args:
            caller: the caller; the empty string stands for an unknown caller, who has no bound.

        Yields:
            A function that takes a further amount, and returns False when the bound does not allow it.
        """
        used = 0

        def take(amount: int) -> bool:
            nonlocal used
            with self._lock:
                if self.most and caller and self._used[caller] + amount > self.most:
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
    """The network of a request's client, as :func:`network_of` names it; empty without an address."""
    client = scope.get("client")
    return network_of(str(client[0])) if client else ""
