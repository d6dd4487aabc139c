"""Events from threads to event loops: none that matters is lost, and nobody who has gone is in the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from fakes import DEADLINE, until

from whisper_api.jobs.events import MAX_PENDING, EventBus
from whisper_api.schema import (
    JobCanceledEvent,
    JobCompletedEvent,
    JobEvent,
    JobFailedEvent,
    JobProgressEvent,
    JobQueuedEvent,
    JobSegmentEvent,
)

T = TypeVar("T")

COMPLETED = JobCompletedEvent(job_id="a")
QUEUED = JobQueuedEvent(job_id="a", queue_position=1)


def progress(fraction: float, job_id: str = "a") -> JobProgressEvent:
    return JobProgressEvent(job_id=job_id, progress=fraction, stage="asr")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, DEADLINE))


async def in_thread(*events: JobEvent, bus: EventBus) -> None:
    await asyncio.to_thread(bus.publish, *events)


def test_events_come_in_order_and_only_those_of_the_job() -> None:
    bus = EventBus()

    async def listen() -> list[JobEvent | None]:
        async with bus.subscribe("a") as events:
            await in_thread(QUEUED, progress(0.1), progress(0.2, "b"), JobCompletedEvent(job_id="b"), bus=bus)
            await in_thread(COMPLETED, bus=bus)
            return [await events.next(DEADLINE) for _ in range(3)] + [await events.next(0)]

    assert run(listen()) == [QUEUED, progress(0.1), COMPLETED, None]


def test_who_waits_is_woken_from_another_thread() -> None:
    bus = EventBus()

    async def listen() -> JobEvent | None:
        async with bus.subscribe("a") as events:
            waiting = asyncio.ensure_future(events.next())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            threading.Thread(target=bus.publish, args=(COMPLETED,)).start()
            return await waiting

    assert run(listen()) == COMPLETED


def test_nothing_is_heard_before_and_after() -> None:
    bus = EventBus()

    async def listen() -> None:
        bus.publish(COMPLETED)
        subscription = bus.subscribe("a")
        with pytest.raises(RuntimeError):
            await subscription.next(0)
        async with subscription:
            assert bus.watched() == {"a"}
            assert await subscription.next(0) is None
        bus.publish(COMPLETED)
        assert await subscription.next(0) is None
        assert bus.watched() == set()

    run(listen())


def test_progress_that_was_not_read_is_replaced_and_ends_are_not() -> None:
    bus = EventBus()

    async def listen() -> list[JobEvent | None]:
        async with bus.subscribe("a") as events:
            for number in range(10_000):
                bus.publish(progress(number / 10_000))
            bus.publish(QUEUED)
            bus.publish(JobFailedEvent(job_id="a", error="x"), COMPLETED, JobCanceledEvent(job_id="a"))
            return [await events.next(0) for _ in range(6)]

    assert run(listen()) == [
        progress(0.9999),
        QUEUED,
        JobFailedEvent(job_id="a", error="x"),
        COMPLETED,
        JobCanceledEvent(job_id="a"),
        None,
    ]


def test_what_waits_for_a_subscriber_is_bounded() -> None:
    bus = EventBus()

    async def listen() -> list[JobEvent]:
        async with bus.subscribe("a") as events:
            bus.publish(COMPLETED)
            for number in range(5 * MAX_PENDING):
                bus.publish(progress(number / 10_000), QUEUED)
            found = []
            while (event := await events.next(0)) is not None:
                found.append(event)
            return found

    found = run(listen())
    assert len(found) == MAX_PENDING
    assert found[0] == COMPLETED
    assert found[-1] == QUEUED


def test_many_subscribers_wake_their_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = EventBus()

    async def listen() -> int:
        loop = asyncio.get_running_loop()
        calls = 0
        plain = loop.call_soon_threadsafe

        def counted(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            return plain(*arguments, **more)

        async with bus.subscribe("a") as one, bus.subscribe("a") as two, bus.subscribe("b") as three:
            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
            # The loop does not run meanwhile, so that it needs no second call.
            for _ in range(100):
                bus.publish(COMPLETED, JobCompletedEvent(job_id="b"))
            monkeypatch.undo()
            for each in (one, two, three):
                for _ in range(100):
                    assert await each.next(0) is not None
        return calls

    assert run(listen()) == 1


def test_a_loop_that_has_gone_is_forgotten() -> None:
    bus = EventBus()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(bus.subscribe("a").__aenter__())
    loop.close()
    assert bus.watched() == {"a"}
    bus.publish(COMPLETED)
    assert bus.watched() == set()


def test_each_loop_hears_of_it() -> None:
    bus = EventBus()
    everybody = threading.Barrier(5, timeout=DEADLINE)

    async def listen() -> JobEvent | None:
        async with bus.subscribe("a") as events:
            await asyncio.to_thread(everybody.wait)
            return await events.next(DEADLINE)

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(run, listen()) for _ in range(4)]
        everybody.wait()
        bus.publish(COMPLETED)
        assert [each.result(DEADLINE) for each in found] == [COMPLETED] * 4


def test_waking_lets_everybody_return_once() -> None:
    bus = EventBus()

    async def listen() -> None:
        async with bus.subscribe("a") as one, bus.subscribe("b") as two:
            waiting = [asyncio.ensure_future(each.next()) for each in (one, two)]
            await asyncio.sleep(0)
            await asyncio.to_thread(bus.wake)
            assert await asyncio.gather(*waiting) == [None, None]
            again = asyncio.ensure_future(one.next())
            await in_thread(COMPLETED, bus=bus)
            assert await again == COMPLETED

    run(listen())


def test_after_closing_nobody_waits() -> None:
    bus = EventBus()

    async def listen() -> None:
        async with bus.subscribe("a") as events:
            waiting = asyncio.ensure_future(events.next())
            await asyncio.sleep(0)
            await asyncio.to_thread(bus.close)
            assert await waiting is None
            bus.publish(COMPLETED)
            assert [await events.next(), await events.next()] == [COMPLETED, None]

    run(listen())


def test_a_wait_that_is_cancelled_loses_no_event() -> None:
    bus = EventBus()

    async def listen() -> JobEvent | None:
        async with bus.subscribe("a") as events:
            waiting = asyncio.ensure_future(events.next())
            await asyncio.sleep(0)
            bus.publish(COMPLETED)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return await events.next(0)

    assert run(listen()) == COMPLETED


def test_threads_that_publish_at_once_lose_nothing() -> None:
    bus = EventBus()
    writers, each = 8, 25

    async def listen() -> list[JobEvent | None]:
        async with bus.subscribe("a") as events:
            with ThreadPoolExecutor(writers) as pool:
                for writer in range(writers):
                    for number in range(each):
                        pool.submit(bus.publish, JobFailedEvent(job_id="a", error=f"{writer}/{number}"))
                return [await events.next(DEADLINE) for _ in range(writers * each)]

    errors = {event.error for event in run(listen()) if isinstance(event, JobFailedEvent)}
    assert len(errors) == writers * each


def test_threads_wait_for_changes_too() -> None:
    bus = EventBus()
    since = bus.changes()
    bus.publish(progress(0.5))
    assert bus.changes() == since
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bus.wait_for_change, since, DEADLINE)
        bus.publish(COMPLETED)
        waiting.result(DEADLINE)
    # What has happened meanwhile is not waited for.
    bus.wait_for_change(since, DEADLINE)
    until(lambda: bus.changes() > since)
    bus.close()
    bus.wait_for_change(bus.changes(), DEADLINE)


def test_text_is_told_and_changes_no_state() -> None:
    bus = EventBus()
    segment = JobSegmentEvent(job_id="a", index=0, aligned=False, segments=())

    async def listen() -> list[JobEvent | None]:
        async with bus.subscribe("a") as events:
            before = bus.changes()
            bus.publish(progress(0.1), segment)
            assert bus.changes() == before
            bus.publish(segment, COMPLETED)
            assert bus.changes() == before + 1
            return [await events.next(0) for _ in range(5)]

    assert run(listen()) == [progress(0.1), segment, segment, COMPLETED, None]


def test_a_subscription_holds_no_more_than_it_asked_for_and_the_end_in_any_case() -> None:
    bus = EventBus()

    async def listen() -> list[JobEvent | None]:
        async with bus.subscribe("a", most=1) as events:
            bus.publish(QUEUED, progress(0.1), COMPLETED, progress(0.2))
            return [await events.next(0) for _ in range(2)]

    assert run(listen()) == [COMPLETED, None]


def test_one_subscription_can_be_woken_alone() -> None:
    bus = EventBus()

    async def listen() -> JobEvent | None:
        async with bus.subscribe("a") as woken, bus.subscribe("a") as other:
            waiting = [asyncio.ensure_future(each.next()) for each in (woken, other)]
            await asyncio.sleep(0)
            woken.wake()
            assert await waiting[0] is None
            assert not waiting[1].done()
            bus.publish(COMPLETED)
            return await waiting[1]

    assert run(listen()) == COMPLETED
