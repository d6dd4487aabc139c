"""A bound on the memory of response bodies that clients have requested and do not read."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from asyncio import Future
from collections.abc import Callable, Iterable

from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope, Send

from whisper_api.freed_memory import malloc_trim
from whisper_api.logs import Repeats
from whisper_api.server.connections.limits import Quota
from whisper_api.server.responses.problems import TOO_MANY_RESPONSES

log = logging.getLogger(__name__)
log.addFilter(Repeats())

# A protocol gets pieces of this size, each when the client has taken the piece before.
PIECE_BYTES = 32 << 10
# Smaller bodies are not counted, so that health checks and refusals always get a response. All streams of the default
# bounds together hold at most 12 MB of small bodies.
SMALL_BYTES = 4 << 10
# A response can be cut when its client has taken no piece for this long.
STALLED_SECONDS = 2.0
# The memory of bodies is returned to the system after this number of freed bytes, and after this time at the earliest.
TRIM_BYTES = 16 << 20
TRIM_SECONDS = 5.0


class ResponseBudget:
    """Counts the bytes of response bodies that are ready and not yet taken, for each address and in all.

    The size of a body is its ``Content-Length``. It counts from the start of the response to the end, because the
    application holds all of it. For a streamed response without a length, the current piece counts. When a new body
    does not fit, stalled responses are cut, beginning with the response that stalled first: responses of the same
    address when its share is used up, of all addresses when the total is used up. A body that still does not fit is
    refused with 503.

    A body above the share of an address is sent while its address holds nothing else, and a body above the total while
    nothing else is held at all. Nothing is cut for such a body.

    Args:
        total: most bytes of all addresses.
        per_address: most bytes of one client address.
    """

    def __init__(self, total: int, per_address: int) -> None:
        self._quota = Quota(total, per_address)
        self._held: set[BudgetedResponse] = set()
        self._trim = malloc_trim()
        self._trimmed = -TRIM_SECONDS
        self._freed = 0

    @property
    def held(self) -> int:
        """The number of bytes that are counted now."""
        return self._quota.used

    def return_memory(self, now: float) -> Future[object] | None:
        """Give freed memory back to the system when many bodies have gone. Call this on the event loop, often.

        Args:
            now: by ``time.monotonic``.

        Returns:
            The work in another thread; None when there is nothing to do.
        """
        if self._trim is None or self._freed < TRIM_BYTES or now - self._trimmed < TRIM_SECONDS:
            return None
        self._freed, self._trimmed = 0, now
        return asyncio.get_running_loop().run_in_executor(None, self._trim, 0)

    def hold(self, response: BudgetedResponse, size: int) -> bool:
        """Count bytes of a response, and cut stalled responses when that is needed.

        Args:
            response: the response.
            size: number of bytes.

        Returns:
            Whether the bytes fit the budget.
        """
        network = response.network
        if size <= SMALL_BYTES:
            return True
        if not self._quota.take(network, size):
            if size <= self._quota.each:
                self._make_room(network, size)
            if not self._quota.take(network, size):
                # The application drops the body.
                self._freed += size
                return False
        response.held += size
        self._held.add(response)
        return True

    def give_back(self, response: BudgetedResponse) -> None:
        """Stop counting a response."""
        if response.held:
            self._quota.give_back(response.network, response.held)
            self._freed += response.held
            response.held = 0
            self._held.discard(response)

    def _make_room(self, network: str, size: int) -> None:
        now = time.monotonic()
        stalled = [each for each in self._held if now - each.progressed >= STALLED_SECONDS]
        stalled.sort(key=lambda each: each.progressed)
        self._cut((each for each in stalled if each.network == network), lambda: self._quota.exhausted(network, size))
        self._cut(stalled, lambda: not self._quota.fits(network, size))

    def _cut(self, responses: Iterable[BudgetedResponse], needed: Callable[[], bool]) -> None:
        for response in responses:
            if not needed():
                return
            log.info("a response was cut off to make room for others", extra={"client": response.network})
            response.end()


class BudgetedResponse:
    """The response to one request, sent in pieces and counted until the client has taken all of it.

    Attributes:
        network: the client's address for counting.
        held: number of bytes that are counted now.
        progressed: when the response began or the client last took a piece, by ``time.monotonic``.

    Args:
        budget: the budget of all responses.
        network: the client's address for counting.
        scope: the scope of the request.
        send: returns when the client's connection has taken the piece.
        cut: breaks off the stream or the connection.
    """

    def __init__(self, budget: ResponseBudget, network: str, scope: Scope, send: Send, cut: Callable[[], None]) -> None:
        self.network = network
        self.progressed = time.monotonic()
        self.held = 0
        self._budget = budget
        self._has_body = scope["method"] != "HEAD"
        self._send = send
        self._cut = cut
        self._streams = False
        self._was_cut = False

    def end(self) -> None:
        """Break the response off."""
        self.close()
        self._was_cut = True
        self._cut()

    def close(self) -> None:
        """Stop counting this response."""
        self._budget.give_back(self)

    async def send(self, message: Message) -> None:
        """Send an ASGI message.

        Raises:
            Problem: 503 ``too_many_responses``, at the start of a response whose body does not fit the budget.
            ClientDisconnect: the response was broken off.
        """
        if message["type"] == "http.response.start" and self._has_body:
            size = _content_length(message)
            self._streams = size is None
            if not self._budget.hold(self, size or 0):
                # A copy, because a raised error keeps the frames of its traceback, and so the body, alive.
                raise copy.copy(TOO_MANY_RESPONSES)
            self.progressed = time.monotonic()
        if message["type"] == "http.response.body":
            await self._send_body(message)
        else:
            await self._send(message)

    async def _send_body(self, message: Message) -> None:
        body = memoryview(message.get("body", b""))
        if self._streams and not self._budget.hold(self, len(body)):
            self.end()
        for start in range(0, max(1, len(body)), PIECE_BYTES):
            if self._was_cut:
                raise ClientDisconnect
            piece = body[start : start + PIECE_BYTES]
            more = start + PIECE_BYTES < len(body) or message.get("more_body", False)
            whole = len(piece) == len(body)
            await self._send(message if whole else {**message, "body": bytes(piece), "more_body": more})
            self.progressed = time.monotonic()
        if self._streams:
            self.close()


def _content_length(message: Message) -> int | None:
    lengths = [value for name, value in message.get("headers", ()) if name.lower() == b"content-length"]
    return int(lengths[0]) if lengths else None
