"""Memory of the device: bytes of a window, batches that do not fit, and what an eviction gives back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

from fixed_tokens import Tally, our_tokens_fixed

from acceptance.conditions import MEBI, Conditions, Memory
from acceptance.rows import Findings

__all__ = ["eviction", "out_of_memory", "row_bytes"]

# Windows in a batch that shall not fit, and those for which there is room.
ROWS, ROOM = 64, 5
# The formula may promise too little memory by this part, and too much by this factor.
UNDER, OVER = 1.05, 0.5
# Of the random models.
TIMED_HEADS = 10
# So many rows that their memory is far more than what is measured beside it.
FEW = {"base": 32, "large-v3-turbo": 32, "large-v3": 16, "tiny": 1}


def row_bytes(conditions: Conditions, findings: Findings) -> None:
    """Bytes of a window of 30 s in a batch, against the formula that limits batches."""
    plans = (("torch", 1, True), ("ctranslate2", 1, False), ("torch", 1, False), ("torch", 5, False))
    for name in conditions.names("base", "large-v3-turbo", "large-v3"):
        for encoder, beam, timed in plans[: conditions.size(len(plans), 2)]:
            _row_bytes(conditions, findings, name, encoder, beam, timed=timed)
    if not conditions.is_gpu:
        findings.skip("the formula's bounds", "the formula is about a GPU's memory")


def _row_bytes(conditions: Conditions, findings: Findings, name: str, encoder: str, beam: int, *, timed: bool) -> None:
    from whisper_api.engine.whisper.settings import Ct2Probe
    from whisper_api.engine.worker.device import release_cached_memory

    class Probe(Ct2Probe):
        """Decodes with or without word times from cross-attention."""

        def decode(self, size: int) -> Any:
            operation: Any = super().decode(size)
            start = tuple(self.whisper.tokenizer("en").sot_sequence) if timed else None
            return dataclasses.replace(operation, settings=dataclasses.replace(operation.settings, align_from=start))

    memory, peaks = Memory(conditions), {}
    whisper = conditions.load(conditions.whisper_dir(name), encoder=encoder)
    what = f"{name}, beam {beam}, encoder of {encoder}{', word times' * timed}"
    probe = Probe(whisper, beam, conditions.frames)
    few = FEW[name]
    with conditions.scope():
        probe.run([1])
        for size in (few, 2 * few):
            release_cached_memory()
            conditions.synchronize()
            with memory.peak() as peak:
                fitted = probe.run([size])
                conditions.synchronize()
                peaks[size] = peak()
            if not all(fitted):
                findings.skip(what, f"{size} windows do not fit")
                return
    found = (peaks[2 * few] - peaks[few]) / few
    operation: Any = probe.decode(few)
    formula = _formula(whisper, operation.settings, in_torch=encoder == "torch")
    note = f"({found / MEBI:.0f} of {formula / MEBI:.0f} MiB)"
    findings.figure(
        f"{what}: bytes of a window over the formula", found / formula, at_least=OVER, at_most=UNDER, note=note
    )
    whisper.unload()


def _formula(whisper: Any, settings: Any, *, in_torch: bool) -> int:
    """Bytes of a window by the formula that limits batches."""
    from whisper_api.engine.whisper.batch_memory import decode_row_bytes

    number = 2 if "float16" in whisper.ct2.compute_type else 4
    return decode_row_bytes(whisper.shape, settings, number, in_torch=in_torch, timed_heads=TIMED_HEADS)


@dataclass(frozen=True)
class _Cramped:
    """An operation on a CPU that runs out of memory as a GPU does, beyond some rows."""

    inner: Any
    most: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        if len(inputs) > self.most:
            raise RuntimeError("CUDA failed with error out of memory")
        found: list[Any] = self.inner.run(inputs)
        return found


def out_of_memory(conditions: Conditions, findings: Findings) -> None:
    """Batches for which there is no room: nothing is lost, and the size that fits is learned and then raised again."""
    from whisper_api.engine.whisper.batch_memory import torch_workspace_bytes
    from whisper_api.engine.whisper.model import DecodeSettings, Row
    from whisper_api.engine.worker.batch_runner import GOOD_BATCHES
    from whisper_api.engine.worker.worker import GpuWorker

    rows, room = conditions.size(ROWS, 4), conditions.size(ROOM, 2)
    with our_tokens_fixed(conditions.tokens, Tally()):
        directory = conditions.whisper_dir(conditions.names("base")[0])
        whisper = conditions.load(directory, lanes=2, encoder="torch")
        tokenizer = whisper.tokenizer("en")
        prompt = (*tokenizer.sot_sequence, tokenizer.no_timestamps)
        settings = DecodeSettings(conditions.frames, len(prompt), 1, 0.0, whisper.non_speech_tokens)
        operation: Any = whisper.decode(settings, rows, float("inf"))
        if not conditions.is_gpu:
            operation = _Cramped(operation, room)
            findings.note("memory", f"a CPU's is not filled: more than {room} windows are refused")
        items = [Row(window, prompt, conditions.frames) for window in conditions.windows(rows)]
        worker = GpuWorker(lanes=2, scope=conditions.scope, probe=conditions.synchronize)

        def run(count: int) -> int:
            """Run so many windows, and return how many gave a text."""
            futures = [worker.submit("probe", operation, item, conditions.frames / 100) for item in items[:count]]
            wait(futures)
            return sum(future.exception() is None for future in futures)

        run(1)
        left = room * _formula(whisper, settings, in_torch=True)
        left += torch_workspace_bytes(whisper.shape, conditions.frames, 2)
        with _filled(conditions, left):
            findings.fact(f"{rows} windows, room for {room}", f"{rows} texts", *_texts(run(rows), rows))
            findings.figure("allocations that failed", worker.counts.out_of_memory, at_least=1, everywhere=True)
            limit = worker.limits.limit(operation)
            findings.figure("windows in a batch, learned", limit, at_most=rows - 1, at_least=1, everywhere=True)
            before = worker.counts.out_of_memory
            findings.fact(f"{rows} windows once more", f"{rows} texts", *_texts(run(rows), rows))
            again = worker.counts.out_of_memory - before
            findings.figure("allocations that failed then", again, at_most=0, everywhere=True)
        if not conditions.is_gpu:
            findings.skip("the limit after memory is free again", "a CPU's memory was not filled")
        else:
            for _ in range(2 * GOOD_BATCHES):
                run(rows)
            raised = worker.limits.limit(operation)
            findings.figure("windows in a batch, after memory is free again", raised, at_least=limit + 1)
        worker.close()


def eviction(conditions: Conditions, findings: Findings) -> None:
    """Memory after the models are unloaded, twice: what stays must not grow."""
    from whisper_api import Engine, TranscriptionOptions
    from whisper_api.engine.worker.device import release_cached_memory

    memory = Memory(conditions)
    name = conditions.names("base")[0]
    models = conditions.all_models(name)
    weights = (models / "whisper" / name / "model.bin").stat().st_size
    stayed, freed = [], []
    audio = conditions.windows(1)[0]
    options = TranscriptionOptions(language="en", align=not conditions.tiny, diarize=True, beam_size=1)
    with (
        our_tokens_fixed(conditions.tokens, Tally()),
        Engine(device=conditions.device, model=name, models_dir=models, offline=True) as engine,
    ):
        for _ in range(2):
            engine.transcribe(audio, options)
            loaded = memory.used()
            while engine.models.evict_idle():
                pass
            release_cached_memory()
            conditions.synchronize()
            stayed.append(memory.used())
            freed.append(loaded - stayed[-1])
        findings.figure("models in the cache after eviction", len(engine.models.resident()), at_most=0, everywhere=True)
    findings.figure("given back", freed[-1] / MEBI, "MiB", at_least=0.9 * weights / MEBI)
    findings.figure(
        "more in use after the second eviction than after the first", (stayed[1] - stayed[0]) / MEBI, "MiB", at_most=32
    )


@contextlib.contextmanager
def _filled(conditions: Conditions, left: int) -> Iterator[None]:
    """Take the device's memory but for some bytes."""
    if not conditions.is_gpu:
        yield
        return
    import torch

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(conditions.device)
    taken = torch.empty(max(0, free - left), dtype=torch.uint8, device=conditions.device)
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()


def _texts(count: int, wanted: int) -> tuple[str, bool]:
    return f"{count} texts", count == wanted
