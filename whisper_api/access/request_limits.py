"""How many requests a key may send, and how often an address may fail to authenticate."""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from whisper_api.access.limit_values import Rate, Standing, parse_quota, parse_rate, rate_policy
from whisper_api.config import Config
from whisper_api.errors import ConfigError, InvalidOption, RateLimited
from whisper_api.store.rows import Key

_rates = functools.lru_cache(maxsize=1024)(parse_rate)


class RequestLimits:
    """The rate limits of a server. All methods must run on the same event loop.

    Args:
        config: the limits of keys without a limit of their own, and of failed authentication.
        clock: monotonic seconds.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._windows = MovingWindows(clock)
        # Separate from the windows of keys, because strangers choose the number of addresses.
        self._failures = MovingWindows(clock)
        # Ids of keys that have authenticated since the start.
        self._good: set[str] = set()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Use the limits of a configuration from now on. Earlier requests still count.

        Raises:
            ConfigError: a limit cannot be read.
        """
        check_limits(config)
        self._default = _rates(config.rate_limit or "")
        self._failure_rates = _rates(config.auth_failure_limit or "")

    def rates_of(self, key: Key) -> tuple[Rate, ...]:
        """The limits of a key: its own, or else those of the configuration."""
        return self._default if key.rate is None else _rates(key.rate)

    def count(self, key: Key) -> tuple[Standing, ...]:
        """Count a request of a key.

        Returns:
            The limits of the key; empty without limits.

        Raises:
            RateLimited: a limit does not allow the request.
        """
        rates = self.rates_of(key)
        wait = self._windows.hit(key.key_id, rates) if rates else 0.0
        if wait > 0:
            violated = [rate for rate in rates if not self._windows.left(key.key_id, rate)[0]]
            limits = " and ".join(f"{rate.requests} requests in {rate.seconds} seconds" for rate in violated)
            raise RateLimited(
                f"This key may send {limits}: send the request again after {math.ceil(wait)} seconds",
                wait,
                tuple(rate_policy(rate) for rate in violated),
            )
        return self.standings(key)

    def standings(self, key: Key) -> tuple[Standing, ...]:
        """The rate limits of a key, and what is left of them. Counts nothing."""
        return tuple(_standing(rate, *self._windows.left(key.key_id, rate)) for rate in self.rates_of(key))

    @property
    def has_failures(self) -> bool:
        """Whether a request had a wrong key since the start; until then no address need be checked."""
        return len(self._failures) > 0

    def check_attempt(self, address: str, key_id: str) -> None:
        """Refuse an attempt to authenticate from an address with too many failures, before the database is asked.

        A key that has authenticated before is not refused, so a client with a wrong key does not lock out others that
        share its address.

        Args:
            address: network of the client; empty when it is unknown, which is never limited.
            key_id: id of the key that the request names; empty when it names none.

        Raises:
            RateLimited: too many requests of this address had wrong keys.
        """
        if address and key_id not in self._good:
            wait = self._failures.wait(address, self._failure_rates)
            if wait > 0:
                policies = tuple(f"failures-{rate_policy(rate)}" for rate in self._failure_rates)
                raise RateLimited(
                    "Too many requests from this address had a wrong key: try again with the right one after "
                    f"{math.ceil(wait)} seconds",
                    wait,
                    policies,
                )

    def note_success(self, key_id: str) -> None:
        """Note that a key has authenticated."""
        self._good.add(key_id)

    def note_failure(self, address: str) -> None:
        """Count a request with a wrong key.

        Args:
            address: network of the client; empty when it is unknown.
        """
        if address:
            self._failures.hit(address, self._failure_rates)


def check_limits(config: Config) -> None:
    """Check that the limits of a configuration can be read.

    Raises:
        ConfigError: one of them cannot be read.
    """
    name = "WHISPER_RATE_LIMIT"
    try:
        parse_rate(config.rate_limit or "")
        name = "WHISPER_AUTH_FAILURE_LIMIT"
        parse_rate(config.auth_failure_limit or "")
        name = "WHISPER_QUOTA"
        parse_quota(config.quota or "")
    except InvalidOption as error:
        raise ConfigError(f"{name}: {str(error).partition(': ')[2]}") from None


def _standing(rate: Rate, remaining: int, reset_seconds: float) -> Standing:
    return Standing(
        policy=rate_policy(rate),
        limit=rate.requests,
        window_seconds=rate.seconds,
        remaining=remaining,
        reset_seconds=math.ceil(reset_seconds),
    )


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
