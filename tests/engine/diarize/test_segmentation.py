"""The segmentation network, beside pyannote's own; and checkpoints that want to run code."""

from __future__ import annotations

import importlib.util
import os
import pickle
import tempfile
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_api.engine.diarize.segmentation import frame_count, load_checkpoint, load_segmentation
from whisper_api.errors import ModelCorrupt


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    spec = importlib.util.find_spec("whisperx")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "assets" / "pytorch_model.bin"


def read(path: Path) -> Any:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def test_the_network_gives_the_same_as_pyannotes_own(checkpoint: Path, sample_call: Path) -> None:
    import torch
    from pyannote.audio import Model

    audio = read(sample_call)
    windows = torch.from_numpy(np.stack([audio[start : start + 80_000] for start in (0, 100_000, 200_000, 300_000)]))
    ours, theirs = load_segmentation(checkpoint), Model.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        found, expected = ours(windows), theirs(windows[:, None])
    assert found.shape == expected.shape == (4, frame_count(80_000), 3)
    # The same to rounding, which the network can amplify at single frames.
    assert float((found - expected).abs().mean()) < 1e-3
    assert float(((found > 0.5) != (expected > 0.5)).float().mean()) < 2e-3


@pytest.mark.models
@pytest.mark.usefixtures("ecapa_path")
def test_the_powerset_network_gives_the_speakers_of_pyannotes_classes(models_dir: Path, sample_call: Path) -> None:
    import torch

    from whisper_api.engine.diarize.community import _model

    (checkpoint,) = (models_dir / "diarization" / "segmentation-3.0").glob("*.bin")
    audio = read(sample_call)
    windows = torch.from_numpy(np.stack([audio[start : start + 160_000] for start in (0, 160_000, 300_000)]))
    with torch.inference_mode():
        found, classes = load_segmentation(checkpoint)(windows), _model(checkpoint)(windows[:, None]).exp()
    # Nobody, each of three speakers, each pair.
    members = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).float()
    assert found.shape == (3, frame_count(160_000), 3)
    assert float((found - classes @ members).abs().mean()) < 1e-3
    # At most two of three speak at once.
    assert float(found.sum(dim=2).max()) <= 2.0 + 1e-3


class Trap:
    """An object that makes a directory when it is unpickled."""

    def __init__(self, function: Any, *args: str) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def spring(path: Path) -> None:
    """Unpickle a checkpoint the plain way, which falls into its trap and then stops at the tensors."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with pytest.raises(pickle.UnpicklingError, match="persistent"):
            pickle.loads(archive.read(name))


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    import torch

    path, inside = tmp_path / "model.bin", tmp_path / "inside"
    inside.mkdir()
    trap = Trap(tempfile.mkdtemp, "a", "b", str(inside))
    torch.save({"extra": trap, "state_dict": {"weight": torch.ones(2)}}, path)
    spring(path)
    (made,) = inside.iterdir()
    made.rmdir()
    content = load_checkpoint(path)
    assert content["state_dict"]["weight"].tolist() == [1, 1]
    assert list(inside.iterdir()) == []


def test_a_checkpoint_that_calls_the_system_is_refused(tmp_path: Path) -> None:
    import torch

    path, made = tmp_path / "model.bin", tmp_path / "made"
    torch.save({"extra": Trap(os.mkdir, str(made)), "state_dict": {"weight": torch.ones(2)}}, path)
    spring(path)
    made.rmdir()
    with pytest.raises(ModelCorrupt, match=r"model\.bin"):
        load_checkpoint(path)
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.bin"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"broken\.bin"):
        load_segmentation(path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "other.bin"
    torch.save({"state_dict": {"classifier.bias": torch.zeros(5), "weight": torch.ones(2)}}, path)
    with pytest.raises(ModelCorrupt, match=r"other\.bin: not a speaker segmentation model"):
        load_segmentation(path)
