"""The events of jobs: the newest state of each job, and a signal to its watchers.

Threads publish events, and coroutines wait for them. There is no history: a log has the newest state of a job and the
newest form of each piece of its text, each with the id of its last change. A watcher that comes late or reads slowly
therefore gets the events that it has missed, without those that were replaced since, and needs no buffer of its own.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from whisper_api.job_values import (
    JobCanceledEvent,
    JobCompletedEvent,
    JobEvent,
    JobFailedEvent,
    JobProgressEvent,
    JobQueuedEvent,
    JobSegmentEvent,
)
from whisper_api.store.rows import Job

# Id of the event that ends a job: above all others, the same after a restart, and the largest integer that JavaScript
# represents exactly.
LAST_ID = (1 << 53) - 1
# A job has no more events after one of these.
TERMINAL = (JobCompletedEvent, JobFailedEvent, JobCanceledEvent)
# Progress alone is sent at most once in this time, because each message has a cost and people do not read faster.
PROGRESS_SECONDS = 1.0


def event_of(job: Job, position: int = 1) -> JobEvent:
    """The event that reports the state of a job.

    Args:
        job: the stored job.
        position: position of a Queued job in the queue.
    """
    match job.state:
        case "Completed":
            return JobCompletedEvent(job_id=job.job_id)
        case "Failed":
            return JobFailedEvent(job_id=job.job_id, error=job.error or "")
        case "Canceled":
            return JobCanceledEvent(job_id=job.job_id)
        case "Processing":
            return JobProgressEvent(job_id=job.job_id, progress=0.0, stage="load")
        case _:
            return JobQueuedEvent(job_id=job.job_id, queue_position=position)


@dataclass(frozen=True)
class NumberedEvent:
    """An event of a job with its id.

    Attributes:
        id: rises from event to event of one job, also over a restart of the server.
        event: the event.
    """

    id: int
    event: JobEvent

    @property
    def name(self) -> str:
        """The event's type: queued, progress, segment, completed, failed or canceled."""
        return str(self.event.__struct_config__.tag)

    @functools.cached_property
    def data(self) -> bytes:
        """The event as JSON, encoded once for all watchers."""
        return msgspec.json.encode(self.event)


@dataclass
class _JobLog:
    """The newest events of one job.

    Attributes:
        queued: the newest event that reports the job as waiting; it makes all earlier events void.
        progress: the newest progress since then; None while the job waits.
        partials: the newest text by index, in the order of their ids.
        end: the event that ended the job.
        watches: the watches of this job.
    """

    queued: NumberedEvent
    progress: NumberedEvent | None = None
    partials: dict[int, NumberedEvent] = field(default_factory=dict)
    end: NumberedEvent | None = None
    watches: set[Watch] = field(default_factory=set)

    @property
    def newest(self) -> int:
        last = next(reversed(self.partials.values()), self.queued)
        return max(each.id for each in (self.queued, self.progress, last, self.end) if each is not None)

    def since(self, id: int, *, returning: bool) -> tuple[NumberedEvent, ...]:
        """The events after an id, oldest first.

        Args:
            id: id of the last event that the watcher has.
            returning: whether the watcher has had events; a new watcher of a running job needs no ``queued`` event.
        """
        # Backwards from the newest, so that the cost depends on the new text and not on the whole text.
        found = list(itertools.takewhile(lambda each: each.id > id, reversed(self.partials.values())))
        queued = self.queued if returning or self.progress is None else None
        found += [each for each in (queued, self.progress, self.end) if each is not None and each.id > id]
        return tuple(sorted(found, key=lambda each: each.id))


class JobEvents:
    """The events of jobs. Any thread may call the methods; a watch belongs to the event loop on which it was entered.

    Args:
        positions: returns the queue position of every waiting job.
        clock: returns seconds since 1970.

    Attributes:
        logs: job id to the log of each job that runs or is watched.
        watches: all open watches.
    """

    def __init__(
        self, positions: Callable[[], Mapping[str, int]] = dict, clock: Callable[[], float] = time.time
    ) -> None:
        self._positions = positions
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by _lock, together with the contents of the logs and the flags of the watches:
        self.logs: dict[str, _JobLog] = {}
        self.watches: set[Watch] = set()

    def publish(self, *events: JobEvent) -> None:
        """Record events and signal the watchers of their jobs. Never blocks."""
        with self._lock:
            loops = self._record_all(events)
        self._signal(loops)

    def update_positions(self) -> None:
        """Send the current queue positions to the watchers of waiting jobs. Jobs outside the queue get no event."""
        with self._lock:
            # Read under the lock of the logs, so that a job that has begun to run gets no old position.
            waiting = [job_id for job_id, log in self.logs.items() if log.progress is None]
            positions = self._positions() if waiting else {}
            loops = self._record_all(
                JobQueuedEvent(job_id=job_id, queue_position=positions[job_id])
                for job_id in waiting
                if job_id in positions
            )
        self._signal(loops)

    def watch(self, job_id: str, after: int = 0, *, states_only: bool = False) -> Watch:
        """Watch a job: ``async with events.watch(job_id) as watch``.

        Read the job's status after entering the watch, so that no change is missed: a job that has ended before has no
        log.

        Args:
            job_id: id of the job.
            after: id of the last event that this watcher has; 0 for none.
            states_only: signal only when the job starts, is put back into the queue, or ends.
        """
        return Watch(self, job_id, after, states_only)

    def enter(self, watch: Watch) -> None:
        """Add a watch to the log of its job; make the log when there is none."""
        with self._lock:
            log = self.logs.get(watch.job_id)
            if log is None:
                # A job that waits but is not in the queue is about to start.
                position = self._positions().get(watch.job_id, 1)
                queued = JobQueuedEvent(job_id=watch.job_id, queue_position=position)
                log = self.logs[watch.job_id] = _JobLog(NumberedEvent(self._now(), queued))
            if watch.after > log.newest:
                # This is not an id of the job, unless the clock was set back.
                watch.after = 0
            watch.log = log
            log.watches.add(watch)
            self.watches.add(watch)

    def leave(self, watch: Watch) -> None:
        """Remove a watch, and the log of a waiting job without further watches."""
        with self._lock:
            self.watches.discard(watch)
            if (log := watch.log) is None:
                return
            log.watches.discard(watch)
            # The log of a running job is kept for the next watcher; that of a waiting job is made again when needed.
            if not log.watches and log.progress is None and self.logs.get(watch.job_id) is log:
                del self.logs[watch.job_id]

    def read(self, watch: Watch) -> tuple[NumberedEvent, ...]:
        """The events that a watch has not returned yet, oldest first."""
        if watch.log is None:
            raise RuntimeError("enter the watch first: async with events.watch(job_id) as watch")
        with self._lock:
            return watch.log.since(watch.after, returning=watch.returning)

    def _record_all(self, events: Iterable[JobEvent]) -> dict[asyncio.AbstractEventLoop, list[Watch]]:
        """Record events, and return the watches to signal by event loop. Needs the lock."""
        signaled: set[Watch] = set()
        for event in events:
            log, state_changed = self._record(event)
            if log is not None:
                signaled.update(each for each in log.watches if state_changed or not each.states_only)
        loops: dict[asyncio.AbstractEventLoop, list[Watch]] = {}
        for watch in signaled:
            # A watch that is about to be signaled needs no second signal.
            if watch.loop is not None and not watch.signaled:
                watch.signaled = True
                loops.setdefault(watch.loop, []).append(watch)
        return loops

    def _record(self, event: JobEvent) -> tuple[_JobLog | None, bool]:
        """Put an event into its job's log, and return the log, if any, and whether the state of the job changed."""
        job_id = event.job_id
        if isinstance(event, TERMINAL):
            log = self.logs.pop(job_id, None)
            if log is not None:
                log.end = NumberedEvent(LAST_ID, event)
            return log, True
        log = self.logs.get(job_id)
        if log is None:
            # The job has waited without a watcher. This event tells a watcher from before a restart that the job begins
            # anew.
            queued = event if isinstance(event, JobQueuedEvent) else JobQueuedEvent(job_id=job_id, queue_position=1)
            log = self.logs[job_id] = _JobLog(NumberedEvent(self._now(), queued))
        before = log.progress is None
        if isinstance(event, JobQueuedEvent):
            if log.progress is not None or log.partials or log.queued.event != event:
                log.queued = self._numbered(log, event)
                log.progress = None
                log.partials.clear()
        elif isinstance(event, JobProgressEvent):
            log.progress = self._numbered(log, event)
        elif isinstance(event, JobSegmentEvent):
            numbered = self._numbered(log, event)
            # Removed first, so that the dictionary stays in the order of the ids.
            log.partials.pop(event.index, None)
            log.partials[event.index] = numbered
        return log, (log.progress is None) != before

    def _numbered(self, log: _JobLog, event: JobEvent) -> NumberedEvent:
        return NumberedEvent(max(log.newest + 1, self._now()), event)

    def _now(self) -> int:
        return int(self._clock() * 1e6)

    def _signal(self, loops: Mapping[asyncio.AbstractEventLoop, list[Watch]]) -> None:
        for loop, watches in loops.items():
            self._signal_loop(loop, watches)

    def _signal_loop(self, loop: asyncio.AbstractEventLoop, watches: list[Watch]) -> None:
        try:
            loop.call_soon_threadsafe(self._set_ready, watches)
        except RuntimeError:
            # The loop is closed, and the watchers with it.
            for watch in watches:
                self.leave(watch)

    def _set_ready(self, watches: list[Watch]) -> None:
        """Runs on the event loop of these watches."""
        with self._lock:
            for watch in watches:
                watch.signaled = False
        for watch in watches:
            watch.ready.set()


class Watch:
    """A watcher of a job, made by :meth:`JobEvents.watch`.

    Attributes:
        job_id: id of the job.
        after: id of the last event that was returned.
        returning: whether the watcher has had events of this job.
        states_only: whether only changes of the job's state signal the watcher.
        log: log of the job, while the watch is open.
        loop: event loop on which the watch was entered.
        ready: set on the loop when there may be events to read.
        signaled: whether the loop is about to set ``ready``.
        woken: whether the next call of :meth:`next` returns at once.
    """

    def __init__(self, events: JobEvents, job_id: str, after: int, states_only: bool) -> None:
        self.job_id = job_id
        self.after = after
        self.returning = after > 0
        self.states_only = states_only
        self.log: _JobLog | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ready = asyncio.Event()
        self.signaled = False
        self.woken = False
        self._events = events
        self._last_read = -math.inf

    async def __aenter__(self) -> Watch:
        self.loop = asyncio.get_running_loop()
        self._events.enter(self)
        return self

    async def __aexit__(self, *ignored: object) -> None:
        self._events.leave(self)

    def wake(self) -> None:
        """Let the watcher return once without an event. Call this on the loop of the watch."""
        self.woken = True
        self.ready.set()

    async def signal(self, timeout: float) -> None:
        """Wait for the next signal.

        Args:
            timeout: seconds; infinity for no limit.
        """
        # Not asyncio.wait_for(), which before Python 3.12 can swallow a cancellation that comes with the signal.
        timer = None
        if timeout != math.inf:
            timer = asyncio.get_running_loop().call_later(max(timeout, 0.0), self.ready.set)
        try:
            await self.ready.wait()
            self.ready.clear()
        finally:
            if timer is not None:
                timer.cancel()

    async def next(self, timeout: float | None = None) -> tuple[NumberedEvent, ...]:
        """All events since the last call, oldest first; the first call returns the known events after ``after``.

        Args:
            timeout: seconds to wait for an event; None for no limit.

        Returns:
            The events; none when the time is over or the watch was woken.
        """
        clock = asyncio.get_running_loop().time
        end = math.inf if timeout is None else clock() + timeout
        while True:
            events = self._events.read(self)
            now, due = clock(), self._last_read + PROGRESS_SECONDS
            if events and (now >= due or not all(isinstance(each.event, JobProgressEvent) for each in events)):
                self.after, self.returning, self._last_read = events[-1].id, True, now
                return events
            if self.woken or now >= end:
                self.woken = False
                return ()
            await self.signal((min(end, due) if events else end) - now)
