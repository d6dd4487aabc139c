"""A batch that runs alone uses the cores of the idle lanes; a batch beside others uses its own, from then on too."""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from fakes import until

from whisper_api.engine.worker import idle_cores
from whisper_api.engine.worker.idle_cores import adjust, batch_threads, let_threads_sleep, using
from whisper_api.engine.worker.worker import GpuWorker

LONG = 60.0


@dataclass(frozen=True)
class Threads:
    """An operation whose result is the number of threads that its batch may use."""

    begun: threading.Event | None = None
    gate: threading.Event | None = None
    max_items: ClassVar[int] = 1
    max_cost: ClassVar[float] = float("inf")

    @property
    def memory_key(self) -> object:
        return type(self).__name__

    def run(self, inputs: Sequence[object]) -> Sequence[tuple[int, int]]:
        if self.begun and self.gate:
            self.begun.set()
            assert self.gate.wait(LONG)
        return [(batch_threads(1), torch.get_num_threads())] * len(inputs)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_alone_has_the_cores_of_all_lanes(threads: int) -> None:
    with contextlib.closing(GpuWorker(lanes=3, threads=threads)) as worker:
        assert worker.submit("job", Threads(), None, 1.0).result(LONG) == (3 * threads, 3 * threads)


def test_a_batch_beside_another_has_its_own_cores_only() -> None:
    begun, gate = threading.Event(), threading.Event()
    with contextlib.closing(GpuWorker(lanes=2, threads=1)) as worker:
        long = worker.submit("long", Threads(begun, gate), None, 30.0)
        assert begun.wait(LONG)
        assert worker.submit("short", Threads(), None, 1.0).result(LONG)[0] == 1
        gate.set()
        # The other one was alone when it began.
        assert long.result(LONG)[0] == 2
        assert worker.submit("later", Threads(), None, 1.0).result(LONG)[0] == 2


def test_a_batch_before_others_in_the_queue_leaves_them_their_cores() -> None:
    begun, gate = threading.Event(), threading.Event()
    with contextlib.closing(GpuWorker(lanes=2, threads=1)) as worker:
        holders = [worker.submit("long", Threads(begun, gate), None, 30.0) for _ in range(2)]
        assert begun.wait(LONG)
        waiting = [worker.submit("short", Threads(), None, 1.0) for _ in range(6)]
        gate.set()
        shares = [future.result(LONG)[0] for future in waiting]
        # Only the last one may find nobody beside it.
        assert shares[:-1] == [1] * 5
        assert all(future.result(LONG) for future in holders)


def test_on_a_gpu_the_number_of_threads_stays() -> None:
    with contextlib.closing(GpuWorker(lanes=2)) as worker:
        assert worker.submit("job", Threads(), None, 1.0).result(LONG)[0] == 1


def test_the_number_is_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(ValueError), using(before + 1, before):
        assert torch.get_num_threads() == before + 1
        raise ValueError
    assert torch.get_num_threads() == before
    assert batch_threads(7) == 7


@pytest.mark.parametrize("torch_so_far", [None, types.ModuleType("torch")], ids=["not imported", "being imported"])
def test_a_batch_may_run_before_torch_is_there(
    monkeypatch: pytest.MonkeyPatch, torch_so_far: types.ModuleType | None
) -> None:
    if torch_so_far is None:
        monkeypatch.delitem(sys.modules, "torch")
    else:
        monkeypatch.setitem(sys.modules, "torch", torch_so_far)
    with using(4, 1):
        assert batch_threads(1) == 4
    assert batch_threads(1) == 1


@dataclass(frozen=True)
class Parts:
    """An operation in parts. Between two of them, it waits for the next gate and looks how many threads it may use."""

    begun: tuple[threading.Event, ...]
    gates: tuple[threading.Event, ...]
    max_items: ClassVar[int] = 1
    max_cost: ClassVar[float] = float("inf")

    @property
    def memory_key(self) -> object:
        return type(self).__name__

    def run(self, inputs: Sequence[object]) -> Sequence[list[tuple[int, int]]]:
        seen = []
        for begun, gate in zip(self.begun, self.gates, strict=True):
            adjust()
            seen.append((batch_threads(1), torch.get_num_threads()))
            begun.set()
            assert gate.wait(LONG)
        return [seen] * len(inputs)


def parts(count: int) -> Parts:
    return Parts(tuple(threading.Event() for _ in range(count)), tuple(threading.Event() for _ in range(count)))


def test_a_batch_gives_cores_back_when_another_begins_and_takes_them_when_it_has_ended() -> None:
    long, short = parts(3), parts(1)
    with contextlib.closing(GpuWorker(lanes=2, threads=1)) as worker:
        whole = worker.submit("long", long, None, 30.0)
        assert long.begun[0].wait(LONG)
        other = worker.submit("short", short, None, 1.0)
        assert short.begun[0].wait(LONG)
        long.gates[0].set()
        assert long.begun[1].wait(LONG)
        short.gates[0].set()
        assert other.result(LONG) == [(1, 1)]
        # The lane counts as idle once it waits for its next batch.
        until(lambda: worker.counts.batches == 1)
        for gate in long.gates[1:]:
            gate.set()
        assert whole.result(LONG) == [(2, 2), (1, 1), (2, 2)]


def test_outside_of_a_batch_there_is_nothing_to_adjust() -> None:
    before = torch.get_num_threads()
    adjust()
    assert (torch.get_num_threads(), batch_threads(3)) == (before, 3)


@pytest.mark.parametrize(
    ("given", "imported", "threads"),
    [
        ({}, False, 3),
        ({}, True, 1),
        ({"OMP_WAIT_POLICY": "active"}, False, 1),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, True, 3),
        ({"GOMP_SPINCOUNT": "infinity"}, False, 1),
    ],
)
def test_threads_of_torch_that_spin_stay_on_their_own_cores(
    given: dict[str, str], imported: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_cores, "_torch_sleeps", True)
    environment = dict(given)
    with monkeypatch.context() as patch:
        if not imported:
            patch.delitem(sys.modules, "torch")
        let_threads_sleep(environment)
    assert environment == (given if given or imported else idle_cores.SLEEPING)
    with using(3, 1):
        # Other libraries have no threads that spin.
        assert (batch_threads(1), torch.get_num_threads()) == (3, threads)
