"""Bounds on a client: shares of connections, streams and memory, time to read a response, turns to send frames."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter

# A client that reads more slowly is cut off. Other servers have about the same: Kestrel's MinResponseDataRate is 240.
LEAST_BYTES_PER_SECOND = 256


class Quota:
    """Counts amounts in use, for each holder and in total.

    An amount above a bound is allowed while nothing else is in use.

    Args:
        total: greatest amount of all holders.
        each: greatest amount of one holder.
    """

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self.each = each
        self._used: Counter[str] = Counter()
        self._sum = 0

    def take(self, holder: str, amount: int = 1) -> bool:
        """Take an amount for a holder.

        Args:
            holder: the user of the amount.
            amount: the amount.

        Returns:
            False when the share or the total would be exceeded; nothing is taken then.
        """
        if not self.fits(holder, amount):
            return False
        self._used[holder] += amount
        self._sum += amount
        return True

    def fits(self, holder: str, amount: int = 1) -> bool:
        """Whether a holder may take an amount.

        Args:
            holder: the user of the amount.
            amount: the amount.
        """
        return not (self.exhausted(holder, amount) or (self._sum and self._sum + amount > self.total))

    def exhausted(self, holder: str, amount: int = 1) -> bool:
        """Whether a further amount would exceed a holder's share.

        Args:
            holder: the user of the amount.
            amount: the amount.
        """
        used = self._used.get(holder, 0)
        return used > 0 and used + amount > self.each

    def give_back(self, holder: str, amount: int = 1) -> None:
        """Give back an amount that a holder has taken.

        Args:
            holder: the user of the amount.
            amount: the amount.
        """
        self._sum -= amount
        self._used[holder] -= amount
        if not self._used[holder]:
            del self._used[holder]

    @property
    def used(self) -> int:
        """The amount that is in use in total."""
        return self._sum


class StreamSlots:
    """The open requests of one HTTP/2 connection. The first is always allowed, further requests share a quota.

    Args:
        quota: the quota of all connections.
        holder: the client address.
        most: most requests of this connection.
    """

    def __init__(self, quota: Quota, holder: str, most: int) -> None:
        self.open = 0
        self._quota = quota
        self._holder = holder
        self._most = most

    def begin(self) -> bool:
        """Count a request that begins; False when there may be no more."""
        if self.open >= self._most or (self.open and not self._quota.take(self._holder)):
            return False
        self.open += 1
        return True

    def end(self) -> None:
        """Count a request that has ended."""
        self.open -= 1
        if self.open:
            self._quota.give_back(self._holder)

    def close(self) -> None:
        """End all requests with their connection: a task that is canceled before it begins does not call ``end``."""
        while self.open:
            self.end()


class ProgressDeadline:
    """The time that a client has left to take the bytes that wait for it.

    The time runs down while bytes wait. Every 256 bytes that the client takes add a second, up to the full time.
    Therefore a client that takes nothing is cut off after ``seconds``, a client that takes a byte now and then is cut
    off soon after, and a client that takes 256 bytes a second is never cut off.

    Args:
        seconds: the full time.
        now: the current time, of any clock in seconds.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._left = seconds
        self._checked = now
        self._taken = 0

    def is_over(self, now: float, taken: int, waiting: bool) -> bool:
        """Check the deadline. The time between two calls does not matter.

        Args:
            now: the current time.
            taken: bytes that the client has taken so far.
            waiting: whether more bytes wait for the client.

        Returns:
            Whether the client is to be cut off.
        """
        earned = (taken - self._taken) / LEAST_BYTES_PER_SECOND
        passed = now - self._checked
        self._taken, self._checked = taken, now
        self._left = min(self._seconds, self._left - passed + earned) if waiting else self._seconds
        return self._left <= 0


class FrameTurns:
    """Lets a single connection process frames in each round of the event loop: that with the fewest turns before.

    A frame costs its sender next to nothing, and may cost the server a whole request. Without turns, one round would
    process the frames of all connections, so a flood on many connections would delay every response.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def wait(self, had: int) -> None:
        """Wait for a turn. The turn ends with this round, so a connection that waits for its client delays no other.

        Args:
            had: number of turns of this connection before.
        """
        loop = asyncio.get_running_loop()
        if self._taken:
            turn = loop.create_future()
            heapq.heappush(self._waiting, (had, next(self._numbers), turn))
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        self._taken = True
        loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False
