"""The engine on a CUDA device, with randomly initialised models: skips where there is none."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.align.models import AlignmentSource
from whisper_api.engine.diarize.ecapa import EcapaSource
from whisper_api.engine.diarize.embedding import embed
from whisper_api.engine.diarize.segmentation import SegmentationSource, SegmentWindows
from whisper_api.engine.whisper.model import DecodeSettings, DetectionInput, Row

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))

import random_models
from fixed_tokens import Tally, our_tokens_fixed
from gpu_gauge import speech

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ctranslate2.get_cuda_device_count() == 0, reason="no CUDA device"),
]

TOKENS = 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.make_models(tmp_path_factory.mktemp("models"), "base")


@pytest.fixture(scope="module")
def engine(models: Path) -> Iterator[Engine]:
    with Engine(device="cuda", model="base", models_dir=models, offline=True) as engine:
        yield engine


@pytest.fixture
def whisper(engine: Engine) -> Iterator[Any]:
    source = engine.whisper.source(engine.store.ensure("base"))
    with engine.models.lease(source) as whisper:
        yield whisper


def decode(whisper: Any, audio: list[Any], beam: int = 1) -> list[tuple[int, ...]]:
    """The tokens of each window, in one batch."""
    tokenizer = whisper.tokenizer("en")
    prompt = (*tokenizer.sot_sequence, tokenizer.no_timestamps)
    settings = DecodeSettings(3000, len(prompt), beam, 0.0, (*whisper.non_speech_tokens, whisper.end_of_text))
    operation = whisper.decode(settings, 64, float("inf"))
    return [result.tokens for result in operation.run([Row(samples, prompt, 3000) for samples in audio])]


def test_an_engine_makes_cublas_available_to_ctranslate2(engine: Engine) -> None:
    assert engine.device.kind == "cuda"
    ctypes.CDLL("libcublas.so.12")


@pytest.mark.parametrize("beam", [1, 5])
def test_a_window_has_the_same_text_alone_and_in_a_batch(whisper: Any, beam: int) -> None:
    audio = [speech(30.0, start=number) for number in range(5)]
    together = decode(whisper, audio, beam)
    alone = [decode(whisper, [one], beam)[0] for one in audio]
    same = np.mean([np.mean(np.array(a) == np.array(b)) for a, b in zip(together, alone, strict=True)])
    # Half precision may decide a tie differently, and then the rest of the text differs.
    assert same > 0.6


def test_lanes_run_at_once_and_give_the_same(whisper: Any) -> None:
    audio = [[speech(30.0, start=2 * lane + row) for row in range(2)] for lane in range(4)]
    before = [decode(whisper, rows) for rows in audio]
    with ThreadPoolExecutor(4) as pool:
        after = list(pool.map(lambda rows: decode(whisper, rows), audio))
    # With several streams, cuBLAS may sum in another order, and a tie may then be decided differently.
    assert np.mean(np.array(after) == np.array(before)) > 0.6


def test_the_language_is_judged_and_the_encoding_kept(whisper: Any) -> None:
    audio = speech(30.0)
    (found,) = whisper.encode_and_detect(3000, 4, float("inf")).run([DetectionInput(audio)])
    encoded, languages = found.encoded, found.languages
    assert encoded.shape == (1500, 512)
    assert sum(languages.values()) == pytest.approx(1.0, abs=0.01)
    tokenizer = whisper.tokenizer("en")
    prompt = (*tokenizer.sot_sequence, tokenizer.no_timestamps)
    settings = DecodeSettings(3000, len(prompt), 1, 0.0, whisper.non_speech_tokens, encoded=True)
    (result,) = whisper.decode(settings, 4, float("inf")).run([Row(encoded, prompt, 3000)])
    assert np.isfinite(result.avg_logprob)


def test_torch_and_ctranslate2_share_the_drivers_pool(models: Path) -> None:
    """In a process of its own, because a test may have imported torch before the engine."""
    script = (
        "import os, sys; from whisper_api import Engine; Engine(device='cuda', models_dir=sys.argv[1], offline=True);"
        "import torch; print(torch.cuda.get_allocator_backend(), os.environ['CT2_CUDA_ALLOCATOR'])"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, models], capture_output=True, text=True, check=True, timeout=120
    )
    assert told.stdout.split() == ["cudaMallocAsync", "cuda_malloc_async"]


def test_the_encoder_in_torch_is_chosen_and_gives_what_ctranslate2s_gives(engine: Engine, whisper: Any) -> None:
    audio = [speech(30.0), speech(12.0, start=7)]
    features = whisper.features(audio, 3000)
    mine, theirs = whisper.encode(audio, 3000), whisper.ct2.encode(whisper.view(features))
    assert (mine.device, mine.dtype) == ("cuda", theirs.dtype)
    found, expected = (
        np.array(each.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)) for each in (mine, theirs)
    )
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("encoder", ["torch", "ctranslate2"])
def test_both_encoders_give_text_in_each_type(models: Path, encoder: str) -> None:
    options = TranscriptionOptions(language="en", align=False, diarize=False, beam_size=1)
    for compute_type in ("float16", "bfloat16", "int8_float16"):
        with (
            Engine(
                device="cuda", model="base", models_dir=models, offline=True, encoder=encoder, compute_type=compute_type
            ) as engine,
            our_tokens_fixed(TOKENS, Tally()),
        ):
            assert engine.transcribe(speech(40.0), options).text


def test_a_recording_goes_through_all_stages(engine: Engine) -> None:
    tally = Tally()
    with our_tokens_fixed(TOKENS, tally):
        transcript = engine.transcribe(
            speech(90.0), TranscriptionOptions(language="en", align=True, diarize=True, beam_size=1)
        )
    counted = tally.take()
    assert counted["tokens"] == TOKENS * counted["windows"]
    assert transcript.word_times == "ctc"
    assert transcript.speakers


def test_many_clients_are_served_at_once(engine: Engine) -> None:
    options = TranscriptionOptions(language="en", align=False, diarize=False, beam_size=1)
    with our_tokens_fixed(TOKENS, Tally()), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda start: engine.transcribe(speech(10.0, start=start), options), range(16)))
    assert all(transcript.segments for transcript in found)


def test_alignment_gives_what_the_cpu_gives(models: Path) -> None:
    audio = [speech(4.0), speech(6.0, start=5), speech(0.01)]
    path = models / "align" / "en"
    expected = AlignmentSource("en", path).load().logits(audio)
    source = AlignmentSource("en", path, "cuda:0", "float16")
    model = source.load()
    for mine, reference in zip(model.logits(audio), expected, strict=True):
        assert mine.shape == reference.shape
        assert float((mine.detach().float().cpu() - reference.detach()).abs().max()) < 0.05
    source.unload(model)


def test_embeddings_give_what_the_cpu_gives(models: Path) -> None:
    (checkpoint,) = (models / "diarization" / "ecapa").glob("*.ckpt")
    audio, spans = speech(5.0), [np.arange(100), np.arange(150, 400)]
    given = (audio, np.zeros(80, np.float32), np.zeros(501, np.int64), spans)
    cpu, gpu = (embed(EcapaSource(str(checkpoint), device).load(), *given) for device in ("cpu", "cuda:0"))
    assert np.min(np.sum(cpu * gpu, axis=1)) > 0.999


def test_segmentation_gives_what_the_cpu_gives(engine: Engine) -> None:
    path = str(engine.store.ensure("segmentation").path)
    windows = [speech(10.0), speech(10.0, start=11)]
    cpu, gpu = (
        SegmentWindows(SegmentationSource(path, device).load(), device).run(windows) for device in ("cpu", "cuda:0")
    )
    for mine, reference in zip(gpu, cpu, strict=True):
        assert np.abs(mine.astype(np.float32) - reference.astype(np.float32)).max() < 0.02


def test_a_batch_that_does_not_fit_is_halved(engine: Engine) -> None:
    import torch

    options = TranscriptionOptions(language="en", align=False, diarize=False, beam_size=1)
    with our_tokens_fixed(TOKENS, Tally()):
        engine.transcribe(speech(30.0), options)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        # A window of 30 s takes about 100 MB in the base model.
        taken = torch.empty(max(0, free - (700 << 20)), dtype=torch.uint8, device="cuda")
        try:
            transcript = engine.transcribe(speech(16 * 30.0), options)
        finally:
            del taken
            torch.cuda.empty_cache()
    assert len(transcript.segments) >= 12
