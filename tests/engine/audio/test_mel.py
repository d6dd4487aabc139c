"""Log-mel features: those of faster-whisper, on the CPU and on a device."""

from __future__ import annotations

import threading
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from whisper_api.engine.audio.mel import log_mel, log_mel_on_device, mel_filters

Floats = NDArray[np.float32]


def expected(audio: Floats, frames: int, mels: int) -> Floats:
    from faster_whisper.feature_extractor import FeatureExtractor

    samples = frames * 160
    padded = np.pad(audio[:samples], (0, max(0, samples - len(audio))))
    features: Floats = FeatureExtractor(mels)(padded, padding=0)[:, :frames]
    return features


def noise(seconds: float) -> Floats:
    return (np.random.default_rng(0).standard_normal(round(seconds * 16_000)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def speech(sample_call: Path) -> Floats:
    with wave.open(str(sample_call)) as file:
        assert file.getframerate() == 16_000
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return (samples / 32768).astype(np.float32)


@pytest.mark.parametrize("mels", [80, 128])
def test_filters_are_those_of_faster_whisper(mels: int) -> None:
    from faster_whisper.feature_extractor import FeatureExtractor

    np.testing.assert_allclose(mel_filters(mels), FeatureExtractor(mels).mel_filters, atol=1e-7)
    assert mel_filters(mels).dtype == np.float32


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize(
    ("seconds", "frames"),
    [(30.0, 3000), (25.0, 3000), (29.99, 3000), (40.0, 3000), (7.3, 1300), (0.0, 100), (0.01, 100), (9.999, 1000)],
)
def test_noise_has_the_features_of_faster_whisper(seconds: float, frames: int, mels: int) -> None:
    audio = noise(seconds)
    features = log_mel(audio, frames, mels)
    assert features.shape == (mels, frames)
    assert features.dtype == np.float32
    assert features.flags.c_contiguous
    np.testing.assert_allclose(features, expected(audio, frames, mels), atol=1e-4)


@pytest.mark.parametrize("mels", [80, 128])
def test_speech_has_the_features_of_faster_whisper(speech: Floats, mels: int) -> None:
    for start, end, frames in ((0, 480_000, 3000), (0, 300_000, 3000), (160_000, 250_123, 1100), (5, 32_005, 200)):
        audio = speech[start:end]
        np.testing.assert_allclose(log_mel(audio, frames, mels), expected(audio, frames, mels), atol=1e-4)


@pytest.mark.parametrize("samples", [1, 159, 199, 200, 201, 319, 320])
def test_audio_shorter_than_a_window_is_reflected_at_both_ends(samples: int) -> None:
    audio = noise(1.0)[:samples]
    for frames in (2, 3, 4):
        np.testing.assert_allclose(log_mel(audio, frames), expected(audio, frames, 80), atol=1e-4)


def test_silence_is_the_same_everywhere() -> None:
    silence = np.zeros(16_000, np.float32)
    features = log_mel(silence, 200)
    assert len(np.unique(features)) == 1
    assert np.array_equal(features, expected(silence, 200, 80))


def test_log_mel_starts_no_threads_and_keeps_its_input(speech: Floats) -> None:
    before = set(threading.enumerate())
    audio = speech.copy()
    first = log_mel(audio, 3000)
    assert np.array_equal(audio, speech)
    assert np.array_equal(first, log_mel(audio, 3000))
    # Threads of earlier tests may end meanwhile.
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("mels", [80, 128])
def test_features_from_a_device_are_the_same(speech: Floats, mels: int, device: str) -> None:
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pieces = [speech, speech[:100_000], np.zeros(0, np.float32), noise(12.0)]
    for frames in (3000, 700):
        features = log_mel_on_device(pieces, frames, mels, device)
        assert features.shape == (len(pieces), mels, frames)
        assert features.device.type == device
        assert features.is_contiguous()
        for row, piece in zip(features.cpu().numpy(), pieces, strict=True):
            np.testing.assert_allclose(row, log_mel(piece, frames, mels), atol=1e-4)
