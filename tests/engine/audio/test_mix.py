"""The mix to mono: no channel that carries sound is lost, whatever the layout says that it is for."""

from __future__ import annotations

import io
import struct
import wave
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.audio.mix import Mixer

RATE = 16_000
INVERTED = "channel 2 is phase-inverted: the mix inverts it back, or the sound would cancel itself"

Signal = NDArray[np.float32]


def wav(sound: Signal) -> bytes:
    """A WAV file of 16 bits whose header names no layout, of shape (channels, samples)."""
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(len(sound))
        output.setsampwidth(2)
        output.setframerate(RATE)
        output.writeframes((sound.T * 32767).astype("<i2").tobytes())
    return file.getvalue()


def encoded(sound: Signal, container: str, codec: str, layout: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=48_000, layout=layout)
        resampler = av.AudioResampler(stream.codec_context.format.name, layout, 48_000, stream.frame_size or 4096)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T).reshape(1, -1), "flt", layout)
        frame.sample_rate = RATE
        for converted in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()


def tone(seconds: float, hertz: float = 440.0) -> Signal:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def noise(channels: int, seconds: float, level: float, seed: int = 0) -> Signal:
    return np.random.default_rng(seed).normal(0, 10 ** (level / 20), (channels, round(seconds * RATE))).astype("f4")


def level_of(audio: Signal, hertz: float = 440.0) -> float:
    """The amplitude of a tone."""
    turning = np.exp(-2j * np.pi * hertz * np.arange(len(audio)) / RATE)
    return float(2 * np.abs(np.mean(audio * turning)))


@pytest.mark.parametrize("channels", range(3, 25))
def test_a_voice_on_any_channel_is_in_the_mix(channels: int) -> None:
    for voice in range(channels):
        sound = noise(channels, 0.4, -60)
        sound[voice] += tone(0.4)
        frame = av.AudioFrame.from_ndarray(sound.T.reshape(1, -1), "flt", f"{channels} channels")
        frame.sample_rate = RATE
        mixer = Mixer(frame)
        (mixed,) = (*mixer.push(frame), *mixer.flush())
        assert level_of(mixed.to_ndarray()[0]) == pytest.approx(0.5, rel=0.01)
        assert mixer.warnings() == []


@pytest.mark.parametrize("channels", [2, 3, 4, 6, 8])
def test_a_voice_on_any_channel_of_a_file_is_in_the_mix(channels: int) -> None:
    for voice in range(channels):
        sound = noise(channels, 0.4, -60)
        sound[voice] += tone(0.4)
        # Two channels are stereo, in which each has half of the mix.
        assert level_of(decode(wav(sound)).audio[1600:4800]) == pytest.approx(0.25 if channels == 2 else 0.5, rel=0.02)


@pytest.mark.parametrize("channels", [3, 6, 12])
def test_a_voice_that_goes_from_channel_to_channel_is_heard_throughout(channels: int) -> None:
    sound = noise(channels, channels, -60)
    for voice in range(channels):
        sound[voice, voice * RATE : (voice + 1) * RATE] += tone(1.0)
    decoded = decode(wav(sound))
    assert all(level_of(second) > 0.08 for second in np.split(decoded.audio[: channels * RATE], channels))
    assert decoded.warnings == ()


@pytest.mark.parametrize(
    ("container", "codec", "layout"),
    [("flac", "flac", "5.1"), ("ipod", "aac", "5.1"), ("ogg", "libopus", "7.1")],
)
def test_a_layout_that_is_named_loses_no_channel_either(container: str, codec: str, layout: str) -> None:
    channels = 8 if layout == "7.1" else 6
    for voice in range(channels):
        sound = np.zeros((channels, 2 * RATE), np.float32)
        # Deep enough for the channel of the bass, from which codecs take everything else.
        sound[voice] = tone(2.0, 80.0)
        assert level_of(decode(encoded(sound, container, codec, layout)).audio[RATE // 2 : RATE], 80.0) > 0.4


def test_the_mix_of_alike_channels_is_their_mean_and_no_louder() -> None:
    sound = np.stack([tone(1.0)] * 5)
    assert level_of(decode(wav(sound)).audio[1600:-1600]) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("sample_format", ["u8", "s16", "s32", "flt", "dbl"])
def test_inverted_stereo_is_turned_back_and_named(sample_format: str) -> None:
    width = {"u8": 1, "s16": 2, "s32": 4, "flt": 4, "dbl": 8}[sample_format]
    codec = 3 if sample_format in ("flt", "dbl") else 1
    pair = np.stack([tone(3.0), -0.8 * tone(3.0)]) + noise(2, 3.0, -50)
    values = {
        "u8": lambda: (pair * 127 + 128).astype("u1"),
        "s16": lambda: (pair * 32767).astype("<i2"),
        "s32": lambda: (pair * (2**31 - 1)).astype("<i4"),
        "flt": lambda: pair.astype("<f4"),
        "dbl": lambda: pair.astype("<f8"),
    }[sample_format]()
    samples = values.T.tobytes()
    fmt = struct.pack("<HHIIHH", codec, 2, RATE, 2 * width * RATE, 2 * width, 8 * width)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(samples)) + samples
    decoded = decode(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert level_of(decoded.audio[1600:-1600]) == pytest.approx(0.45, rel=0.02)
    assert decoded.warnings == (INVERTED,)


def test_an_inverted_channel_among_many_does_not_cancel() -> None:
    voice = tone(2.0)
    decoded = decode(wav(np.stack([voice, -voice, voice, -voice]) + noise(4, 2.0, -60)))
    assert level_of(decoded.audio[1600:-1600]) == pytest.approx(0.5, rel=0.02)
    assert decoded.warnings == (
        "channels 2, 4 are phase-inverted: the mix inverts them back, or the sound would cancel itself",
    )


def test_ordinary_stereo_is_the_mean_of_its_channels() -> None:
    for pair in (np.stack([tone(2.0), tone(2.0)]), np.stack([tone(2.0), tone(2.0, 700.0)]), noise(2, 2.0, -20)):
        decoded = decode(wav(pair))
        np.testing.assert_allclose(decoded.audio, pair.mean(axis=0), atol=1e-4)
        assert decoded.warnings == ()


def test_a_voice_that_the_others_drown_is_named() -> None:
    sound = noise(3, 6.0, -75)
    sound[0] += noise(1, 6.0, -10, seed=1)[0]
    # A voice has pauses, which noise does not.
    sound[2] += 10 ** (-50 / 20) * tone(6.0) * (np.arange(6 * RATE) // RATE % 2)
    assert decode(wav(sound)).warnings == ("channel 3 is too quiet beside the others to be heard in the mix",)


def test_samples_that_are_no_numbers_decide_nothing() -> None:
    sound = np.stack([tone(2.0), np.full(2 * RATE, np.nan, np.float32), tone(2.0)])
    samples = sound.T.astype("<f4").tobytes()
    fmt = struct.pack("<HHIIHH", 3, 3, RATE, 12 * RATE, 12, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(samples)) + samples
    decoded = decode(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert "not finite" in " ".join(decoded.warnings)


DIFFERENT = "the two channels have different voices"


def syllables(seed: int, seconds: float = 8.0) -> Signal:
    """Noise whose level rises and falls as that of speech does, eight times a second."""
    random = np.random.default_rng(seed)
    levels = 10 ** (random.uniform(-50, -10, round(8 * seconds)) / 20)
    sound: Signal = (noise(1, seconds, 0.0, seed)[0] * 0.3 * np.repeat(levels, RATE // 8)).astype("f4")
    return sound


def test_different_voices_at_once_are_named() -> None:
    """Recognition of the mix may lose one of them; separate channels lose none."""
    first, second = syllables(1), syllables(2)
    (warning,) = decode(wav(np.stack([first, second]))).warnings
    assert warning.startswith(DIFFERENT)
    found = decode(wav(np.stack([first, second])), channels="separate")
    assert (found.warnings, len(found.mix_warnings)) == ((), 1)


@pytest.mark.parametrize("level", [1.0, 0.1, -1.0])
def test_the_same_sound_on_two_channels_is_not_named_as_different_voices(level: float) -> None:
    """Microphones of one room hear the same people at different levels, later, and each with noise of its own."""
    sound = syllables(1)
    for other in (sound, np.roll(sound, RATE // 100)):
        file = wav(np.stack([sound, np.float32(level) * other]) + noise(2, 8.0, -50.0))
        assert not [warning for warning in decode(file).warnings if warning.startswith(DIFFERENT)]


def test_neither_turns_nor_noise_are_different_voices_at_once() -> None:
    turn = np.arange(8 * RATE) // (2 * RATE) % 2
    calls = [
        np.stack([syllables(1) * turn, syllables(2) * (1 - turn)]),
        np.stack([syllables(1), noise(1, 8.0, -30.0)[0]]),
        noise(2, 8.0, -30.0),
    ]
    for sound in calls:
        assert not [warning for warning in decode(wav(sound)).warnings if warning.startswith(DIFFERENT)]
