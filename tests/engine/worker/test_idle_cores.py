"""A batch that runs alone uses the cores of the idle lanes; a batch beside others uses its own."""

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

from whisper_api.engine.worker.idle_cores import batch_threads, using
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
        assert all(future.done() for future in holders)


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
