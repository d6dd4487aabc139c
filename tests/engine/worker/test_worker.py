"""The worker with one lane: batches, fairness, out of memory, errors, cancellation, closing."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import pytest
from fakes import DEADLINE
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

from whisper_api.engine.worker.batch_runner import ATTEMPTS
from whisper_api.engine.worker.device_errors import is_out_of_memory
from whisper_api.engine.worker.fair_queue import Again
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import EngineClosed, OutOfMemory


@dataclass
class Device:
    """A fake device that holds so many items at once and records every batch."""

    capacity: int = 1_000
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[list[object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()


@dataclass(frozen=True)
class Double:
    """Doubles numbers; fails on ``bad``."""

    device: Device = field(hash=False, compare=False)
    key: str = "a"
    max_items: int = 4
    max_cost: float = math.inf

    @property
    def memory_key(self) -> Hashable:
        return self.key

    def run(self, inputs: Sequence[object]) -> list[object]:
        self.device.entered.set()
        self.device.gate.wait(DEADLINE)
        self.device.batches.append(list(inputs))
        if len(inputs) > self.device.capacity:
            raise RuntimeError("CUDA failed with error out of memory")
        if "bad" in inputs:
            raise ValueError("bad input")
        return [f"{value}{value}" for value in inputs]


@pytest.fixture
def worker() -> Iterator[GpuWorker]:
    worker = GpuWorker()
    yield worker
    worker.close()


def held(worker: GpuWorker, device: Device) -> Future[object]:
    """Keep the worker busy, so that it chooses among all items that are submitted next."""
    device.gate.clear()
    device.entered.clear()
    future = worker.submit("holder", Double(device, key="holder"), "h", 1.0)
    assert device.entered.wait(DEADLINE)
    return future


def test_results_belong_to_their_inputs(worker: GpuWorker) -> None:
    device = Device()
    futures = [worker.submit("job", Double(device), str(i), 1.0) for i in range(20)]
    assert [future.result(DEADLINE) for future in futures] == [f"{i}{i}" for i in range(20)]


def test_equal_operations_share_batches_up_to_the_limit(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    futures = [worker.submit("job", Double(device), str(i), 1.0) for i in range(6)]
    device.gate.set()
    hold.result(DEADLINE)
    for future in futures:
        future.result(DEADLINE)
    assert device.batches[1:] == [["0", "1", "2", "3"], ["4", "5"]]


def test_different_operations_never_share_a_batch(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    futures = [worker.submit("job", Double(device, key=key), key, 1.0) for key in "abab"]
    device.gate.set()
    hold.result(DEADLINE)
    for future in futures:
        future.result(DEADLINE)
    assert all(len(set(batch)) == 1 for batch in device.batches)
    assert sorted(len(batch) for batch in device.batches[1:]) == [2, 2]


def test_cost_bounds_a_batch_but_one_item_may_exceed_it(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    operation = Double(device, max_cost=60.0)
    futures = [worker.submit("job", operation, str(i), cost) for i, cost in enumerate([90.0, 30.0, 30.0, 30.0])]
    device.gate.set()
    hold.result(DEADLINE)
    for future in futures:
        future.result(DEADLINE)
    assert device.batches[1:] == [["0"], ["1", "2"], ["3"]]


def test_a_short_job_rides_in_the_next_batch_behind_a_long_one(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    long = [worker.submit("long", Double(device), f"l{i}", 30.0) for i in range(40)]
    short = worker.submit("short", Double(device), "s", 10.0)
    device.gate.set()
    hold.result(DEADLINE)
    for future in [*long, short]:
        future.result(DEADLINE)
    assert "s" in device.batches[1]


def test_two_long_jobs_advance_at_the_same_pace(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    futures = [worker.submit(job, Double(device), f"{job}{i}", 30.0) for job in "xy" for i in range(20)]
    device.gate.set()
    hold.result(DEADLINE)
    for future in futures:
        future.result(DEADLINE)
    order = [str(value)[0] for batch in device.batches[1:] for value in batch]
    for end in range(len(order)):
        assert abs(order[:end].count("x") - order[:end].count("y")) <= 3


def test_a_job_takes_at_most_three_quarters_of_a_batch_while_others_wait(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    # The first job's items are all cheaper, so that their tags come first.
    greedy = [worker.submit("greedy", Double(device), f"g{i}", 0.001) for i in range(8)]
    modest = worker.submit("modest", Double(device), "m", 1.0)
    device.gate.set()
    hold.result(DEADLINE)
    for future in [*greedy, modest]:
        future.result(DEADLINE)
    first = [str(value)[0] for value in device.batches[1]]
    assert first.count("g") == 3
    assert "m" in first


def test_out_of_memory_halves_the_batch_and_is_remembered(worker: GpuWorker) -> None:
    device = Device(capacity=2)
    hold = held(worker, device)
    operation = Double(device, max_items=8)
    futures = [worker.submit("job", operation, str(i), 1.0) for i in range(8)]
    device.gate.set()
    hold.result(DEADLINE)
    assert [future.result(DEADLINE) for future in futures] == [f"{i}{i}" for i in range(8)]
    assert worker.limits.limit(operation) == 2
    assert [len(batch) for batch in device.batches[1:]] == [8] * ATTEMPTS + [4] * ATTEMPTS + [2] * 4
    before = len(device.batches)
    more = [worker.submit("job", operation, str(i), 1.0) for i in range(4)]
    for future in more:
        future.result(DEADLINE)
    assert max(len(batch) for batch in device.batches[before:]) <= 2


def test_a_single_item_that_does_not_fit_has_a_name() -> None:
    device = Device(capacity=0)
    evicted: list[int] = []

    def evict() -> bool:
        evicted.append(1)
        return len(evicted) == 1

    worker = GpuWorker(on_out_of_memory=evict)
    try:
        with pytest.raises(OutOfMemory, match="does not fit"):
            worker.submit("job", Double(device), "x", 1.0).result(DEADLINE)
    finally:
        worker.close()
    assert evicted == [1]
    assert len(device.batches) == ATTEMPTS + 1  # tried once more after something was evicted


def test_only_the_guilty_item_of_a_batch_fails(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    futures = [worker.submit(f"job {value}", Double(device), value, 1.0) for value in ("1", "bad", "3")]
    device.gate.set()
    hold.result(DEADLINE)
    assert futures[0].result(DEADLINE) == "11"
    assert futures[2].result(DEADLINE) == "33"
    with pytest.raises(ValueError, match="bad input"):
        futures[1].result(DEADLINE)


def test_canceled_and_forgotten_items_do_not_run(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    canceled = worker.submit("one", Double(device), "canceled", 1.0)
    forgotten = worker.submit("two", Double(device), "forgotten", 1.0)
    kept = worker.submit("three", Double(device), "kept", 1.0)
    assert canceled.cancel()
    worker.forget("two")
    device.gate.set()
    hold.result(DEADLINE)
    assert kept.result(DEADLINE) == "keptkept"
    assert forgotten.cancelled()
    assert all("canceled" not in batch and "forgotten" not in batch for batch in device.batches)


def test_closing_finishes_running_batches_and_fails_waiting_items() -> None:
    device = Device()
    worker = GpuWorker()
    running = held(worker, device)
    waiting = worker.submit("job", Double(device), "x", 1.0)
    closer = threading.Thread(target=worker.close)
    closer.start()
    with pytest.raises(EngineClosed):
        waiting.result(DEADLINE)
    device.gate.set()
    closer.join(DEADLINE)
    assert running.result(DEADLINE) == "hh"
    with pytest.raises(EngineClosed):
        worker.submit("job", Double(device), "x", 1.0)
    worker.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA failed with error out of memory"), True),
        (RuntimeError("shape mismatch"), False),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes."), True),
        (onnx_errors.RuntimeException("Failed to allocate memory for requested buffer of size 80"), True),
        (onnx_errors.InvalidArgument("Got invalid dimensions for input"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_errors_of_every_library_count_as_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@dataclass(frozen=True)
class Incomparable(Double):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    __hash__ = Double.__hash__


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_fails_ends_every_wait_for_it() -> None:
    device = Device()
    worker = GpuWorker()
    hold = held(worker, device)
    futures = [worker.submit("job", Incomparable(device), "x", 1.0) for _ in range(2)]
    device.gate.set()
    hold.result(DEADLINE)
    for future in futures:
        with pytest.raises(EngineClosed):
            future.result(DEADLINE)
    with pytest.raises(EngineClosed):
        worker.submit("job", Double(device), "x", 1.0)
    # The thread ends within this test, so that pytest does not report its exception in another test.
    worker.close()


@dataclass(frozen=True)
class Countdown:
    """Runs an input (name, steps) step by step, and records every step."""

    device: Device = field(hash=False, compare=False)
    done: float = 0.0
    max_items: int = 1
    max_cost: float = math.inf
    memory_key: str = "countdown"

    def run(self, inputs: Sequence[tuple[str, int]]) -> list[object]:
        self.device.entered.set()
        self.device.gate.wait(DEADLINE)
        self.device.batches.append(list(inputs))
        return [Again((name, left - 1), self.done) if left > 1 else name for name, left in inputs]


def test_a_short_job_overtakes_a_long_item_between_its_steps(worker: GpuWorker) -> None:
    device = Device()
    device.gate.clear()
    long = worker.submit("long", Countdown(device), ("long", 6), 30.0)
    later = worker.submit("long", Countdown(device), ("later", 1), 30.0)
    assert device.entered.wait(DEADLINE)
    short = worker.submit("short", Countdown(device), ("short", 2), 1.0)
    device.gate.set()
    assert [future.result(DEADLINE) for future in (long, later, short)] == ["long", "later", "short"]
    steps = [str(batch[0][0]) for batch in device.batches]  # type: ignore[index]
    # The jobs take turns; the long job finishes its unfinished item before its next one.
    assert steps == ["long", "short", "long", "short", "long", "long", "long", "long", "later"]


@dataclass(frozen=True)
class Begin(Countdown):
    """Hands its items on to another operation."""

    def run(self, inputs: Sequence[tuple[str, int]]) -> list[object]:
        self.device.entered.set()
        self.device.gate.wait(DEADLINE)
        return [Again(name, operation=Double(self.device)) for name, _ in inputs]


def test_an_unfinished_item_continues_with_another_operation_between_other_jobs(worker: GpuWorker) -> None:
    device = Device()
    hold = held(worker, device)
    begun = [worker.submit(job, Begin(device), (job, 1), 1.0) for job in "xy"]
    other = worker.submit("z", Double(device), "z", 30.0)
    device.gate.set()
    assert [future.result(DEADLINE) for future in (hold, *begun, other)] == ["hh", "xx", "yy", "zz"]
    # The continued items share a batch with the item that was submitted with that operation.
    assert device.batches[1:] == [["z", "x", "y"]]


def test_an_unfinished_item_of_a_forgotten_job_is_dropped(worker: GpuWorker) -> None:
    device = Device()
    device.gate.clear()
    future = worker.submit("job", Countdown(device), ("job", 5), 1.0)
    assert device.entered.wait(DEADLINE)
    worker.forget("job")
    assert not future.done()
    device.gate.set()
    with pytest.raises(CancelledError):
        future.result(DEADLINE)
    assert worker.submit("job", Double(device), "again", 1.0).result(DEADLINE) == "againagain"
    assert device.batches == [[("job", 5)], ["again"]]


def test_an_unfinished_item_that_waits_is_dropped_with_its_job(worker: GpuWorker) -> None:
    device = Device()
    device.gate.clear()
    future = worker.submit("job", Countdown(device), ("job", 5), 1.0)
    assert device.entered.wait(DEADLINE)
    other = Device()
    other.gate.clear()
    hold = worker.submit("other", Double(other), "o", 1.0)
    device.gate.set()
    assert other.entered.wait(DEADLINE)
    worker.forget("job")
    with pytest.raises(CancelledError):
        future.result(DEADLINE)
    other.gate.set()
    assert hold.result(DEADLINE) == "oo"
    assert device.batches == [[("job", 5)]]


def test_closing_fails_an_unfinished_item() -> None:
    device = Device()
    device.gate.clear()
    worker = GpuWorker()
    future = worker.submit("job", Countdown(device), ("job", 5), 1.0)
    assert device.entered.wait(DEADLINE)
    waiting = worker.submit("job", Double(device), "waiting", 1.0)
    closer = threading.Thread(target=worker.close)
    closer.start()
    # The worker fails the items that wait as soon as it closes.
    with pytest.raises(EngineClosed):
        waiting.result(DEADLINE)
    device.gate.set()
    closer.join(DEADLINE)
    with pytest.raises(EngineClosed):
        future.result(DEADLINE)
    assert device.batches == [[("job", 5)]]
