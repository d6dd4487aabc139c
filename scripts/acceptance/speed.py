"""Milliseconds of encoder and decoder, by batch, lanes, allocator and encoder."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from acceptance.conditions import Conditions, milliseconds, percentile
from acceptance.rows import Findings

__all__ = ["SHARED_POOL", "TORCH_POOL", "encoder_and_decoder"]

# Allocators of torch: its own, and the driver's pool, which CTranslate2 uses too.
TORCH_POOL, SHARED_POOL = "backend:native", "backend:cudaMallocAsync"
ENCODES = 40


def encoder_and_decoder(conditions: Conditions, findings: Findings) -> None:
    """Turbo at several batch sizes. The allocator is in the environment of this process."""
    findings.note("torch's allocator", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "not set"))
    (name,) = conditions.names("large-v3-turbo")
    whisper = conditions.load(conditions.whisper_dir(name), lanes=2)
    _measure(conditions, findings, whisper)
    whisper.unload()


def _measure(conditions: Conditions, findings: Findings, whisper: Any) -> None:
    tokenizer = whisper.tokenizer("en")
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    runs = conditions.size(5, 1)

    def decode(encoded: Any) -> None:
        whisper.ct2.generate(
            encoded,
            [prompt] * encoded.shape[0],
            beam_size=1,
            max_length=max(2 * conditions.tokens, conditions.tokens + len(prompt) - 1),
            suppress_tokens=[*whisper.non_speech_tokens, whisper.end_of_text],
        )

    for batch in (1, 2) if conditions.tiny else (1, 16, 64):
        windows = conditions.windows(batch)

        def encode(windows: list[Any] = windows) -> Any:
            return whisper.encode(windows, conditions.frames)

        def through(_: int, encode: Any = encode) -> None:
            with conditions.scope():
                decode(encode())

        with conditions.scope():
            spent = milliseconds(conditions, encode, runs)
            findings.figure(f"batch {batch}: encoder with features", percentile(spent, 0.5) / batch, "ms a window")
            encoded = encode()
            spent = milliseconds(conditions, lambda encoded=encoded: decode(encoded), runs)
            findings.figure(f"batch {batch}: decoder", percentile(spent, 0.5) / conditions.tokens, "ms a step")
            if batch == 1:
                spent = milliseconds(conditions, encode, conditions.size(ENCODES, 2))
                slowest = max(spent) / percentile(spent, 0.5)
                findings.figure(f"slowest of {len(spent)} encodes over their median", slowest, "times", at_most=3)
        for lanes in (1, 2):
            with ThreadPoolExecutor(lanes) as pool:
                spent = milliseconds(conditions, lambda pool=pool, n=2 * lanes: list(pool.map(through, range(n))), runs)
            each = percentile(spent, 0.5) / (2 * lanes * batch)
            findings.figure(f"batch {batch}: both on {lanes} lane{'s' * (lanes > 1)}", each, "ms a window")
