"""Each channel is decoded as a file of that channel alone would be, beside the same mix as ever."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stereo import Signal, wav

from whisper_api.engine.audio.decode import decode, probe
from whisper_api.engine.audio.messages import Finished, Ready, Request, Reserve
from whisper_api.engine.audio.process import DecoderPool, DecoderProcess
from whisper_api.engine.audio.track import AudioMemory, Recording, end_to_end
from whisper_api.errors import InvalidAudio, InvalidOption

RATE = 16_000


class Nothing:
    """A file without content."""

    descriptor: int | None = None

    def read(self, offset: int, size: int) -> bytes:
        return b""


def tones(count: int, seconds: float = 1.0) -> list[Signal]:
    time = np.arange(round(RATE * seconds)) / RATE
    return [np.asarray(0.3 * np.sin(2 * np.pi * (200 + 100 * number) * time), np.float32) for number in range(count)]


def encoded(channels: list[Signal], container: str, codec: str, layout: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48_000, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.stack(channels), "fltp", layout)
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.format.name, layout, 48_000, stream.codec_context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


@settings(max_examples=10)
@given(st.integers(2, 8), st.sampled_from(["separate", "auto"]))
def test_each_channel_is_as_in_a_file_of_its_own(count: int, channels: str) -> None:
    sounds = tones(count)
    file = wav(sounds)
    found = decode(file, channels="auto" if channels == "auto" else "separate")
    assert len(found.separate) == count
    for channel, sound in zip(found.separate, sounds, strict=True):
        np.testing.assert_array_equal(channel, decode(wav([sound])).audio)
    np.testing.assert_array_equal(found.audio, decode(file).audio)


@pytest.mark.parametrize(
    ("container", "codec", "layout"),
    [("ogg", "libopus", "stereo"), ("matroska", "aac", "5.1"), ("flac", "flac", "stereo"), ("mp4", "aac", "stereo")],
)
def test_channels_of_compressed_files(container: str, codec: str, layout: str) -> None:
    sounds = tones(6 if layout == "5.1" else 2, 2.0)
    found = decode(encoded(sounds, container, codec, layout), channels="separate")
    assert {len(channel) for channel in found.separate} == {len(found.audio)}
    heard = [int(np.abs(np.fft.rfft(channel[RATE // 2 : RATE // 2 + RATE])).argmax()) for channel in found.separate]
    expected = [200 + 100 * number for number in range(len(sounds))]
    # The fourth channel of 5.1 has only low tones.
    assert [hertz for hertz in heard if hertz in expected] == [hertz for hertz in expected if hertz in heard]
    assert len(set(heard) & set(expected)) >= len(sounds) - 1


def test_channels_that_come_and_go_keep_their_times() -> None:
    """A stream may change its layout. Its later channels are only in the mix, and that is said."""
    stereo, six = (encoded(tones(count, 2.0), "adts", "aac", layout) for count, layout in ((2, "stereo"), (6, "5.1")))
    found = decode(stereo + six + stereo, channels="separate")
    assert {len(channel) for channel in found.separate} == {len(found.audio)}
    assert len(found.separate) == 2
    assert "the file has more channels later: only the first 2 were separated" in found.warnings
    for channel, hertz in zip(found.separate, (200, 300), strict=True):
        for begin in (0.5, 2.5, 4.5):
            heard = np.abs(np.fft.rfft(channel[int(begin * RATE) :][:RATE]))
            assert int(heard.argmax()) == hertz
    fewer = decode(six + stereo, channels="separate")
    assert len(fewer.separate) == 6
    assert not fewer.separate[4][-RATE:].any()
    assert fewer.separate[0][-RATE:].any()


def test_one_channel_and_the_default_have_no_separate_channels() -> None:
    assert decode(wav(tones(1)), channels="separate").separate == ()
    assert decode(wav(tones(2))).separate == ()


def test_too_many_channels_are_named() -> None:
    file = wav(tones(9))
    for read in (decode, probe):
        with pytest.raises(InvalidOption, match="channels: the file has 9 channels; separate takes up to 8"):
            read(file, channels="separate")
    found = decode(file, channels="auto")
    assert found.separate == ()
    assert found.warnings == ("the channels were mixed: 9 are more than the 8 that auto takes",)


def test_what_concerns_the_mix_is_told_apart() -> None:
    (sound,) = tones(1, 3.0)
    file = wav([sound, -sound])
    found = decode(file, channels="separate")
    assert found.warnings == ()
    assert found.mix_warnings == decode(file).warnings
    assert "phase-inverted" in found.mix_warnings[0]


def test_all_channels_count_in_the_memory_budget(tmp_path: Path) -> None:
    memory = AudioMemory(30 * RATE * 4, tmp_path)
    found = decode(wav(tones(2, 12.0)), channels="separate", memory=memory)
    # Two tracks of three fit; the other is a file.
    assert 0 < memory.used <= 30 * RATE * 4
    joined = end_to_end(found.separate, 13 * RATE, memory)
    assert len(joined) == 26 * RATE
    for number, channel in enumerate(found.separate):
        np.testing.assert_array_equal(joined[13 * number * RATE :][: len(channel)], channel)
        assert not joined[13 * number * RATE + len(channel) : 13 * (number + 1) * RATE].any()
    del found, joined, channel
    assert memory.used == 0


@pytest.mark.parametrize(
    "said",
    [
        Reserve(4, track=9),
        Reserve(4, track=-1),
        Finished(container="wav", codec="pcm", sample_rate=RATE, channels=2, samples=9, tracks=10),
        Finished(container="wav", codec="pcm", sample_rate=RATE, channels=2, samples=9, tracks=0),
    ],
)
def test_a_decoder_that_a_file_took_over_gets_no_other_tracks(
    said: Reserve | Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = DecoderPool(1)
    messages = [Ready(), said]
    monkeypatch.setattr(DecoderProcess, "_receive", lambda *ignored: messages.pop(0))
    request = Request(operation="decode", name="a.wav", size=0, by_descriptor=False, channels="separate")
    with pool.lease(lambda: None) as process:
        with pytest.raises(InvalidAudio, match="it brings libav down"):
            process.run(request, Nothing(), [Recording()], lambda: None, None)
        assert not process.usable
    assert pool.pids == []
