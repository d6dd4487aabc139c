"""The engine and a server over it on a pretended GPU: tests of a CPU's engine, and what only a GPU's has.

CTranslate2 and torch run on a CPU behind the code of a GPU: device names, scopes, lanes, large merged batches, coarse
buckets, the encoder in torch, and word times by CTranslate2's ``align()``. Tests whose names are imported run here with
that engine as they run elsewhere with a CPU's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import config_in
from pretended_gpu import Scopes, pretend_gpus

from whisper_api import Client, Engine, Server, Transcript, TranscriptionOptions
from whisper_api.engine.align.models import AlignmentModel
from whisper_api.engine.audio import device_copies
from whisper_api.engine.whisper.ctranslate2 import Ct2Decode, Ct2Whisper
from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, DecodedTokens, DecodeSettings, Row
from whisper_api.engine.whisper.settings import GPU_BUCKET_SECONDS
from whisper_api.engine.whisper.torch_encoder import TorchEncoder

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "whisper"))

from peers import without_alignment
from test_language_detection import test_detection_gives_the_language_without_a_text  # noqa: F401 - this and the others run here
from test_pipeline import (  # noqa: F401
    call,
    test_every_word_has_a_place_and_a_speaker,
    test_silence_is_an_empty_transcript_and_no_error,
    test_the_call_becomes_a_transcript_with_words_and_speakers,
    test_the_sentences_have_the_right_speakers,
    transcript,
)
from test_recognizer import (  # noqa: F401
    test_encoding_gives_a_probability_for_each_language,
    test_the_token_cap_holds_for_any_prompt_length,
    test_words_are_the_text_and_their_times_rise,
    whisper,
    worker,
)

pytestmark = pytest.mark.models

Floats = np.ndarray[Any, np.dtype[np.float32]]
RATE = 16_000
PLAIN = TranscriptionOptions(language="en", align=False, diarize=False, beam_size=1)


@pytest.fixture(scope="module")
def scopes() -> Iterator[Scopes]:
    with pytest.MonkeyPatch.context() as patch:
        yield pretend_gpus(patch)


@pytest.fixture(scope="module")
def engine(scopes: Scopes, models_dir: Path, base_model_dir: Path) -> Iterator[Engine]:
    """In place of the engine on the CPU."""
    with Engine(device="cuda", model="base", models_dir=models_dir, encoder="torch") as engine:
        yield engine


@pytest.fixture(scope="module")
def decode_operation() -> type[Ct2Decode]:
    """In place of the operation of ONNX Runtime."""
    return Ct2Decode


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """The rows of each batch that is decoded."""
    seen: list[list[Row]] = []
    run = Ct2Decode.run

    def watched(operation: Ct2Decode, inputs: Sequence[Row]) -> list[DecodedTokens]:
        seen.append(list(inputs))
        return run(operation, inputs)

    monkeypatch.setattr(Ct2Decode, "run", watched)
    return seen


def test_the_engine_takes_itself_for_one_on_a_gpu(engine: Engine, transcript: Transcript) -> None:  # noqa: F811
    assert engine.device.kind == "cuda"
    assert engine.whisper.lanes == 2
    assert engine.whisper.batching().bucket_seconds == GPU_BUCKET_SECONDS
    with engine.models.lease(engine.whisper.source(engine.store.ensure("base"))) as loaded:
        assert isinstance(loaded, Ct2Whisper)
        assert isinstance(loaded.encoder.in_torch, TorchEncoder)
    assert transcript.word_times == "attention"


def test_windows_of_several_jobs_share_batches_and_both_lanes(
    engine: Engine,
    scopes: Scopes,
    call: Floats,  # noqa: F811
    batches: list[list[Row]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, outside = set(), []
    encode = TorchEncoder.__call__

    def watched(encoder: TorchEncoder, features: Any) -> Any:
        threads.add(threading.get_ident())
        outside.extend([0] * (not scopes.current()))
        return encode(encoder, features)

    monkeypatch.setattr(TorchEncoder, "__call__", watched)
    clips = [call[begin * RATE : (begin + 4) * RATE] for begin in (7, 12, 15, 17, 22, 24)]
    alone = [engine.transcribe(clip, PLAIN).text for clip in clips]
    batches.clear()
    with ThreadPoolExecutor(len(clips)) as pool:
        together = list(pool.map(lambda clip: engine.transcribe(clip, PLAIN).text, clips))
    assert together == alone
    assert any(len(rows) > 1 for rows in batches), "no batch was shared"
    assert len(batches) < len(clips)
    assert len(threads) == 2, "both lanes were to work"
    assert not outside, "a lane ran outside of its device's scope"


def test_windows_are_padded_to_the_coarse_buckets_of_a_gpu(
    engine: Engine,
    call: Floats,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames: set[int] = set()
    run = Ct2Decode.run

    def watched(operation: Ct2Decode, inputs: Sequence[Row]) -> list[DecodedTokens]:
        frames.add(operation.settings.frames)
        return run(operation, inputs)

    monkeypatch.setattr(Ct2Decode, "run", watched)
    for seconds in (2, 6):
        engine.transcribe(call[7 * RATE : (7 + seconds) * RATE], PLAIN)
    assert all(each % (GPU_BUCKET_SECONDS * FRAMES_PER_SECOND) == 0 for each in frames)


def test_a_gpu_with_little_memory_takes_fewer_windows_at_once(scopes: Scopes, base_model_dir: Path) -> None:
    rows = {}
    for free in (1 << 30, 4 << 30):
        model = Ct2Whisper(
            base_model_dir,
            device="cpu",
            device_index=0,
            compute_type="int8",
            threads=1,
            lanes=2,
            offline=True,
            free_memory=lambda free=free: free,  # type: ignore[misc]
        )
        rows[free] = [
            model.decode(DecodeSettings(3000, 4, beam, 0.0, ()), 64, float("inf")).max_items for beam in (1, 5)
        ]
    (few, fewer), (many, less) = rows[1 << 30], rows[4 << 30]
    assert 1 <= fewer <= few < many <= 64
    assert fewer < less <= many


def test_each_sample_of_a_recording_goes_to_the_device_once(
    engine: Engine,
    ecapa_path: Path,
    call: Floats,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = call[7 * RATE : 24 * RATE].copy()
    recordings: list[Floats] = []
    pieces: list[Floats] = []
    send = device_copies._sent  # noqa: SLF001

    def counted(samples: Floats, device: str, *, whole: bool = False) -> Any:
        (recordings if whole else pieces).append(samples)
        return send(samples, device, whole=whole)

    monkeypatch.setattr(device_copies, "_sent", counted)
    options = TranscriptionOptions(language="en", align=True, diarize=True, beam_size=1)
    assert engine.transcribe(clip, options).speakers
    assert [len(samples) for samples in recordings] == [len(clip)]
    # Windows that reach beyond the end of the recording are padded with silence, and are sent by themselves.
    assert all(not samples[-RATE // 10 :].any() for samples in pieces)
    assert sum(map(len, pieces)) < len(clip) + 40 * RATE


def test_sampling_gives_other_texts_and_beams_the_same(
    whisper: Ct2Whisper,  # noqa: F811
    call: Floats,  # noqa: F811
) -> None:
    tokenizer = whisper.tokenizer("en")
    prompt = (*tokenizer.sot_sequence, tokenizer.no_timestamps)
    row = Row(call[7 * RATE : 10 * RATE], prompt, 300)

    def texts(beam: int, temperature: float) -> set[str]:
        settings = DecodeSettings(500, len(prompt), beam, temperature, whisper.non_speech_tokens)
        results = whisper.decode(settings, 4, float("inf")).run([row] * 3)
        assert all(result.tokens and result.avg_logprob < 0 for result in results)
        return {whisper.tokenizer("en").decode(list(result.tokens)) for result in results}

    assert len(texts(5, 0.0)) == 1
    assert len(texts(1, 1.0)) > 1


def test_a_server_runs_its_jobs_on_it(
    scopes: Scopes,
    models_dir: Path,
    tiny_en_model_dir: Path,
    ecapa_path: Path,
    random_alignment: Path,
    short_call: Path,
    batches: list[list[Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = without_alignment(tmp_path / "models", models_dir)
    (models / "align").symlink_to(random_alignment, target_is_directory=True)
    aligned: list[int] = []
    logits = AlignmentModel.logits

    def watched(model: AlignmentModel, waveforms: Sequence[Floats]) -> Any:
        aligned.append(len(waveforms))
        return logits(model, waveforms)

    monkeypatch.setattr(AlignmentModel, "logits", watched)
    config = config_in(
        tmp_path,
        port=0,
        models_dir=models,
        enable_authorization=False,
        device="cuda",
        model="tiny.en",
        encoder="torch",
        enable_concurrency=True,
    )
    options = TranscriptionOptions(language="en", align=True, diarize=True, beam_size=1)
    with Server(config) as url, Client(url) as client:
        jobs = [client.submit(short_call, options) for _ in range(2)]
        states = [client.wait(job).status for job in jobs]
        assert states == ["Completed", "Completed"]
        first, second = (client.result(job) for job in jobs)
    assert "New Jersey" in first.text
    assert second.text == first.text
    assert all(word.end > word.start for segment in first.segments for word in segment.words)
    assert {segment.speaker for segment in first.segments} == {"SPEAKER_00", "SPEAKER_01"}
    assert sum(map(len, batches)) >= 2
    assert aligned, "words were to be timed by the alignment model"
