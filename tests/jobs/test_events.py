"""A watcher of a job receives the events that it missed, except for replaced ones, and always the end."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from fakes import DEADLINE, Services, ended, idle, running, submit, until
from server.virtual_time import run_at_once

from whisper_api.errors import Canceled, EngineClosed
from whisper_api.job_values import (
    JobCanceledEvent,
    JobCompletedEvent,
    JobEvent,
    JobFailedEvent,
    JobProgressEvent,
    JobQueuedEvent,
    JobSegmentEvent,
    ResultSegment,
)
from whisper_api.jobs import service as service_module
from whisper_api.jobs.events import LAST_ID, JobEvents, NumberedEvent
from whisper_api.jobs.executor import OnPartial, OnProgress
from whisper_api.schema import PartialSegments, Progress, Segment, Transcript, Word
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

T = TypeVar("T")

NOW = 1_700_000_000
COMPLETED = JobCompletedEvent(job_id="a")


class Clock:
    """Stands still until it is set."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


def new_events(clock: Callable[[], float] | None = None) -> JobEvents:
    return JobEvents(lambda: {"a": 3}, clock or Clock())


def queued(position: int = 1) -> JobQueuedEvent:
    return JobQueuedEvent(job_id="a", queue_position=position)


def progress(fraction: float) -> JobProgressEvent:
    return JobProgressEvent(job_id="a", progress=fraction, stage="asr")


def partial(index: int, text: str = "", *, aligned: bool = False) -> JobSegmentEvent:
    segment = ResultSegment(id=0, start=float(index), end=index + 1.0, text=text or f"text {index}")
    return JobSegmentEvent(job_id="a", index=index, aligned=aligned, segments=(segment,))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, DEADLINE))


def events_in(news: tuple[NumberedEvent, ...]) -> list[JobEvent]:
    ids = [told.id for told in news]
    assert ids == sorted(set(ids)), "ids rise"
    return [told.event for told in news]


async def known(events: JobEvents, after: int = 0) -> tuple[NumberedEvent, ...]:
    """The events that a new watcher gets at once."""
    async with events.watch("a", after) as watch:
        return await watch.next(0)


# --- the events of a watcher ---


def test_a_late_watcher_gets_the_newest_version_of_each_event_in_order_of_change() -> None:
    events = new_events()

    async def watch() -> None:
        events.publish(queued(2), progress(0.0))
        events.publish(partial(0), partial(1), progress(0.2), partial(2))
        events.publish(partial(0, "better", aligned=True))
        events.publish(progress(0.3))
        assert events_in(await known(events)) == [
            partial(1),
            partial(2),
            partial(0, "better", aligned=True),
            progress(0.3),
        ]

    run(watch())


def test_a_watcher_that_returns_gets_the_events_that_it_missed() -> None:
    events = new_events()

    async def watch() -> None:
        events.publish(progress(0.0), partial(0), partial(1))
        before = await known(events)
        assert await known(events, before[-1].id) == ()
        events.publish(progress(0.5), partial(1, "better"), partial(2))
        assert events_in(await known(events, before[-1].id)) == [progress(0.5), partial(1, "better"), partial(2)]

    run(watch())


def test_a_watcher_that_stays_gets_every_event_once() -> None:
    events = new_events()

    async def watch() -> list[list[JobEvent]]:
        async with events.watch("a") as watch:
            given = [await watch.next(0)]
            for new in ([queued(2)], [progress(0.0)], [partial(0)], [partial(0, "better"), partial(1)], [COMPLETED]):
                events.publish(*new)
                given.append(await watch.next(DEADLINE))
            given.append(await watch.next(0))
            return [events_in(news) for news in given]

    assert run(watch()) == [
        [queued(3)],
        [queued(2)],
        [progress(0.0)],
        [partial(0)],
        [partial(0, "better"), partial(1)],
        [COMPLETED],
        [],
    ]


def test_a_job_that_is_put_back_begins_anew() -> None:
    events = new_events()

    async def watch() -> None:
        async with events.watch("a") as stays:
            events.publish(progress(0.0), partial(0), partial(1))
            before = await stays.next(0)
            events.publish(queued(4))
            assert events_in(await known(events)) == [queued(4)]
            events.publish(progress(0.1), partial(0, "again"))
            # The queued event tells an old client that its text is void; a new client gets only the running job.
            again = [queued(4), progress(0.1), partial(0, "again")]
            assert events_in(await stays.next(0)) == again
            assert events_in(await known(events, before[-1].id)) == again
            assert events_in(await known(events)) == again[1:]

    run(watch())


def test_a_place_in_the_queue_that_was_looked_up_too_early_is_not_told() -> None:
    # Another job leaves the queue at the moment when this one begins to run or is canceled.
    events = new_events()

    async def watch() -> None:
        async with events.watch("a") as watch:
            events.publish(progress(0.0), partial(0))
            before = await watch.next(0)
            events.update_positions()
            assert await watch.next(0) == ()
            assert await known(events) == before
            events.publish(JobCanceledEvent(job_id="a"))
            events.update_positions()
            assert events_in(await watch.next(0)) == [JobCanceledEvent(job_id="a")]
        assert not events.logs

    run(watch())


def test_only_watchers_of_waiting_jobs_get_positions() -> None:
    places = {"a": 3, "b": 4}
    events = JobEvents(lambda: places, Clock())

    async def watch() -> None:
        async with events.watch("a") as watch:
            assert events_in(await watch.next(0)) == [queued(3)]
            events.update_positions()
            assert await watch.next(0) == ()
            places["a"] = 2
            events.update_positions()
            assert events_in(await watch.next(0)) == [queued(2)]
            # A worker has taken the job and is about to start it.
            del places["a"]
            events.update_positions()
            assert await watch.next(0) == ()
            assert events.logs.keys() == {"a"}

    run(watch())


def test_a_watcher_from_before_a_restart_gets_all_events_again() -> None:
    clock = Clock()

    async def watch() -> None:
        before = new_events(clock)
        before.publish(progress(0.0), partial(0), partial(1))
        last = (await known(before))[-1].id
        clock.now += 1
        after = new_events(clock)
        after.publish(progress(0.0), partial(0, "again"))
        assert events_in(await known(after, last)) == [queued(1), progress(0.0), partial(0, "again")]
        # The clock was set back meanwhile, so the last id of the client means nothing.
        assert events_in(await known(after, last + 10**9)) == [queued(1), progress(0.0), partial(0, "again")]

    run(watch())


def test_ids_rise_whatever_the_clock_does() -> None:
    clock = Clock()
    events = new_events(clock)

    async def watch() -> list[int]:
        ids = []
        async with events.watch("a") as watch:
            for step in (0.0, 0.0, -3600.0, 0.000001, 60.0):
                clock.now += step
                events.publish(partial(0, str(step)))
                ids += [told.id for told in await watch.next(0)]
            events.publish(COMPLETED)
            ids += [told.id for told in await watch.next(0)]
        return ids

    ids = run(watch())
    assert ids == sorted(set(ids))
    assert ids[0] // 10**6 == NOW
    assert ids[-1] == LAST_ID == 2**53 - 1


@pytest.mark.parametrize(
    "end", [COMPLETED, JobFailedEvent(job_id="a", error="no speech"), JobCanceledEvent(job_id="a")]
)
def test_the_end_comes_last_with_all_that_was_not_had(end: JobEvent) -> None:
    events = new_events()

    async def watch() -> list[JobEvent]:
        async with events.watch("a") as watch:
            events.publish(progress(0.0), partial(0), progress(0.9), end)
            return events_in(await watch.next(0))

    assert run(watch()) == [partial(0), progress(0.9), end]


def test_events_are_encoded_once_and_read_back() -> None:
    events = new_events()

    async def watch() -> None:
        events.publish(progress(0.0), partial(0))
        first, second = await known(events), await known(events)
        assert [told.name for told in first] == ["progress", "segment"]
        for one, other in zip(first, second, strict=True):
            assert one.data is other.data
            assert msgspec.json.decode(one.data, type=JobEvent) == one.event
            assert msgspec.json.decode(one.data)["event"] == one.name

    run(watch())


# --- waiting for events ---


def test_another_thread_wakes_a_waiting_watcher() -> None:
    events = new_events()

    async def watch() -> list[JobEvent]:
        async with events.watch("a") as watch:
            await watch.next(0)
            waiting = asyncio.ensure_future(watch.next())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            threading.Thread(target=events.publish, args=(partial(0),)).start()
            return events_in(await waiting)

    assert run(watch()) == [partial(0)]


def test_waiting_ends_when_the_time_is_over_and_when_it_is_woken() -> None:
    events = JobEvents()

    async def watch() -> None:
        with pytest.raises(RuntimeError):
            await events.watch("a").next(0)
        async with events.watch("a") as watch:
            assert await watch.next(0)
            assert await watch.next(0.01) == ()
            waiting = asyncio.ensure_future(watch.next())
            await asyncio.sleep(0)
            watch.wake()
            assert await waiting == ()
            events.publish(COMPLETED)
            assert events_in(await watch.next()) == [COMPLETED]

    run(watch())


def test_progress_waits_a_moment_for_more_and_nothing_else_does() -> None:
    events = new_events()

    async def watch() -> list[tuple[float, list[JobEvent]]]:
        given = []
        clock = asyncio.get_running_loop().time
        async with events.watch("a") as watch:
            events.publish(progress(0.0))
            given.append((clock(), events_in(await watch.next(0))))
            sent: list[list[JobEvent]] = [
                [progress(step / 10) for step in range(1, 6)],
                [progress(0.6), partial(0)],
                [progress(0.7), COMPLETED],
            ]
            for work in sent:
                waiting = asyncio.ensure_future(watch.next())
                for event in work:
                    await asyncio.sleep(0.1)
                    events.publish(event)
                news = events_in(await waiting)
                given.append((round(clock(), 3), news))
        return given

    assert run_at_once(watch()) == [
        (0.0, [progress(0.0)]),
        (1.0, [progress(0.5)]),
        (1.2, [progress(0.6), partial(0)]),
        (1.4, [progress(0.7), COMPLETED]),
    ]


def test_a_watcher_that_does_not_read_holds_only_the_newest_events() -> None:
    events = JobEvents()

    async def watch() -> None:
        async with events.watch("a") as watch:
            for number in range(1000):
                events.publish(progress(number / 1000), partial(number % 5, str(number)))
            assert events_in(await watch.next(0)) == [
                *(partial(number % 5, str(number)) for number in range(995, 999)),
                progress(0.999),
                partial(4, "999"),
            ]

    run(watch())


def test_many_watchers_are_all_told_while_some_come_and_go() -> None:
    events = new_events()
    last = 200

    async def follow() -> list[str]:
        texts: dict[int, str] = {}
        async with events.watch("a") as watch:
            while True:
                for told in await watch.next():
                    match told.event:
                        case JobSegmentEvent(index=index, segments=segments):
                            texts[index] = segments[0].text
                        case JobCompletedEvent():
                            return [texts[index] for index in sorted(texts)]

    async def come_and_go() -> None:
        while True:
            async with events.watch("a") as watch:
                await watch.next(0)
                await watch.next(0.001)

    def tell() -> None:
        for number in range(last):
            events.publish(progress(number / last), partial(number % 20, f"{number // 20}"))
        events.publish(COMPLETED)

    async def watch() -> None:
        followers = [asyncio.ensure_future(follow()) for _ in range(50)]
        restless = asyncio.ensure_future(come_and_go())
        await asyncio.sleep(0.01)
        threading.Thread(target=tell).start()
        for texts in await asyncio.gather(*followers):
            assert texts == ["9"] * 20
        restless.cancel()

    run(watch())


def test_a_watcher_of_states_is_signaled_when_a_job_starts_waits_again_or_ends_and_not_otherwise() -> None:
    events = new_events()

    async def watch() -> list[bool]:
        signaled = []
        async with events.watch("a", states_only=True) as watch:
            for event in (queued(2), progress(0.0), progress(0.1), partial(0), queued(4), progress(0.2), COMPLETED):
                events.publish(event)
                await asyncio.sleep(0)
                signaled.append(watch.ready.is_set())
                watch.ready.clear()
            events.update_positions()
            await asyncio.sleep(0)
            return [*signaled, watch.ready.is_set()]

    assert run(watch()) == [False, True, False, False, True, True, True, False]


def test_a_signal_that_comes_before_the_wait_is_not_lost() -> None:
    events = new_events()

    async def watch() -> None:
        async with events.watch("a", states_only=True) as watch:
            events.publish(progress(0.0))
            await asyncio.sleep(0.01)
            await watch.signal(math.inf)
            waiting = asyncio.ensure_future(watch.signal(math.inf))
            await asyncio.sleep(0)
            events.publish(COMPLETED)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await watch.signal(math.inf)

    run(watch())


def test_many_watchers_wake_their_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events = new_events()

    async def watch() -> int:
        loop = asyncio.get_running_loop()
        calls = 0
        plain = loop.call_soon_threadsafe

        def counted(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            return plain(*arguments, **more)

        async with events.watch("a") as one, events.watch("a") as two, events.watch("b") as three:
            for each in (one, two, three):
                await each.next(0)
            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
            # The loop does not run meanwhile, so one call wakes it for all events.
            for number in range(100):
                events.publish(partial(number), JobProgressEvent(job_id="b", progress=0.0, stage="asr"))
            monkeypatch.undo()
            assert [len(await each.next(DEADLINE)) for each in (one, two, three)] == [100, 100, 1]
        return calls

    assert run(watch()) == 1


def test_the_watchers_of_a_closed_loop_are_forgotten() -> None:
    events = new_events()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(events.watch("a").__aenter__())
    loop.close()
    assert len(events.watches) == 1
    events.publish(queued(1))
    assert not events.watches
    assert not events.logs


def test_the_watchers_of_every_loop_are_signaled() -> None:
    events = new_events()
    everybody = threading.Barrier(5, timeout=DEADLINE)

    async def watch() -> list[JobEvent]:
        async with events.watch("a") as watch:
            await watch.next(0)
            await asyncio.to_thread(everybody.wait)
            return events_in(await watch.next(DEADLINE))

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(run, watch()) for _ in range(4)]
        everybody.wait()
        events.publish(COMPLETED)
        assert [each.result(DEADLINE) for each in found] == [[COMPLETED]] * 4


# --- what is kept ---


def test_the_log_of_a_job_is_dropped_when_its_watchers_leave_or_it_ends() -> None:
    events = new_events()

    async def watch() -> None:
        async with events.watch("a"):
            assert events.logs
            async with events.watch("a"):
                pass
            assert events.logs
        # The job waits: the next watcher looks its position up.
        assert not events.logs
        events.publish(progress(0.0), partial(0))
        await known(events)
        assert events.logs
        events.publish(COMPLETED)
        assert not events.logs
        events.publish(COMPLETED)
        assert not events.logs

    run(watch())


# --- what the service tells ---


class Reader(FakeExecutor):
    """A fake that reports partial segments, as an engine does.

    Args:
        read: gives them.
        held: as for any fake.
    """

    def __init__(self, read: Callable[[OnPartial], None], *, held: bool = False) -> None:
        super().__init__(held=held, behave=lambda executor, job: read(self.on_partial))

    def run(self, job: Job, audio: Path, *, on_partial: OnPartial, **others: Any) -> Transcript:
        self.on_partial = on_partial
        return super().run(job, audio, on_partial=on_partial, **others)


def read_two(tell: OnPartial) -> None:
    """Report partial segments, the same segments with word times, and further ones."""
    word = Word(word="Hello", start=0.0, end=1.0, score=0.5, interpolated=True)
    segment = Segment(id=7, start=0.0, end=1.0, text="Hello", avg_logprob=-0.1, tokens=(1, 2), seek=0)
    tell(PartialSegments(index=0, aligned=False, segments=(segment,)))
    tell(PartialSegments(index=0, aligned=True, segments=(msgspec.structs.replace(segment, words=(word,)),)))
    tell(PartialSegments(index=1, aligned=False, segments=(segment,)))


def read_one(tell: OnPartial) -> None:
    """Partial segments: two segments of one window."""
    segment = Segment(id=7, start=0.0, end=1.0, text="Hello")
    tell(PartialSegments(index=0, aligned=False, segments=(segment, segment)))


def test_a_service_tells_of_a_job_from_the_queue_to_its_end(serve: Services) -> None:
    executor = Reader(read_two, held=True)
    service = serve(executor)
    first = submit(service)
    running(service, first)
    jobs = [submit(service, str(number)) for number in range(3)]

    async def watch() -> list[JobEvent]:
        events: list[JobEvent] = []
        async with service.events.watch(jobs[2]) as watch:
            events += events_in(await watch.next(0))
            await asyncio.to_thread(service.cancel, jobs[0], None)
            events += events_in(await watch.next())
            executor.release()
            while not isinstance(events[-1], JobCompletedEvent):
                events += events_in(await watch.next())
        return events

    events = run(watch())
    # The last position may pass too quickly for an event.
    places = [event.queue_position for event in events if isinstance(event, JobQueuedEvent)]
    assert places in ([3, 2, 1], [3, 2])
    stages = [event.stage for event in events if isinstance(event, JobProgressEvent)]
    assert stages in (["load", "asr"], ["asr"])
    texts = [event for event in events if isinstance(event, JobSegmentEvent)]
    assert [(event.index, event.aligned) for event in texts][-2:] == [(0, True), (1, False)]
    assert msgspec.json.decode(msgspec.json.encode(texts[-2].segments)) == [
        {
            "id": 0,
            "start": 0.0,
            "end": 1.0,
            "text": "Hello",
            "speaker": None,
            "words": [{"word": "Hello", "start": 0.0, "end": 1.0, "score": 0.5, "speaker": None}],
        }
    ]
    assert not service.events.logs


def test_segments_count_within_their_partial(serve: Services) -> None:
    service = serve(Reader(read_one, held=True))
    job_id = submit(service)
    running(service, job_id)

    async def watch() -> tuple[int, ...]:
        async with service.events.watch(job_id) as watch:
            while True:
                for told in await watch.next():
                    if isinstance(told.event, JobSegmentEvent):
                        return tuple(segment.id for segment in told.event.segments)

    assert run(watch()) == (0, 1)


def test_a_job_that_is_put_back_is_told_to_wait_and_its_text_is_void(serve: Services) -> None:
    crashes = itertools.count()
    gate = threading.Event()

    def read(tell: OnPartial) -> None:
        read_one(tell)
        if not next(crashes):
            assert gate.wait(DEADLINE)
            raise EngineClosed("the engine has failed")

    service = serve(Reader(read))
    job_id = submit(service)
    running(service, job_id)

    async def watch() -> list[str]:
        names: list[str] = []
        async with service.events.watch(job_id) as watch:
            while "segment" not in names:
                names += [told.name for told in await watch.next()]
            gate.set()
            names.append("|")
            while names[-1] != "completed":
                names += [told.name for told in await watch.next()]
        return names

    names = run(watch())
    after = names[names.index("|") + 1 :]
    assert after[0] == "queued"
    assert after.index("queued") < after.index("segment")
    ended(service, job_id)
    idle(service)
    until(lambda: not service.events.logs, "nothing is kept")


class Hung(FakeExecutor):
    """Its jobs ignore cancellation. Each waits for a gate, reports progress, and waits for another gate."""

    def __init__(self) -> None:
        super().__init__()
        self.report, self.end = threading.Event(), threading.Event()

    def run(self, job: Job, audio: Path, *, on_progress: OnProgress, **others: Any) -> Transcript:
        on_progress(Progress(0.5, "asr"))
        assert self.report.wait(DEADLINE)
        on_progress(Progress(0.6, "asr"))
        assert self.end.wait(DEADLINE)
        raise Canceled("the job was canceled")


def test_progress_of_a_hung_job_after_its_cancellation_is_not_kept(
    serve: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "STOP_SECONDS", 0.01)
    executor = Hung()
    service = serve(executor)
    job_id = submit(service)
    running(service, job_id)
    service.cancel(job_id, None, force=True)
    assert not service.events.logs
    executor.report.set()
    until(lambda: service.events.logs, "the hung job has reported progress")
    executor.end.set()
    until(lambda: not service.events.logs, "nothing is kept")
