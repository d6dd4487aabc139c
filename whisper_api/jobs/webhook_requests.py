"""The requests of webhook deliveries, each within a time. The body of a response is not read."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from whisper_api.outbound.connecting import Connector, ConnectRules
from whisper_api.outbound.urls import UrlRefused, path_of, target_of

__all__ = ["Answer", "WebhookRequests"]

log = logging.getLogger("whisper_api.jobs")

# A whole attempt, with the lookup of the name. No receiver needs longer to note an event.
ATTEMPT_SECONDS = 20.0
NO_ANSWER = "no answer: the address is not public, is not reached, or takes too long"
FAULT = "the server could not make the request; its log has the reason"


@dataclass(frozen=True)
class Answer:
    """The outcome of an attempt.

    Attributes:
        status: HTTP status; None without a response.
        retry_after: seconds that the receiver has asked to wait.
        sent: whether there was a request.
    """

    status: int | None = None
    retry_after: float = 0.0
    sent: bool = True

    @property
    def error(self) -> str | None:
        """Why the attempt failed; None when it has succeeded."""
        if self.status is None:
            # A single text for all requests, because differences would reveal the network.
            return NO_ANSWER if self.sent else FAULT
        if 200 <= self.status < 300:
            return None
        if 300 <= self.status < 400:
            return f"the receiver redirects ({self.status}), and redirects are not followed"
        return f"the receiver answered {self.status}"


class WebhookRequests:
    """Makes requests. Safe to use from any thread.

    Args:
        private_hosts: hosts whose addresses need not be public.
        clock: returns seconds since 1970.
    """

    def __init__(self, private_hosts: frozenset[str], clock: Callable[[], float]) -> None:
        self._seconds = ATTEMPT_SECONDS
        self._rules = ConnectRules(self._seconds, private_hosts)
        self._clock = clock
        self._closing = threading.Event()
        self._lock = threading.Lock()
        # Guarded by _lock; what makes a request to the time at which the request is broken off, in this order:
        self._connectors: dict[Connector, float] = {}
        self._watched = False

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a request, and wait for the head of the response.

        Args:
            url: the receiver's address.
            body: body of the request.
            headers: headers of the request.
        """
        connector = Connector(self._rules)
        self._begin(connector)
        try:
            if self._closing.is_set():
                return Answer()
            target = target_of(url)
            with connector.connected(target) as connection:
                connection.request("POST", path_of(target), body, dict(headers))
                response = connection.getresponse()
                return Answer(response.status, _seconds_in(response.getheader("Retry-After"), self._clock()))
        except (OSError, http.client.HTTPException, UrlRefused) as error:
            log.debug("a webhook was not answered: %s", error, extra={"delivery_id": headers.get("webhook-id")})
            return Answer()
        finally:
            with self._lock:
                self._connectors.pop(connector, None)

    def close(self) -> None:
        """Break off all requests, and make no other."""
        self._closing.set()
        with self._lock:
            connectors = list(self._connectors)
        for connector in connectors:
            connector.abort()

    def _begin(self, connector: Connector) -> None:
        """Limit the time of a request as a whole, since each read from a socket has a limit of its own only."""
        with self._lock:
            self._connectors[connector] = time.monotonic() + self._seconds
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, name="webhook-limit", daemon=True).start()

    def _watch(self) -> None:
        """Break off requests that take too long, in one thread for all requests. It ends when there are none.

        The thread need not hear of new requests: all of them may take the same time, so none ends before it looks.
        """
        pause = self._seconds
        while not self._closing.wait(pause):
            now = time.monotonic()
            with self._lock:
                late = [connector for connector, end in self._connectors.items() if end <= now]
                for connector in late:
                    del self._connectors[connector]
                if not self._connectors:
                    self._watched = False
                pause = next(iter(self._connectors.values()), now) - now
            for connector in late:
                connector.abort()
            if not pause:
                return


def _seconds_in(retry_after: str | None, now: float) -> float:
    """Seconds of the header Retry-After (RFC 9110, 10.2.3: a number or a date); 0 without it."""
    value = (retry_after or "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0
