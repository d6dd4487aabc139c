"""Several pretended GPUs: each has its own models, threads, compute type and batch size."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pretended_gpu import Scopes, pretend_gpus

from whisper_api import Engine, OutOfMemory, TranscriptionOptions
from whisper_api.engine.diarize.segmentation import CheckpointSource, SegmentWindows
from whisper_api.engine.whisper.ctranslate2 import Ct2Decode
from whisper_api.engine.whisper.settings import WhisperSource

pytestmark = pytest.mark.models

OPTIONS = TranscriptionOptions(language="en", align=True, diarize=True, beam_size=1)
TYPES = ("int8", "float32")


@pytest.fixture
def scopes(monkeypatch: pytest.MonkeyPatch) -> Scopes:
    return pretend_gpus(monkeypatch, TYPES)


@pytest.fixture
def engine(scopes: Scopes, models_dir: Path, tiny_en_model_dir: Path, ecapa_path: Path) -> Iterator[Engine]:
    with Engine(device="cuda:all", model="tiny.en", models_dir=models_dir, offline=True) as engine:
        yield engine


def test_each_gpu_loads_runs_and_unloads_in_its_own_scope(
    engine: Engine, scopes: Scopes, cut: Callable[[float, float], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[tuple[int, ...]]] = {}
    threads: dict[str, set[int]] = {}

    def watch(place: type[Any], name: str, what: str) -> None:
        original = getattr(place, name)

        def watched(self: Any, *args: Any) -> Any:
            seen.setdefault(what, set()).add(tuple(scopes.current()))
            threads.setdefault(what, set()).add(threading.get_ident())
            return original(self, *args)

        monkeypatch.setattr(place, name, watched)

    watch(WhisperSource, "load", "load")
    watch(WhisperSource, "unload", "unload")
    watch(CheckpointSource, "load", "load")
    watch(CheckpointSource, "unload", "unload")
    watch(Ct2Decode, "run", "run")
    watch(SegmentWindows, "run", "run")
    both = threading.Barrier(2)

    def transcribe(_: int) -> str:
        both.wait(60)
        transcript = engine.transcribe(cut(12.0, 2.5), OPTIONS)
        assert transcript.word_times == "attention"
        assert transcript.speakers
        return transcript.text

    with ThreadPoolExecutor(2) as jobs:
        first, second = jobs.map(transcribe, range(2))
    assert first
    assert second
    engine.close()
    # One device each, and both are used.
    assert seen == {what: {(0,), (1,)} for what in ("load", "unload", "run")}
    assert threads["load"] == threads["unload"]
    assert len(threads["load"]) == 2


def test_each_gpu_has_its_compute_type(engine: Engine, scopes: Scopes) -> None:
    engine.preload(OPTIONS)
    found = []
    for runtime in engine._pool.runtimes:  # noqa: SLF001
        (resident,) = runtime.models.resident()
        assert isinstance(resident.source, WhisperSource)
        found.append((resident.source.device_index, resident.source.compute_type))
    assert found == list(enumerate(TYPES))


def test_the_batch_size_of_each_gpu_is_measured_before_other_models_are_loaded(
    engine: Engine, scopes: Scopes, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident: list[list[str]] = []
    runtimes = engine._pool.runtimes  # noqa: SLF001

    def measure(whisper: Any, worker: Any, beam_size: int) -> int:
        (index,) = [index for index, runtime in enumerate(runtimes) if runtime.worker is worker]
        resident.append([type(model.source).__name__ for model in runtimes[index].models.resident()])
        return (7, 11)[index]

    monkeypatch.setattr("whisper_api.engine.whisper.settings.measure_batch_size", measure)
    engine.preload_rest(OPTIONS)
    assert resident == [["WhisperSource"], ["WhisperSource"]]
    assert [engine.whisper.batching(runtime.device).max_items for runtime in runtimes] == [7, 11]
    assert all(len(runtime.models.resident()) > 1 for runtime in runtimes)


@pytest.mark.parametrize("small", [{1}, {0}, {0, 1}])
def test_a_gpu_that_is_too_small_for_the_model_gets_no_jobs(
    small: set[int],
    engine: Engine,
    scopes: Scopes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    load = WhisperSource.load

    def limited(source: WhisperSource) -> Any:
        if source.device_index in small:
            raise RuntimeError("CUDA failed with error out of memory")
        return load(source)

    monkeypatch.setattr(WhisperSource, "load", limited)
    pool = engine._pool  # noqa: SLF001
    if len(small) == 2:
        with pytest.raises(OutOfMemory):
            engine.preload(OPTIONS)
    else:
        engine.preload(OPTIONS)
    (left,) = pool.usable
    assert left.device.index not in small or len(small) == 2
    with pool.assign() as first, pool.assign() as second:
        assert first is second is left
    assert sum("gets no jobs" in record.getMessage() for record in caplog.records) == 1
