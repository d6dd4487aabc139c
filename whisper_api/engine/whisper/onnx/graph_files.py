"""The files of a model's graphs: made once from the weights, and checked at every load."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from whisper_api.engine.models import derived_files
from whisper_api.engine.models.cache import check_load
from whisper_api.engine.models.files import check_weights
from whisper_api.engine.models.waits import locked
from whisper_api.engine.whisper.ct2_file import read_weights
from whisper_api.engine.whisper.onnx.whisper_graphs import Shape, save_graphs, shape_of
from whisper_api.errors import ModelCorrupt, ModelUnavailable

log = logging.getLogger(__name__)

# Version of the graphs. Increase it when the graphs change, so that older graphs are made again.
FORMAT = 7
EMBEDDINGS = "embeddings.npy"
# File of the position embeddings.
POSITIONS = "places.npy"


def prepare(model: Path, *, int8: bool) -> Path:
    """The directory of a model's graphs. Makes the graphs when they are missing, truncated or from other weights.

    The directory is in the model's own directory, or in the user's cache directory if the former is not writable.

    Args:
        model: a directory in CTranslate2's format.
        int8: True for graphs that compute in int8, False for float32.

    Raises:
        ModelCorrupt: the directory does not contain a Whisper model.
        ModelUnavailable: the graphs cannot be stored.
    """
    name = f"{derived_files.PREFIX}{'int8' if int8 else 'float32'}"
    try:
        with (model / "model.bin").open("rb") as file:
            source = os.fstat(file.fileno())
    except OSError as error:
        raise ModelCorrupt(f"{model / 'model.bin'} cannot be read: {error.strerror}") from error
    made_from = {"format": FORMAT, "bytes": source.st_size, "modified": source.st_mtime_ns}
    directories = (model / name, derived_files.cache_directory(model) / name)
    for directory in directories:
        if derived_files.is_current(directory, made_from):
            return directory
    failures = []
    for directory in directories:
        try:
            return _make_once(model, directory, made_from, int8=int8)
        except OSError as error:  # noqa: PERF203 - each directory fails for its own reason
            failures.append(str(error))
    raise ModelUnavailable(
        f"{model.name}: its graphs cannot be stored ({'; '.join(failures)}). Make {model} writable or free space."
    )


def _make_once(model: Path, directory: Path, made_from: dict[str, int], *, int8: bool) -> Path:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory.parent / f".{directory.name}.lock", check_load):
        if not derived_files.is_current(directory, made_from):
            _make(model, directory, made_from, int8=int8)
    return directory


def _make(model: Path, directory: Path, made_from: dict[str, int], *, int8: bool) -> None:
    begun = time.monotonic()
    check_weights(model)
    weights = read_weights(model / "model.bin")
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as folder:
        partial = Path(folder) / directory.name
        partial.mkdir()
        try:
            shape = shape_of(weights)
            save_graphs(weights, _alignment_heads(model, shape), partial, int8=int8)
            np.save(partial / EMBEDDINGS, weights["decoder/embeddings/weight"])
            np.save(partial / POSITIONS, weights["decoder/position_encodings/encodings"])
        except (KeyError, ValueError) as error:
            raise ModelCorrupt(f"{model} does not contain the weights of a Whisper model: {error}") from error
        derived_files.write_record(partial, made_from, {"shape": asdict(shape)})
        if directory.exists():
            # Graphs that are damaged, from other weights or of an older version.
            directory.rename(Path(folder) / "replaced")
        partial.rename(directory)
    log.info("made %s in %.1f s", directory, time.monotonic() - begun)


def _alignment_heads(model: Path, shape: Shape) -> list[tuple[int, int]]:
    """Layers and heads whose cross-attention follows the voice; if unknown, all heads of the second half of layers."""
    try:
        heads = json.loads((model / "config.json").read_text(encoding="utf-8"))["alignment_heads"]
        return [(int(layer), int(head)) for layer, head in sorted(heads)]
    except (OSError, ValueError, KeyError, TypeError):
        return [
            (layer, head)
            for layer in range(shape.decoder_layers // 2, shape.decoder_layers)
            for head in range(shape.heads)
        ]
