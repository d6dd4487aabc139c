"""How long the server waits for a client that takes its answer slowly."""

from __future__ import annotations

__all__ = ["LEAST_BYTES_PER_SECOND", "Patience"]

# A client that takes less is cut off. Other servers have about the same: Kestrel's MinResponseDataRate is 240.
LEAST_BYTES_PER_SECOND = 256


class Patience:
    """The seconds that a client still has to take what waits for it.

    While something waits, the seconds run down; each 256 bytes that the client takes give one back, never more than
    there were at first. So a client that takes nothing is cut off after ``seconds``, one that takes a byte now and then
    soon after, and one that takes 256 bytes a second never. Nothing runs down while nothing waits.

    Args:
        seconds: at first.
        now: the time, of any clock in seconds.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._left = seconds
        self._looked = now
        self._taken = 0

    def spent(self, now: float, taken: int, waiting: bool) -> bool:
        """Look again, as often as one likes.

        Args:
            now: the time.
            taken: bytes that the client has taken so far.
            waiting: whether more bytes wait for the client.

        Returns:
            Whether the client is to be cut off.
        """
        given_back = (taken - self._taken) / LEAST_BYTES_PER_SECOND
        run_down = now - self._looked
        self._taken, self._looked = taken, now
        self._left = min(self._seconds, self._left - run_down + given_back) if waiting else self._seconds
        return self._left <= 0
