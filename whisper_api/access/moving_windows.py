"""Rate limits over sliding windows: no interval of a window's length has more requests than the limit.

The times of requests are in memory, so a request costs microseconds and no access to the disk, and the windows are
empty after a restart. The library ``limits`` is not used: its storage starts a thread for nearly every request and
never forgets a name, and strangers choose the names of failed authentication.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from whisper_api.access.limit_values import Rate

__all__ = ["MovingWindows"]

# Most windows in memory. Beyond that, windows without a current request are removed, and then the oldest ones.
MOST_NAMES = 20_000
LEAST_SWEEP = 1_000


class MovingWindows:
    """The times of the allowed requests of each name. All methods must run in the same thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # (name, seconds of the window) to times, the oldest first. A changed limit keeps the requests before it.
        self._times: dict[tuple[str, int], deque[float]] = {}
        self._sweep_at = LEAST_SWEEP

    def hit(self, name: str, rates: Sequence[Rate]) -> float:
        """Count a request if all limits allow it. A refused request counts in no window.

        Args:
            name: who sends the request.
            rates: the limits.

        Returns:
            0 when the request is allowed; otherwise the seconds after which one is allowed again.
        """
        wait = self.wait(name, rates)
        if wait == 0.0:
            now = self._clock()
            for rate in rates:
                times = self._times.get((name, rate.seconds))
                if times is None:
                    if len(self._times) >= self._sweep_at:
                        self._sweep(now)
                    times = self._times[name, rate.seconds] = deque()
                times.append(now)
        return wait

    def wait(self, name: str, rates: Sequence[Rate]) -> float:
        """The seconds after which a request is allowed; 0 for now. Counts nothing.

        Args:
            name: who would send the request.
            rates: the limits.
        """
        now = self._clock()
        wait = 0.0
        for rate in rates:
            times = self._current(name, rate, now)
            if len(times) >= rate.requests:
                wait = max(wait, times[len(times) - rate.requests] + rate.seconds - now, 1e-3)
        return wait

    def left(self, name: str, rate: Rate) -> tuple[int, float]:
        """The requests that a limit still allows, and the seconds until it allows more.

        Args:
            name: who sends the requests.
            rate: the limit.
        """
        now = self._clock()
        times = self._current(name, rate, now)
        more = times[0] + rate.seconds - now if times else float(rate.seconds)
        return max(0, rate.requests - len(times)), more

    def __len__(self) -> int:
        """The number of windows in memory."""
        return len(self._times)

    def _current(self, name: str, rate: Rate, now: float) -> Sequence[float]:
        times = self._times.get((name, rate.seconds))
        if times is None:
            return ()
        while times and now - times[0] >= rate.seconds:
            times.popleft()
        return times

    def _sweep(self, now: float) -> None:
        for (name, seconds), times in list(self._times.items()):
            if not times or now - times[-1] >= seconds:
                del self._times[name, seconds]
        if len(self._times) >= MOST_NAMES:
            # Remove a quarter, so that a flood of new names does not cause a sweep for each of them.
            for window in list(self._times)[: MOST_NAMES // 4]:
                del self._times[window]
        self._sweep_at = min(MOST_NAMES, max(LEAST_SWEEP, 2 * len(self._times)))
