"""Reading CTranslate2's model files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from whisper_api.engine.whisper.ct2_file import read_weights
from whisper_api.errors import ModelCorrupt


def write_model(directory: Path, quantization: str | None) -> NDArray[np.float32]:
    """Write a model of one layer in CTranslate2's format, and return its matrix."""
    import ctranslate2

    matrix = np.random.default_rng(0).normal(0, 1, (16, 8)).astype(np.float32)

    class Spec(ctranslate2.specs.LayerSpec):  # type: ignore[misc]
        def __init__(self) -> None:
            self.linear = ctranslate2.specs.common_spec.LinearSpec()

    class Model(ctranslate2.specs.ModelSpec):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = Spec()

        @property
        def name(self) -> str:
            return "Test"

        @property
        def revision(self) -> int:
            return 1

    spec = Model()
    spec.layer.linear.weight = matrix.copy()
    spec.layer.linear.bias = np.arange(16, dtype=np.float32)
    spec.validate()
    spec.optimize(quantization)
    spec.save(str(directory))
    return matrix


@pytest.mark.parametrize(
    ("quantization", "within"), [(None, 0.0), ("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 2e-2), ("int16", 5e-3)]
)
def test_weights_of_every_quantization_are_read_as_numbers(
    tmp_path: Path, quantization: str | None, within: float
) -> None:
    matrix = write_model(tmp_path, quantization)
    weights = read_weights(tmp_path / "model.bin")
    np.testing.assert_allclose(weights["layer/linear/weight"].astype(np.float32), matrix, atol=within)
    np.testing.assert_allclose(weights["layer/linear/bias"].astype(np.float32), np.arange(16), atol=0.1)
    assert not [name for name in weights if name.endswith("scale")]


@pytest.mark.models
def test_a_published_model_is_read(base_model_dir: Path) -> None:
    weights = read_weights(base_model_dir / "model.bin")
    assert weights["encoder/conv1/weight"].shape == (512, 80, 3)
    assert weights["decoder/layer_5/ffn/linear_1/weight"].shape == (512, 2048)
    # The file has this matrix under two names.
    assert weights["decoder/projection/weight"] is weights["decoder/embeddings/weight"]


@pytest.mark.parametrize("content", [b"", b"\x06", b"not a model" * 100, b"\xff" * 100])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"model\.bin"):
        read_weights(path)


def test_a_model_that_is_cut_short_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, "float16")
    path = tmp_path / "model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelCorrupt, match="truncated"):
        read_weights(path)


@pytest.mark.models
def test_a_part_of_a_model_is_read_alone(tiny_en_model_dir: Path) -> None:
    whole = read_weights(tiny_en_model_dir / "model.bin")
    part = read_weights(tiny_en_model_dir / "model.bin", "encoder/")
    assert set(part) == {name for name in whole if name.startswith("encoder/")}
    assert all(np.array_equal(part[name], whole[name]) for name in part)
    # The file has this matrix under two names, and the name that is asked for may be the second.
    tied = read_weights(tiny_en_model_dir / "model.bin", "decoder/projection")
    assert np.array_equal(tied["decoder/projection/weight"], whole["decoder/embeddings/weight"])
