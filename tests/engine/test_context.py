"""A job's context: lazy submission, order, cancellation, progress, warnings."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakes import DEADLINE

from whisper_api.engine.context import JobContext
from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.models.store import ModelStore
from whisper_api.engine.options import resolve
from whisper_api.engine.plan import StagePlan
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import Canceled
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress


@dataclass(frozen=True)
class Square:
    max_items: int = 2
    max_cost: float = math.inf

    @property
    def memory_key(self) -> Hashable:
        return "square"

    def run(self, inputs: Sequence[int]) -> list[int]:
        return [value * value for value in inputs]


@pytest.fixture
def worker() -> Iterator[GpuWorker]:
    worker = GpuWorker()
    yield worker
    worker.close()


def context(
    worker: GpuWorker,
    tmp_path: Path,
    cancel: threading.Event | None = None,
    seen: list[Progress] | None = None,
    on_missing_model: Callable[[str], None] | None = None,
) -> JobContext:
    return JobContext(
        options=resolve(TranscriptionOptions(), model="base", language="auto"),
        device=Device("cpu"),
        worker=worker,
        models=ModelCache(),
        store=ModelStore(tmp_path),
        cancel=cancel,
        on_progress=None if seen is None else seen.append,
        on_missing_model=on_missing_model,
    )


def test_results_come_in_order_and_inputs_are_made_as_they_are_needed(worker: GpuWorker, tmp_path: Path) -> None:
    made: list[int] = []

    def items() -> Iterator[tuple[Square, int, float]]:
        for value in range(100):
            made.append(value)
            yield Square(), value, 1.0

    results = context(worker, tmp_path).run(items(), window=4)
    assert next(results) == 0
    assert len(made) <= 4
    assert list(results) == [value * value for value in range(1, 100)]


def test_cancelling_ends_a_run_and_drops_what_waits(worker: GpuWorker, tmp_path: Path) -> None:
    cancel = threading.Event()
    ctx = context(worker, tmp_path, cancel)
    results = ctx.run(((Square(), value, 1.0) for value in range(1_000)), window=4)
    next(results)
    cancel.set()
    with pytest.raises(Canceled):
        for _ in results:
            pass
    with pytest.raises(Canceled):
        ctx.check()


@dataclass(frozen=True)
class Gated(Square):
    """Lets the first item through and holds the next until the gate is opened."""

    gate: threading.Event = field(default_factory=threading.Event, compare=False)
    ran: list[int] = field(default_factory=list, compare=False)
    max_items: int = 1

    def run(self, inputs: Sequence[int]) -> list[int]:
        self.ran.extend(inputs)
        if inputs[0] > 0:
            self.gate.wait(DEADLINE)
        return super().run(inputs)


def test_a_run_that_is_left_early_drops_what_waits(worker: GpuWorker, tmp_path: Path) -> None:
    operation = Gated()
    results = context(worker, tmp_path).run(((operation, value, 1.0) for value in range(100)), window=4)
    assert next(results) == 0
    results.close()
    operation.gate.set()
    assert list(context(worker, tmp_path).run([(Square(), 3, 1.0)])) == [9]
    assert set(operation.ran) <= {0, 1}


def test_progress_is_that_of_the_whole_and_never_falls(worker: GpuWorker, tmp_path: Path) -> None:
    seen: list[Progress] = []
    ctx = context(worker, tmp_path, seen=seen)
    ctx.begin("decode")
    ctx.progress(0.5)
    ctx.progress(0.1)
    ctx.progress(7.0)
    ctx.begin("asr")
    ctx.progress(1.0)
    plan = StagePlan.of(TranscriptionOptions())
    assert seen == [plan.progress("decode", done) for done in (0.0, 0.5, 1.0)] + [
        # Progress never falls when stages are left out.
        plan.progress("asr", done)
        for done in (0.0, 1.0)
    ]


def test_a_warning_is_kept_once(worker: GpuWorker, tmp_path: Path) -> None:
    ctx = context(worker, tmp_path)
    for message in ("a", "b", "a"):
        ctx.warn(message)
    assert ctx.warnings == ["a", "b"]


def test_the_caller_hears_of_all_missing_models_before_its_error_ends_the_job(
    worker: GpuWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue then downloads all of them before the job runs again."""
    told: list[str] = []

    def refuse(name: str) -> None:
        told.append(name)
        raise LookupError(name)

    names = ["align-fr", "align-ca", "align-de"]
    # Nothing has the second model.
    monkeypatch.setattr(ModelStore, "can_download", lambda store, name: name != names[1])
    ctx = context(worker, tmp_path, on_missing_model=refuse)
    with pytest.raises(LookupError, match="align-fr") as caught:
        ctx.obtainable(names)
    assert told == ["align-fr", "align-de"]
    assert ctx.is_fatal(caught.value)
    # When the caller has given the downloads up, the job goes on without the models.
    assert context(worker, tmp_path, on_missing_model=told.append).obtainable(names) == set()
    assert context(worker, tmp_path).obtainable(names) == {"align-fr", "align-de"}


def test_a_part_of_a_stage_has_its_share_of_the_progress(worker: GpuWorker, tmp_path: Path) -> None:
    seen: list[Progress] = []
    ctx = context(worker, tmp_path, seen=seen)
    ctx.begin("asr")
    with ctx.within(0.0, 0.2):
        ctx.progress(0.5)
        assert ctx.stage_done == pytest.approx(0.1)
        ctx.progress(2.0)
    with ctx.within(0.2, 1.0):
        ctx.progress(0.0)
        assert ctx.stage_done == pytest.approx(0.2)
        ctx.progress(0.5)
    assert ctx.stage_done == pytest.approx(0.6)
    ctx.progress(1.0)
    fractions = [each.stage_fraction for each in seen if each.stage == "asr"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@dataclass(frozen=True)
class Held(Square):
    """Runs until the gate is opened."""

    begun: threading.Event = field(default_factory=threading.Event, compare=False)
    gate: threading.Event = field(default_factory=threading.Event, compare=False)

    def run(self, inputs: Sequence[int]) -> list[int]:
        self.begun.set()
        assert self.gate.wait(60)
        return super().run(inputs)


def test_an_item_may_run_before_its_stage_unless_another_job_has_work(worker: GpuWorker, tmp_path: Path) -> None:
    ctx, held = context(worker, tmp_path), Held()
    early = ctx.submit_if_idle(Square(), 3, 1.0)
    assert early is not None
    assert ctx.result_of(early) == 9
    running = worker.submit("another job", held, 1, 1.0)
    assert held.begun.wait(60)
    assert ctx.submit_if_idle(Square(), 3, 1.0) is None
    waiting = worker.submit("another job", held, 1, 1.0)
    held.gate.set()
    assert (running.result(60), waiting.result(60)) == (1, 1)


def test_the_own_items_of_a_job_do_not_count_as_work_of_another(worker: GpuWorker, tmp_path: Path) -> None:
    ctx, held = context(worker, tmp_path), Held()
    first = ctx.submit_if_idle(held, 1, 1.0)
    assert first is not None
    assert held.begun.wait(60)
    second = ctx.submit_if_idle(Square(), 2, 1.0)
    held.gate.set()
    assert second is not None
    assert (ctx.result_of(first), ctx.result_of(second)) == (1, 4)
