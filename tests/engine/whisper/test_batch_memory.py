"""Batches are bounded by the bytes of their rows."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import ROOT, between

from whisper_api.engine.models.catalog import CATALOGUE
from whisper_api.engine.whisper.batch_memory import (
    decode_row_bytes,
    encode_row_bytes,
    lane_bytes,
    most_windows,
    replica_bytes,
    torch_workspace_bytes,
)
from whisper_api.engine.whisper.ct2_file import read_shapes, read_weights
from whisper_api.engine.whisper.ctranslate2 import Ct2Decode, Ct2EncodeAndDetect, Ct2Whisper
from whisper_api.engine.whisper.model import DecodeSettings
from whisper_api.engine.whisper.onnx.whisper_graphs import Shape, shape_of
from whisper_api.engine.whisper.torch_encoder import tensor_shapes
from whisper_api.engine.worker.device import GPU_LANES
from whisper_api.errors import ModelCorrupt

sys.path.insert(0, str(ROOT / "scripts"))

import random_models

MB = 1_000_000
LARGE = Shape(128, 1280, 20, 32, 32, 1500, 448, 51_866)
TURBO = replace(LARGE, decoder_layers=4)
WINDOW = DecodeSettings(3000, 4, 5, 0.0, ())


def test_a_row_of_large_v3_takes_what_its_tensors_take() -> None:
    # Keys and values of the cross-attention alone: 2 * 32 layers * 1500 positions * 1280 numbers of 2 bytes.
    cross = 2 * 32 * 1500 * 1280 * 2
    assert round(cross / MB) == 246
    assert cross < decode_row_bytes(LARGE, replace(WINDOW, beam_size=1), 2) < 340 * MB
    assert 340 * MB < decode_row_bytes(LARGE, WINDOW, 2) < 460 * MB
    # What turbo's decoder keeps is less than the encoder's workspace, most of which are attention weights.
    assert 2 * 20 * 1500**2 * 2 < encode_row_bytes(TURBO, 3000, 2) < 300 * MB
    assert decode_row_bytes(TURBO, WINDOW, 2) < decode_row_bytes(LARGE, WINDOW, 2)


@pytest.mark.parametrize(
    "less",
    [
        replace(WINDOW, frames=1500),
        replace(WINDOW, beam_size=1),
        replace(WINDOW, encoded=True, frames=2999),
        replace(WINDOW, prompt_length=3),
    ],
)
def test_shorter_windows_and_fewer_beams_take_less(less: DecodeSettings) -> None:
    assert decode_row_bytes(LARGE, less, 2) < decode_row_bytes(LARGE, replace(WINDOW, prompt_length=100), 2)
    # Sampling draws as many texts as the widest beam search has beams.
    assert decode_row_bytes(LARGE, replace(less, temperature=0.2), 2) >= decode_row_bytes(LARGE, less, 2)
    assert decode_row_bytes(LARGE, less, 4) > 1.9 * decode_row_bytes(LARGE, less, 2) - 10 * MB


TIMED = replace(WINDOW, beam_size=1, align_from=(50258, 50259, 50359))


@pytest.mark.parametrize(("shape", "heads"), [(TURBO, 6), (replace(LARGE, width=512, heads=8, decoder_layers=6), 8)])
def test_word_times_take_what_their_tensors_take(shape: Shape, heads: int) -> None:
    untimed, timed = (
        decode_row_bytes(shape, each, 2, in_torch=True, timed_heads=heads)
        for each in (replace(TIMED, align_from=None), TIMED)
    )
    assert timed > untimed
    # ``align()`` gives the logits of all tokens at once, and the attention of all heads of a layer, whose softmax is
    # apart; the decoder has a copy of the encoder's output.
    tokens = 4 + 224
    assert timed > 2 * 1500 * shape.width * 2 + tokens * shape.vocabulary * 2
    assert timed > 2 * 1500 * shape.width * 2 + 2 * shape.heads * tokens * 1500 * 2
    # The log probabilities of tokens come from the same call.
    asked = replace(TIMED, align_from=None, logprobs_from=TIMED.align_from)
    assert decode_row_bytes(shape, asked, 2, in_torch=True, timed_heads=heads) == timed
    # Large decoders keep more than word times take.
    assert decode_row_bytes(LARGE, TIMED, 2) == decode_row_bytes(LARGE, replace(TIMED, align_from=None), 2)


def test_texts_that_are_drawn_share_nothing_of_their_window() -> None:
    # Five of them: CTranslate2's greedy search repeats the whole state of the decoder, also what beams share.
    drawn = replace(WINDOW, beam_size=1, temperature=0.4)
    shared = 2 * 32 * 1500 * 1280 * 2
    assert decode_row_bytes(LARGE, drawn, 2) > decode_row_bytes(LARGE, WINDOW, 2) + 4 * shared


def test_each_lane_has_its_own_copy_of_the_output_layer() -> None:
    # 51866 is no multiple of 8, so CTranslate2 copies the matrix with some rows more.
    assert round(replica_bytes(LARGE, 2) / MB) == 133
    assert lane_bytes(8 << 30, 2) - lane_bytes(8 << 30, 2, replica_bytes(LARGE, 2)) == replica_bytes(LARGE, 2)
    assert lane_bytes(100, 2, 1000) == 0


@pytest.mark.parametrize("free", [2 << 30, 8 << 30, 24 << 30, 140 << 30])
@pytest.mark.parametrize("lanes", [1, 2])
def test_all_lanes_together_leave_room_for_the_other_models(free: int, lanes: int) -> None:
    batches = lanes * lane_bytes(free, lanes)
    assert batches < free - min(3 << 30, free // 4)
    assert batches > free // 2


# Gigabytes of a GPU that CUDA's contexts and the libraries take.
CONTEXTS = 1


@pytest.mark.parametrize("name", ["large-v3-turbo", "large-v3"])
@pytest.mark.parametrize("beams", [1, 5])
def test_the_document_tells_the_largest_batches(name: str, beams: int) -> None:
    sides, parameters = random_models.SHAPES[name], CATALOGUE[name].parameters
    assert parameters is not None
    layers = sides.encoder_layers, sides.decoder_layers
    shape = Shape(sides.mels, sides.width, sides.heads, *layers, 1500, 448, sides.vocabulary)
    encoder = 2 * sum(math.prod(each) for each in tensor_shapes(shape).values())
    assert round(encoder / 1e9, 1) == 1.3
    settings = replace(WINDOW, beam_size=beams)
    cells = []
    for gigabytes in (24, 80, 140):
        for in_torch in (False, True):
            free = (gigabytes - CONTEXTS << 30) - 2 * parameters - (encoder if in_torch else 0)
            workspace = torch_workspace_bytes(shape, 3000, 2) if in_torch else None
            row = decode_row_bytes(shape, settings, 2, in_torch=in_torch)
            cells.append(most_windows(lane_bytes(free, GPU_LANES, replica_bytes(shape, 2)), row, workspace))
    pairs = [f"{ctranslate2} / {torch}" for ctranslate2, torch in zip(cells[::2], cells[1::2], strict=True)]
    table = between((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"), "batches")
    assert f"| {name} | {beams} | {' | '.join(pairs)} |" in table


@pytest.mark.models
def test_the_dimensions_of_a_model_are_read_without_its_weights(tiny_en_model_dir: Path, tmp_path: Path) -> None:
    path = tiny_en_model_dir / "model.bin"
    shapes, weights = read_shapes(path), read_weights(path)
    assert shape_of(shapes) == shape_of(weights)
    assert sum(value.strides == (0,) * value.ndim for value in shapes.values()) > 100
    (tmp_path / "cut.bin").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelCorrupt, match="truncated"):
        read_shapes(tmp_path / "cut.bin")


def whisper_with(directory: Path, free: int | None) -> Ct2Whisper:
    return Ct2Whisper(
        directory,
        device="cpu",
        device_index=0,
        compute_type="int8",
        threads=1,
        lanes=2,
        offline=True,
        free_memory=lambda: free,
    )


@pytest.mark.cpu("sets the memory of its device itself")
@pytest.mark.models
def test_the_batches_of_a_model_fit_the_memory_that_is_left(tiny_en_model_dir: Path) -> None:
    small = whisper_with(tiny_en_model_dir, 500 << 20)
    unknown = whisper_with(tiny_en_model_dir, None)
    assert unknown.decode(WINDOW, 64, 60.0).max_items == 64
    assert unknown.decode(WINDOW, 1000, 60.0).max_items == 95
    limits = [small.decode(replace(WINDOW, frames=frames), 64, 60.0).max_items for frames in (3000, 2000, 1000, 500)]
    assert limits == sorted(limits)
    assert 1 <= limits[0] < limits[-1] <= 64
    row = decode_row_bytes(small.shape, WINDOW, 2)
    assert 2 * limits[0] * row <= 500 << 20
    assert small.encode_and_detect(3000, 64, 60.0).max_items < 64
    assert whisper_with(tiny_en_model_dir, 1).decode(WINDOW, 64, 60.0).max_items == 1

    long, short = (small.decode(replace(WINDOW, frames=frames), 64, 60.0) for frames in (1500, 1000))
    assert isinstance(long, Ct2Decode)
    assert isinstance(short, Ct2Decode)
    # They share a batch, with the bound of the longer windows.
    assert short.max_items > long.max_items
    assert long.merged(short) == long
    assert short.merged(long) == long
    assert long.merged(replace(short, settings=replace(short.settings, beam_size=1))) is None


@pytest.mark.models
def test_what_is_learned_of_memory_is_that_of_a_model_of_a_length_and_of_beams(tiny_en_model_dir: Path) -> None:
    first, second = (whisper_with(tiny_en_model_dir, None) for _ in range(2))
    variants = [WINDOW, replace(WINDOW, frames=1500), replace(WINDOW, beam_size=1), replace(WINDOW, temperature=0.2)]
    variants += [replace(WINDOW, align_from=(50258,))]
    operations: list[Any] = [model.decode(each, 4, 60.0) for model in (first, second) for each in variants]
    operations += [model.encode_and_detect(frames, 4, 60.0) for model in (first, second) for frames in (1000, 3000)]
    assert len({operation.memory_key for operation in operations}) == len(operations)
    assert isinstance(operations[-1], Ct2EncodeAndDetect)
    # What changes the text and not the memory shares what was learned.
    other = first.decode(replace(WINDOW, suppress=(1, 2)), 4, 60.0)
    assert other.memory_key == operations[0].memory_key
    assert np.isfinite(first.shape.width)
