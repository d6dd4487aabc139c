"""Every network in torch at its true size, without its memory: tensors on torch's device ``meta`` have no content.

What these tests prove: shapes, types and devices fit from the input to the output, and nothing is left on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from whisper_api.engine.align.models import AlignmentModel
from whisper_api.engine.audio.mel import log_mel_on_device
from whisper_api.engine.diarize import campplus, ecapa, segmentation
from whisper_api.engine.diarize.embedding import DIMENSION
from whisper_api.engine.whisper.onnx.whisper_graphs import Shape
from whisper_api.engine.whisper.torch_encoder import AT_ONCE, TorchEncoder, tensor_shapes

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))

import random_models

SECOND = 16_000
# One window of the segmentation network: its LSTM goes step by step here.
MOMENT = SECOND // 4


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float16) for name in random_models.SHAPES), ("tiny", torch.bfloat16), ("tiny", torch.float32)],
)
def test_whispers_encoder(name: str, dtype: torch.dtype) -> None:
    sides = random_models.SHAPES[name]
    layers = sides.encoder_layers, sides.decoder_layers
    shape = Shape(sides.mels, sides.width, sides.heads, *layers, 1500, 448, sides.vocabulary)
    tensors = {n: torch.empty(each, device="meta", dtype=dtype) for n, each in tensor_shapes(shape).items()}
    windows = AT_ONCE + 1 if name == "tiny" else 2
    for seconds in (5, 30):
        encoded = TorchEncoder(shape, tensors)(torch.empty(windows, shape.mels, 100 * seconds, device="meta"))
        assert encoded.shape == (windows, 50 * seconds, sides.width)
        assert encoded.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        assert encoded.device.type == "meta"
        assert encoded.is_contiguous()


@pytest.mark.parametrize("mels", [80, 128])
def test_features(mels: int) -> None:
    audio = [np.zeros(SECOND * seconds, np.float32) for seconds in (1, 5)]
    features = log_mel_on_device(audio, 500, mels, "meta")
    assert features.shape == (2, mels, 500)
    assert (features.device.type, features.dtype) == ("meta", torch.float32)


def torchaudio_base() -> torch.nn.Module:
    from torchaudio.models import wav2vec2_base

    network: torch.nn.Module = wav2vec2_base(aux_num_out=29)
    return network


def hub_large() -> torch.nn.Module:
    """The large models of the hub: layer norms instead of a group norm."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=42,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        # The other kinds look at the content of their mask.
        attn_implementation="eager",
    )
    network: torch.nn.Module = Wav2Vec2ForCTC(config)
    return network


@pytest.mark.parametrize(
    ("make", "labels", "dtype"),
    [(torchaudio_base, 29, torch.float16), (torchaudio_base, 29, torch.bfloat16), (hub_large, 42, torch.float16)],
)
def test_alignment(make: Callable[[], torch.nn.Module], labels: int, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        network = make()
    model = AlignmentModel(network.eval().to("meta", dtype), {}, 0, together=True)
    audio = [np.zeros(samples, np.float32) for samples in (10 * SECOND, 5 * SECOND, 200)]
    logits = model.logits(audio)
    # A frame each 20 ms, whose window has 25 ms.
    assert [tuple(each.shape) for each in logits] == [(499, labels), (249, labels), (1, labels)]
    assert {(each.device.type, each.dtype) for each in logits} == {("meta", dtype)}


@pytest.mark.parametrize("outputs", [3, 7])
def test_segmentation(outputs: int) -> None:
    with torch.device("meta"):
        network: Any = segmentation._network(outputs).eval()  # noqa: SLF001
    activity = network(torch.empty(32, MOMENT, device="meta"))
    assert activity.shape == (32, segmentation.frame_count(MOMENT), 3)
    assert (activity.device.type, activity.dtype) == ("meta", torch.float32)


@pytest.mark.parametrize(("module", "channels"), [(ecapa, 3072), (campplus, 512)])
def test_speaker_embeddings(module: ModuleType, channels: int) -> None:
    with torch.device("meta"):
        network: Any = module._network().eval()  # noqa: SLF001
    features = network.features(torch.empty(1, 30 * SECOND, device="meta"))
    assert features.shape == (1, 80, 3001)
    frames = -(-3001 // network.stride)
    trunk = network.trunk(features, np.repeat([0, 1, -1, 2], (700, 1, 200, frames - 901)))
    assert trunk.shape == (1, channels, frames)
    spans = [np.arange(100), np.r_[200:250, 300:310]]
    for dtype in (torch.float32, torch.bfloat16):
        vectors = network.pool(trunk[0].float().T.contiguous(), spans, dtype)
        assert vectors.shape == (2, DIMENSION)
        assert (vectors.device.type, vectors.dtype) == ("meta", torch.float32)
