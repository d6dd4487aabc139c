"""Whisper's graphs against CTranslate2 with the real model, and their files on the disk."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.audio.mel import log_mel
from whisper_api.engine.models import derived_files
from whisper_api.engine.whisper.onnx import sessions as onnx_sessions
from whisper_api.engine.whisper.onnx.graph_files import prepare
from whisper_api.engine.whisper.onnx.search import feed_sequence
from whisper_api.engine.whisper.onnx.sessions import Sessions, feed_together, open_sessions
from whisper_api.engine.worker.idle_cores import using
from whisper_api.errors import ModelCorrupt, ModelUnavailable

pytestmark = pytest.mark.models

Floats = np.ndarray[Any, np.dtype[np.float32]]
# <|startoftranscript|>, English, transcribe, no timestamps, " Hello" " there"
TOKENS = [50258, 50259, 50359, 50363, 2425, 456]


@pytest.fixture(scope="module")
def features(sample_call: Path) -> Floats:
    return log_mel(decode(sample_call).audio[: 13 * 16_000], 1300)


@pytest.fixture(scope="module")
def exact(base_model_dir: Path) -> Sessions:
    return Sessions(prepare(base_model_dir, int8=False), 1)


@pytest.fixture(scope="module")
def quick(base_model_dir: Path) -> Sessions:
    return Sessions(prepare(base_model_dir, int8=True), 1)


@pytest.fixture(scope="module")
def peer(base_model_dir: Path) -> Any:
    import ctranslate2

    return lambda compute_type: ctranslate2.models.Whisper(str(base_model_dir), compute_type=compute_type)


def encoded_by(peer: Any, features: Floats) -> Floats:
    import ctranslate2

    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features[None]))
    return np.asarray(np.array(peer.encode(view))[0], np.float32)


def error(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).mean() / np.abs(expected).mean())


def test_the_encoder_is_ctranslate2s(exact: Sessions, quick: Sessions, peer: Any, features: Floats) -> None:
    expected = encoded_by(peer("float32"), features)
    np.testing.assert_allclose(exact.encode(features), expected, atol=2e-3)
    # In int8 both err, by as much.
    theirs = error(encoded_by(peer("int8"), features), expected)
    assert error(quick.encode(features), expected) < 1.2 * theirs


def test_the_encoder_gives_the_same_on_several_threads(quick: Sessions, features: Floats) -> None:
    alone = quick.encode(features)
    with using(2, 1):
        np.testing.assert_allclose(quick.encode(features), alone, atol=1e-4)


def test_the_decoder_does_not_depend_on_how_its_tokens_are_fed(exact: Sessions, features: Floats) -> None:
    encoded = exact.encode(features)
    at_once = feed_sequence(exact.start(encoded), TOKENS)
    state = exact.start(encoded)
    for position, token in enumerate(TOKENS):
        visible = np.ones((1, position + 1), np.bool_)
        logits = state.feed(np.array([token]), np.array([position]), visible)
        np.testing.assert_allclose(logits[0], at_once[position], atol=1e-3)
    assert state.length == len(TOKENS)


def test_a_row_attends_only_to_its_visible_entries(exact: Sessions, features: Floats) -> None:
    encoded = exact.encode(features)
    alone = exact.start(encoded)
    feed_sequence(alone, TOKENS[:4])
    visible = np.ones((1, 5), np.bool_)
    expected = alone.feed(np.array([TOKENS[4]]), np.array([4]), visible)
    # Two rows after one prompt, blind to each other, and a third after the second of them.
    both = exact.start(encoded)
    feed_sequence(both, TOKENS[:4])
    visible = np.ones((2, 6), np.bool_)
    visible[0, 5] = visible[1, 4] = False
    logits = both.feed(np.array([11, TOKENS[4]]), np.array([4, 4]), visible)
    np.testing.assert_allclose(logits[1], expected[0], atol=1e-3)
    visible = np.ones((1, 7), np.bool_)
    visible[0, 4] = False
    third = both.feed(np.array([TOKENS[5]]), np.array([5]), visible)
    np.testing.assert_allclose(third[0], feed_sequence(exact.start(encoded), TOKENS)[-1], atol=1e-3)


def test_the_cache_grows_and_is_forgotten(quick: Sessions, features: Floats) -> None:
    state = quick.start(quick.encode(features))
    first = feed_sequence(state, TOKENS)
    for _ in range(40):
        feed_sequence(state, TOKENS)
    assert state.length == 41 * len(TOKENS) > onnx_sessions.POOL
    again = feed_sequence(state, TOKENS)
    np.testing.assert_allclose(again, first, atol=1e-2)
    state.clear()
    np.testing.assert_allclose(feed_sequence(state, TOKENS), first, atol=1e-2)
    assert state.attention.shape == (8, len(TOKENS), features.shape[1] // 2)
    # Divided by the sum of the weights' integers.
    np.testing.assert_allclose(state.attention.sum(axis=2), 1.0, atol=0.1)


def test_int8_gives_nearly_the_probabilities_of_float32(exact: Sessions, quick: Sessions, features: Floats) -> None:
    def probabilities(sessions: Sessions) -> Floats:
        logits = feed_sequence(sessions.start(sessions.encode(features)), TOKENS)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))

    distance = np.abs(probabilities(exact) - probabilities(quick)).sum(axis=1) / 2
    assert distance.max() < 0.3


@pytest.fixture(scope="module")
def copied(base_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without graphs on the file system of the temporary files, where links to it can be made."""
    copied = tmp_path_factory.mktemp("model")
    for name in ("config.json", "tokenizer.json", "model.bin"):
        shutil.copyfile(base_model_dir / name, copied / name)
    return copied


@pytest.fixture
def model(copied: Path, tmp_path: Path) -> Path:
    """A model of the test's own, without graphs."""
    model = tmp_path / "model"
    model.mkdir()
    for file in copied.iterdir():
        os.link(file, model / file.name)
    return model


def test_graphs_are_made_once_and_anew_when_the_weights_change(model: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(prepare(model, int8=True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {model / "onnx-int8"}
    made = (found[0] / "decoder.weights").stat().st_mtime_ns
    assert prepare(model, int8=True) == found[0]
    assert (found[0] / "decoder.weights").stat().st_mtime_ns == made
    facts = json.loads((found[0] / "model.json").read_text())
    facts["made_from"]["bytes"] -= 1
    (found[0] / "model.json").write_text(json.dumps(facts))
    assert (prepare(model, int8=True) / "decoder.weights").stat().st_mtime_ns > made
    assert not [path for path in model.iterdir() if path.name.startswith(".onnx") and path.is_dir()]


def test_graphs_go_elsewhere_when_the_model_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the graphs would be: also root, whom no permission holds back, cannot write there.
    (model / ".onnx-int8.lock").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = prepare(model, int8=True)
    assert tmp_path / "cache" in place.parents
    assert Sessions(place, 1).shape.width == 512
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    with pytest.raises(ModelUnavailable, match="cannot be stored"):
        prepare(model, int8=True)


def damage(path: Path, kind: str) -> None:
    """Cut a file in half, empty it, remove it, or change bytes and keep its length."""
    content = path.read_bytes()
    path.unlink()
    if kind == "changed":
        path.write_bytes(bytes(byte ^ 0x5A for byte in content[:4096]) + content[4096:])
    elif kind != "removed":
        path.write_bytes(content[: len(content) // 2 if kind == "cut" else 0])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("decoder.weights", "cut"), ("places.npy", "removed"), ("memory.onnx", "changed"), ("model.json", "changed")],
)
def test_damaged_graphs_are_made_again(model: Path, quick: Sessions, features: Floats, name: str, kind: str) -> None:
    """Changed weights load all the same: `whisper-api models verify` compares hashes, loading does not."""
    directory = prepare(model, int8=True)
    damage(directory / name, kind)
    opened = open_sessions(model, int8=True, threads=1)
    np.testing.assert_array_equal(opened.encode(features), quick.encode(features))
    assert derived_files.damaged_files(directory) == []


def test_an_error_while_intact_graphs_are_loaded_is_raised(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(model, int8=True)

    def fail(*ignored: object, **options: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(MemoryError, match="no room"):
        open_sessions(model, int8=True, threads=1)


@pytest.mark.parametrize("kind", ["cut", "empty", "removed", "changed"])
def test_a_damaged_model_is_named(model: Path, base_model_dir: Path, kind: str) -> None:
    shutil.copy(base_model_dir / "manifest.json", model)
    damage(model / "model.bin", kind)
    with pytest.raises(ModelCorrupt, match=r"model\.bin"):
        open_sessions(model, int8=True, threads=1)


def test_weights_of_no_whisper_model_are_named(model: Path) -> None:
    content = bytearray((model / "model.bin").read_bytes())
    # Change a letter of a variable's name: the file can be read, but it holds no Whisper model.
    at = content.index(b"encoder/layer_3/ffn/linear_1/weight")
    content[at] ^= 1
    (model / "model.bin").unlink()
    (model / "model.bin").write_bytes(content)
    with pytest.raises(ModelCorrupt, match="does not contain the weights of a Whisper model"):
        open_sessions(model, int8=True, threads=1)


def test_a_file_of_another_model_is_refused_by_name(tmp_path: Path, ecapa_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ecapa_path.read_bytes()[:1000])
    with pytest.raises(ModelCorrupt, match=r"model\.bin"):
        prepare(tmp_path, int8=True)


def test_a_window_gives_the_same_to_the_last_bit_whatever_is_beside_it(quick: Sessions, features: Floats) -> None:
    """Others are longer and shorter, with more rows and fewer, with more of the past and less."""
    encoded = quick.encode(features)
    others = [quick.encode(features[:, :frames]) for frames in (400, 1000)] + [np.tile(encoded, (2, 1))]

    def run(beside: list[Floats]) -> list[Floats]:
        states = [quick.start(each) for each in (encoded, *beside)]
        for number, state in enumerate(states[1:]):
            for _ in range(1 + 30 * number):
                feed_sequence(state, TOKENS)
        feed_sequence(states[0], TOKENS[:4])
        found = []
        for position in range(4, 40):
            feeds = []
            for number, state in enumerate(states):
                rows = (3, 1, 5, 2)[number]
                visible = np.zeros((rows, state.length + rows), np.bool_)
                visible[:, : state.length : 1 + number] = True
                np.fill_diagonal(visible[:, state.length :], True)
                tokens = np.arange(rows, dtype=np.int64) + 1000 + position
                feeds.append((tokens, np.full(rows, position, np.int64), visible))
            found.append(feed_together(states, feeds)[0])
        return found

    alone, together = run([]), run(others)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_unused_state_frees_its_memory_at_once(quick: Sessions, features: Floats) -> None:
    """Without a search for cycles, which would come long after the memory has run out."""
    encoded = quick.encode(features)
    gc.disable()
    try:
        states = [quick.start(encoded) for _ in range(3)]
        for state in states:
            feed_sequence(state, TOKENS)
        feeds = [(np.array([11]), np.array([6]), np.ones((1, len(TOKENS) + 1), np.bool_)) for _ in states]
        feed_together(states, feeds)
        held = [weakref.ref(state.group) for state in states] + [weakref.ref(state) for state in states]
        del states, state
        assert [reference() for reference in held] == [None] * 6
    finally:
        gc.enable()
