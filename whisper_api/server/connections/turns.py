"""Whose received frames are worked on next."""

from __future__ import annotations

import asyncio
import heapq
import itertools

__all__ = ["Turns"]


class Turns:
    """Lets one connection in each round of the event loop work on received frames: the one with the fewest turns.

    Frames cost their sender next to nothing and the server a request each. Without turns, one round would work on the
    frames of all connections, so a flood on many connections would hold up every answer.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def wait(self, had: int) -> None:
        """Wait for a turn. It lasts for this round, so a connection that then waits for its client holds up no other.

        Args:
            had: turns that this connection has had.
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
