"""The measurement of the batch size, on a pretended GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from fake_gpu import FakeGpu, Rows
from fakes import DEADLINE

from whisper_api.engine.whisper.model import DecodeSettings
from whisper_api.engine.whisper.settings import SIZES, measure_batch_size
from whisper_api.engine.worker.worker import GpuWorker


@dataclass(frozen=True)
class Decode(Rows):
    """Decodes rows in a time that does not depend on their number."""

    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(1), compare=False)

    def run(self, inputs: Sequence[object]) -> list[object]:
        try:
            held = self.gpu.call("run", len(inputs))
        finally:
            # The other lane has asked for its memory now, too.
            self.together.wait(DEADLINE)
        time.sleep(0.002)
        del held
        return list(inputs)


class FakeWhisper:
    """A model whose windows take a row of memory each."""

    end_of_text = 3
    non_speech_tokens = (1, 2)

    def __init__(self, gpu: FakeGpu, rows: int = 1_000, lanes: int = 2) -> None:
        self._gpu, self._rows = gpu, rows
        self._together = threading.Barrier(lanes)
        self.settings: set[DecodeSettings] = set()

    def tokenizer(self, language: str) -> Any:
        return SimpleNamespace(sot_sequence=(0,), no_timestamps=4)

    def decode(self, settings: DecodeSettings, max_items: int, max_cost: float) -> Decode:
        self.settings.add(settings)
        return Decode(self._gpu, max_items=min(max_items, self._rows), together=self._together)


@pytest.fixture
def worker() -> Iterator[GpuWorker]:
    def evict() -> bool:
        raise AssertionError("a model was unloaded for a measurement")

    worker = GpuWorker(lanes=2, on_out_of_memory=evict)
    yield worker
    worker.close()


@pytest.mark.cpu("a pretended GPU tries one size")
def test_it_is_that_of_long_windows_on_all_lanes_at_once(worker: GpuWorker) -> None:
    gpu = FakeGpu()
    whisper: Any = FakeWhisper(gpu)
    assert measure_batch_size(whisper, worker, 5) == SIZES[-1]
    # With each batch of one lane there was one of the other.
    assert gpu.runs == [size for size in SIZES for _ in range(4)]
    (settings,) = whisper.settings
    assert (settings.frames, settings.beam_size) == (3000, 5)
    assert whisper.end_of_text in settings.suppress


@pytest.mark.cpu("a pretended GPU tries one size")
def test_it_ends_where_the_lanes_together_fill_the_memory(worker: GpuWorker) -> None:
    gpu = FakeGpu(capacity=20)
    whisper: Any = FakeWhisper(gpu)
    # 16 rows fit into memory, but not twice.
    assert measure_batch_size(whisper, worker, 1) == 8


@pytest.mark.cpu("a pretended GPU tries one size")
def test_sizes_that_cannot_fit_by_their_bytes_are_not_tried(worker: GpuWorker) -> None:
    gpu = FakeGpu()
    whisper: Any = FakeWhisper(gpu, rows=10)
    assert measure_batch_size(whisper, worker, 1) == 8
    assert max(gpu.runs) == 8
