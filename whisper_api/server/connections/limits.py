"""How many connections and streams there may be, for each address and in all."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from dataclasses import dataclass

__all__ = ["Bounds", "Quota", "Slots", "raise_open_files"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The bounds of all connections of one server. Times are in seconds.

    Attributes:
        connections: open at a time.
        connections_per_address: of these, for one client address.
        reserved: connections above ``connections``, on which only health checks are answered.
        reserved_seconds: how long such a connection lives.
        streams_per_connection: requests that one HTTP/2 connection may have open at a time.
        shared_streams: open requests of all HTTP/2 connections, the first one of each connection not counted.
        shared_streams_per_address: of these, for one client address.
        head_seconds: from the first byte of a request's head to the last, and from the start of a connection to its
            first request.
        idle_seconds: without a request, after the first one.
        take_seconds: how long a client may take nothing of what is sent to it; see
            :class:`~whisper_api.server.connections.patience.Patience`.
        response_bytes: of response bodies that clients have not taken yet.
        response_bytes_per_address: of these, for one client address.
        linger_seconds: for which a connection still reads after the server has ended it, so that its client receives
            the last answer (RFC 9112, section 9.6).
    """

    connections: int
    connections_per_address: int
    reserved: int = 32
    reserved_seconds: float = 5.0
    streams_per_connection: int = 100
    shared_streams: int = 1000
    shared_streams_per_address: int = 500
    response_bytes: int = 64 << 20
    response_bytes_per_address: int = 32 << 20
    head_seconds: float = 30.0
    idle_seconds: float = 480.0
    take_seconds: float = 60.0
    linger_seconds: float = 2.0


class Quota:
    """How much of something is in use, by each holder and in all.

    Args:
        total: that may be in use.
        each: of the total, that one holder may use.
    """

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self.each = each
        self._used: Counter[str] = Counter()
        self._sum = 0

    def take(self, holder: str, amount: int = 1) -> bool:
        """Take some for a holder.

        Args:
            holder: who uses it.
            amount: how much.

        Returns:
            False when the share or the total would be exceeded; nothing is taken then.
        """
        if not self.fits(holder, amount):
            return False
        self._used[holder] += amount
        self._sum += amount
        return True

    def fits(self, holder: str, amount: int = 1) -> bool:
        """Whether a holder may take some. An amount above a bound is allowed where nothing else is in use.

        Args:
            holder: who would use it.
            amount: how much.
        """
        return not (self.exhausted(holder, amount) or (self._sum and self._sum + amount > self.total))

    def give_back(self, holder: str, amount: int = 1) -> None:
        """Give back what a holder has taken.

        Args:
            holder: whose.
            amount: how many.
        """
        self._sum -= amount
        self._used[holder] -= amount
        if not self._used[holder]:
            del self._used[holder]

    def exhausted(self, holder: str, amount: int = 1) -> bool:
        """Whether this much more would exceed a holder's share.

        Args:
            holder: who would use it.
            amount: how much.
        """
        used = self._used.get(holder, 0)
        return used > 0 and used + amount > self.each

    @property
    def used(self) -> int:
        """How many are in use."""
        return self._sum


class Slots:
    """The open requests of one HTTP/2 connection. The first is always allowed, further ones share a quota.

    Args:
        quota: of all connections.
        holder: the client address.
        most: requests of this connection.
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
        """Give back what is left when the connection ends: a task that was canceled before it began ended nothing."""
        while self.open:
            self.end()


def raise_open_files() -> int | None:
    """Raise the number of files that this process may have open to the hard limit (``RLIMIT_NOFILE``).

    Returns:
        That number; None where the system has no limit.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS refuses more than its own maximum, which the hard limit does not tell.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft
