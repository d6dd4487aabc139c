"""What is known of each job that is not over, for any number of watchers that come and go as they like.

The feed keeps no history. Of each job it has the newest word on where it stands and the newest form of each stretch of
its text, each under the id of its last change. So whoever comes late, or was away for a while, is given what is missing
and nothing else; and a watcher that reads slowly holds nothing, as what it has not read is replaced by what is newer.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from whisper_api.jobs.events import TERMINAL, EventBus
from whisper_api.schema import JobEvent, JobProgressEvent, JobQueuedEvent, JobSegmentEvent

__all__ = ["LAST_ID", "Feed", "NumberedEvent", "Watch"]

# Of the event that ends a job: above all others, the same whoever asks and whenever, and the largest whole number that
# JavaScript has.
LAST_ID = (1 << 53) - 1
# Progress that comes sooner than this after the last news waits for more: nobody reads faster, and each sending costs.
PROGRESS_SECONDS = 1.0
# By so much a timer may go off early.
CLOCK_SECONDS = 0.001


@dataclass(frozen=True)
class NumberedEvent:
    """An event of a job, and its place among them.

    Attributes:
        id: rises from event to event of one job, over restarts of the server too.
        event: what has happened.
    """

    id: int
    event: JobEvent

    @property
    def name(self) -> str:
        """What has happened, in one word: queued, progress, segment, completed, failed or canceled."""
        return str(self.event.__struct_config__.tag)

    @functools.cached_property
    def data(self) -> bytes:
        """The event as JSON. Made once, however many are told."""
        return msgspec.json.encode(self.event)


@dataclass
class _Log:
    """What is known of one job.

    Attributes:
        queued: the newest event that says it waits; what came before is void.
        progress: the newest since then.
        stretches: by index, in the order of their ids.
        end: the event that ended it.
        watchers: how many read this.
    """

    queued: NumberedEvent
    progress: NumberedEvent | None = None
    stretches: dict[int, NumberedEvent] = field(default_factory=dict)
    end: NumberedEvent | None = None
    watchers: int = 0

    @property
    def newest(self) -> int:
        last = next(reversed(self.stretches.values()), self.queued)
        return max(each.id for each in (self.queued, self.progress, last, self.end) if each is not None)

    def since(self, id: int, *, returning: bool) -> tuple[NumberedEvent, ...]:
        """What came after an id, oldest first; whoever was never here needs not hear that the job has waited."""
        # The newest first, so that not all of a long text is gone through at every step.
        found = list(itertools.takewhile(lambda told: told.id > id, reversed(self.stretches.values())))
        queued = self.queued if returning or self.progress is None else None
        found += [told for told in (queued, self.progress, self.end) if told is not None and told.id > id]
        return tuple(sorted(found, key=lambda told: told.id))


class Feed:
    """Events of jobs, kept for as long as they matter. Safe to use from any thread; a watch belongs to one event loop.

    Args:
        bus: hears of everything, too, and wakes those who watch.
        places: of the jobs in the queue.
        clock: seconds since 1970.
    """

    def __init__(
        self, bus: EventBus, places: Callable[[], Mapping[str, int]] = dict, clock: Callable[[], float] = time.time
    ) -> None:
        self._bus = bus
        self._places = places
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by _lock, and with it what they hold:
        self._logs: dict[str, _Log] = {}

    def publish(self, *events: JobEvent) -> None:
        """Tell watchers, now and later, and the bus. Never blocks."""
        with self._lock:
            for event in events:
                self._keep(event)
        self._bus.publish(*events)

    def moved(self) -> None:
        """Tell watchers where their jobs stand in the queue now. Of a job that has left it, this says nothing."""
        told: list[JobEvent] = []
        # In one with what is known: a place that was looked up before is not told of a job that runs meanwhile.
        with self._lock:
            waiting = [job_id for job_id, log in self._logs.items() if log.progress is None]
            places = self._places() if waiting else {}
            for job_id in waiting:
                if job_id in places:
                    told.append(JobQueuedEvent(job_id=job_id, queue_position=places[job_id]))
                    self._keep(told[-1])
        self._bus.publish(*told)

    def watch(self, job_id: str, after: int = 0) -> Watch:
        """Watch a job: ``async with feed.watch(job_id) as watch``.

        Ask for the job's status after that: of a job that has ended, nothing is known here.

        Args:
            job_id: which.
            after: id of the last event that this watcher has had before; 0 for none.
        """
        return Watch(self, self._bus, job_id, after)

    def _keep(self, event: JobEvent) -> None:
        job_id = event.job_id
        if isinstance(event, TERMINAL):
            log = self._logs.pop(job_id, None)
            if log is not None:
                log.end = NumberedEvent(LAST_ID, event)
            return
        log = self._logs.get(job_id)
        if log is None:
            # A job that has waited unwatched. A watcher of an earlier process hears by this that it begins anew.
            queued = event if isinstance(event, JobQueuedEvent) else JobQueuedEvent(job_id=job_id, queue_position=1)
            log = self._logs[job_id] = _Log(NumberedEvent(self._now(), queued))
        if isinstance(event, JobQueuedEvent):
            if log.progress is not None or log.stretches or log.queued.event != event:
                log.queued = self._told(log, event)
                log.progress = None
                log.stretches.clear()
        elif isinstance(event, JobProgressEvent):
            log.progress = self._told(log, event)
        elif isinstance(event, JobSegmentEvent):
            told = self._told(log, event)
            # Put behind the others, also when it takes the place of one.
            log.stretches.pop(event.index, None)
            log.stretches[event.index] = told

    def _told(self, log: _Log, event: JobEvent) -> NumberedEvent:
        return NumberedEvent(max(log.newest + 1, self._now()), event)

    def _now(self) -> int:
        return int(self._clock() * 1e6)

    def _enter(self, job_id: str) -> _Log:
        with self._lock:
            log = self._logs.get(job_id)
            if log is None:
                # What is not in the queue, though it waits, is about to start.
                queued = JobQueuedEvent(job_id=job_id, queue_position=self._places().get(job_id, 1))
                log = self._logs[job_id] = _Log(NumberedEvent(self._now(), queued))
            log.watchers += 1
            return log

    def _leave(self, job_id: str, log: _Log) -> None:
        with self._lock:
            log.watchers -= 1
            # Of a job that runs it is kept for whoever comes next; of one that waits it is made when it is needed.
            if not log.watchers and log.progress is None and self._logs.get(job_id) is log:
                del self._logs[job_id]


class Watch:
    """One watcher of one job, made by :meth:`Feed.watch`."""

    def __init__(self, feed: Feed, bus: EventBus, job_id: str, after: int) -> None:
        self.job_id = job_id
        self._feed = feed
        # What is said is in the log: this only tells that something was.
        self._signal = bus.subscribe(job_id, most=1)
        self._after = after
        self._returning = after > 0
        self._given = -math.inf
        self._log: _Log | None = None

    async def __aenter__(self) -> Watch:
        await self._signal.__aenter__()
        # Only now, so that a change of places while this is done is heard of.
        self._log = self._feed._enter(self.job_id)
        with self._feed._lock:
            if self._after > self._log.newest:
                # No id of this job, unless the clock was set back.
                self._after = 0
        return self

    async def __aexit__(self, *ignored: object) -> None:
        await self._signal.__aexit__()
        if self._log is not None:
            self._feed._leave(self.job_id, self._log)

    def wake(self) -> None:
        """Let :meth:`next` return, once, though nothing has happened. To be called on the watcher's loop."""
        self._signal.wake()

    async def next(self, timeout: float | None = None) -> tuple[NumberedEvent, ...]:
        """All that is new since the last call, oldest first; at the first call, what is known and was not had before.

        Args:
            timeout: seconds to wait for something; None for as long as it takes.

        Returns:
            The events; none when the time is over, the watcher was woken, or the service stops.
        """
        if self._log is None:
            raise RuntimeError("enter the watch first: async with feed.watch(job_id) as watch")
        clock = asyncio.get_running_loop().time
        end = math.inf if timeout is None else clock() + timeout
        woken = False
        while True:
            with self._feed._lock:
                news = self._log.since(self._after, returning=self._returning)
            now, due = clock(), self._given + PROGRESS_SECONDS
            if news and (now >= due or not all(isinstance(each.event, JobProgressEvent) for each in news)):
                self._after, self._returning, self._given = news[-1].id, True, now
                return news
            if woken or now >= end:
                return ()
            until = min(end, due) if news else end
            event = await self._signal.next(None if until == math.inf else until - now)
            woken = event is None and clock() < until - CLOCK_SECONDS
