"""How slowly a request's body may come.

A client that sends a few bytes a second holds a connection, a file and a turn for as long as it likes. A client on a
bad line falls silent for half a minute and goes on. The pace tells the two apart: every byte earns the sender time, and
waiting for bytes spends that time.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

from whisper_api.server.responses.problems import Problem

__all__ = ["WINDOW_SECONDS", "Pace", "PaceRules", "pace_rules"]

# Longer than the silences of a mobile client that changes its cell.
WINDOW_SECONDS = 60.0
# A pause of the whole process (a stopped machine, a busy event loop) counts as one step of waiting, not more.
STEP_SECONDS = 5.0


@dataclass(frozen=True)
class PaceRules:
    """How slowly a body may come.

    Attributes:
        window_seconds: over which the rate is measured; a sender may be silent for so long.
        bytes_per_second: the least rate; 0 for none, and then any byte ends a silence.
        seconds: that the whole body may take.
    """

    window_seconds: float
    bytes_per_second: float = 0.0
    seconds: float = math.inf


def pace_rules(silent_seconds: float, bytes_per_second: float, seconds: float = math.inf) -> PaceRules:
    """How slowly a body may come, as the configuration says.

    Args:
        silent_seconds: that a sender may be silent.
        bytes_per_second: the least rate; 0 for none.
        seconds: that the whole body may take.
    """
    window = min(silent_seconds, WINDOW_SECONDS) if bytes_per_second else silent_seconds
    return PaceRules(window, bytes_per_second, seconds)


class Pace:
    """Measures one body as it comes: a token bucket (RFC 2697) that holds seconds.

    The bucket is full at the beginning and holds ``window_seconds``. Waiting drains it; each byte adds
    ``1 / bytes_per_second``. So a sender that is waited for during T seconds has sent at least
    ``bytes_per_second * (T - window_seconds)`` bytes. Only the time spent in :meth:`wait`, or told to :meth:`waited`,
    counts: while the server writes what has come, or does not read for another reason, the sender loses nothing.

    Args:
        rules: how slowly the body may come.
    """

    def __init__(self, rules: PaceRules) -> None:
        self._rules = rules
        self._patience = rules.window_seconds
        self._left = rules.seconds

    @property
    def left(self) -> float:
        """Seconds that the next byte may take; 0 or less when the sender is too slow."""
        return min(self._patience, self._left)

    def waited(self, seconds: float) -> None:
        """Note how long the sender was waited for."""
        self._patience -= seconds
        self._left -= seconds

    def came(self, count: int) -> None:
        """Note that bytes have come."""
        rate = self._rules.bytes_per_second
        earned = count / rate if rate else self._rules.window_seconds * bool(count)
        self._patience = min(self._rules.window_seconds, self._patience + earned)

    async def wait(self, message: asyncio.Task[Any]) -> None:
        """Wait for the next message of a body; the task is not canceled when it does not come.

        Args:
            message: done when the message is there.

        Raises:
            Problem: 408 ``slow_sender``.
        """
        clock = asyncio.get_running_loop().time
        while not message.done():
            step = min(STEP_SECONDS, self.left)
            if step <= 0:
                raise self._too_slow()
            begun = clock()
            await asyncio.wait({message}, timeout=step)
            self.waited(min(step, clock() - begun) if message.done() else step)

    def _too_slow(self) -> Problem:
        rules = self._rules
        if self._left <= 0:
            detail = f"The body has not come within {rules.seconds:g} seconds"
        elif rules.bytes_per_second:
            detail = (
                f"The body comes too slowly: fewer than {rules.bytes_per_second:g} bytes a second over "
                f"{rules.window_seconds:g} seconds"
            )
        else:
            detail = f"No byte came for {rules.window_seconds:g} seconds"
        return Problem(408, "slow_sender", detail, {"Connection": "close"})
