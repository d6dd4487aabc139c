"""What happens to jobs, told to whoever waits for it on an event loop. The only bridge from threads to a loop.

Threads publish; coroutines subscribe. An event is put into its subscribers' lists at once, in the thread that
publishes, and each loop concerned is woken once. So a loop that is held up costs nothing but a list of bounded length,
a loop that has been closed costs nothing at all, and what comes late replaces what was not read yet.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable, Mapping

from whisper_api.schema import (
    JobCanceledEvent,
    JobCompletedEvent,
    JobEvent,
    JobFailedEvent,
    JobProgressEvent,
    JobQueuedEvent,
    JobSegmentEvent,
)

__all__ = ["TERMINAL", "UNDERWAY", "EventBus", "Subscription"]

# Of these only the newest matters: it replaces one of its kind that was not read yet.
REPLACED = (JobQueuedEvent, JobProgressEvent)
# These come while a job runs, and leave its state as it is.
UNDERWAY = (JobProgressEvent, JobSegmentEvent)
# After these a job has no more events; they are never dropped.
TERMINAL = (JobCompletedEvent, JobFailedEvent, JobCanceledEvent)
# Events that wait for one subscriber, unless it says otherwise. Beyond that the oldest go.
MAX_PENDING = 256


class EventBus:
    """Events by job. Safe to use from any thread; a subscription belongs to the loop it was entered on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Guarded by _lock, and with it all that subscriptions hold:
        self._changes = 0
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._closed = False

    def publish(self, *events: JobEvent) -> None:
        """Tell subscribers. Never blocks, and does not mind that a subscriber or its loop has gone."""
        with self._lock:
            woken: set[Subscription] = set()
            for event in events:
                for subscription in self._subscriptions.get(event.job_id, ()):
                    subscription._add(event)
                    woken.add(subscription)
            if not all(isinstance(event, UNDERWAY) for event in events):
                self._note_change()
            loops = _to_wake(woken)
        self._wake(loops)

    def subscribe(self, job_id: str, *, most: int = MAX_PENDING) -> Subscription:
        """Hear of a job: ``async with bus.subscribe(job_id) as events``.

        What happens from the moment it is entered is heard; ask for the job's status after that, and nothing is missed.

        Args:
            job_id: which.
            most: how many events may wait to be read.
        """
        return Subscription(self, job_id, most)

    def watched(self) -> set[str]:
        """The jobs that somebody has subscribed to."""
        with self._lock:
            return set(self._subscriptions)

    def wake(self) -> None:
        """Let each subscription's next :meth:`Subscription.next` return, once, though nothing happened to its job."""
        with self._lock:
            woken = {each for subscriptions in self._subscriptions.values() for each in subscriptions}
            for subscription in woken:
                subscription._woken = True
            self._note_change()
            loops = _to_wake(woken)
        self._wake(loops)

    def close(self) -> None:
        """Let nobody wait any more: what is pending can still be read, then every ``next`` returns at once."""
        with self._lock:
            self._closed = True
            self._note_change()
            loops = _to_wake(each for subscriptions in self._subscriptions.values() for each in subscriptions)
        self._wake(loops)

    def changes(self) -> int:
        """How often something has happened to a job's state; for :meth:`wait_for_change`."""
        with self._lock:
            return self._changes

    def wait_for_change(self, since: int, timeout: float | None) -> None:
        """Block a thread until the state of any job has changed, or the bus was woken or closed.

        Args:
            since: what :meth:`changes` gave before the thread looked.
            timeout: seconds; None for as long as it takes.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._changes != since or self._closed, timeout)

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    def _enter(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.setdefault(subscription.job_id, set()).add(subscription)

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            subscriptions = self._subscriptions.get(subscription.job_id, set())
            subscriptions.discard(subscription)
            if not subscriptions:
                self._subscriptions.pop(subscription.job_id, None)

    def _wake(self, loops: Mapping[asyncio.AbstractEventLoop, list[Subscription]]) -> None:
        for loop, waiting in loops.items():
            self._wake_loop(loop, waiting)

    def _wake_loop(self, loop: asyncio.AbstractEventLoop, waiting: list[Subscription]) -> None:
        try:
            loop.call_soon_threadsafe(self._set_ready, waiting)
        except RuntimeError:
            # The loop is closed: whoever waited on it has gone with it.
            for subscription in waiting:
                self._leave(subscription)

    def _set_ready(self, waiting: list[Subscription]) -> None:
        """On the loop."""
        with self._lock:
            for subscription in waiting:
                subscription._waking = False
        for subscription in waiting:
            if subscription._ready is not None:
                subscription._ready.set()


class Subscription:
    """One listener of one job, made by :meth:`EventBus.subscribe`.

    Attributes:
        job_id: whose events these are.
    """

    def __init__(self, bus: EventBus, job_id: str, most: int) -> None:
        self.job_id = job_id
        self._bus = bus
        self._most = most
        self._pending: deque[JobEvent] = deque()
        self._woken = False
        self._waking = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Event | None = None

    async def __aenter__(self) -> Subscription:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._bus._enter(self)
        return self

    async def __aexit__(self, *ignored: object) -> None:
        self._bus._leave(self)

    async def next(self, timeout: float | None = None) -> JobEvent | None:
        """The next event.

        Args:
            timeout: seconds to wait for one; None for as long as it takes.

        Returns:
            The event; None when the time is over, when the bus was woken (the service is stopping) or closed.
        """
        if self._loop is None or self._ready is None:
            raise RuntimeError("enter the subscription first: async with bus.subscribe(job_id) as events")
        over = False

        def expire() -> None:
            nonlocal over
            over = True
            ready.set()

        ready = self._ready
        # Not wait_for(), which before Python 3.12 can swallow a cancellation that comes together with the event.
        timer = None if timeout is None else self._loop.call_later(max(timeout, 0.0), expire)
        try:
            while True:
                with self._bus._lock:
                    ready.clear()
                    if self._pending:
                        return self._pending.popleft()
                    if self._woken or self._bus._closed or over:
                        self._woken = False
                        return None
                await ready.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Let :meth:`next` return None, once. To be called on the loop that the subscription belongs to."""
        with self._bus._lock:
            self._woken = True
        if self._ready is not None:
            self._ready.set()

    def _add(self, event: JobEvent) -> None:
        """Called with the bus's lock held."""
        if self._pending and isinstance(event, REPLACED) and type(self._pending[-1]) is type(event):
            self._pending[-1] = event
            return
        self._pending.append(event)
        if len(self._pending) > self._most:
            oldest = next((each for each in self._pending if not isinstance(each, TERMINAL)), None)
            if oldest is not None:
                self._pending.remove(oldest)


def _to_wake(subscriptions: Iterable[Subscription]) -> dict[asyncio.AbstractEventLoop, list[Subscription]]:
    """Subscriptions by loop, without those whose loop is about to wake them anyway. Called with the lock held."""
    loops: dict[asyncio.AbstractEventLoop, list[Subscription]] = {}
    for subscription in subscriptions:
        if subscription._loop is not None and not subscription._waking:
            subscription._waking = True
            loops.setdefault(subscription._loop, []).append(subscription)
    return loops
