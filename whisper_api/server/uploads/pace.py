"""The least pace of a request's body.

A client that sends a few bytes a second would occupy a connection, a file and a turn for as long as it likes. A client
on a bad line is silent for half a minute and goes on. The pace distinguishes the two: every byte earns the sender time,
and waiting for bytes spends that time.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

from whisper_api.server.responses.problems import Problem

# Longer than the silence of a mobile client that changes its cell.
WINDOW_SECONDS = 60.0
# A pause of the whole process (a stopped machine, a busy event loop) counts as no more than one step of waiting.
STEP_SECONDS = 5.0


@dataclass(frozen=True)
class PaceRules:
    """The least pace of a body.

    Attributes:
        window_seconds: time over which the rate is measured, and longest silence of the sender.
        bytes_per_second: least rate; 0 for any rate, so that any byte ends a silence.
        seconds: longest time for the whole body.
    """

    window_seconds: float
    bytes_per_second: float = 0.0
    seconds: float = math.inf


def pace_rules(silent_seconds: float, bytes_per_second: float, seconds: float = math.inf) -> PaceRules:
    """The least pace of a body for values of the configuration.

    Args:
        silent_seconds: longest silence of the sender.
        bytes_per_second: least rate; 0 for any rate.
        seconds: longest time for the whole body.
    """
    window = min(silent_seconds, WINDOW_SECONDS) if bytes_per_second else silent_seconds
    return PaceRules(window, bytes_per_second, seconds)


class Pace:
    """Measures the pace of one body with a token bucket (RFC 2697) of seconds.

    The bucket begins full, with ``window_seconds``. Waiting drains the bucket, and each byte adds
    ``1 / bytes_per_second``. After T seconds of waiting, the sender has therefore sent at least
    ``bytes_per_second * (T - window_seconds)`` bytes. Only time that is spent in :meth:`wait` or passed to
    :meth:`waited` counts: the sender loses nothing while the server writes, or does not read for another reason.

    Args:
        rules: the least pace.
    """

    def __init__(self, rules: PaceRules) -> None:
        self._rules = rules
        self._patience = rules.window_seconds
        self._left = rules.seconds

    @property
    def left(self) -> float:
        """Seconds within which the next byte must arrive; 0 or less when the sender is too slow."""
        return min(self._patience, self._left)

    def waited(self, seconds: float) -> None:
        """Count a time of waiting for the sender."""
        self._patience -= seconds
        self._left -= seconds

    def came(self, count: int) -> None:
        """Count bytes that have arrived."""
        rate = self._rules.bytes_per_second
        earned = count / rate if rate else self._rules.window_seconds * bool(count)
        self._patience = min(self._rules.window_seconds, self._patience + earned)

    async def wait(self, message: asyncio.Task[Any]) -> None:
        """Wait for the next message of a body; a timeout does not cancel the task.

        Args:
            message: a task that is done when the message has arrived.

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
