"""Faults of the code that runs on a GPU, with CTranslate2 on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from pretended_gpu import pretend_gpus, run_on_ctranslate2

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.whisper.ctranslate2 import Ct2Decode, Ct2Whisper
from whisper_api.engine.whisper.model import DecodeSettings, DetectionInput, Row
from whisper_api.errors import ModelCorrupt

pytestmark = pytest.mark.models


@pytest.fixture
def without_heads(tiny_en_model_dir: Path, tmp_path: Path) -> Path:
    """A model whose configuration does not say which heads follow the voice."""
    folder = tmp_path / "without-heads"
    folder.mkdir()
    for file in tiny_en_model_dir.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((tiny_en_model_dir / "config.json").read_text())
    del config["alignment_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def engine(without_heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    run_on_ctranslate2(monkeypatch)
    with Engine(device="cpu", model=str(without_heads), models_dir=tmp_path, offline=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def clip(cut: Callable[[float, float], bytes]) -> bytes:
    return cut(12.0, 3.0)


def test_a_model_without_alignment_heads_costs_word_times_and_log_probabilities_and_no_text(
    engine: Engine, clip: bytes
) -> None:
    plain = engine.transcribe(clip, TranscriptionOptions(language="en", align=False, diarize=False, beam_size=1))
    assert plain.text
    assert plain.warnings == ()
    wishes = {
        "no word times": TranscriptionOptions(language="en", diarize=False, beam_size=1),
        "no log probabilities": TranscriptionOptions(
            language="en", align=False, diarize=False, beam_size=1, logprobs=True
        ),
    }
    for loss, options in wishes.items():
        transcript = engine.transcribe(clip, options)
        assert transcript.text == plain.text
        assert transcript.word_times == "none"
        assert all(segment.logprobs == () for segment in transcript.segments)
        assert any(loss in warning for warning in transcript.warnings)


def test_an_alignment_that_fails_on_the_device_decodes_no_window_twice(
    tiny_en_model_dir: Path, tmp_path: Path, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_ctranslate2(monkeypatch)
    windows: list[int] = []
    run = Ct2Decode.run

    def counted(operation: Ct2Decode, inputs: Any) -> Any:
        windows.append(len(inputs))
        return run(operation, inputs)

    class Broken:
        """A model whose ``align`` fails as on a GPU that CTranslate2 cannot use for it."""

        def __init__(self, model: Any) -> None:
            self._model = model

        def __getattr__(self, name: str) -> Any:
            return getattr(self._model, name)

        def align(self, *ignored: object, **also_ignored: object) -> None:
            raise RuntimeError("CUDA failed with error invalid device ordinal")

    make = Ct2Whisper.__init__

    def made(whisper: Ct2Whisper, *args: Any, **settings: Any) -> None:
        make(whisper, *args, **settings)
        whisper.ct2 = Broken(whisper.ct2)

    monkeypatch.setattr(Ct2Decode, "run", counted)
    monkeypatch.setattr(Ct2Whisper, "__init__", made)
    with Engine(device="cpu", model=str(tiny_en_model_dir), models_dir=tmp_path, offline=True) as engine:
        plain = engine.transcribe(clip, TranscriptionOptions(language="en", align=False, diarize=False, beam_size=1))
        once = len(windows)
        timed = engine.transcribe(clip, TranscriptionOptions(language="en", align=True, diarize=False, beam_size=1))
    assert timed.text == plain.text
    assert timed.word_times == "none"
    assert len(windows) == 2 * once


def test_memory_that_runs_out_in_the_attention_is_no_missing_attention(
    tiny_en_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def align(self, *ignored: object, **also_ignored: object) -> None:
            raise RuntimeError("CUDA failed with error out of memory")

    whisper = Ct2Whisper(tiny_en_model_dir, device="cpu", device_index=0, compute_type="int8", threads=1, offline=True)
    start = tuple(whisper.tokenizer("en").sot_sequence)
    settings = DecodeSettings(500, len(start), 1, 0.0, (), align_from=start)
    operation = whisper.decode(settings, 1, 60.0)
    assert isinstance(operation, Ct2Decode)
    monkeypatch.setattr(whisper, "ct2", Full())
    with pytest.raises(RuntimeError, match="out of memory"):
        operation._align(None, [(1, 2)], [Row(np.zeros(1, np.float32), start, 100)])  # noqa: SLF001


def test_a_part_of_as_many_positions_as_mel_bands_is_not_taken_for_features(
    base_model_dir: Path, sample_call: Path
) -> None:
    audio = decode(sample_call).audio[7 * 16_000 : 12 * 16_000]
    whisper = Ct2Whisper(base_model_dir, device="cpu", device_index=0, compute_type="int8", threads=1, offline=True)
    first, after = 100, 100 + whisper.mels
    parts = ((first, after), (first, after - 1))
    (found,) = whisper.encode_and_detect(1000, 1, 60.0).run([DetectionInput(audio, parts)])
    same, shorter = found.parts
    # CTranslate2 would encode the part once more. Without its last position, of 20 ms, it does not.
    assert same == shorter


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA failed with error out of memory", RuntimeError),
        ("cuBLAS failed with status CUBLAS_STATUS_NOT_INITIALIZED", RuntimeError),
        ("parallel_for failed: cudaErrorLaunchFailure: unspecified launch failure", RuntimeError),
        ("Unsupported model binary version", ModelCorrupt),
    ],
)
def test_a_fault_of_the_device_is_no_fault_of_the_files(
    text: str, kind: type[Exception], tiny_en_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*ignored: object, **also_ignored: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(ctranslate2.models, "Whisper", fail)
    with pytest.raises(kind) as caught:
        Ct2Whisper(tiny_en_model_dir, device="cuda", device_index=0, compute_type="float16", threads=1, offline=True)
    assert text in str(caught.value)
    assert isinstance(caught.value, ModelCorrupt) == (kind is ModelCorrupt)


def test_memory_that_runs_out_under_a_job_costs_it_nothing(
    models_dir: Path, tiny_en_model_dir: Path, sample_call: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch)
    audio = decode(sample_call).audio[6 * 16_000 : 22 * 16_000]
    recording = np.concatenate([np.pad(audio, (0, 16_000))] * 3)
    options = TranscriptionOptions(language="en", align=False, diarize=False, beam_size=1)
    sizes: list[int] = []
    run = Ct2Decode.run

    def limited(operation: Ct2Decode, inputs: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > 1:
            raise RuntimeError("CUDA failed with error out of memory")
        return run(operation, inputs)

    monkeypatch.setattr(Ct2Decode, "run", limited)
    with Engine(device="cuda", model="tiny.en", models_dir=models_dir, offline=True) as engine:
        transcript = engine.transcribe(recording, options)
    assert max(sizes) > 1, "the windows were to be decoded together"
    assert transcript.text.count("New Jersey") >= 3
    assert transcript.warnings == ()
