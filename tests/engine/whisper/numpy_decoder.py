"""Whisper's decoder in plain float32 NumPy, as a reference for the tests of decoding."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from whisper_api.engine.whisper.ct2_file import read_weights
from whisper_api.engine.whisper.onnx.search import TokenRules

Floats = NDArray[np.float32]


class NumpyDecoder:
    """A Whisper decoder read from a directory in CTranslate2's format; `alignment_heads` are (layer, head) pairs."""

    def __init__(self, directory: Path) -> None:
        weights = read_weights(directory / "model.bin")
        self.heads = int(weights["decoder/num_heads"])
        self.weights: dict[str, Floats] = {
            name.removeprefix("decoder/"): value.astype(np.float32)
            for name, value in weights.items()
            if name.startswith("decoder/") and value.ndim > 0
        }
        # A product with the transposed copy takes two thirds of the time, and it is most of a step's.
        self.output = np.ascontiguousarray(self.weights["embeddings/weight"].T)
        # With so few rows, threads wait for each other longer than they compute.
        self.threads = ThreadpoolController()
        self.layers = sum(name.endswith("/ffn/linear_0/weight") for name in self.weights)
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.alignment_heads: list[tuple[int, int]] = [(layer, head) for layer, head in self.config["alignment_heads"]]

    def linear(self, name: str, x: Floats) -> Floats:
        return x @ self.weights[f"{name}/weight"].T + self.weights[f"{name}/bias"]

    def norm(self, name: str, x: Floats) -> Floats:
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(1e-5))
        return x * self.weights[f"{name}layer_norm/gamma"] + self.weights[f"{name}layer_norm/beta"]

    def split(self, x: Floats) -> Floats:
        """(rows, width) to (heads, rows, width of a head)."""
        return x.reshape(len(x), self.heads, -1).transpose(1, 0, 2)

    def state(self, encoded: Floats) -> NumpyState:
        """The decoder over one window, of which the encoder gave (positions, width)."""
        crossed = []
        for layer in range(self.layers):
            keys, values = np.split(self.linear(f"layer_{layer}/attention/linear_1", encoded), 2, axis=1)
            crossed.append((self.split(keys), self.split(values)))
        return NumpyState(self, crossed)


@dataclass
class NumpyState:
    """A `DecoderState`."""

    decoder: NumpyDecoder
    crossed: list[tuple[Floats, Floats]]

    def __post_init__(self) -> None:
        self.length = 0
        self.attention: Floats = np.empty((0, 0, 0), np.float32)
        empty: Floats = np.empty((self.decoder.heads, 0, self.crossed[0][0].shape[2]), np.float32)
        self._cache = [(empty, empty) for _ in self.crossed]

    def feed(self, tokens: NDArray[np.int64], positions: NDArray[np.int64], visible: NDArray[np.bool_]) -> Floats:
        assert visible.shape == (len(tokens), self.length + len(tokens))
        self.length += len(tokens)
        with self.decoder.threads.limit(limits=1, user_api="blas"):
            return self._feed(tokens, positions, visible)

    def _feed(self, tokens: NDArray[np.int64], positions: NDArray[np.int64], visible: NDArray[np.bool_]) -> Floats:
        d = self.decoder
        x = d.weights["embeddings/weight"][tokens] + d.weights["position_encodings/encodings"][positions]
        attention: dict[tuple[int, int], Floats] = {}
        for layer, (crossed, cached) in enumerate(zip(self.crossed, self._cache, strict=True)):
            name = f"layer_{layer}"
            own = d.linear(f"{name}/self_attention/linear_0", d.norm(f"{name}/self_attention/", x))
            query, key, value = (d.split(part) for part in np.split(own, 3, axis=1))
            keys, values = (np.concatenate(pair, axis=1) for pair in zip(cached, (key, value), strict=True))
            self._cache[layer] = keys, values
            heard, _ = _attend(query, keys, values, visible)
            x = x + d.linear(f"{name}/self_attention/linear_1", heard)
            query = d.split(d.linear(f"{name}/attention/linear_0", d.norm(f"{name}/attention/", x)))
            heard, probabilities = _attend(query, *crossed)
            attention.update(((layer, head), probabilities[head]) for head in range(d.heads))
            x = x + d.linear(f"{name}/attention/linear_2", heard)
            inner = d.linear(f"{name}/ffn/linear_0", d.norm(f"{name}/ffn/", x))
            inner *= (1 + erf(inner / np.float32(math.sqrt(2)))) / 2
            x = x + d.linear(f"{name}/ffn/linear_1", inner)
        self.attention = np.stack([attention[pair] for pair in d.alignment_heads])
        logits: Floats = d.norm("", x) @ d.output
        return logits


def _attend(
    query: Floats, keys: Floats, values: Floats, visible: NDArray[np.bool_] | None = None
) -> tuple[Floats, Floats]:
    scores = query @ keys.transpose(0, 2, 1) / np.float32(math.sqrt(query.shape[2]))
    if visible is not None:
        scores = np.where(visible, scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ values).transpose(1, 0, 2).reshape(query.shape[1], -1), weights


class Pair:
    """The same model twice, in float32: in CTranslate2, as the reference for decoding, and in NumPy."""

    def __init__(self, directory: Path) -> None:
        from faster_whisper import WhisperModel

        whisper = WhisperModel(str(directory), device="cpu", compute_type="float32", cpu_threads=1)
        self.ct2 = whisper.model
        self.decoder = NumpyDecoder(directory)
        self._features = whisper.feature_extractor
        self.tokenizer = whisper.hf_tokenizer
        number = self.tokenizer.token_to_id
        self.no_timestamps: int = number("<|notimestamps|>")
        self.previous: int = number("<|startofprev|>")
        config = self.decoder.config
        self.rules = TokenRules(
            sot=number("<|startoftranscript|>"),
            eot=number("<|endoftext|>"),
            no_speech=number("<|nospeech|>") or number("<|nocaptions|>"),
            suppress=tuple(config["suppress_ids"]),
            blank=tuple(config["suppress_ids_begin"]),
        )
        multilingual = (number("<|en|>"), number("<|transcribe|>")) if self.ct2.is_multilingual else ()
        self.start: tuple[int, ...] = (self.rules.sot, *multilingual)
        self.prompt: tuple[int, ...] = (*self.start, self.no_timestamps)

    def window(self, audio: Floats, seconds: float) -> Window:
        """Speech of 16 kHz, encoded, padded with silence to so many seconds."""
        import ctranslate2

        frames = round(seconds * 100)
        padded = np.pad(audio, (0, frames * 160 - len(audio)))
        features = self._features(padded, padding=0)[:, :frames].astype(np.float32)
        return Window(self, self.ct2.encode(ctranslate2.StorageView.from_array(features[None])), len(audio) // 160)


@dataclass(frozen=True)
class Window:
    """One encoded window; ``encoded`` is CTranslate2's, ``speech_frames`` counts the frames before the padding."""

    pair: Pair
    encoded: Any
    speech_frames: int

    def state(self) -> NumpyState:
        return self.pair.decoder.state(np.array(self.encoded)[0])

    def generate(self, prompt: tuple[int, ...], suppress: tuple[int, ...], max_new_tokens: int, **search: Any) -> Any:
        """CTranslate2's decoding."""
        return self.pair.ct2.generate(
            self.encoded,
            [list(prompt)],
            max_length=max(2 * max_new_tokens, max_new_tokens + len(prompt) - 1),
            suppress_blank=True,
            suppress_tokens=list(suppress),
            return_scores=True,
            return_no_speech_prob=True,
            **search,
        )[0]
