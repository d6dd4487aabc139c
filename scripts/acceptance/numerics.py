"""Results of the device against those of the CPU: word times, encodings, TF32 and alignment."""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from gpu_gauge import Floats
from measuring.options import models_dir

from acceptance.conditions import ENCODERS, Conditions, milliseconds, percentile
from acceptance.rows import Findings

__all__ = ["encoders", "lanes", "tf32", "wav2vec2", "word_times"]

# A frame of the decoder's cross-attention lasts 20 ms.
FRAMES_APART = 1


def word_times(conditions: Conditions, findings: Findings) -> None:
    """CTranslate2's ``align()`` in half precision against float32 on the CPU, for the same texts."""
    directory, name = _speaking_model(conditions)
    cpu = conditions.load(directory, device="cpu", compute_type="float32")
    device = conditions.load(directory)
    tokenizer = cpu.tokenizer("en")
    start = list(tokenizer.sot_sequence)
    windows = conditions.windows(conditions.size(8, 2))
    texts = [_text(cpu, window, conditions) for window in windows]
    findings.note("model and text", f"{name}; {sum(map(len, texts))} tokens in {len(windows)} windows")

    def aligned(whisper: Any) -> list[Any]:
        encoded = whisper.encode(windows, conditions.frames)
        found: list[Any] = whisper.ct2.align(
            encoded, start, texts, [conditions.frames] * len(windows), median_filter_width=7
        )
        return found

    expected = aligned(cpu)
    try:
        with conditions.scope():
            found = aligned(device)
    except RuntimeError as error:
        findings.fact("align() runs", "no error", str(error), False)
        return
    findings.fact("align() runs", "no error", "no error", True)
    probabilities = np.concatenate([result.text_token_probs for result in found])
    findings.figure("probabilities that are not numbers", int(np.isnan(probabilities).sum()), at_most=0)
    reference = np.concatenate([result.text_token_probs for result in expected])
    apart = np.abs(probabilities - reference)
    findings.figure("probability of a token, median difference", float(np.median(apart)), at_most=0.01)
    mine, other = (_starts(results) for results in (found, expected))
    same = np.mean([abs(mine.get(token, -9) - frame) <= FRAMES_APART for token, frame in other.items()])
    findings.figure("tokens that begin within 20 ms of the CPU's", 100 * float(same), "%", at_least=95)


def encoders(conditions: Conditions, findings: Findings) -> None:
    """The encoder in torch against CTranslate2's, and the tokens that one decoder makes of both outputs."""
    directory, name = _speaking_model(conditions)
    findings.note("model", name)
    # In int8, CTranslate2 itself differs.
    compute_type = "float16" if conditions.is_gpu else "float32"
    windows = conditions.windows(conditions.size(16, 1))
    encoded, texts = {}, {}
    with conditions.scope():
        for encoder in ENCODERS:
            whisper = conditions.load(directory, compute_type=compute_type, encoder=encoder)
            encoded[encoder] = _array(whisper.encode(windows, conditions.frames))
            texts[encoder] = [_text(whisper, window, conditions) for window in windows]
    reference, found = (encoded[encoder] for encoder in ENCODERS)
    apart = float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
    findings.figure("difference over the size of the output", apart, at_most=0.02, everywhere=True)
    findings.figure("values that are not numbers", int((~np.isfinite(found)).sum()), at_most=0, everywhere=True)
    # Half precision may decide a tie differently, and then the rest of a text differs.
    same = sum(mine == other for mine, other in zip(texts["torch"], texts["ctranslate2"], strict=True))
    findings.figure("equal texts", 100 * same / len(windows), "%", at_least=75, everywhere=True)


def lanes(conditions: Conditions, findings: Findings) -> None:
    """Encodings from two threads at once, with the device's features, against those from the CPU's features."""
    import torch

    from whisper_api.engine.audio.mel import log_mel

    windows = conditions.windows(conditions.size(8, 2))
    count = conditions.size(200, 6)
    for encoder in ENCODERS:
        whisper = conditions.load(conditions.whisper_dir(conditions.names("base")[0]), lanes=2, encoder=encoder)
        reference = []
        with conditions.scope():
            for window in windows:
                features = log_mel(window, conditions.frames, whisper.mels)[None]
                with mock.patch.object(
                    whisper, "features", lambda *_, f=features: torch.tensor(f).to(conditions.device)
                ):
                    reference.append(_array(whisper.encode([window], conditions.frames)))

        def encode(number: int, whisper: Any = whisper, reference: Any = reference) -> float:
            expected = reference[number % len(windows)]
            with conditions.scope():
                found = _array(whisper.encode([windows[number % len(windows)]], conditions.frames))
            difference = np.abs(found - expected).max() / np.abs(expected).max()
            # A maximum passes over what is not a number.
            return float(difference) if np.isfinite(found).all() else math.inf

        with ThreadPoolExecutor(2) as pool:
            apart = list(pool.map(encode, range(count)))
        what = f"{encoder}, {count} encodings on two lanes"
        findings.figure(f"{what}: greatest difference", max(apart), at_most=0.02, everywhere=True)
        findings.figure(f"{what}: 99th percentile", percentile(apart, 0.99))


def tf32(conditions: Conditions, findings: Findings) -> None:
    """Segmentation in float32: in the engine's scope, and with the TF32 that torch allows by itself."""
    import torch

    from whisper_api.engine.diarize.segmentation import SegmentationSource, SegmentWindows
    from whisper_api.engine.models.store import ModelStore

    path = str(ModelStore(models_dir(), offline=True).ensure("segmentation").path)
    windows = [window[: conditions.size(10, 2) * 16_000] for window in conditions.windows(2)]
    model = SegmentationSource(path, conditions.device).load()
    operation = SegmentWindows(model, conditions.device)
    expected = SegmentWindows(SegmentationSource(path, "cpu").load(), "cpu").run(windows)

    def difference() -> float:
        pairs = zip(operation.run(windows), expected, strict=True)
        return max(float(np.abs(mine.astype(np.float32) - other.astype(np.float32)).max()) for mine, other in pairs)

    switches = torch.backends
    runs = conditions.size(20, 1)
    with conditions.scope():
        if conditions.is_gpu:
            allowed = switches.cudnn.allow_tf32 or switches.cuda.matmul.allow_tf32
            findings.fact("TF32 in the device's scope", "off", "on" if allowed else "off", not allowed)
        else:
            findings.skip("TF32 in the device's scope", "a CPU has no TF32")
        findings.figure("TF32 off, greatest difference from the CPU", difference(), at_most=0.005, everywhere=True)
        spent = milliseconds(conditions, lambda: operation.run(windows), runs)
        findings.figure("TF32 off, 2 windows of 10 s", percentile(spent, 0.5), "ms")
    if not conditions.is_gpu:
        findings.skip("TF32 on", "a CPU has no TF32")
        return
    with conditions.scope():
        switches.cudnn.allow_tf32 = switches.cuda.matmul.allow_tf32 = True
        findings.figure("TF32 on, greatest difference from the CPU", difference())
        spent = milliseconds(conditions, lambda: operation.run(windows), runs)
        findings.figure("TF32 on, 2 windows of 10 s", percentile(spent, 0.5), "ms")


def wav2vec2(conditions: Conditions, findings: Findings) -> None:
    """The alignment network in half precision against float32 on the same device."""
    import torch
    from random_models import make_alignment

    from whisper_api.engine.align.models import AlignmentSource

    root = Path(conditions.models)
    if not (root / "align").exists():
        make_alignment(root)
    # On a CPU the engine runs bfloat16.
    half = "float16" if conditions.is_gpu else "bfloat16"
    windows = [window[: conditions.size(30, 1) * 16_000] for window in conditions.windows(conditions.size(16, 1))]
    found = {}
    with conditions.scope(), torch.inference_mode():
        for dtype in ("float32", half):
            source = AlignmentSource("en", root / "align" / "en", conditions.device, dtype)
            model = source.load()
            spent = milliseconds(conditions, functools.partial(model.logits, windows), conditions.size(5, 1))
            findings.figure(f"{len(windows)} segments in {dtype}", percentile(spent, 0.5), "ms")
            found[dtype] = [logits.float().log_softmax(-1).cpu().numpy() for logits in model.logits(windows)]
            source.unload(model)
    pairs = list(zip(found[half], found["float32"], strict=True))
    missing = sum(int((~np.isfinite(mine)).sum()) for mine, _ in pairs)
    findings.figure(f"{half}: values that are not numbers", missing, at_most=0, everywhere=True)
    apart = max(float(np.abs(mine - other).max()) for mine, other in pairs)
    findings.figure(f"{half}: greatest difference of a log probability", apart, at_most=0.1)


def _array(view: Any) -> Floats:
    """The numbers of a ``StorageView`` of any device, in float32."""
    import ctranslate2

    if view.device != "cpu":
        view = view.to_device(ctranslate2.Device.cpu)
    return np.array(view.to(ctranslate2.DataType.float32))


def _speaking_model(conditions: Conditions) -> tuple[Path, str]:
    """A model of the package index, whose attention follows the voice; without it, a random one."""
    from whisper_api.engine.models.store import ModelStore
    from whisper_api.errors import ModelError

    name = "tiny.en" if conditions.tiny else "base"
    try:
        return Path(ModelStore(models_dir()).ensure(name).path), f"{name} of the package index"
    except ModelError as error:
        # Random attention follows nothing, so half precision may choose another path.
        return conditions.whisper_dir(conditions.names("base")[0]), f"random weights ({error})"


def _text(whisper: Any, window: Any, conditions: Conditions) -> list[int]:
    from whisper_api.engine.whisper.model import DecodeSettings, Row

    tokenizer = whisper.tokenizer("en")
    prompt = (*tokenizer.sot_sequence, tokenizer.no_timestamps)
    settings = DecodeSettings(conditions.frames, len(prompt), 1, 0.0, whisper.non_speech_tokens)
    (result,) = whisper.decode(settings, 1, math.inf).run([Row(window, prompt, conditions.frames)])
    return list(result.tokens)


def _starts(results: list[Any]) -> dict[tuple[int, int], int]:
    """Window and token to the token's first frame."""
    found: dict[tuple[int, int], int] = {}
    for number, result in enumerate(results):
        for token, frame in result.alignments:
            found.setdefault((number, int(token)), int(frame))
    return found
