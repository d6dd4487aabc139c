"""The worker with several lanes: concurrent batches, memory, and waiting for announced items."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import pytest
from fakes import until

from whisper_api.engine.worker.batch_runner import ATTEMPTS
from whisper_api.engine.worker.fair_queue import Again, BatchOperation
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import EngineClosed, OutOfMemory

LONG = 20.0


@dataclass
class Machine:
    """Records the batches and which of them run at once. A batch waits for the gates of its items."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    changed: threading.Condition = field(init=False)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    running: list[list[object]] = field(default_factory=list)
    begun: list[list[object]] = field(default_factory=list)
    most: int = 0

    def __post_init__(self) -> None:
        self.changed = threading.Condition(self.lock)

    @contextlib.contextmanager
    def run(self, inputs: Sequence[object]) -> Iterator[None]:
        batch = list(inputs)
        with self.changed:
            self.running.append(batch)
            self.begun.append(batch)
            self.most = max(self.most, len(self.running))
            self.changed.notify_all()
        for value in batch:
            if gate := self.gates.get(str(value)):
                # Longer than any test waits for a result, so that the end of this wait lets no test pass.
                assert gate.wait(3 * LONG)
        try:
            yield
        finally:
            with self.changed:
                self.running.remove(batch)
                self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, LONG)

    def wait_until_begun(self, batches: int) -> None:
        self.wait_for(lambda: len(self.begun) == batches)

    def hold(self, *names: str) -> None:
        for name in names:
            self.gates[name] = threading.Event()


@dataclass(frozen=True)
class Echo:
    """Gives its inputs back."""

    machine: Machine = field(hash=False, compare=False)
    key: str = "a"
    max_items: int = 4
    max_cost: float = math.inf

    @property
    def memory_key(self) -> Hashable:
        return self.key

    def run(self, inputs: Sequence[object]) -> Sequence[object]:
        with self.machine.run(inputs):
            return list(inputs)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    for gate in machine.gates.values():
        gate.set()


@pytest.fixture
def worker(machine: Machine) -> Iterator[GpuWorker]:
    worker = GpuWorker(lanes=2)
    yield worker
    for gate in machine.gates.values():
        gate.set()
    worker.close()


def test_items_of_one_job_run_at_once(machine: Machine, worker: GpuWorker) -> None:
    machine.hold("1", "2")
    operation = Echo(machine, max_items=1)
    futures = [worker.submit("job", operation, str(number), 30.0) for number in (1, 2, 3)]
    machine.wait_for(lambda: len(machine.running) == 2)
    machine.gates["2"].set()
    assert futures[2].result(LONG) == "3"
    assert not futures[0].done()
    machine.gates["1"].set()
    assert [future.result(LONG) for future in futures] == ["1", "2", "3"]
    assert machine.most == 2


def test_a_short_job_does_not_wait_for_a_long_one_with_a_free_lane(machine: Machine, worker: GpuWorker) -> None:
    machine.hold("long")
    long = worker.submit("long", Echo(machine), "long", 30.0)
    machine.wait_for(lambda: len(machine.running) == 1)
    assert worker.submit("short", Echo(machine), "short", 1.0).result(LONG) == "short"
    assert not long.done()


def test_jobs_share_all_lanes(machine: Machine) -> None:
    machine.hold("hold 0", "hold 1", "hold 2")
    worker = GpuWorker(lanes=3)
    try:
        operation = Echo(machine, max_items=1)
        for number in range(3):
            worker.submit("holder", operation, f"hold {number}", 1.0)
        machine.wait_for(lambda: len(machine.running) == 3)
        futures = [worker.submit(job, operation, f"{job}{number}", 30.0) for job in "xyz" for number in range(20)]
        for gate in machine.gates.values():
            gate.set()
        for future in futures:
            future.result(LONG)
    finally:
        worker.close()
    served = Counter[str]()
    for batch in machine.begun[3:]:
        served[str(batch[0])[0]] += 1
        # A lane may record its batch a little later than another one which took its own later.
        assert max(served[job] for job in "xyz") - min(served[job] for job in "xyz") <= 1 + 3


@dataclass(frozen=True)
class Hungry(Echo):
    """Runs out of memory when more than so many items of all lanes are on the device."""

    capacity: int = 4

    def run(self, inputs: Sequence[object]) -> Sequence[object]:
        with self.machine.run(inputs):
            with self.machine.lock:
                present = sum(map(len, self.machine.running))
            if present > self.capacity:
                raise RuntimeError("CUDA failed with error out of memory")
            return list(inputs)


def test_lanes_learn_the_same_limit(machine: Machine, worker: GpuWorker) -> None:
    machine.hold("0", "1")
    operation = Hungry(machine, "hungry", max_items=8)
    futures = [worker.submit("job", operation, str(number), 1.0) for number in range(2)]
    machine.wait_for(lambda: len(machine.running) >= 1)
    futures += [worker.submit("job", operation, str(number), 1.0) for number in range(2, 40)]
    for gate in machine.gates.values():
        gate.set()
    assert [future.result(LONG) for future in futures] == [str(number) for number in range(40)]
    assert worker.limits.limit(operation) <= 4
    assert worker.submit("job", operation, "after", 1.0).result(LONG) == "after"


def test_a_learned_limit_never_rises(machine: Machine, worker: GpuWorker) -> None:
    machine.hold("busy 0", "busy 1", "0", "8")
    busy = [worker.submit("holder", Echo(machine, "other", max_items=1), f"busy {n}", 1.0) for n in range(2)]
    machine.wait_for(lambda: len(machine.running) == 2)
    operation = Hungry(machine, "hungry", max_items=8, capacity=7)
    futures = [worker.submit("job", operation, str(number), 1.0) for number in range(12)]
    for held in range(2):
        machine.gates[f"busy {held}"].set()
        busy[held].result(LONG)
        machine.wait_until_begun(3 + held)
    large, small = machine.begun[2:]
    assert (len(large), len(small)) == (8, 4)
    # The small batch runs out of memory first, down to single items. Then the large one does, which would learn 4.
    machine.gates["8"].set()
    machine.wait_for(lambda: ["11"] in machine.begun and machine.running == [large])
    assert worker.limits.limit(operation) == 1
    machine.gates["0"].set()
    assert [future.result(LONG) for future in futures] == [str(number) for number in range(12)]
    assert worker.limits.limit(operation) == 1


def test_an_item_that_does_not_fit_beside_another_runs_alone_and_before_later_items(
    machine: Machine, worker: GpuWorker
) -> None:
    machine.hold("neighbour", "large", "later 0", "later 1")
    neighbour = worker.submit("a", Echo(machine, "other"), "neighbour", 30.0)
    machine.wait_for(lambda: len(machine.running) == 1)
    large = worker.submit("b", Hungry(machine, "hungry", capacity=1), "large", 30.0)
    machine.wait_for(lambda: ["large"] in machine.begun)
    machine.gates["large"].set()
    machine.wait_for(lambda: machine.begun.count(["large"]) == ATTEMPTS and machine.running == [["neighbour"]])
    until(lambda: bool(worker._queue), "the large item is back in the queue")  # noqa: SLF001
    machine.gates["large"].clear()
    later = [worker.submit("c", Echo(machine, "other", max_items=1), f"later {number}", 30.0) for number in range(2)]
    machine.gates["neighbour"].set()
    machine.wait_for(lambda: machine.begun.count(["large"]) == ATTEMPTS + 1)
    # The other lane has time to begin a later item, which would make the large one run out of memory again.
    threading.Event().wait(0.05)
    machine.gates["large"].set()
    assert [future.result(LONG) for future in (neighbour, large)] == ["neighbour", "large"]
    # Then both lanes run again.
    machine.wait_for(lambda: len(machine.running) == 2)
    machine.gates["later 0"].set()
    machine.gates["later 1"].set()
    assert [future.result(LONG) for future in later] == ["later 0", "later 1"]
    assert machine.begun[: ATTEMPTS + 2] == [["neighbour"], *[["large"]] * (ATTEMPTS + 1)]


def test_an_item_that_fits_nowhere_fails_by_name(machine: Machine, worker: GpuWorker) -> None:
    operation = Hungry(machine, "hungry", capacity=0)
    with pytest.raises(OutOfMemory):
        worker.submit("a", operation, "large", 30.0).result(LONG)
    assert worker.submit("a", Echo(machine), "small", 1.0).result(LONG) == "small"


@dataclass(frozen=True)
class Considered(Echo):
    """Sets an event when a lane asks for the size of a batch. The lane holds the worker's lock until it has decided."""

    considered: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def memory_key(self) -> Hashable:
        self.considered.set()
        return self.key


def test_a_free_lane_waits_for_announced_items(machine: Machine, worker: GpuWorker) -> None:
    machine.hold("busy")
    worker.submit("a", Echo(machine, "other"), "busy", 30.0)
    machine.wait_for(lambda: len(machine.running) == 1)
    for number in range(2):
        operation = Considered(machine)
        with worker.expecting():
            first = worker.submit("b", operation, f"first {number}", 1.0)
            assert operation.considered.wait(LONG)
            second = worker.submit("c", operation, f"second {number}", 1.0)
        assert [first.result(LONG), second.result(LONG)] == [f"first {number}", f"second {number}"]
    assert machine.begun == [["busy"], ["first 0", "second 0"], ["first 1", "second 1"]]


def test_a_lane_does_not_wait_for_an_item_that_was_announced_after_the_wait_began(
    machine: Machine, worker: GpuWorker
) -> None:
    machine.hold("busy")
    worker.submit("a", Echo(machine, "other"), "busy", 30.0)
    machine.wait_for(lambda: len(machine.running) == 1)
    with contextlib.ExitStack() as early:
        early.enter_context(worker.expecting())
        operation = Considered(machine)
        first = worker.submit("b", operation, "first", 1.0)
        assert operation.considered.wait(LONG)
        # Only now another item is announced.
        with worker.expecting():
            early.close()
            assert first.result(LONG) == "first"


def test_a_lane_does_not_wait_when_no_other_lane_runs(machine: Machine, worker: GpuWorker) -> None:
    with worker.expecting():
        assert worker.submit("a", Echo(machine), "now", 1.0).result(LONG) == "now"


def test_a_lane_that_waits_goes_on_when_the_other_one_ends(machine: Machine, worker: GpuWorker) -> None:
    machine.hold("busy")
    worker.submit("a", Echo(machine, "other"), "busy", 30.0)
    machine.wait_for(lambda: len(machine.running) == 1)
    with worker.expecting():
        first = worker.submit("b", Echo(machine), "first", 1.0)
        machine.gates["busy"].set()
        assert first.result(LONG) == "first"


@pytest.mark.parametrize("max_items", [1, 2])
def test_a_batch_that_is_full_enough_does_not_wait(machine: Machine, worker: GpuWorker, max_items: int) -> None:
    machine.hold("busy")
    worker.submit("a", Echo(machine, "other"), "busy", 30.0)
    machine.wait_for(lambda: len(machine.running) == 1)
    operation = Echo(machine, max_items=max_items)
    with worker.expecting():
        futures = [worker.submit("b", operation, str(number), 1.0) for number in range(max_items)]
        assert [future.result(LONG) for future in futures] == [str(number) for number in range(max_items)]


def test_closing_joins_every_lane(machine: Machine) -> None:
    machine.hold("1", "2")
    worker = GpuWorker("closing", lanes=2)
    operation = Echo(machine, max_items=1)
    running = [worker.submit("job", operation, name, 1.0) for name in ("1", "2")]
    machine.wait_for(lambda: len(machine.running) == 2)
    waiting = worker.submit("job", operation, "3", 1.0)
    closer = threading.Thread(target=worker.close)
    closer.start()
    with pytest.raises(EngineClosed):
        waiting.result(LONG)
    for gate in machine.gates.values():
        gate.set()
    closer.join(LONG)
    assert [future.result(LONG) for future in running] == ["1", "2"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("closing")]


@dataclass(frozen=True)
class Incomparable(Echo):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    __hash__ = Echo.__hash__


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lane_that_fails_ends_the_others(machine: Machine) -> None:
    machine.hold("1", "2")
    worker = GpuWorker(lanes=2)
    running = [worker.submit("job", Echo(machine, max_items=1), name, 1.0) for name in ("1", "2")]
    machine.wait_for(lambda: len(machine.running) == 2)
    futures = [worker.submit("job", Incomparable(machine), number, 1.0) for number in range(2)]
    for gate in machine.gates.values():
        gate.set()
    for future in futures:
        with pytest.raises(EngineClosed):
            future.result(LONG)
    assert [future.result(LONG) for future in running] == ["1", "2"]
    with pytest.raises(EngineClosed):
        worker.submit("job", Echo(machine), "x", 1.0)
    worker.close()


@dataclass(frozen=True)
class Task:
    """An input of the random operation: it takes so many steps, then gives the square of the number or fails."""

    number: int
    steps: int
    bad: bool


@dataclass(frozen=True)
class Random:
    """Squares numbers in steps, runs out of memory at random, and fails on bad tasks."""

    bucket: int
    kind: str
    dice: random.Random = field(hash=False, compare=False)
    max_items: int = 5
    max_cost: float = 40.0

    @property
    def memory_key(self) -> Hashable:
        return self.kind, self.bucket

    def merged(self, other: BatchOperation) -> BatchOperation | None:
        if not isinstance(other, Random) or other.kind != self.kind:
            return None
        return max(self, other, key=lambda operation: operation.bucket)

    def run(self, inputs: Sequence[Task]) -> list[object]:
        assert len(inputs) <= self.max_items
        if self.dice.random() < 0.02:
            raise RuntimeError("CUDA failed with error out of memory")
        if any(task.bad for task in inputs):
            raise ValueError(f"bad among {len(inputs)}")
        return [
            task.number**2 if task.steps == 1 else Again(Task(task.number, task.steps - 1, False), self.dice.random())
            for task in inputs
        ]


@pytest.mark.parametrize("seed", range(8))
def test_every_item_of_a_crowd_is_settled(seed: int) -> None:
    """A thousand items of eight jobs over three lanes, some of them cancelled and some jobs forgotten."""
    worker = GpuWorker(lanes=3, on_out_of_memory=lambda: bool(seed % 2))
    operation_dice = random.Random(seed)

    def job(name: int) -> list[tuple[Task, Future[object], bool]]:
        dice = random.Random(1000 * seed + name)
        mine: list[tuple[Task, Future[object], bool]] = []
        for _ in range(125):
            task = Task(dice.randrange(1000), dice.choice([1, 1, 2, 5]), dice.random() < 0.05)
            kind = dice.choice(["decode", "align", "pipeline"])
            operation = Random(dice.choice([10, 20, 30]), kind, operation_dice)
            with worker.expecting() if dice.random() < 0.5 else contextlib.nullcontext():
                mine.append((task, worker.submit(name, operation, task, dice.choice([0.0, 1.0, 10.0, 30.0])), False))
            if dice.random() < 0.1:
                victim = dice.randrange(len(mine))
                mine[victim][1].cancel()
            if dice.random() < 0.02:
                worker.forget(name)
                mine = [(task, future, True) for task, future, _ in mine]
            if dice.random() < 0.1:
                with contextlib.suppress(CancelledError, ValueError, OutOfMemory):
                    mine[dice.randrange(len(mine))][1].result(LONG)
        return mine

    with ThreadPoolExecutor(8) as jobs:
        everything = [entry for result in jobs.map(job, range(8)) for entry in result]
    assert not wait([future for _, future, _ in everything], LONG).not_done
    worker.close()
    outcomes = Counter(outcome(*entry) for entry in everything)
    assert outcomes.total() == 1000
    assert outcomes["done"] > 300
    assert outcomes["out of memory"] < 50


def outcome(task: Task, future: Future[object], forgotten: bool) -> str:
    """How an item ended. Fails if it ended in a way that its task does not allow."""
    if future.cancelled():
        return "cancelled"
    error = future.exception(LONG)
    if error is None:
        assert not task.bad
        assert future.result() == task.number**2
        return "done"
    if isinstance(error, CancelledError):
        assert forgotten
        return "forgotten"
    if isinstance(error, OutOfMemory):
        return "out of memory"
    assert task.bad
    assert str(error) == "bad among 1"
    return "bad"


@pytest.mark.parametrize("seed", range(4))
def test_closing_ends_the_wait_of_every_job(seed: int) -> None:
    worker = GpuWorker(lanes=3)
    dice = random.Random(seed)
    futures: list[Future[object]] = []

    def job(name: int) -> None:
        for number in range(100):
            operation = Random(10, ("decode", "pipeline")[number % 2], dice)
            with contextlib.suppress(EngineClosed):
                futures.append(worker.submit(name, operation, Task(number, 3, False), 1.0))

    with ThreadPoolExecutor(4) as jobs:
        running = [jobs.submit(job, name) for name in range(4)]
        while len(futures) < 50 * seed and not all(future.done() for future in running):
            pass
        worker.close()
    for future in futures:
        assert future.done()
        assert isinstance(future.exception(), (EngineClosed, OutOfMemory, type(None)))
