"""CAM++: Kaldi's features, and what the embedding must tell apart."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from whisper_api.engine.diarize.campplus import features, load_campplus
from whisper_api.engine.diarize.embedding import DIMENSION, embed
from whisper_api.errors import ModelCorrupt

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def model(campplus_path: Path) -> Any:
    return load_campplus(campplus_path)


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Floats:
    with wave.open(str(sample_call)) as file:
        return np.asarray(np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768, dtype=np.float32)


def features_mean(sound: Floats) -> Floats:
    import torch

    return np.asarray(features(torch.from_numpy(sound)[None])[0].mean(dim=1).numpy(), dtype=np.float32)


def embedding(model: Any, sound: Floats, *spans: npt.NDArray[np.int64], **options: Any) -> Floats:
    mean = features_mean(sound)
    one = np.zeros(1 + len(sound) // 160, dtype=np.int64)
    return embed(model, sound, mean, one, spans or (np.arange(len(one)),), **options)


def test_the_features_are_kaldis(call: Floats) -> None:
    import torch
    from torchaudio.compliance.kaldi import fbank

    sound = torch.from_numpy(call[100_000:132_000].copy())[None]
    found = features(sound)
    assert found.shape == (1, 80, 201)
    padded = torch.nn.functional.pad(sound, (200, 200))
    expected = fbank(padded, num_mel_bins=80, dither=0.0, sample_frequency=16_000.0)
    assert float((found[0].T - expected).abs().max()) < 1e-2


@pytest.mark.models
def test_spans_do_not_depend_on_each_other(model: Any, call: Floats) -> None:
    sound = call[100_000:132_000]
    one, other = np.arange(10, 90), np.concatenate([np.arange(60, 120), np.arange(150, 190)])
    together = embedding(model, sound, one, other)
    assert together.shape == (2, DIMENSION)
    assert embedding(model, sound, one)[0] == pytest.approx(together[0], abs=1e-5)
    assert embedding(model, sound, other)[0] == pytest.approx(together[1], abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.models
def test_a_stretch_does_not_depend_on_what_is_beside_it(model: Any, call: Floats) -> None:
    # 10 s of two speakers. The stretches touch, two are longer than a segment, and three begin at odd frames.
    sound, mean = call[12 * 16_000 : 22 * 16_000], np.full(80, -8.0, dtype=np.float32)
    borders = (0, 41, 105, 311, 700, 1001)
    stretches = np.repeat(np.arange(5), np.diff(borders))
    spans = [np.arange(borders[number] + 4, borders[number + 1] - 4) for number in (1, 2, 3)]
    found = embed(model, sound, mean, stretches, spans)
    for number, span, vector in zip((1, 2, 3), spans, found, strict=True):
        # Other sound before and after it; features reach over 25 ms.
        other = call[: len(sound)].copy()
        kept = slice((borders[number] - 3) * 160, (borders[number + 1] + 3) * 160)
        other[kept] = sound[kept]
        assert embed(model, other, mean, stretches, [span])[0] == pytest.approx(vector, abs=1e-4)
        one_stretch = np.zeros_like(stretches)
        together = [embed(model, each, mean, one_stretch, [span])[0] for each in (sound, other)]
        assert float(together[0] @ together[1]) < 0.99


@pytest.mark.models
def test_a_short_answer_in_a_stretch_of_its_own_resembles_its_speaker_more(model: Any, call: Floats) -> None:
    # The reference gives these seconds to one speaker each.
    one, other = call[22 * 16_000 : 27 * 16_000], call[round(18.7 * 16_000) : round(21.3 * 16_000)]
    mean = features_mean(call[6 * 16_000 :])
    voices = [
        embed(model, voice, mean, np.zeros(1 + len(voice) // 160, np.int64), [np.arange(len(voice) // 160)])[0]
        for voice in (one, other)
    ]
    stretches = np.repeat([0, 1, 2], [500, 70, 501])
    margins = []
    for begin in (11.0, 11.9, 12.7, 13.4):
        sound = np.concatenate([one, call[round(begin * 16_000) :][: 70 * 160], one])
        for given in (stretches, np.zeros_like(stretches)):
            vector = embed(model, sound, mean, given, [np.arange(500, 570)])[0]
            margins.append(float(vector @ voices[1] - vector @ voices[0]))
    alone, amid = np.mean(margins[::2]), np.mean(margins[1::2])
    assert min(margins[::2]) > 0
    assert alone > amid + 0.02


@pytest.mark.models
def test_one_voice_is_more_like_itself_than_like_another(model: Any, call: Floats, sample_call: Path) -> None:
    lines = [line.split() for line in sample_call.with_suffix(".rttm").read_text().splitlines()]
    turns = sorted(((float(f[3]), float(f[4]), f[7]) for f in lines), key=lambda turn: -turn[1])[:6]
    pieces = [(who, call[round(start * 16_000) : round((start + seconds) * 16_000)]) for start, seconds, who in turns]
    vectors = np.concatenate([embedding(model, piece) for _, piece in pieces])
    similarity = vectors @ vectors.T
    same = np.array([[one == other for other, _ in pieces] for one, _ in pieces])
    others = same & ~np.eye(len(pieces), dtype=bool)
    assert others.any(axis=1).all()
    assert similarity[others].mean() > similarity[~same].mean() + 0.25


@pytest.mark.models
def test_half_precision_changes_next_to_nothing(model: Any, call: Floats) -> None:
    sound = call[100_000:164_000]
    full, half = embedding(model, sound), embedding(model, sound, half_precision=True)
    assert float(full[0] @ half[0]) > 0.99


@pytest.mark.models
def test_a_span_of_one_frame_has_an_embedding(model: Any, call: Floats) -> None:
    found = embedding(model, call[100_000:132_000], np.array([50]))
    assert np.isfinite(found).all()


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "other.pt"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ModelCorrupt, match=r"other\.pt: not a CAM\+\+"):
        load_campplus(path)
