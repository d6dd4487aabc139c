"""The fair queue: tags, shares, batches of operations that merge. Without threads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from whisper_api.engine.worker.fair_queue import ORDER, Batch, BatchOperation, FairQueue, WorkItem


@dataclass(frozen=True)
class Padded:
    """Runs inputs of up to so many frames."""

    frames: int = 100
    max_items: int = 4
    max_cost: float = math.inf
    kind: str = "decode"

    @property
    def memory_key(self) -> Hashable:
        return self.kind, self.frames

    def merged(self, other: BatchOperation) -> BatchOperation | None:
        if not isinstance(other, Padded) or other.kind != self.kind:
            return None
        return max(self, other, key=lambda operation: operation.frames)

    def run(self, inputs: Sequence[object]) -> Sequence[object]:
        return inputs


ONE = Padded(max_items=1)


def limit_of(operation: BatchOperation) -> int:
    return operation.max_items


def take(queue: FairQueue) -> Batch:
    batch = queue.choose(limit_of)
    assert batch is not None
    queue.remove(batch)
    return batch


def inputs_of(batch: Batch) -> list[object]:
    return [item.input for item in batch.items]


def test_an_empty_queue_has_no_batch() -> None:
    queue = FairQueue()
    assert not queue
    assert queue.choose(limit_of) is None


def test_a_batch_that_is_not_full_takes_items_of_other_lengths() -> None:
    queue = FairQueue()
    for job, frames in (("a", 100), ("b", 300), ("c", 200), ("d", 100)):
        queue.push(job, Padded(frames), (job, frames), frames / 100)
    batch = take(queue)
    assert batch.operation == Padded(300)
    # Items of an equal operation come first, then the others by their tags.
    assert inputs_of(batch) == [("a", 100), ("d", 100), ("b", 300), ("c", 200)]


def test_a_full_batch_stays_of_one_length() -> None:
    queue = FairQueue()
    for number in range(4):
        queue.push(f"long {number}", Padded(300), number, 3.0)
    for number in range(4):
        queue.push(f"short {number}", Padded(100), number, 1.0)
    assert {item.operation for item in take(queue).items} == {Padded(300)}
    assert {item.operation for item in take(queue).items} == {Padded(100)}


def test_a_merged_batch_is_paid_for_at_its_longest() -> None:
    queue = FairQueue()
    for job, seconds in (("a", 10.0), ("b", 30.0), ("c", 10.0)):
        queue.push(job, Padded(round(seconds * 100), max_cost=60.0), job, seconds)
    # In one batch, two items of 10 s would be padded to 30 s as well.
    assert inputs_of(take(queue)) == ["a", "c"]
    assert inputs_of(take(queue)) == ["b"]


def test_operations_that_do_not_merge_wait_for_their_own_batch() -> None:
    queue = FairQueue()
    queue.push("a", Padded(kind="decode"), "a", 1.0)
    queue.push("b", Padded(kind="align"), "b", 1.0)
    assert inputs_of(take(queue)) == ["a"]
    assert inputs_of(take(queue)) == ["b"]


def test_the_share_counts_mergeable_items_of_others_too() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.push("greedy", Padded(100), number, 0.01)
    for number in range(3):
        queue.push("greedy", Padded(200), number, 0.01)
    queue.push("modest", Padded(300), "m", 1.0)
    batch = take(queue)
    assert Counter(item.job for item in batch.items) == {"greedy": 3, "modest": 1}


def test_a_priority_item_goes_before_the_rest_of_its_job_and_delays_no_other_job() -> None:
    def times(ahead: bool) -> tuple[list[object], list[object]]:
        queue = FairQueue()
        for number in range(3):
            queue.push("a", ONE, f"a{number}", 1.0)
            queue.push("b", ONE, f"b{number}", 1.0)
        for number in range(2):
            queue.push("a", ONE, f"first {number}", 1.0, ahead=ahead)
        order = [input for _ in range(8) for input in inputs_of(take(queue))]
        return order, [isinstance(input, str) and input.startswith("b") for input in order]

    order, of_others = times(ahead=True)
    assert order == ["first 0", "b0", "first 1", "b1", "a0", "b2", "a1", "a2"]
    # The turns of the other job do not depend on the priority items.
    assert of_others == times(ahead=False)[1]


def test_a_priority_item_stays_ahead_until_it_is_finished() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.push("a", ONE, number, 5.0)
    (first,) = take(queue).items
    assert first.input == 0
    queue.push("a", ONE, "first", 30.0, ahead=True)
    (item,) = take(queue).items
    assert item.input == "first"
    queue.put_back(item, 15.0)
    # Neither a returned item nor a new one goes before the unfinished priority item.
    queue.put_back(first, 1.0)
    queue.push("a", ONE, 3, 5.0)
    assert [input for _ in range(5) for input in inputs_of(take(queue))] == ["first", 0, 1, 2, 3]


def test_an_unfinished_item_goes_before_the_rest_of_its_job_unless_it_did_more_than_its_cost() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.push("a", ONE, number, 1.0)
    for done in (0.0, 0.4, 0.5):
        item = take(queue).items[0]
        assert item.input == 0
        queue.put_back(item, done)
    queue.put_back(take(queue).items[0], 0.6)
    assert [take(queue).items[0].input for _ in range(3)] == [1, 0, 2]


def test_a_job_that_arrives_goes_before_the_rest_of_an_unfinished_item() -> None:
    queue = FairQueue()
    queue.push("long", ONE, "long", 30.0)
    item = take(queue).items[0]
    queue.push("short", ONE, "short", 1.0)
    queue.put_back(item)
    assert inputs_of(take(queue)) == ["short"]


def test_an_unfinished_item_is_not_starved_by_jobs_that_keep_arriving() -> None:
    queue = FairQueue()
    queue.push("long", ONE, "long", 30.0)
    served: list[object] = []
    for number in range(20):
        batch = take(queue)
        served += inputs_of(batch)
        if served[-1] == "long":
            queue.push(f"short {number}", ONE, "short", 1.0)
            queue.put_back(batch.items[0])
    assert served == ["long", "short"] * 10


def test_work_that_was_done_moves_an_unfinished_item_behind_others() -> None:
    queue = FairQueue()
    queue.push("long", ONE, "long", 30.0)
    item = take(queue).items[0]
    queue.push("short", ONE, "short 1", 5.0)
    queue.push("short", ONE, "short 2", 5.0)
    queue.put_back(item, done=10.0)
    assert [inputs_of(take(queue)) for _ in range(3)] == [["short 1"], ["short 2"], ["long"]]


def test_an_item_alone_is_a_batch_of_its_own() -> None:
    queue = FairQueue()
    alone = queue.push("a", Padded(), "alone", 1.0)
    alone.alone = True
    for job in "bcd":
        queue.push(job, Padded(), job, 1.0)
    assert inputs_of(take(queue)) == ["alone"]
    other = queue.push("e", Padded(), "alone", 5.0)
    other.alone = True
    assert inputs_of(take(queue)) == ["b", "c", "d"]


def test_a_forgotten_job_leaves_nothing() -> None:
    queue = FairQueue()
    queue.push("a", ONE, 1, 100.0)
    queue.push("a", ONE, 2, 100.0)
    assert [item.input for item in queue.forget("a")] == [1, 2]
    assert not queue
    assert queue.forget("a") == []
    assert queue.push("a", ONE, 3, 1.0).tag == 0.0


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0.1, 30.0)), min_size=20, max_size=120))
def test_jobs_that_wait_get_the_same_amount_of_work(pushed: list[tuple[str, float]]) -> None:
    """The bound of start-time fair queueing: while two jobs wait, their work differs by at most two items' cost."""
    queue = FairQueue()
    left: Counter[str] = Counter()
    largest = max(cost for _, cost in pushed)
    for job, cost in pushed:
        queue.push(job, ONE, None, cost)
        left[job] += 1
    done: Counter[str] = Counter()
    while queue:
        (item,) = take(queue).items
        assert isinstance(item.job, str)
        done[item.job] += item.cost  # type: ignore[assignment]
        left[item.job] -= 1
        waiting = [job for job in "xyz" if left[job]]
        for first in waiting:
            assert all(abs(done[first] - done[second]) <= 2 * largest + 1e-6 for second in waiting)


@given(
    st.lists(
        st.tuples(st.sampled_from("xyz"), st.sampled_from([100, 200, 300]), st.floats(0.0, 40.0)),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 16),
    st.sampled_from([20.0, 60.0, math.inf]),
)
def test_batches_keep_their_limits_and_every_item_is_served(
    pushed: list[tuple[str, int, float]], max_items: int, max_cost: float
) -> None:
    queue = FairQueue()
    items = [queue.push(job, Padded(frames, max_items, max_cost), None, cost) for job, frames, cost in pushed]
    served: list[WorkItem] = []
    while queue:
        batch = take(queue)
        assert ORDER(batch.items[0]) == min(ORDER(item) for item in items if item not in served)
        assert len(batch.items) <= max_items
        assert len(batch.items) == 1 or sum(item.cost for item in batch.items) <= max_cost
        assert isinstance(batch.operation, Padded)
        assert all(item.operation.frames <= batch.operation.frames for item in batch.items)  # type: ignore[attr-defined]
        served += batch.items
    assert sorted(map(id, served)) == sorted(map(id, items))
