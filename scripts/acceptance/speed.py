"""Milliseconds of encoder and decoder, by batch, lanes, allocator and encoder."""

from __future__ import annotations

import functools
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from acceptance.conditions import ENCODERS, Conditions, milliseconds, percentile
from acceptance.rows import Findings
from whisper_api.engine.worker.device import release_cached_memory
from whisper_api.engine.worker.device_errors import clear_frames, first_line, is_out_of_memory

__all__ = ["POOL", "SHARED_POOL", "TORCH_POOL", "encoder_and_decoder"]

POOL = "PYTORCH_CUDA_ALLOC_CONF"
# Allocators of torch: its own, and the driver's pool, which CTranslate2 uses too.
TORCH_POOL, SHARED_POOL = "backend:native", "backend:cudaMallocAsync"
ENCODES = 40


def encoder_and_decoder(conditions: Conditions, findings: Findings) -> None:
    """Turbo at several batch sizes. The allocator is in the environment of this process."""
    allocator = os.environ.get(POOL, "not set")
    if not conditions.is_gpu and allocator == TORCH_POOL:
        findings.skip("torch's own allocator", "a CPU has one allocator: the other run measures it")
        return
    findings.note("torch's allocator", allocator)
    (name,) = conditions.names("large-v3-turbo")
    spent = {}
    for encoder in ENCODERS:
        whisper = conditions.load(conditions.whisper_dir(name), lanes=2, encoder=encoder)
        spent[encoder] = min(_measured(conditions, findings, whisper, encoder), default=float("nan"))
        whisper.unload()
    ratio = spent["ctranslate2"] / spent["torch"]
    findings.figure("best batch: CTranslate2's encoder over torch's", ratio, "times", at_least=1.0)


def _measured(conditions: Conditions, findings: Findings, whisper: Any, encoder: str) -> list[float]:
    """Record the figures of an encoder, and return its milliseconds for a window by the batches that memory holds."""
    found = []
    for batch in (1,) if conditions.tiny else (1, 16, 64):
        try:
            found.append(_measure(conditions, findings, whisper, encoder, batch))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            findings.skip(f"{encoder}, batch {batch}", f"the memory ran out: {first_line(error)}")
            failure = error
        else:
            continue
        clear_frames(failure)
        release_cached_memory()
        break
    return found


def _measure(conditions: Conditions, findings: Findings, whisper: Any, encoder: str, batch: int) -> float:
    """Record the figures of an encoder for a batch, and return its milliseconds for a window."""
    tokenizer = whisper.tokenizer("en")
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    runs = conditions.size(5 if batch == 1 else 2, 1)

    def decode(encoded: Any) -> None:
        whisper.ct2.generate(
            encoded,
            [prompt] * encoded.shape[0],
            beam_size=1,
            max_length=max(2 * conditions.tokens, conditions.tokens + len(prompt) - 1),
            suppress_tokens=[*whisper.non_speech_tokens, whisper.end_of_text],
        )

    windows = conditions.windows(batch)

    def encode(windows: list[Any] = windows) -> Any:
        return whisper.encode(windows, conditions.frames)

    def through(_: int, encode: Any = encode) -> None:
        with conditions.scope():
            decode(encode())

    def on_lanes(pool: Executor, batches: int, through: Any = through) -> None:
        list(pool.map(through, range(batches)))

    with conditions.scope():
        if encoder == ENCODERS[0]:
            spent = milliseconds(conditions, functools.partial(whisper.features, windows, conditions.frames), runs)
            findings.figure(f"batch {batch}: features", percentile(spent, 0.5) / batch, "ms a window")
        spent = milliseconds(conditions, encode, runs)
        each = percentile(spent, 0.5) / batch
        findings.figure(f"{encoder}, batch {batch}: features and encoder", each, "ms a window")
        encoded = encode()
        spent = milliseconds(conditions, functools.partial(decode, encoded), runs)
        findings.figure(f"{encoder}, batch {batch}: decoder", percentile(spent, 0.5) / conditions.tokens, "ms a step")
        if batch == 1:
            spent = milliseconds(conditions, encode, conditions.size(ENCODES, 2))
            slowest = max(spent) / percentile(spent, 0.5)
            findings.figure(
                f"{encoder}: slowest of {len(spent)} encodes over their median", slowest, "times", at_most=3
            )
    for lanes in (1, 2):
        with ThreadPoolExecutor(lanes) as pool:
            spent = milliseconds(conditions, functools.partial(on_lanes, pool, 2 * lanes), runs)
        what = f"{encoder}, batch {batch}: all on {lanes} lane{'s' * (lanes > 1)}"
        findings.figure(what, percentile(spent, 0.5) / (2 * lanes * batch), "ms a window")
    return each
