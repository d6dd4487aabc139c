#!/usr/bin/env python3
"""Makes randomly initialised models of the original shapes, for measurements of speed without real weights.

    scripts/random_models.py DIRECTORY [--whisper NAME] [--seed N]

DIRECTORY becomes a models directory: a CTranslate2 Whisper in float16 with tokenizer and vocabulary, wav2vec 2.0 base
for English alignment, and ECAPA-TDNN. The segmentation network comes from whisperx's package. The text of
such a Whisper model has no meaning; use it with the end of text suppressed and a fixed number of tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.models.catalog import CATALOGUE

__all__ = ["SHAPES", "WhisperShape", "make_alignment", "make_ecapa", "make_models", "make_whisper"]

Halves = NDArray[np.float16]

TEXT_TOKENS = 50257
CONTEXT = 448
POSITIONS = 1500
TIMESTAMPS = 1501
# The first words of the vocabulary have four letters, so that a window's text has the length of real text.
SHORT_WORDS = 10_000


@dataclass(frozen=True)
class WhisperShape:
    """The dimensions of a Whisper model, as published.

    Attributes:
        encoder_layers, decoder_layers: how many.
        heads: of attention, of width 64 each.
        mels: mel bands of the features.
        vocabulary: tokens, timestamps included; 51866 with Cantonese.
    """

    encoder_layers: int
    decoder_layers: int
    heads: int
    mels: int = 80
    vocabulary: int = 51865

    @property
    def width(self) -> int:
        return 64 * self.heads


SHAPES = {
    "tiny": WhisperShape(4, 4, 6),
    "base": WhisperShape(6, 6, 8),
    "small": WhisperShape(12, 12, 12),
    "medium": WhisperShape(24, 24, 16),
    "large-v3": WhisperShape(32, 32, 20, 128, 51866),
    "large-v3-turbo": WhisperShape(32, 4, 20, 128, 51866),
    "distil-large-v3": WhisperShape(32, 2, 20, 128, 51866),
}


class _Weights:
    """Normally distributed numbers from a shared pool, so that large models are made in seconds."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._pool = self._random.standard_normal(1 << 22, dtype=np.float32)

    def normal(self, *shape: int, scale: float) -> Halves:
        start = int(self._random.integers(len(self._pool)))
        pool = (np.roll(self._pool, start) * np.float32(scale)).astype(np.float16)
        return np.resize(pool, shape)

    def linear(self, outputs: int, inputs: int) -> Halves:
        """Keeps the size of its input."""
        return self.normal(outputs, inputs, scale=inputs**-0.5)


def make_models(root: Path, whisper: str = "tiny", seed: int = 0) -> Path:
    """Make a models directory with all models for a job in English.

    Args:
        root: the models directory.
        whisper: a name of :data:`SHAPES`.
        seed: the same seed gives the same weights.

    Returns:
        ``root``.
    """
    make_whisper(root, whisper, seed)
    make_alignment(root, seed)
    make_ecapa(root, seed)
    return root


def make_whisper(root: Path, name: str, seed: int = 0) -> Path:
    """A Whisper model in CTranslate2's format.

    Args:
        root: the models directory.
        name: of the shape, and of the model it takes the place of.
        seed: of the weights.

    Returns:
        The model's directory.
    """
    from ctranslate2.specs import WhisperSpec
    from faster_whisper.tokenizer import Tokenizer
    from faster_whisper.transcribe import get_suppressed_tokens

    shape = SHAPES[name]
    spec = WhisperSpec(shape.encoder_layers, shape.heads, shape.decoder_layers, shape.heads)
    _fill(spec, shape, _Weights(seed))
    tokens = _tokens(shape)
    places = {token: place for place, token in enumerate(tokens)}
    tokenizer = _tokenizer(tokens)
    spec.config.suppress_ids = get_suppressed_tokens(Tokenizer(tokenizer, True, "transcribe", "en"), [-1])
    spec.config.suppress_ids_begin = [places["Ġ"], places["<|endoftext|>"]]
    spec.config.lang_ids = [places[f"<|{code}|>"] for code in _languages(shape)]
    layers = range(shape.decoder_layers // 2, shape.decoder_layers)
    spec.config.alignment_heads = list(itertools.product(layers, range(shape.heads)))[:10]
    spec.register_vocabulary(tokens)
    spec.validate()
    # As in the converter, whose search for equal matrices would compare all with all.
    spec.decoder.projection.weight = "decoder/embeddings/weight"
    directory = root / CATALOGUE[name].directory
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(str(directory))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "preprocessor_config.json").write_text(json.dumps({"feature_size": shape.mels}), encoding="utf-8")
    return directory


def make_alignment(root: Path, seed: int = 0) -> Path:
    """The checkpoint of torchaudio's bundle for English: wav2vec 2.0 base with 29 labels.

    Returns:
        The checkpoint.
    """
    import torch
    from torchaudio.models import wav2vec2_base

    torch.manual_seed(seed)
    weights = wav2vec2_base(aux_num_out=29).state_dict()
    for key in ("aux.weight", "aux.bias"):
        # The published file has three more labels, which torchaudio drops at loading.
        value = weights[key]
        weights[key] = torch.cat([value[:1], value[:3], value[1:]])
    entry = CATALOGUE["align-en"]
    return _save(weights, root / entry.directory / entry.required[0])


def make_ecapa(root: Path, seed: int = 0) -> Path:
    """The checkpoint of the speaker embeddings: ECAPA-TDNN of 1024 channels, by SpeechBrain's names.

    Returns:
        The checkpoint.
    """
    import torch

    torch.manual_seed(seed)
    weights: dict[str, Any] = {}

    def convolution(name: str, outputs: int, inputs: int, kernel: int = 1) -> None:
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, kernel) / (inputs * kernel) ** 0.5
        weights[f"{name}.bias"] = torch.zeros(outputs)

    def norm(name: str, width: int) -> None:
        parts = {"weight": torch.ones, "bias": torch.zeros, "running_mean": torch.zeros, "running_var": torch.ones}
        weights.update({f"{name}.{part}": make(width) for part, make in parts.items()})
        weights[f"{name}.num_batches_tracked"] = torch.tensor(0)

    def layer(name: str, outputs: int, inputs: int, kernel: int = 1) -> None:
        convolution(f"{name}.conv.conv", outputs, inputs, kernel)
        norm(f"{name}.norm.norm", outputs)

    layer("blocks.0", 1024, 80, 5)
    for block in ("blocks.1", "blocks.2", "blocks.3"):
        layer(f"{block}.tdnn1", 1024, 1024)
        for group in range(7):
            layer(f"{block}.res2net_block.blocks.{group}", 128, 128, 3)
        layer(f"{block}.tdnn2", 1024, 1024)
        convolution(f"{block}.se_block.conv1.conv", 128, 1024)
        convolution(f"{block}.se_block.conv2.conv", 1024, 128)
    layer("mfa", 3072, 3072)
    layer("asp.tdnn", 128, 9216)
    convolution("asp.conv.conv", 3072, 128)
    norm("asp_bn.norm", 6144)
    convolution("fc.conv", 192, 6144)
    entry = CATALOGUE["ecapa"]
    return _save(weights, root / entry.directory / entry.required[0])


def _save(weights: dict[str, Any], path: Path) -> Path:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)
    return path


def _fill(spec: Any, shape: WhisperShape, weights: _Weights) -> None:
    """Give every variable of the specification a value; the scales keep activations and logits near one."""
    width = shape.width
    spec.encoder.conv1.weight = weights.normal(width, shape.mels, 3, scale=(3 * shape.mels) ** -0.5)
    spec.encoder.conv2.weight = weights.normal(width, width, 3, scale=(3 * width) ** -0.5)
    for convolution in (spec.encoder.conv1, spec.encoder.conv2):
        convolution.bias = np.zeros(width, np.float16)
    spec.encoder.position_encodings.encodings = weights.normal(POSITIONS, width, scale=0.02)
    spec.decoder.position_encodings.encodings = weights.normal(CONTEXT, width, scale=0.02)
    embeddings = weights.normal(shape.vocabulary, width, scale=0.02)
    # Special tokens are never chosen, so that a decoding contains only text and its tokens can be counted.
    embeddings[TEXT_TOKENS:] *= np.float16(0.1)
    spec.decoder.embeddings.weight = embeddings
    spec.decoder.projection.weight = spec.decoder.embeddings.weight
    for part in (spec.encoder, spec.decoder):
        _norm(part.layer_norm, width)
        for layer in part.layer:
            _attention(layer.self_attention, (3 * width, width), width, weights)
            if hasattr(layer, "attention"):
                _attention(layer.attention, (width, 2 * width, width), width, weights)
            _norm(layer.ffn.layer_norm, width)
            _linear(layer.ffn.linear_0, 4 * width, width, weights)
            _linear(layer.ffn.linear_1, width, 4 * width, weights)


def _attention(spec: Any, outputs: tuple[int, ...], width: int, weights: _Weights) -> None:
    _norm(spec.layer_norm, width)
    for linear, size in zip(spec.linear, outputs, strict=True):
        _linear(linear, size, width, weights)


def _linear(spec: Any, outputs: int, inputs: int, weights: _Weights) -> None:
    spec.weight = weights.linear(outputs, inputs)
    spec.bias = np.zeros(outputs, np.float16)


def _norm(spec: Any, width: int) -> None:
    spec.gamma = np.ones(width, np.float16)
    spec.beta = np.zeros(width, np.float16)


def _tokens(shape: WhisperShape) -> list[str]:
    """The vocabulary: bytes, made-up words, then the special tokens at their published positions."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    # The published vocabulary ends with an empty token; CTranslate2 knows a multilingual model by it.
    tokens = [*letters, *itertools.islice(_words(), TEXT_TOKENS - len(letters) - 1), ""]
    without_speech = "<|nospeech|>" if shape.vocabulary == 51866 else "<|nocaptions|>"
    tasks = ("translate", "transcribe", "startoflm", "startofprev")
    tokens += ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in _languages(shape))]
    tokens += [*(f"<|{task}|>" for task in tasks), without_speech, "<|notimestamps|>"]
    tokens += [f"<|{number * 0.02:.2f}|>" for number in range(TIMESTAMPS)]
    assert len(tokens) == shape.vocabulary
    return tokens


def _words() -> Iterator[str]:
    """Different words of two syllables, then of three, each with the space before it."""
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvwyzq", "aeiou")]
    for parts in itertools.chain(itertools.product(syllables, repeat=2), itertools.product(syllables, repeat=3)):
        yield "Ġ" + "".join(parts)


def _languages(shape: WhisperShape) -> list[str]:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    return [code for code in _LANGUAGE_CODES if code != "yue" or shape.vocabulary == 51866]


def _tokenizer(tokens: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = Tokenizer(BPE({token: place for place, token in enumerate(tokens[:TEXT_TOKENS])}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    special = itertools.takewhile(lambda token: token != "<|0.00|>", tokens[TEXT_TOKENS:])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--whisper", default="tiny", choices=sorted(SHAPES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    root = make_models(arguments.directory, arguments.whisper, arguments.seed)
    for file in sorted(root.rglob("*")):
        if file.is_file():
            print(f"{file.stat().st_size / 1e6:9.1f} MB  {file}")


if __name__ == "__main__":
    main()
