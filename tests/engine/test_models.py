"""The model cache: one copy, leases, keep-alive, eviction under a budget, failures, threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from whisper_api.engine.models import ModelCache, ModelSource
from whisper_api.errors import EngineClosed


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
        self.record.gate.wait(10)
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
        thread.join(10)
    assert record.loads == ["a"]
    assert len(seen) == 8
    assert len(set(seen)) == 1


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
        time.sleep(0.2)
        assert record.unloads == []
    deadline = time.monotonic() + 10
    while not record.unloads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert record.unloads == ["a"]
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


def whisper(path: Path) -> ModelSource[object]:
    from whisper_api.engine.whisper import WhisperSource

    return WhisperSource(str(path), "cpu", 0, "int8", 1)


def use_whisper(model: object) -> object:
    from whisper_api.engine.whisper import Whisper

    assert isinstance(model, Whisper)
    return model.listen(100, 1, 60.0).run([np.zeros(16_000, np.float32)])[0][0].shape


def segmentation(path: Path) -> ModelSource[object]:
    from whisper_api.engine.segmentation import SegmentationSource

    return SegmentationSource(str(path), "cpu")


def use_segmentation(model: object) -> object:
    from whisper_api.engine.segmentation import SegmentWindows

    return SegmentWindows(model, "cpu").run([np.zeros(80_000, np.float32)])[0].shape


def embedding(path: Path) -> ModelSource[object]:
    from whisper_api.engine.ecapa import EcapaSource

    return EcapaSource(str(path), "cpu")


def use_embedding(model: object) -> object:
    from whisper_api.engine.ecapa import EmbedSpans

    def floats(values: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(values, np.float32)

    sound = floats(np.random.default_rng(0).normal(0, 0.1, 32_000))
    frames: list[NDArray[np.int64]] = [np.arange(200, dtype=np.int64)]
    value = (sound, floats(np.zeros(80)), floats(np.ones(201)), frames)
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
    from whisper_api.engine.catalog import ModelStore

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

    from whisper_api.engine.align_models import AlignmentSource, EmissionInput, Emissions

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
