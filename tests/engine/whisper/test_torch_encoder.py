"""Whisper's encoder in torch: it gives what CTranslate2's gives, and CTranslate2's decoder takes its output."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from meta_memory import PeakMemory
from pretended_gpu import pretend_gpus

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.silero import silero_probabilities
from whisper_api.engine.whisper.batch_memory import (
    decode_row_bytes,
    encode_row_bytes,
    torch_row_bytes,
    torch_workspace_bytes,
)
from whisper_api.engine.whisper.ct2_file import read_shapes
from whisper_api.engine.whisper.ctranslate2 import Ct2Whisper
from whisper_api.engine.whisper.model import DecodedTokens, DecodeSettings, DetectionInput, Row
from whisper_api.engine.whisper.onnx.whisper_graphs import Shape, shape_of
from whisper_api.engine.whisper.settings import WhisperSource
from whisper_api.engine.whisper.torch_encoder import (
    TorchEncoder,
    compared,
    encoder_bytes,
    load_encoder,
    tensor_shapes,
)
from whisper_api.errors import InvalidOption, ModelCorrupt

SMALL = Shape(80, 128, 2, 2, 1, 1500, 448, 51_865)
LARGE = Shape(128, 1280, 20, 32, 32, 1500, 448, 51_866)
FRAMES = 700


def random_encoder(shape: Shape = SMALL, dtype: torch.dtype = torch.float32) -> TorchEncoder:
    torch.manual_seed(0)
    tensors = {name: torch.randn(sides) * sides[-1] ** -0.5 for name, sides in tensor_shapes(shape).items()}
    return TorchEncoder(shape, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def features_of(shape: Shape, windows: int = 2, frames: int = 200) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(windows, shape.mels, frames)


@pytest.fixture(scope="module")
def audio(sample_call: Path) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    call = decode(sample_call.read_bytes()).audio
    return [call[12 * 16_000 : 17 * 16_000], call[20 * 16_000 : 23 * 16_000]]


def whisper_with(encoder: str, directory: Path, compute_type: str = "float32") -> Ct2Whisper:
    return Ct2Whisper(
        directory,
        device="cpu",
        device_index=0,
        compute_type=compute_type,
        threads=1,
        lanes=2,
        offline=True,
        free_memory=lambda: 8 << 30,
        encoder=encoder,
    )


@pytest.fixture(scope="module")
def both(base_model_dir: Path) -> Iterator[tuple[Ct2Whisper, Ct2Whisper]]:
    pair = whisper_with("torch", base_model_dir), whisper_with("ctranslate2", base_model_dir)
    yield pair
    for whisper in pair:
        whisper.unload()


@pytest.mark.models
def test_its_output_is_that_of_ctranslate2(both: tuple[Ct2Whisper, Ct2Whisper], audio: list[Any]) -> None:
    mine, theirs = (np.array(whisper.encode(audio, FRAMES)) for whisper in both)
    assert mine.shape == (2, FRAMES // 2, 512)
    np.testing.assert_allclose(mine, theirs, atol=1e-3, rtol=1e-3)
    assert np.linalg.norm(mine - theirs) < 1e-5 * np.linalg.norm(theirs)


@pytest.mark.models
@pytest.mark.parametrize("beams", [1, 5])
def test_ctranslate2_decodes_the_same_tokens_and_times_from_it(
    both: tuple[Ct2Whisper, Ct2Whisper], audio: list[Any], beams: int
) -> None:
    def decoded(whisper: Ct2Whisper) -> list[DecodedTokens]:
        tokenizer = whisper.tokenizer("en")
        start = tuple(tokenizer.sot_sequence)
        prompt = (*start, tokenizer.no_timestamps)
        settings = DecodeSettings(FRAMES, len(prompt), beams, 0.0, whisper.non_speech_tokens, align_from=start)
        rows = [Row(samples, prompt, len(samples) // 160) for samples in audio[: 2 if beams == 1 else 1]]
        results: list[DecodedTokens] = list(whisper.decode(settings, 8, 60.0).run(rows))
        return results

    for mine, theirs in zip(*map(decoded, both), strict=True):
        assert len(mine.tokens) > 10
        assert mine.tokens == theirs.tokens
        assert mine.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-4)
        assert mine.attention is not None
        assert theirs.attention is not None
        assert mine.attention.frames.tolist() == theirs.attention.frames.tolist()


@pytest.mark.models
def test_languages_are_detected_from_it_and_the_encoding_is_decoded_later(
    both: tuple[Ct2Whisper, Ct2Whisper], audio: list[Any]
) -> None:
    found = [
        whisper.encode_and_detect(FRAMES, 8, 60.0).run(
            [DetectionInput(audio[0], ((0, 200),)), DetectionInput(audio[1])]
        )[0]
        for whisper in both
    ]
    for mine, theirs in zip(*([each.languages, *each.parts] for each in found), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)
    # They stay where the encoder has put them, and a window keeps the others of its batch in no memory.
    assert all(isinstance(each.encoded, torch.Tensor) for each in found)
    assert found[0].encoded.nbytes == found[0].encoded.untyped_storage().nbytes()
    whisper, prompt = both[0], tuple(both[0].tokenizer("en").sot_sequence)
    settings = DecodeSettings(FRAMES, len(prompt), 1, 0.0, whisper.non_speech_tokens, encoded=True)
    (again,) = whisper.decode(settings, 8, 60.0).run([Row(found[0].encoded, prompt, FRAMES)])
    assert again.tokens


@pytest.mark.models
def test_the_decoder_reads_the_memory_of_the_tensor_and_keeps_it(both: tuple[Ct2Whisper, Ct2Whisper]) -> None:
    tensor = torch.ones(2, 3, 4)
    view = both[0].view(tensor)
    assert np.asarray(view).__array_interface__["data"][0] == tensor.data_ptr()
    alive = weakref.ref(tensor.untyped_storage())
    del tensor
    assert alive() is not None
    del view
    assert alive() is None


@pytest.mark.models
def test_in_bfloat16_it_is_close_and_handed_over_in_a_type_that_ctranslate2_takes(
    tiny_en_model_dir: Path,
) -> None:
    path = tiny_en_model_dir / "model.bin"
    shape = shape_of(read_shapes(path))
    features = features_of(shape, frames=FRAMES)
    exact, rough = (load_encoder(path, shape, "cpu", dtype)(features) for dtype in ("float32", "bfloat16"))
    assert rough.dtype == torch.float32
    ctranslate2.StorageView.from_array(rough.numpy())
    assert torch.equal(rough, rough.bfloat16().float())
    assert float((rough - exact).norm() / exact.norm()) < 0.1


@pytest.mark.models
def test_what_is_computed_in_int8_agrees_with_it(
    tiny_en_model_dir: Path, audio: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """CTranslate2 quantises the inputs of its products too; the encoder in torch takes the weights as they are."""
    whisper = whisper_with("ctranslate2", tiny_en_model_dir, "int8")
    path, features = tiny_en_model_dir / "model.bin", whisper.features(audio, FRAMES)
    found = compared(
        lambda: load_encoder(path, whisper.shape, "cpu", "float32"),
        lambda given: torch.from_numpy(np.array(whisper.ct2.encode(whisper.view(given)))),
        lambda: features,
        0,
        None,
    )
    assert found.name == "torch"
    assert not caplog.records


def test_rows_do_not_depend_on_their_batch() -> None:
    encoder = random_encoder()
    features = features_of(SMALL, windows=11)
    together = encoder(features)
    alone = torch.cat([encoder(row[None]) for row in features])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_weights_of_a_quantised_file_are_dequantised(tmp_path: Path) -> None:
    encoder = random_encoder()
    expected = encoder(features_of(SMALL))
    for quantization, within in ((None, 1e-6), ("float16", 3e-3), ("int8", 0.05)):
        write_encoder(tmp_path, encoder, quantization)
        found = load_encoder(tmp_path / "model.bin", SMALL, "cpu", "float32")
        difference = found(features_of(SMALL)) - expected
        assert float(difference.norm() / expected.norm()) < within
    # Weights take as many bytes as they have numbers, whatever the file contains.
    assert encoder_bytes(tmp_path / "model.bin", 2) == 2 * sum(each.numel() for each in encoder.tensors.values())
    for wrong in (replace(SMALL, encoder_layers=3), replace(SMALL, mels=128)):
        with pytest.raises(ModelCorrupt, match=r"layer_2/self_attention|conv1/weight"):
            load_encoder(tmp_path / "model.bin", wrong, "cpu", "float32")


def write_encoder(directory: Path, encoder: TorchEncoder, quantization: str | None) -> None:
    """Write an encoder as CTranslate2's converters write it."""
    spec = ctranslate2.specs.WhisperSpec(SMALL.encoder_layers, SMALL.heads, SMALL.decoder_layers, SMALL.heads)
    for name, tensor in encoder.tensors.items():
        *places, last = name.split("/")
        at = spec.encoder
        for place in places:
            many, _, number = place.rpartition("_")
            at = getattr(at, place) if hasattr(at, place) else getattr(at, many)[int(number)]
        setattr(at, last, tensor.numpy().copy())

    class Encoder(ctranslate2.specs.ModelSpec):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = spec.encoder

        name, revision = "WhisperSpec", 3

    model = Encoder()
    model.validate()
    model.optimize(quantization)
    model.save(str(directory))


@pytest.mark.parametrize("wrong", ["position_encodings/encodings", "layer_1/ffn/linear_0/weight", "conv2/bias"])
def test_an_encoder_that_disagrees_is_left_with_a_warning(wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    right = random_encoder()
    broken = TorchEncoder(SMALL, {**right.tensors, wrong: torch.full_like(right.tensors[wrong], torch.nan)})
    features = features_of(SMALL)

    def chosen(encoder: TorchEncoder) -> TorchEncoder | None:
        return compared(lambda: encoder, right, lambda: features, 0, 1 << 30).in_torch

    assert chosen(right) is right
    assert not caplog.records
    assert chosen(broken) is None
    other = TorchEncoder(SMALL, {**right.tensors, "layer_norm/gamma": -right.tensors["layer_norm/gamma"]})
    assert chosen(other) is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert all("runs in ctranslate2" in record.getMessage() for record in caplog.records)


def test_without_the_memory_for_it_ctranslate2_encodes(caplog: pytest.LogCaptureFixture) -> None:
    def never(*ignored: object) -> Any:
        raise AssertionError("nothing is loaded")

    def full() -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def lost() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    caplog.set_level(logging.INFO)
    choices = [
        compared(never, never, never, 1000, 2000),
        compared(full, never, lambda: features_of(SMALL), 1000, 1 << 30),
    ]
    assert [each.name for each in choices] == ["ctranslate2"] * 2
    assert ["memory" in each.reason for each in choices] == [True, False]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING"]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        compared(lost, never, lambda: features_of(SMALL), 1000, 1 << 30)


@pytest.mark.models
@pytest.mark.parametrize("broken", [False, True])
def test_a_model_compares_the_encoders_when_it_is_loaded(
    tiny_en_model_dir: Path,
    audio: list[Any],
    broken: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wrong(*given: Any) -> TorchEncoder:
        encoder = load_encoder(*given)
        encoder.tensors["layer_norm/gamma"].neg_()
        return encoder

    monkeypatch.setattr(Ct2Whisper, "prefers_torch", True)
    if broken:
        monkeypatch.setattr("whisper_api.engine.whisper.ctranslate2.load_encoder", wrong)
    heard: list[Any] = []
    features = Ct2Whisper.features

    def listening(whisper: Ct2Whisper, windows: Any, frames: int) -> torch.Tensor:
        heard.extend(windows)
        return features(whisper, windows, frames)

    monkeypatch.setattr(Ct2Whisper, "features", listening)
    whisper = whisper_with("auto", tiny_en_model_dir)
    # They are compared on speech.
    assert all(silero_probabilities(window).max() > 0.9 for window in heard)
    assert str(whisper.encoder).startswith("ctranslate2 (torch's differs" if broken else "torch (differs")
    runs: list[int] = []
    monkeypatch.setattr(TorchEncoder, "__call__", counted(TorchEncoder.__call__, runs))
    encoded = np.array(whisper.encode(audio, FRAMES))
    reference = np.array(whisper.ct2.encode(whisper.view(whisper.features(audio, FRAMES))))
    np.testing.assert_allclose(encoded, reference, atol=1e-2, rtol=1e-2)
    assert len(runs) == (0 if broken else 1)
    assert [record.levelname for record in caplog.records] == (["WARNING"] if broken else [])


@pytest.mark.models
def test_an_encoder_that_fails_later_gives_way_and_costs_no_window(
    tiny_en_model_dir: Path, audio: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Ct2Whisper, "prefers_torch", True)
    auto, forced = whisper_with("auto", tiny_en_model_dir), whisper_with("torch", tiny_en_model_dir)
    window = DecodeSettings(3000, 4, 1, 0.0, ())
    before = auto.decode(window, 10_000, 60.0).max_items
    texts = ["CUDA out of memory.", "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"]

    def failing(encoder: TorchEncoder, features: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(texts[0])

    monkeypatch.setattr(TorchEncoder, "__call__", failing)
    # Memory that runs out is the worker's to recover from.
    with pytest.raises(RuntimeError, match="out of memory"):
        auto.encode(audio, FRAMES)
    texts.pop(0)
    for _ in range(2):
        assert np.array(auto.encode(audio, FRAMES)).shape == (2, FRAMES // 2, 384)
    (record,) = caplog.records
    assert "from now on" in record.getMessage()
    assert auto.decode(window, 10_000, 60.0).max_items < before
    with pytest.raises(MemoryError):
        auto.encode([audio[0][:160]] * 96, 100)
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        forced.encode(audio, FRAMES)


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(self: Any, *given: Any) -> Any:
        calls.append(1)
        return function(self, *given)

    return call


@pytest.mark.models
def test_batches_are_larger_without_attention_matrices(both: tuple[Ct2Whisper, Ct2Whisper]) -> None:
    window = DecodeSettings(3000, 4, 1, 0.0, ())
    for operation in (
        lambda whisper: whisper.decode(window, 10_000, 60.0).max_items,
        lambda whisper: whisper.encode_and_detect(3000, 10_000, 60.0).max_items,
    ):
        mine, theirs = map(operation, both)
        assert mine > theirs
        # CTranslate2's encoder indexes its attention with 32 bits, its decoder and torch's encoder have room.
        assert theirs <= 95


@pytest.mark.models
def test_the_weights_in_torch_count_as_memory_of_the_model(tiny_en_model_dir: Path) -> None:
    source = WhisperSource(str(tiny_en_model_dir), "cuda", 0, "float16", 1)
    encoder = encoder_bytes(tiny_en_model_dir / "model.bin", 2)
    assert encoder == pytest.approx(2 * 8.2e6, rel=0.02)
    only = replace(source, encoder="ctranslate2").estimated_bytes()
    assert source.estimated_bytes() == only + encoder
    assert replace(source, encoder="torch", compute_type="float32").estimated_bytes() == 2 * (only + encoder)
    # CTranslate2 encodes in int8 where the output has 32 bits, unless torch is asked for.
    wide = replace(source, compute_type="int8_float32")
    assert wide.estimated_bytes() == replace(wide, encoder="ctranslate2").estimated_bytes()
    assert replace(source, device="cpu").estimated_bytes() == only


def test_the_memory_of_a_batch_is_what_its_tensors_take() -> None:
    # A layer takes what the others before it have given back.
    large = replace(LARGE, encoder_layers=2)
    for shape, frames in ((large, 3000), (replace(large, mels=80, width=512, heads=8), 1000)):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            size = torch.empty(0, dtype=dtype).element_size()
            tensors = {n: torch.empty(s, device="meta", dtype=dtype) for n, s in tensor_shapes(shape).items()}
            encoder = TorchEncoder(shape, tensors)
            with PeakMemory() as memory:
                encoded = encoder(torch.empty(64, shape.mels, frames, device="meta"))
            output = frames // 2 * shape.width * size
            counted = torch_workspace_bytes(shape, frames, size) + 64 * (output + torch_row_bytes(shape, frames, size))
            assert encoded.shape == (64, frames // 2, shape.width)
            # Before the layers, there are the samples, and the features once more. Numbers of 16 bits may be bfloat16.
            before = 64 * frames * 4 * (160 + shape.mels) + (64 * output if dtype == torch.float16 else 0)
            assert memory.peak < counted < 1.25 * memory.peak + before


def test_turbo_has_room_for_ten_times_the_windows_of_ctranslate2s_encoder() -> None:
    turbo, window = replace(LARGE, decoder_layers=4), DecodeSettings(3000, 4, 1, 0.0, ())
    assert encode_row_bytes(turbo, 3000, 2) > 10 * torch_row_bytes(turbo, 3000, 2)
    assert decode_row_bytes(turbo, window, 2) > 3 * decode_row_bytes(turbo, window, 2, in_torch=True)


@pytest.mark.models
def test_a_job_on_a_gpu_has_the_same_text_with_either_encoder(
    models_dir: Path, tiny_en_model_dir: Path, cut: Callable[[float, float], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, ("float32",))
    options = TranscriptionOptions(align=False, diarize=False, beam_size=1)
    texts = []
    for encoder in ("torch", "ctranslate2"):
        with Engine(device="cuda", model="tiny.en", models_dir=models_dir, offline=True, encoder=encoder) as engine:
            transcript = engine.transcribe(cut(12.0, 5.0), options)
            texts.append([(segment.start, segment.text, segment.tokens) for segment in transcript.segments])
    assert texts[0]
    assert texts[0] == texts[1]


def test_the_encoder_is_one_of_three(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="auto, torch, ctranslate2"):
        Engine(device="cpu", models_dir=tmp_path, encoder="tensorrt")
