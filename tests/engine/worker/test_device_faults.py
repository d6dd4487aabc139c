"""The worker on a pretended GPU: out of memory, errors that come again, and a context that dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager

import pytest
from fake_gpu import FakeGpu, Rows
from fakes import DEADLINE, until

from whisper_api.engine.worker.background import DeviceThread
from whisper_api.engine.worker.batch_runner import ATTEMPTS, GOOD_BATCHES
from whisper_api.engine.worker.device_errors import DeviceFault
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import DeviceLost, OutOfMemory


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def worker_of(stack: ExitStack, gpu: FakeGpu, lanes: int = 1, fault: DeviceFault | None = None) -> GpuWorker:
    worker = GpuWorker(lanes=lanes, scope=gpu.scope, probe=gpu.check, fault=fault)
    stack.callback(worker.close)
    return worker


class Gate(Rows):
    """Keeps a lane busy until it is opened."""

    opened: threading.Event
    entered: threading.Event

    def run(self, inputs: Sequence[object]) -> list[object]:
        self.entered.set()
        assert self.opened.wait(DEADLINE)
        return list(inputs)


def gate(gpu: FakeGpu) -> Gate:
    made = Gate(gpu, "gate")
    object.__setattr__(made, "opened", threading.Event())
    object.__setattr__(made, "entered", threading.Event())
    return made


def batch(worker: GpuWorker, operation: Rows, size: int) -> list[Future[object]]:
    """Submit items that a lane takes together."""
    with worker._changed:  # noqa: SLF001 - so that no lane takes the first item alone
        pass
    busy = gate(operation.gpu)
    hold = worker.submit("holder", busy, "hold", 1.0)
    assert busy.entered.wait(DEADLINE)
    futures = [worker.submit("job", operation, number, 1.0) for number in range(size)]
    busy.opened.set()
    hold.result(DEADLINE)
    return futures


def done(futures: list[Future[object]]) -> None:
    assert [future.result(DEADLINE) for future in futures] == list(range(len(futures)))


@pytest.mark.parametrize("halves", [1, 3])
def test_nothing_of_a_failed_batch_is_alive_when_it_is_tried_again(stack: ExitStack, halves: int) -> None:
    gpu = FakeGpu(capacity=2 * halves)
    done(batch(worker_of(stack, gpu), Rows(gpu, halves=halves), 8))
    begun = [call for call in gpu.calls if call.what == "run"]
    assert [call.rows for call in begun] == [8] * ATTEMPTS + [4] * ATTEMPTS + [2] * 4
    assert [call.alive for call in begun] == [0] * len(begun)


def test_a_batch_that_fits_after_memory_was_released_is_not_halved(stack: ExitStack) -> None:
    gpu = FakeGpu(failures=1)
    worker, operation = worker_of(stack, gpu), Rows(gpu)
    done(batch(worker, operation, 8))
    assert gpu.runs == [8, 8]
    assert worker.limits.limit(operation) == 8


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_error_that_is_reported_again_halves_nothing(stack: ExitStack, lanes: int) -> None:
    gpu = FakeGpu(failures=1, stale=True)
    worker, operation = worker_of(stack, gpu, lanes), Rows(gpu)
    done([worker.submit("job", operation, number, 1.0) for number in range(1)])
    assert gpu.runs == [1, 1, 1]
    gpu.failures = 1
    done(batch(worker_of(stack, gpu), operation, 8))
    assert worker.limits.limit(operation) == 8


def test_a_batch_that_does_not_fit_is_halved_once_though_its_error_comes_again(stack: ExitStack) -> None:
    gpu = FakeGpu(capacity=4, stale=True)
    worker, operation = worker_of(stack, gpu), Rows(gpu)
    done(batch(worker, operation, 8))
    assert worker.limits.limit(operation) == 4
    assert set(gpu.runs) == {8, 4}


def test_a_limit_is_that_of_its_operation(stack: ExitStack) -> None:
    gpu = FakeGpu(capacity=4)
    worker = worker_of(stack, gpu)
    done(batch(worker, Rows(gpu, "3000 frames"), 8))
    assert worker.limits.limit(Rows(gpu, "3000 frames")) == 4
    assert worker.limits.limit(Rows(gpu, "1000 frames")) == 8


def test_a_limit_recovers_when_there_is_memory_again_and_ever_later_when_there_is_not(stack: ExitStack) -> None:
    gpu = FakeGpu(capacity=4)
    worker, operation = worker_of(stack, gpu), Rows(gpu)

    def good_batches_until(limit: int) -> int:
        count = 0
        while worker.limits.limit(operation) != limit:
            done(batch(worker, operation, worker.limits.limit(operation)))
            count += 1
            assert count < 10 * GOOD_BATCHES
        return count

    done(batch(worker, operation, 8))
    assert good_batches_until(8) == GOOD_BATCHES - 2  # two batches of 4 were run at once
    done(batch(worker, operation, 8))
    assert worker.limits.limit(operation) == 4
    gpu.capacity = 1_000
    assert good_batches_until(8) == 2 * GOOD_BATCHES - 2
    done(batch(worker, operation, 8))
    assert worker.limits.limit(operation) == 8


def test_what_does_not_fit_says_so_with_the_librarys_words(stack: ExitStack) -> None:
    gpu = FakeGpu(capacity=0)
    with pytest.raises(OutOfMemory, match="does not fit into memory: CUDA failed with error out of memory"):
        worker_of(stack, gpu, 2).submit("job", Rows(gpu), 1, 1.0).result(DEADLINE)


def test_a_lost_device_ends_all_work_at_once_and_is_called_no_more(stack: ExitStack) -> None:
    gpu = FakeGpu(dies_at=1)
    worker = worker_of(stack, gpu, lanes=2)
    assert worker.submit("job", Rows(gpu), 0, 1.0).result(DEADLINE) == 0
    hanging = gate(gpu)
    running = worker.submit("other", hanging, "hangs", 1.0)
    assert hanging.entered.wait(DEADLINE)
    second = gate(gpu)
    worker.submit("other", second, "holds", 1.0)
    assert second.entered.wait(DEADLINE)
    waiting = [worker.submit(job, Rows(gpu, max_items=2), number, 1.0) for number, job in enumerate("aabbcc")]
    second.opened.set()
    for future in (*waiting, running):
        with pytest.raises(DeviceLost, match="illegal memory access"):
            future.result(DEADLINE)
    with pytest.raises(DeviceLost, match="new process"):
        worker.submit("job", Rows(gpu), 0, 1.0)
    # The batch that died is not tried again, and its items are not tried alone.
    assert gpu.runs == [1, 2]
    # A lane that hangs in the device does not keep the process from ending.
    worker.close()
    hanging.opened.set()


def test_a_lost_device_ends_the_work_on_the_others(stack: ExitStack) -> None:
    fault = DeviceFault()
    lost, healthy = FakeGpu(dies_at=0), FakeGpu(index=1)
    first, second = worker_of(stack, lost, fault=fault), worker_of(stack, healthy, fault=fault)
    with pytest.raises(DeviceLost):
        first.submit("job", Rows(lost), 0, 1.0).result(DEADLINE)
    with pytest.raises(DeviceLost):
        second.submit("job", Rows(healthy), 0, 1.0)
    assert healthy.calls == []


class Vague(Rows):
    """Raises an error that does not say whether the context is dead."""

    def run(self, inputs: Sequence[object]) -> list[object]:
        if "bad" in inputs:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`")
        return list(inputs)


@pytest.mark.parametrize("dead", [True, False])
def test_the_device_is_asked_what_an_error_does_not_say(stack: ExitStack, dead: bool) -> None:
    gpu = FakeGpu(dead=dead)
    worker = worker_of(stack, gpu)
    future = worker.submit("job", Vague(gpu), "bad", 1.0)
    with pytest.raises(DeviceLost if dead else RuntimeError, match=r"CUBLAS_STATUS_EXECUTION_FAILED"):
        future.result(DEADLINE)
    assert worker.fault.reported is dead
    if not dead:
        assert worker.submit("job", Vague(gpu), "good", 1.0).result(DEADLINE) == "good"


def test_lanes_run_in_the_scope_of_their_device(stack: ExitStack) -> None:
    gpu = FakeGpu(index=3)
    worker = worker_of(stack, gpu, lanes=2)
    for number in range(6):
        worker.submit("job", Rows(gpu), number, 1.0).result(DEADLINE)
    assert {call.device for call in gpu.calls} == {3}
    until(lambda: len({call.thread for call in gpu.calls}) <= 2)


def test_a_device_that_dies_while_memory_is_freed_is_lost_and_no_engine_is_made_anew(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("whisper_api.engine.worker.batch_runner.release_cached_memory", broken)
    fault = DeviceFault()
    worker = worker_of(stack, FakeGpu(failures=1), fault=fault)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        worker.submit("job", Rows(FakeGpu(failures=1)), 0, 1.0).result(DEADLINE)
    assert fault.reported


def test_a_thread_that_the_device_refuses_says_so_to_who_needs_it(stack: ExitStack) -> None:
    refusals = [RuntimeError("CUDA out of memory")]

    @contextmanager
    def scope() -> Iterator[None]:
        if refusals:
            raise refusals.pop()
        yield

    thread = DeviceThread("models", scope)
    stack.callback(thread.close)
    with pytest.raises(RuntimeError, match="out of memory"):
        thread.submit(lambda: 1)
    assert thread.submit(lambda: 2).result(DEADLINE) == 2
