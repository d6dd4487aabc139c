"""Webhook deliveries: their bodies, and their requests, each within a time, on connections that are kept for a while.

A new connection costs more than the request, and with TLS much more.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult

import msgspec
from msgspec import UNSET
from msgspec.structs import replace
from urllib3.util.wait import wait_for_read

from whisper_api.formats import rendered
from whisper_api.job_values import JobResult, job_result
from whisper_api.jobs.corrections import corrected
from whisper_api.outbound.connecting import Connector, ConnectRules
from whisper_api.outbound.urls import UrlRefused, path_of, target_of
from whisper_api.records import rfc3339
from whisper_api.store.deliveries import EVENT_OF, Delivery
from whisper_api.store.jobs import JobStore
from whisper_api.webhooks import WebhookData, WebhookEvent

log = logging.getLogger("whisper_api.jobs")

# A whole attempt, with the lookup of the name. No receiver needs longer to note an event.
ATTEMPT_SECONDS = 20.0
# An idle connection is kept for so long, and so many of them. Many servers close theirs after five seconds or more.
KEEP_SECONDS = 30.0
MOST_KEPT = 16
# The connection of a response with a longer body is closed, and the body is not read.
MOST_BODY_BYTES = 16 << 10
NO_ANSWER = "no answer: the address is not public, is not reached, or takes too long"
FAULT = "the server could not make the request; its log has the reason"


@dataclass
class _Line:
    """A connection.

    Attributes:
        connector: has made the connection, and breaks it off.
        connection: the connection; None before the first request.
        closing: closes the connection.
        until: when a kept connection is closed.
    """

    connector: Connector
    connection: http.client.HTTPConnection | None = None
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    until: float = 0.0


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
        # Scheme and host to an idle connection.
        self._kept: dict[tuple[str, str], _Line] = {}

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a request, and wait for the head of the response.

        Args:
            url: the receiver's address.
            body: body of the request.
            headers: headers of the request.
        """
        answer: Answer | None = None
        try:
            target = target_of(url)
            kept = self._taken(target)
            # A receiver may close a connection at the moment of the request. The request is then sent again.
            answer = None if kept is None else self._on(kept, target, body, headers)
            if answer is None:
                answer = self._on(_Line(Connector(self._rules)), target, body, headers)
        except UrlRefused as error:
            log.debug("a webhook was not sent: %s", error, extra={"delivery_id": headers.get("webhook-id")})
        return answer or Answer()

    def _on(self, line: _Line, target: SplitResult, body: bytes, headers: Mapping[str, str]) -> Answer | None:
        """Send a request on a connection, and keep or close it; None when there is no response."""
        self._begin(line.connector)
        response: http.client.HTTPResponse | None = None
        reusable = False
        try:
            if self._closing.is_set():
                return Answer()
            if line.connection is None:
                line.connection = line.closing.enter_context(line.connector.connected(target))
            line.connection.request("POST", path_of(target), body, dict(headers))
            response = line.connection.getresponse()
            reusable = not response.will_close and response.length is not None and response.length <= MOST_BODY_BYTES
            if reusable:
                response.read()
        except (OSError, http.client.HTTPException) as error:
            reusable = False
            log.debug("a webhook was not answered: %s", error, extra={"delivery_id": headers.get("webhook-id")})
        finally:
            with self._lock:
                # Gone from there when the time is over.
                in_time = self._connectors.pop(line.connector, None) is not None
            if reusable and in_time:
                self._keep(target, line)
            else:
                line.closing.close()
        if response is None:
            return None if in_time else Answer()
        return Answer(response.status, _seconds_in(response.getheader("Retry-After"), self._clock()))

    def _taken(self, target: SplitResult) -> _Line | None:
        """A kept connection to the host of a URL, if the receiver has not closed it."""
        with self._lock:
            line = self._kept.pop((target.scheme, target.netloc), None)
        if line is None:
            return None
        sock = line.connection.sock if line.connection is not None else None
        # Nothing comes on a connection without a request, but its end.
        if sock is None or line.until <= time.monotonic() or wait_for_read(sock, timeout=0.0):
            line.closing.close()
            return None
        return line

    def _keep(self, target: SplitResult, line: _Line) -> None:
        line.until = time.monotonic() + KEEP_SECONDS
        with self._lock:
            closed = []
            if self._closing.is_set() or len(self._kept) >= MOST_KEPT:
                closed = [line]
            else:
                before = self._kept.pop((target.scheme, target.netloc), None)
                closed = [] if before is None else [before]
                self._kept[target.scheme, target.netloc] = line
        for each in closed:
            each.closing.close()

    def close(self) -> None:
        """Break off all requests, and make no other."""
        self._closing.set()
        with self._lock:
            connectors, kept = list(self._connectors), list(self._kept.values())
            self._kept.clear()
        for connector in connectors:
            connector.abort()
        for line in kept:
            line.closing.close()

    def _begin(self, connector: Connector) -> None:
        """Limit the time of a request as a whole, since each read from a socket has a limit of its own only."""
        with self._lock:
            self._connectors[connector] = time.monotonic() + self._seconds
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, name="webhook-limit", daemon=True).start()

    def _watch(self) -> None:
        """Break off requests that take too long, and close kept connections, in one thread for all.

        It ends when there is neither.
        The thread need not hear of new requests: all of them may take the same time, so none ends before it looks.
        """
        pause = self._seconds
        while not self._closing.wait(pause):
            now = time.monotonic()
            with self._lock:
                late = [connector for connector, end in self._connectors.items() if end <= now]
                for connector in late:
                    del self._connectors[connector]
                old = [name for name, line in self._kept.items() if line.until <= now]
                lines = [self._kept.pop(name) for name in old]
                self._watched = bool(self._connectors or self._kept)
                pause = min(self._seconds, next(iter(self._connectors.values()), math.inf) - now)
                if not self._watched:
                    pause = 0.0
            for connector in late:
                connector.abort()
            for line in lines:
                line.closing.close()
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


# Receivers often take no larger bodies.
MAX_RESULT_BYTES = 1 << 20
STATE_OF = {str(event): state for state, event in EVENT_OF.items()}


class Bodies:
    """Makes the bodies of deliveries.

    Args:
        store: the store of jobs and results.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        # Held while a result is rendered, which takes several times its size.
        self._rendering = threading.Lock()

    def body_of(self, delivery: Delivery) -> bytes:
        """The body of a delivery, as JSON.

        Args:
            delivery: the delivery.

        Raises:
            StorageError: the result cannot be read.
        """
        if delivery.job_id is None:
            return self._encoded(delivery, WebhookData(endpoint_id=delivery.endpoint_id or UNSET))
        state, path = STATE_OF[delivery.type], f"/transcription/{delivery.job_id}"
        data = WebhookData(job_id=delivery.job_id, status=state, status_url=path)
        if state == "Completed":
            data = replace(data, result_url=f"{path}/result")
        if state != "Completed" or not delivery.include_result:
            return self._encoded(delivery, data)
        with self._rendering:
            result = self._result(delivery.job_id)
            if result is None:
                return self._encoded(delivery, replace(data, result_omitted="gone"))
            body = self._encoded(delivery, replace(data, result=result))
        if len(body) > MAX_RESULT_BYTES:
            return self._encoded(delivery, replace(data, result_omitted="too_large"))
        return body

    def _encoded(self, delivery: Delivery, data: WebhookData) -> bytes:
        return msgspec.json.encode(WebhookEvent(type=delivery.type, timestamp=rfc3339(delivery.created_at), data=data))

    def _result(self, job_id: str) -> JobResult | None:
        job, found = self._store.get(job_id), self._store.result(job_id)
        if job is None or found is None:
            return None
        transcript = corrected(*found)
        text, warnings = rendered(transcript, job.output_format, job.render_options)
        return job_result(transcript, text, (*job.warnings, *warnings), job.metadata)
