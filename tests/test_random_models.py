"""Randomly initialised models: they have the published dimensions, and the engine takes them for models."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.models.catalog import CATALOGUE
from whisper_api.engine.models.files import locate

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import random_models
from fixed_tokens import FixedWhisper, Tally, our_tokens_fixed, words
from gpu_floor import Ceiling, whisper_floor
from measuring.speech import sample_call

# At least one for each second of a window: a window with fewer is decoded again in pieces.
TOKENS = 32
H200 = Ceiling(790e12, 4.3e12, "measured")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.make_models(tmp_path_factory.mktemp("models"), "tiny")


@pytest.fixture(scope="module")
def engine(models: Path) -> Iterator[Engine]:
    with Engine(device="cpu", model="tiny", models_dir=models, offline=True) as engine:
        yield engine


@pytest.mark.parametrize("name", random_models.SHAPES)
def test_the_parameters_are_as_many_as_published(name: str) -> None:
    shape = random_models.SHAPES[name]
    square, width = shape.width**2, shape.width
    encoder = 12 * square * shape.encoder_layers + 3 * width * (shape.mels + width) + 1500 * width
    decoder = 16 * square * shape.decoder_layers + width * (shape.vocabulary + 448)
    published = CATALOGUE[name].parameters
    assert published is not None
    assert encoder + decoder == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize("name", ["tiny", "align-en", "ecapa"])
def test_the_store_finds_them(models: Path, name: str) -> None:
    found, place = locate(models, CATALOGUE[name])
    assert found is not None
    assert place == "models directory"


def test_the_file_is_as_large_as_the_published_one(models: Path) -> None:
    (published,) = (file for file in CATALOGUE["tiny"].files if file.name == "model.bin")
    size = (models / "whisper" / "tiny" / "model.bin").stat().st_size
    assert size == pytest.approx(published.size, rel=1e-4)


def test_the_same_seed_gives_the_same_weights(models: Path, tmp_path: Path) -> None:
    again = random_models.make_whisper(tmp_path, "tiny")
    assert (again / "model.bin").read_bytes() == (models / "whisper" / "tiny" / "model.bin").read_bytes()
    other = random_models.make_whisper(tmp_path / "other", "tiny", seed=1)
    assert (other / "model.bin").read_bytes() != (again / "model.bin").read_bytes()


def test_special_tokens_stand_where_they_are_published(base_model_dir: Path, models: Path) -> None:
    import tokenizers

    ours, published = (
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        for folder in (models / "whisper" / "tiny", base_model_dir)
    )
    for name in ("endoftext", "startoftranscript", "translate", "transcribe", "startofprev", "notimestamps"):
        assert ours.token_to_id(f"<|{name}|>") == published.token_to_id(f"<|{name}|>")
    settings, real = (
        json.loads((folder / "config.json").read_text()) for folder in (models / "whisper" / "tiny", base_model_dir)
    )
    assert settings["lang_ids"] == real["lang_ids"]
    assert settings["suppress_ids_begin"][1] == real["suppress_ids_begin"][1]


@pytest.mark.parametrize("beam", [1, 5])
def test_the_engine_decodes_as_many_tokens_as_asked(engine: Engine, beam: int) -> None:
    options = TranscriptionOptions(language="en", beam_size=beam, align=False, diarize=False)
    tally = Tally()
    with our_tokens_fixed(TOKENS, tally):
        transcript = engine.transcribe(sample_call(), options)
    counted = tally.take()
    assert counted["windows"] == len(transcript.segments) >= 1
    assert counted["tokens"] == TOKENS * counted["windows"]
    assert all(len(word) == 4 for word in transcript.text.split())
    assert not transcript.segments[0].flags


@pytest.mark.parametrize("beam", [1, 5])
def test_a_peer_decodes_as_many_tokens_as_asked(models: Path, beam: int) -> None:
    import ctranslate2

    model = ctranslate2.models.Whisper(str(models / "whisper" / "tiny"), compute_type="int8")
    assert model.is_multilingual
    tally = Tally()
    fixed = FixedWhisper(model, 50257, TOKENS, tally)
    features = ctranslate2.StorageView.from_array(np.zeros((2, fixed.n_mels, 3000), np.float32))
    results = fixed.generate(features, [[50258, 50277, 50359, 50363]] * 2, beam_size=beam, suppress_tokens=[-1])
    assert [len(result.sequences_ids[0]) for result in results] == [TOKENS] * 2
    assert tally.take() == {"windows": 2.0, "tokens": 2.0 * TOKENS}


def test_alignment_and_diarization_take_the_random_models(engine: Engine) -> None:
    options = TranscriptionOptions(language="en", align=True, diarize=True)
    with our_tokens_fixed(TOKENS, Tally()):
        transcript = engine.transcribe(sample_call(), options)
    assert transcript.word_times == "ctc"
    assert transcript.diarization_model
    spoken = [word for segment in transcript.segments for word in segment.words]
    assert spoken
    assert all(word.start <= word.end for word in spoken)


def test_the_words_are_different_and_short(models: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(models / "whisper" / "tiny" / "tokenizer.json"))
    text = tokenizer.decode(words(200)).split()
    assert len(set(text)) == 200
    assert all(len(word) == 4 and word.isalpha() for word in text)


@pytest.mark.parametrize(("name", "times"), [("large-v3-turbo", 10_100), ("large-v3", 4_760), ("base", 50_000)])
def test_the_floor_is_that_of_the_cost_model(name: str, times: float) -> None:
    """Times real time with batches of 64 and 100 tokens a window on an H200, encoding and decoding overlapped."""
    floor = whisper_floor(random_models.SHAPES[name], H200, tokens=100, batch=64)
    assert 30.0 / floor == pytest.approx(times, rel=0.3)
    assert whisper_floor(random_models.SHAPES[name], H200, tokens=100, batch=64, beam=5) >= floor
    assert whisper_floor(random_models.SHAPES[name], H200, tokens=100, batch=1) >= floor
