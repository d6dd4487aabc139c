"""The model cache: one copy, leases, keep-alive, eviction under a budget, failures, threads."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DEADLINE, until
from numpy.typing import NDArray

from whisper_api.engine.models.cache import ModelCache, ModelSource, check_load
from whisper_api.errors import Canceled, EngineClosed


@dataclass
class Record:
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    fail: bool = False

    def __post_init__(self) -> None:
        self.gate.set()


@dataclass(frozen=True)
class Source:
    name: str
    record: Record = field(hash=False, compare=False)
    size: int = 100

    def estimated_bytes(self) -> int:
        return self.size

    def load(self) -> list[str]:
        self.record.gate.wait(DEADLINE)
        self.record.loads.append(self.name)
        if self.record.fail:
            raise OSError("the disk is gone")
        return [self.name]

    def unload(self, model: list[str]) -> None:
        self.record.unloads.append(model[0])


def names(cache: ModelCache) -> list[str]:
    return [resident.source.name for resident in cache.resident()]  # type: ignore[attr-defined]


def test_a_model_is_loaded_once_and_stays() -> None:
    record = Record()
    cache = ModelCache()
    with cache.lease(Source("a", record)) as first, cache.lease(Source("a", record)) as second:
        assert first is second
    with cache.lease(Source("a", record)) as third:
        assert third is first
    assert record.loads == ["a"]
    assert record.unloads == []


def test_many_threads_at_once_load_one_copy() -> None:
    record = Record()
    record.gate.clear()
    cache = ModelCache()
    seen: list[int] = []

    def use() -> None:
        with cache.lease(Source("a", record)) as model:
            seen.append(id(model))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    record.gate.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert record.loads == ["a"]
    assert len(seen) == 8
    assert len(set(seen)) == 1


class Weights:
    """A model that can be referenced weakly."""


@dataclass(frozen=True)
class WeightsSource:
    loaded: list[weakref.ref[Weights]] = field(hash=False, compare=False)

    def estimated_bytes(self) -> int:
        return 100

    def load(self) -> Weights:
        weights = Weights()
        self.loaded.append(weakref.ref(weights))
        return weights

    def unload(self, model: Weights) -> None:
        pass


def test_freed_memory_is_returned_after_a_load_and_when_no_model_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Weights]] = []
    resident: list[bool] = []
    monkeypatch.setattr(
        "whisper_api.engine.models.cache.return_freed_memory",
        lambda: resident.append(any(model() is not None for model in loaded)),
    )
    cache = ModelCache()
    with cache.lease(WeightsSource(loaded)):
        pass
    until(lambda: not any(thread.name == "load-model" for thread in threading.enumerate()), "the load has ended")
    assert resident == [True]
    assert cache.evict_idle()
    assert resident == [True, False]


def test_a_failed_load_reaches_everybody_and_is_tried_again() -> None:
    record = Record(fail=True)
    cache = ModelCache()
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"), cache.lease(Source("a", record)):
            pass
    record.fail = False
    with cache.lease(Source("a", record)):
        pass
    assert record.loads == ["a", "a", "a"]
    assert names(cache) == ["a"]


def test_the_least_recently_used_idle_model_makes_room() -> None:
    record = Record()
    ticks = iter(range(1_000))
    cache = ModelCache(budget=250, clock=lambda: float(next(ticks)))
    for name in ("a", "b", "a"):
        with cache.lease(Source(name, record)):
            pass
    with cache.lease(Source("c", record)):
        assert sorted(names(cache)) == ["a", "c"]
    assert record.unloads == ["b"]


def test_a_leased_model_is_never_dropped() -> None:
    record = Record()
    cache = ModelCache(budget=100)
    with cache.lease(Source("a", record)), cache.lease(Source("b", record)):
        assert sorted(names(cache)) == ["a", "b"]
        assert not cache.evict_idle()
    assert record.unloads == []
    assert cache.evict_idle()
    assert sorted(record.unloads) == ["a", "b"]


def test_keep_alive_zero_frees_after_use_and_loads_again() -> None:
    record = Record()
    cache = ModelCache(keep_alive=0)
    for _ in range(2):
        with cache.lease(Source("a", record)), cache.lease(Source("a", record)):
            pass
        assert cache.resident() == []
    assert record.loads == ["a", "a"]
    assert record.unloads == ["a", "a"]


def test_keep_alive_drops_an_idle_model_but_not_one_in_use() -> None:
    record = Record()
    cache = ModelCache(keep_alive=0.05)
    with cache.lease(Source("a", record)):
        pass
    with cache.lease(Source("a", record)):
        # On a busy machine the model may have been idle for longer than it is kept.
        loads = len(record.loads)
        time.sleep(0.2)
        assert len(record.unloads) == loads - 1
    until(lambda: len(record.unloads) == loads, "the model is dropped")
    assert len(record.loads) == loads
    assert cache.resident() == []


def test_a_closed_cache_refuses_and_frees_when_the_last_lease_ends() -> None:
    record = Record()
    cache = ModelCache()
    with cache.lease(Source("a", record)):
        cache.close()
        assert record.unloads == []
        with pytest.raises(EngineClosed), cache.lease(Source("a", record)):
            pass
    assert record.unloads == ["a"]


class Fault(Exception):
    """The exception of a loader or unloader."""


@dataclass
class Faults:
    """Decides at random which loads and unloads fail, and counts the resident models."""

    dice: random.Random
    lock: threading.Lock = field(default_factory=threading.Lock)
    resident: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def perhaps(self) -> None:
        with self.lock:
            if self.dice.random() < 0.3:
                self.failed += 1
                raise Fault


@dataclass(frozen=True)
class FaultySource:
    name: str
    faults: Faults = field(hash=False, compare=False)

    def estimated_bytes(self) -> int:
        return 100

    def load(self) -> str:
        self.faults.perhaps()
        with self.faults.lock:
            self.faults.resident[self.name] += 1
        return self.name

    def unload(self, model: str) -> None:
        with self.faults.lock:
            self.faults.resident[model] -= 1
        self.faults.perhaps()


@pytest.mark.parametrize("keep_alive", [-1.0, 0.0, 0.001])
@pytest.mark.parametrize("seed", range(3))
def test_no_lease_hangs_and_no_model_is_lost_whatever_fails(keep_alive: float, seed: int) -> None:
    """Loads, unloads and jobs fail at random, jobs are canceled while they wait, and idle models are evicted."""
    faults = Faults(random.Random(seed))
    cache = ModelCache(keep_alive=keep_alive, budget=200)
    sources = [FaultySource(name, faults) for name in "abcd"]
    ends: Counter[str] = Counter()

    def job(number: int) -> None:
        dice = random.Random(1000 * seed + number)

        def check() -> None:
            if dice.random() < 0.1:
                raise Canceled

        def use() -> None:
            with cache.lease(dice.choice(sources), check=check) as model, cache.lease(dice.choice(sources)):
                assert faults.resident[model] == 1
                if dice.random() < 0.1:
                    raise Fault
                if dice.random() < 0.1:
                    cache.evict_idle()
            ends["well"] += 1

        for _ in range(60):
            with contextlib.suppress(Fault, Canceled):
                use()

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(job, number) for number in range(6)]:
            future.result(DEADLINE)
    assert faults.failed
    assert ends["well"]
    assert all(each.leases == 0 for each in cache.resident())
    assert {each for each, count in faults.resident.items() if count} == set(names(cache)) or keep_alive > 0
    cache.close()
    until(lambda: set(faults.resident.values()) <= {0}, "every model is unloaded")


def test_an_unload_that_fails_harms_no_job() -> None:
    class Stubborn(Source):
        def unload(self, model: list[str]) -> None:
            super().unload(model)
            raise Fault

    record = Record()
    cache = ModelCache(budget=100)
    for name in ("a", "b", "a"):
        with cache.lease(Stubborn(name, record)) as model:
            assert model == [name]
    assert record.unloads == ["a", "b"]


def loading() -> bool:
    return any(thread.name == "load-model" for thread in threading.enumerate())


def test_a_canceled_job_leaves_a_load_that_other_jobs_wait_for() -> None:
    record = Record()
    record.gate.clear()
    cache = ModelCache()
    cancel = threading.Event()

    def check() -> None:
        if cancel.is_set():
            raise Canceled

    def use(check: Callable[[], None] | None) -> list[str]:
        with cache.lease(Source("a", record), check=check) as model:
            return model

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use, check)
        until(loading, "the load has begun")
        second = pool.submit(use, None)
        cancel.set()
        with pytest.raises(Canceled):
            first.result(DEADLINE)
        assert not second.done()
        record.gate.set()
        assert second.result(DEADLINE) == ["a"]
    assert record.loads == ["a"]


def test_a_model_that_nobody_waits_for_any_more_is_there_for_the_next_job() -> None:
    record = Record()
    record.gate.clear()
    cache = ModelCache()

    def check() -> None:
        raise Canceled

    with pytest.raises(Canceled), cache.lease(Source("a", record), check=check):
        pass
    assert cache.resident() == []
    record.gate.set()
    until(cache.resident, "the model is loaded")
    assert [each.leases for each in cache.resident()] == [0]


def test_closing_waits_for_a_load_and_stops_one_that_waits_itself() -> None:
    waits, left = threading.Event(), threading.Event()

    class Waiting(Source):
        def load(self) -> list[str]:
            waits.set()
            try:
                until(lambda: check_load(), "the cache is closed")
            finally:
                left.set()
            raise AssertionError

    cache = ModelCache()
    with ThreadPoolExecutor(1) as pool:

        def use() -> None:
            with cache.lease(Waiting("a", Record())):
                pass

        job = pool.submit(use)
        assert waits.wait(DEADLINE)
        cache.close()
        assert left.is_set()
        with pytest.raises(EngineClosed, match="the engine is closed"):
            job.result(DEADLINE)


def test_a_lease_for_which_no_thread_can_be_started_fails_and_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = Record()
    cache = ModelCache(budget=100)
    with cache.lease(Source("a", record)):
        pass

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"), cache.lease(Source("b", record)):
            pass
        assert names(cache) == ["a"]
    with cache.lease(Source("b", record)) as model:
        assert model == ["b"]
    assert names(cache) == ["b"]


def whisper(path: Path) -> ModelSource[object]:
    from whisper_api.engine.whisper.settings import WhisperSource

    return WhisperSource(str(path), "cpu", 0, "int8", 1)


def use_whisper(model: object) -> object:
    from whisper_api.engine.whisper.model import DetectionInput, Whisper

    assert isinstance(model, Whisper)
    return model.encode_and_detect(100, 1, 60.0).run([DetectionInput(np.zeros(16_000, np.float32))])[0].encoded.shape


def segmentation(path: Path) -> ModelSource[object]:
    from whisper_api.engine.diarize.segmentation import SegmentationSource

    return SegmentationSource(str(path), "cpu")


def use_segmentation(model: object) -> object:
    from whisper_api.engine.diarize.segmentation import SegmentWindows

    return SegmentWindows(model, "cpu").run([np.zeros(80_000, np.float32)])[0].shape


def embedding(path: Path) -> ModelSource[object]:
    from whisper_api.engine.diarize.ecapa import EcapaSource

    return EcapaSource(str(path), "cpu")


def use_embedding(model: Any) -> object:
    from whisper_api.engine.diarize.embedding import EmbedSpans

    def floats(values: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(values, np.float32)

    sound = floats(np.random.default_rng(0).normal(0, 0.1, 32_000))
    frames: list[NDArray[np.int64]] = [np.arange(200, dtype=np.int64)]
    value = (sound, floats(np.zeros(80)), np.zeros(201, dtype=np.int64), frames)
    return EmbedSpans(model, "cpu", half_precision=False).run([value])[0].shape


@pytest.mark.models
@pytest.mark.parametrize(
    ("name", "source", "use"),
    [
        ("base", whisper, use_whisper),
        ("segmentation", segmentation, use_segmentation),
        ("ecapa", embedding, use_embedding),
    ],
)
def test_real_models_are_loaded_used_dropped_and_loaded_again(
    models_dir: Path,
    name: str,
    source: Callable[[Path], ModelSource[object]],
    use: Callable[[object], object],
) -> None:
    from whisper_api.engine.models.store import ModelStore

    cache = ModelCache()
    wanted = source(ModelStore(models_dir).ensure(name).path)
    results = []
    for _ in range(2):
        with cache.lease(wanted) as model:
            results.append(use(model))
        assert cache.evict_idle()
        assert cache.resident() == []
    assert results[0] == results[1]


def test_an_alignment_model_is_loaded_used_dropped_and_loaded_again(tmp_path: Path) -> None:
    import torch

    from whisper_api.engine.align.models import AlignmentSource, EmissionInput, Emissions

    torch.manual_seed(0)
    save_alignment_model(tmp_path)
    cache = ModelCache()
    wanted = AlignmentSource("nl", tmp_path, "cpu", "float32")
    results = []
    for _ in range(2):
        with cache.lease(wanted) as model:
            operation = Emissions(model, max_cost=30.0, memory_key="test")
            sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
            (emission,) = operation.run([EmissionInput(sound, np.array([1, 2]), False)])
            results.append(emission)
        assert cache.evict_idle()
    np.testing.assert_array_equal(results[0], results[1])


def save_alignment_model(folder: Path) -> None:
    """A small random wav2vec 2.0 model, as the hub would have it."""
    import json

    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=6,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}))
