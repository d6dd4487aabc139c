"""The queue keeps its order and its bounds under any operations of any number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from whisper_api.errors import Busy, Draining, QueueFull
from whisper_api.jobs.queue import JobQueue

CAPACITY = 4
WAIT = 60.0


class QueueMachine(RuleBasedStateMachine):
    """Compares the queue with a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = JobQueue(CAPACITY)
        self.waiting: list[str] = []
        self.held: set[str] = set()
        self.reserved = 0
        self.closed = False
        self.made = 0

    def new_id(self) -> str:
        self.made += 1
        return f"job-{self.made}"

    @rule()
    def reserve(self) -> None:
        if self.closed:
            with pytest.raises(Draining):
                self.queue.reserve()
        elif len(self.waiting) + self.reserved >= CAPACITY:
            with pytest.raises(QueueFull) as caught:
                self.queue.reserve()
            assert caught.value.retry_after > 0
        else:
            self.queue.reserve()
            self.reserved += 1

    @precondition(lambda self: self.reserved > 0)
    @rule()
    def come(self) -> None:
        job_id = self.new_id()
        self.queue.put(job_id)
        self.waiting.append(job_id)
        self.reserved -= 1

    @precondition(lambda self: self.reserved > 0)
    @rule()
    def stay_away(self) -> None:
        self.queue.release_reservation()
        self.reserved -= 1

    @rule()
    def restore(self) -> None:
        job_id = self.new_id()
        self.queue.put(job_id, reserved=False)
        self.waiting.append(job_id)

    @precondition(lambda self: self.reserved == 0)
    @rule()
    def come_without_a_place(self) -> None:
        with pytest.raises(RuntimeError):
            self.queue.put(self.new_id())
        with pytest.raises(RuntimeError):
            self.queue.release_reservation()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def come_twice(self, data: st.DataObject) -> None:
        with pytest.raises(ValueError, match="already"):
            self.queue.put(data.draw(st.sampled_from(self.waiting)), reserved=False)

    @rule()
    def take(self) -> None:
        free = [job_id for job_id in self.waiting if job_id not in self.held]
        expected = free[0] if free and not self.closed else None
        assert self.queue.take(timeout=0) == expected
        if expected is not None:
            assert list(self.queue.positions()) == [expected, *(each for each in self.waiting if each != expected)]
            assert self.queue.position(expected) == 1
            self.queue.started(expected)
            self.waiting.remove(expected)

    @precondition(lambda self: not self.closed and not set(self.waiting) <= self.held)
    @rule()
    def take_and_fail_to_start(self) -> None:
        """A job that was taken and not started counts as waiting again, and can be put back."""
        job_id = next(job_id for job_id in self.waiting if job_id not in self.held)
        assert self.queue.take(timeout=0) == job_id
        self.queue.started(job_id)
        assert self.queue.position(job_id) is None
        self.queue.not_started(job_id)
        assert self.queue.position(job_id) == 1
        self.queue.put(job_id, reserved=False)
        self.waiting.remove(job_id)
        self.waiting.append(job_id)

    @precondition(lambda self: not self.closed and not set(self.waiting) <= self.held)
    @rule()
    def take_and_hold(self) -> None:
        """A job that is held keeps its position."""
        job_id = next(job_id for job_id in self.waiting if job_id not in self.held)
        assert self.queue.take(timeout=0) == job_id
        self.queue.hold(job_id)
        self.held.add(job_id)

    @precondition(lambda self: not self.closed and not set(self.waiting) <= self.held)
    @rule()
    def take_and_put_back(self) -> None:
        """A job that is put back goes behind the others, no matter how it first came."""
        job_id = self.queue.take(timeout=0)
        assert job_id is not None
        self.queue.put(job_id, reserved=False)
        self.waiting.remove(job_id)
        self.waiting.append(job_id)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from([*self.waiting, "nobody"]))
        self.queue.release(job_id)
        self.held.discard(job_id)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from([*self.waiting, "nobody"]))
        assert self.queue.remove(job_id) == (job_id in self.waiting)
        self.held.discard(job_id)
        if job_id in self.waiting:
            self.waiting.remove(job_id)

    @precondition(lambda self: self.made > 10)
    @rule()
    def close(self) -> None:
        self.queue.close()
        self.closed = True

    @invariant()
    def stands_as_expected(self) -> None:
        assert list(self.queue.positions().items()) == [(job_id, i) for i, job_id in enumerate(self.waiting, start=1)]
        assert all(self.queue.position(job_id) == i for i, job_id in enumerate(self.waiting, start=1))
        assert self.queue.position("nobody") is None


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=30)


def in_thread(action: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    return thread, results


def test_closing_the_queue_ends_every_wait() -> None:
    queue = JobQueue(CAPACITY)
    takers = [in_thread(queue.take) for _ in range(3)]
    queue.close()
    for thread, _ in takers:
        thread.join(WAIT)
    assert [results for _, results in takers] == [[None]] * 3


def test_positions_count_batches_when_several_jobs_run_at_a_time() -> None:
    queue = JobQueue(CAPACITY, slots=2)
    for job_id in "abcde":
        queue.put(job_id, reserved=False)
    assert queue.positions() == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}
    # A job that is about to start still counts, before the others.
    assert queue.take(0) == "a"
    assert queue.positions() == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}
    queue.started("a")
    assert queue.positions() == {"b": 1, "c": 1, "d": 2, "e": 2}
    assert queue.position("d") == 2


def test_a_waiting_worker_gets_the_next_job() -> None:
    queue = JobQueue(CAPACITY)
    thread, results = in_thread(lambda: queue.take(WAIT))
    queue.put("job", reserved=False)
    thread.join(WAIT)
    assert results == ["job"]


def test_a_closed_queue_keeps_what_it_has() -> None:
    queue = JobQueue(CAPACITY)
    queue.reserve()
    queue.put("first", reserved=False)
    queue.close()
    queue.put("second")
    assert queue.take(timeout=None) is None
    assert queue.positions() == {"first": 1, "second": 2}


def test_each_job_is_taken_once_and_each_taker_sees_them_in_order() -> None:
    queue = JobQueue(CAPACITY)
    takers, producers, each = 4, 4, 100
    seen: list[list[str]] = [[] for _ in range(takers)]

    def produce(producer: int) -> None:
        for number in range(each):
            queue.put(f"{producer}-{number:04}", reserved=False)

    def consume(mine: list[str]) -> None:
        while (job_id := queue.take(WAIT)) is not None:
            queue.started(job_id)
            mine.append(job_id)

    consumers = [threading.Thread(target=consume, args=(mine,)) for mine in seen]
    sources = [threading.Thread(target=produce, args=(producer,)) for producer in range(producers)]
    for thread in [*consumers, *sources]:
        thread.start()
    for thread in sources:
        thread.join(WAIT)
    while queue.positions():
        time.sleep(0.001)
    queue.close()
    for thread in consumers:
        thread.join(WAIT)
    everything = [job_id for mine in seen for job_id in mine]
    assert len(everything) == len(set(everything)) == producers * each
    for mine in seen:
        for producer in range(producers):
            from_one = [job_id for job_id in mine if job_id.startswith(f"{producer}-")]
            assert from_one == sorted(from_one)


def test_reservations_by_many_never_exceed_the_capacity() -> None:
    queue = JobQueue(CAPACITY)
    begin = threading.Barrier(16)
    refused: list[Busy] = []

    def reserve() -> None:
        begin.wait(WAIT)
        try:
            queue.reserve()
        except QueueFull as error:
            refused.append(error)

    threads = [threading.Thread(target=reserve) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(refused) == 16 - CAPACITY
    assert all(error.retry_after > 0 for error in refused)
