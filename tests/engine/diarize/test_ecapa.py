"""Speaker embeddings: the published network's own figures, and what pooling over spans must keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from whisper_api.engine.diarize.ecapa import features, load_ecapa
from whisper_api.engine.diarize.embedding import DIMENSION, embed
from whisper_api.errors import ModelCorrupt

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def model(ecapa_path: Path) -> Any:
    return load_ecapa(ecapa_path)


@pytest.fixture(scope="module")
def sound() -> Floats:
    """Two seconds: a rising buzz, a whistle and noise."""
    t = np.arange(32_000) / 16_000
    buzz = 0.1 * np.sin(2 * np.pi * (150 * t + 40 * t * t)) * (1 + np.sin(2 * np.pi * 3 * t))
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(t))
    return np.asarray(buzz + 0.05 * np.sin(2 * np.pi * 1200 * t) + noise, dtype=np.float32)


def energies(sound: Floats) -> Floats:
    import torch

    return np.asarray(features(torch.from_numpy(sound)[None])[0].numpy())


def embedding(model: Any, sound: Floats, *spans: npt.NDArray[np.int64], **options: Any) -> Floats:
    mean = energies(sound)
    one = np.zeros(mean.shape[1], dtype=np.int64)
    return embed(model, sound, mean.mean(axis=1), one, spans or (np.arange(len(one)),), **options)


def test_features_are_those_of_the_toolkit_that_trained_it(sound: Floats) -> None:
    found = energies(sound)
    assert found.shape == (80, 201)
    # From SpeechBrain 1.1 for this sound.
    assert found[[0, 10, 40, 79], 100] == pytest.approx([-26.917, 7.546, -22.783, -11.547], abs=2e-3)
    assert float(found.mean()) == pytest.approx(-13.2916, abs=1e-3)


def test_the_embedding_is_that_of_the_toolkit_that_trained_it(model: Any, sound: Floats) -> None:
    found = embedding(model, sound)
    assert found.shape == (1, DIMENSION)
    expected = [-0.0017, 0.0446, 0.0279, 0.0852, 0.0407, -0.0026, -0.0140, 0.0297]
    assert found[0, :8] == pytest.approx(expected, abs=2e-4)


def test_spans_do_not_depend_on_each_other(model: Any, sound: Floats) -> None:
    one, other = np.arange(10, 90), np.concatenate([np.arange(60, 120), np.arange(150, 190)])
    together = embedding(model, sound, one, other)
    assert embedding(model, sound, one)[0] == pytest.approx(together[0], abs=1e-5)
    assert embedding(model, sound, other)[0] == pytest.approx(together[1], abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert float(together[0] @ together[1]) < 0.999


def test_half_precision_changes_next_to_nothing(model: Any, sound: Floats) -> None:
    full, half = embedding(model, sound), embedding(model, sound, half_precision=True)
    assert float(full[0] @ half[0]) > 0.998


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "other.ckpt"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ModelCorrupt, match=r"other\.ckpt: not an ECAPA-TDNN"):
        load_ecapa(path)
