"""Decoding gives the same sound at the same times from every container, and refuses other files by name."""

from __future__ import annotations

import gc
import io
import os
import select
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import av
import numpy as np
import pytest
from faster_whisper.audio import decode_audio
from numpy.typing import NDArray
from silence import hours_of_silence, without_length

from whisper_api.engine.audio import input_file
from whisper_api.engine.audio.decode import AudioInfo, Decoded, decode, probe
from whisper_api.engine.audio.timeline import Timeline
from whisper_api.engine.audio.track import AudioMemory, Recording, Track
from whisper_api.errors import AudioTooLong, InvalidAudio, InvalidOption, StorageFull
from whisper_api.schema import SAMPLE_RATE

Signal = NDArray[np.float32]


def sine(rate: int, seconds: float, hertz: float = 1000.0, level: float = 0.5) -> Signal:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def click(rate: int, seconds: float, at: float) -> Signal:
    """A burst of a few milliseconds in faint noise."""
    time = np.arange(round(rate * seconds)) / rate - at
    noise = 0.001 * np.random.default_rng(0).standard_normal(len(time))
    burst = 0.8 * np.exp(-((time / 0.002) ** 2)) * np.cos(2 * np.pi * 1000 * time)
    return np.asarray(burst + noise, np.float32)


def place_of_click(audio: Signal) -> float:
    peak = int(np.argmax(np.abs(audio)))
    window = np.arange(max(0, peak - 200), min(len(audio), peak + 200))
    energy = audio[window].astype(np.float64) ** 2
    return float((energy * window).sum() / energy.sum()) / SAMPLE_RATE


class Unseekable(io.RawIOBase):
    """A stream, such as a socket or a pipe: it can only be read on, or written on, in pieces of any size."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.content.read(min(size, 7777))

    def write(self, data: Any) -> int:
        return self.content.write(bytes(data))


def encode(
    sound: Signal,
    rate: int,
    container: str,
    codec: str,
    *,
    layout: str = "mono",
    pieces: list[tuple[int, int, int]] | None = None,
    video_seconds: float = 0.0,
    tracks: int = 1,
    to: Unseekable | None = None,
    **options: str,
) -> bytes:
    """A file of ``sound``, (samples,) or (channels, samples); ``pieces`` are (begin, end, time stamp) in samples."""
    if codec not in av.codecs_available or container not in av.formats_available:
        pytest.skip(f"this build of libav cannot write {codec} in {container}")
    sound = np.atleast_2d(sound)
    file: Any = to or io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        picture: Any = output.add_stream("mpeg4", rate=10) if video_seconds else None
        streams: Any = [output.add_stream(codec, rate=rate, layout=layout) for _ in range(tracks)]
        if picture:
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
        for number, stream in enumerate(streams):
            resampler = av.AudioResampler(stream.codec_context.format.name, layout, rate)
            size = stream.codec_context.frame_size or 4096
            for begin, end, stamp in pieces or [(0, sound.shape[1], 0)]:
                for start in range(begin, end, size):
                    block = np.ascontiguousarray(sound[:, start : min(end, start + size)]) / (number + 1)
                    frame = av.AudioFrame.from_ndarray(block.astype(np.float32), "fltp", layout)
                    frame.sample_rate, frame.pts, frame.time_base = rate, stamp + start - begin, Fraction(1, rate)
                    for converted in resampler.resample(frame):
                        output.mux(stream.encode(converted))
            output.mux(stream.encode(None))
        for index in range(round(10 * video_seconds)):
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index % 255, np.uint8), "rgb24")
            image.pts, image.time_base = index, Fraction(1, 10)
            output.mux(picture.encode(image))
        if picture:
            output.mux(picture.encode(None))
    return bytes((file.content if to else file).getvalue())


def error_to_sine(audio: Signal, hertz: float = 1000.0, level: float = 0.5) -> float:
    """The largest difference to the sine, away from both ends."""
    inner = slice(800, len(audio) - 2400)
    return float(np.abs(audio - sine(SAMPLE_RATE, len(audio) / SAMPLE_RATE, hertz, level))[inner].max())


# ---- containers and codecs

PCM = [
    ("wav", "pcm_u8", 8000, 2e-2),
    ("wav", "pcm_s16le", 16000, 1e-4),
    ("wav", "pcm_s16le", 22050, 1e-3),
    ("wav", "pcm_s24le", 48000, 1e-4),
    ("wav", "pcm_s32le", 44100, 1e-4),
    ("wav", "pcm_f32le", 96000, 1e-4),
    ("wav", "pcm_f64le", 48000, 1e-4),
    ("wav", "pcm_mulaw", 8000, 3e-2),
    ("aiff", "pcm_s16be", 44100, 1e-4),
    ("caf", "pcm_s16le", 44100, 1e-4),
    ("au", "pcm_s16be", 44100, 1e-4),
    ("flac", "flac", 44100, 1e-4),
    ("mov", "alac", 48000, 1e-4),
]


@pytest.mark.parametrize(("container", "codec", "rate", "tolerance"), PCM)
def test_lossless_sound_keeps_its_level_phase_and_length(
    container: str, codec: str, rate: int, tolerance: float
) -> None:
    file = encode(sine(rate, 2.0), rate, container, codec)
    decoded, found = decode(file), probe(file)
    assert decoded.audio.dtype == np.float32
    assert decoded.audio.flags.c_contiguous
    assert decoded.audio.shape == (2 * SAMPLE_RATE,)
    assert decoded.duration == 2.0
    assert (found.codec, found.sample_rate, found.channels) == (codec, rate, 1)
    assert decoded.warnings == ()
    assert error_to_sine(decoded.audio) < tolerance


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [(container, codec, rate) for container, codec, rate, _ in PCM]
    + [
        ("mp3", "libmp3lame", 44100),
        ("mp3", "libmp3lame", 16000),
        ("ipod", "aac", 44100),
        ("adts", "aac", 44100),
        ("matroska", "aac", 48000),
        ("mpegts", "aac", 48000),
        ("flv", "aac", 44100),
        ("ogg", "libopus", 48000),
        ("webm", "libopus", 48000),
        ("ogg", "flac", 44100),
        ("mp2", "mp2", 44100),
        ("ac3", "ac3", 48000),
        ("amr", "libopencore_amrnb", 8000),
    ],
)
def test_a_click_is_where_it_was(container: str, codec: str, rate: int) -> None:
    decoded = decode(encode(click(rate, 2.0, at=1.2), rate, container, codec))
    assert abs(place_of_click(decoded.audio) - 1.2) < 0.025
    assert decoded.duration == pytest.approx(2.0, abs=0.06)
    assert decoded.warnings == ()


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("ipod", "aac")])
def test_equals_faster_whisper_but_for_its_rounding_to_16_bits(container: str, codec: str, layout: str) -> None:
    channels = {"mono": 1, "stereo": 2}[layout]
    sound = np.stack([sine(44100, 1.0, 300.0 + 170.0 * channel) for channel in range(channels)])
    content = encode(sound, 44100, container, codec, layout=layout)
    ours, theirs = decode(content).audio, decode_audio(io.BytesIO(content))
    assert isinstance(theirs, np.ndarray)
    length = min(len(ours), len(theirs))
    assert abs(len(ours) - len(theirs)) <= 1
    np.testing.assert_allclose(ours[:length], theirs[:length], atol=1e-4)


@pytest.mark.parametrize("channels", [2, 3, 4, 6, 8, 9, 13])
def test_full_scale_on_all_channels_stays_full_scale(channels: int) -> None:
    samples = np.full((16000, channels), 32767, "<i2").tobytes()
    content = wav(struct.pack("<HHIIHH", 1, channels, 16000, 32000 * channels, 2 * channels, 16), samples)
    decoded = decode(content)
    assert probe(content).channels == channels
    np.testing.assert_allclose(decoded.audio[500:-500], 1.0, atol=1e-3)


def wav(fmt: bytes, samples: bytes, size: int | None = None, after: bytes = b"") -> bytes:
    size = len(samples) if size is None else size
    chunks = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + samples + after
    return b"RIFF" + struct.pack("<I", min(len(chunks), 0xFFFFFFFF)) + chunks


def pcm16(sound: Signal, size: int | None = None, after: bytes = b"", rate: int = 16000) -> bytes:
    return wav(
        struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16), (sound * 32767).astype("<i2").tobytes(), size, after
    )


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF, 0xFFFFFFFF - 36])
def test_a_wav_header_of_unknown_length_gives_all_sound(size: int) -> None:
    decoded = decode(pcm16(sine(16000, 2.0), size))
    assert decoded.duration == 2.0
    assert decoded.warnings == ()


def test_chunks_behind_the_samples_are_not_sound() -> None:
    after = b"LIST" + struct.pack("<I", 4000) + b"\x7f" * 4000
    assert np.array_equal(decode(pcm16(sine(16000, 1.0), after=after)).audio, decode(pcm16(sine(16000, 1.0))).audio)


def test_webm_without_a_duration_as_browsers_record_it() -> None:
    content = encode(click(48000, 3.0, at=2.0), 48000, "webm", "libopus", to=Unseekable(), live="1")
    assert probe(content).duration is None
    decoded = decode(content)
    assert decoded.duration == pytest.approx(3.0, abs=0.03)
    assert place_of_click(decoded.audio) == pytest.approx(2.0, abs=0.01)
    assert decoded.warnings == ()


def test_a_cover_picture_changes_nothing() -> None:
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 8, 8, 8, 2, 0, 0, 0, 0) + b"\0" * 300_000
    body = b"\0image/png\0\x03\0" + png
    tag = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes((len(tag) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    content = encode(click(44100, 2.0, at=1.0), 44100, "mp3", "libmp3lame", id3v2_version="0")
    covered = decode(b"ID3\x03\0\0" + size + tag + content)
    assert covered.warnings == ()
    assert np.array_equal(covered.audio, decode(content).audio)


def test_the_sound_of_a_video_is_decoded() -> None:
    for container in ("mp4", "matroska", "avi"):
        codec = "libmp3lame" if container == "avi" else "aac"
        decoded = decode(encode(click(44100, 2.0, at=1.0), 44100, container, codec, video_seconds=2.0))
        assert abs(place_of_click(decoded.audio) - 1.0) < 0.026
        assert decoded.warnings == ()


def test_the_first_of_several_audio_streams_is_decoded_with_a_warning() -> None:
    decoded = decode(encode(sine(16000, 1.0), 16000, "matroska", "flac", tracks=3))
    assert error_to_sine(decoded.audio) < 1e-3
    (warning,) = decoded.warnings
    assert "3 audio tracks" in warning
    assert "number 1 was used; the option audio_track chooses another" in warning


def three_tracks(container: str, codec: str) -> bytes:
    """A tone on the first track, half as loud on the second, and a third of it on the third."""
    return encode(sine(16000, 1.0), 16000, container, codec, tracks=3)


@pytest.mark.parametrize(("container", "codec"), [("matroska", "flac"), ("mp4", "alac"), ("mov", "pcm_s16le")])
def test_the_audio_track_that_was_asked_for_is_decoded(container: str, codec: str) -> None:
    content = three_tracks(container, codec)
    for track in (1, 2, 3):
        decoded = decode(content, audio_track=track)
        assert error_to_sine(decoded.audio, level=0.5 / track) < 1e-3
        assert decoded.warnings == ()
        assert probe(content, audio_track=track).duration == pytest.approx(1.0, abs=0.01)


def test_an_audio_track_that_is_not_there_is_refused_with_those_that_are() -> None:
    for content, there in (
        (three_tracks("matroska", "flac"), "3 audio tracks: 1 is flac"),
        (pcm16(sine(16000, 1.0)), "one"),
    ):
        for attempt in (decode, probe):
            with pytest.raises(InvalidOption, match=f"audio_track: there is no number 4.*{there}"):
                attempt(content, audio_track=4)


def test_a_rate_and_layout_that_change_on_the_way_are_followed() -> None:
    first = encode(sine(16000, 2.0, 440.0), 16000, "adts", "aac")
    second = encode(np.stack([sine(44100, 2.0, 880.0)] * 2), 44100, "adts", "aac", layout="stereo")
    audio = decode(first + second).audio
    assert len(audio) / SAMPLE_RATE == pytest.approx(4.1, abs=0.1)
    for start, hertz in ((8000, 440), (44000, 880)):
        spectrum = np.abs(np.fft.rfft(audio[start : start + SAMPLE_RATE]))
        assert abs(int(np.argmax(spectrum)) - hertz) <= 1


def test_the_sample_call(sample_call: Path) -> None:
    decoded = decode(sample_call)
    assert decoded.duration == pytest.approx(30.0, abs=0.01)
    assert decoded.warnings == ()
    assert 0.05 < float(np.abs(decoded.audio).max()) <= 1.0
    assert probe(sample_call) == AudioInfo("wav", "pcm_s16le", 16000, 1, 30.0)


# ---- times


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_sound_that_begins_after_the_picture_keeps_its_time(container: str) -> None:
    sound = click(48000, 3.0, at=1.0)
    content = encode(sound, 48000, container, "aac", pieces=[(0, len(sound), 2 * 48000)], video_seconds=5.0)
    decoded = decode(content)
    assert place_of_click(decoded.audio) == pytest.approx(3.0, abs=0.025)
    assert decoded.warnings == ()


@pytest.mark.parametrize(("container", "codec"), [("webm", "libopus"), ("matroska", "aac"), ("ogg", "libopus")])
def test_a_hole_in_the_time_stamps_stands_as_silence(container: str, codec: str) -> None:
    sound = click(48000, 4.0, at=3.0)
    content = encode(sound, 48000, container, codec, pieces=[(0, 96000, 0), (96000, 192000, 5 * 48000)])
    decoded = decode(content)
    assert place_of_click(decoded.audio) == pytest.approx(6.0, abs=0.025)
    assert np.abs(decoded.audio[int(2.5 * SAMPLE_RATE) : int(4.5 * SAMPLE_RATE)]).max() == 0.0
    (warning,) = decoded.warnings
    assert "hole of 3.0 s" in warning


def test_absurd_time_stamps_do_not_become_hours_of_silence() -> None:
    sound = click(48000, 2.0, at=0.5)
    content = encode(sound, 48000, "matroska", "libopus", pieces=[(0, 48000, 0), (48000, 96000, 40_000 * 48000)])
    decoded, peak = measured(content)
    assert decoded.duration == pytest.approx(2.0, abs=0.05)
    assert peak < 20e6
    assert any("not believed" in warning for warning in decoded.warnings)


def test_recorders_that_start_their_clock_late_start_at_zero() -> None:
    sound = click(48000, 2.0, at=1.0)
    content = encode(sound, 48000, "matroska", "libopus", pieces=[(0, len(sound), 500 * 48000)])
    decoded = decode(content)
    assert place_of_click(decoded.audio) == pytest.approx(1.0, abs=0.01)
    assert decoded.warnings == ()


def test_time_stamps_that_swing_back_are_no_hole() -> None:
    """Libav stamps a Vorbis frame late where a short block follows a long one, and the next one right again."""
    rate, size = 44100, 1024
    stream = SimpleNamespace(time_base=Fraction(1, rate), codec_context=SimpleNamespace(name="vorbis"))
    container = SimpleNamespace(start_time=0, duration=None, format=SimpleNamespace(name="ogg"))
    recording = Recording()
    track = Track(recording.reserve)
    timeline = Timeline(container, stream, track)
    for number in range(100):
        frame = av.AudioFrame.from_ndarray(np.full((1, size), 0.25, np.float32), "flt", "mono")
        frame.sample_rate, frame.pts = rate, number * size + (2048 - 64 if number % 7 == 3 else 0)
        timeline.add(frame, lost=0.0)
    assert timeline.warnings() == []
    timeline.finish()
    audio = recording.finish(track.size)
    assert len(audio) == pytest.approx(100 * size / rate * SAMPLE_RATE, abs=2)
    assert audio[100:-100].min() > 0.2


INTACT = [
    ("wav", "pcm_s16le", 16000),
    ("wav", "pcm_s24le", 44100),
    ("wav", "adpcm_ima_wav", 22050),
    ("w64", "pcm_s16le", 48000),
    ("aiff", "pcm_s24be", 44100),
    ("caf", "pcm_s16le", 16000),
    ("au", "pcm_s16be", 8000),
    ("flac", "flac", 44100),
    ("ogg", "flac", 44100),
    ("ogg", "libopus", 48000),
    ("webm", "libopus", 48000),
    ("matroska", "aac", 48000),
    ("matroska", "pcm_s16le", 16000),
    ("mp3", "libmp3lame", 44100),
    ("mp3", "libmp3lame", 24000),
    ("mp2", "mp2", 44100),
    ("ipod", "aac", 44100),
    ("mp4", "aac", 24000),
    ("mp4", "alac", 16000),
    ("mov", "pcm_s16le", 48000),
    ("3gp", "aac", 16000),
    ("adts", "aac", 44100),
    ("mpegts", "aac", 48000),
    ("flv", "aac", 44100),
    ("avi", "pcm_s16le", 16000),
    ("amr", "libopencore_amrnb", 8000),
    ("ac3", "ac3", 48000),
    ("tta", "tta", 44100),
    ("wv", "wavpack", 16000),
]


@pytest.mark.parametrize("seconds", [0.1, 1.37])
@pytest.mark.parametrize(("container", "codec", "rate"), INTACT)
def test_an_intact_file_has_no_warning(container: str, codec: str, rate: int, seconds: float) -> None:
    """Bursts of noise, which encoders with blocks of two lengths write as both."""
    random = np.random.default_rng(int(10 * seconds))
    sound = 0.02 * random.standard_normal(max(1, round(rate * seconds)))
    sound *= 1 + 20 * (random.random(len(sound)) < 0.001)
    decoded = decode(encode(sound.astype(np.float32), rate, container, codec))
    assert decoded.warnings == ()
    assert decoded.duration == pytest.approx(seconds, abs=0.17)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("aiff", "pcm_s16be"),
        ("ipod", "aac"),
        ("mov", "pcm_s16le"),
        ("mp4", "alac"),
        ("flv", "aac"),
        ("tta", "tta"),
        ("wav", "pcm_s16le"),
        ("wav", "adpcm_ima_wav"),
        ("caf", "pcm_s16le"),
        ("w64", "pcm_s16le"),
        ("au", "pcm_s16be"),
        ("flac", "flac"),
        ("mp3", "libmp3lame"),
        ("ogg", "libopus"),
        ("matroska", "flac"),
        ("adts", "aac"),
    ],
)
def test_two_concatenated_files_are_decoded_whole_or_with_a_warning(container: str, codec: str) -> None:
    rate = 48000 if codec == "libopus" else 44100
    one = decode(encode(sine(rate, 2.0), rate, container, codec)).duration
    decoded = decode(2 * encode(sine(rate, 2.0), rate, container, codec))
    assert decoded.duration > 1.9 * one or decoded.warnings


def test_a_wav_file_whose_header_states_less_is_read_whole(tmp_path: Path) -> None:
    content = pcm16(sine(16000, 11.0), size=32000)
    (tmp_path / "short.wav").write_bytes(content)
    for source in (content, tmp_path / "short.wav", io.BytesIO(content)):
        decoded = decode(source)
        assert decoded.duration == 11.0
        assert error_to_sine(decoded.audio) < 1e-3
        (warning,) = decoded.warnings
        assert "states 1.0 s" in warning
        assert "holds 11.0 s" in warning
    assert probe(content).duration == 11.0
    twice = pcm16(sine(16000, 2.0)) + pcm16(sine(16000, 3.0))
    decoded = decode(twice)
    assert decoded.duration == 5.0
    assert error_to_sine(decoded.audio) < 1e-3
    assert any("2 WAV files" in warning for warning in decoded.warnings)


@pytest.mark.parametrize("samples", [1, 2])
def test_sound_of_less_than_a_sample_is_too_short(samples: int) -> None:
    content = wav(struct.pack("<HHIIHH", 1, 1, 192000, 384000, 2, 16), b"\x10\x20" * samples)
    with pytest.raises(InvalidAudio, match=f"too short to hold speech: it has {samples} samples"):
        decode(content)


# ---- how long it may be


def test_a_file_that_states_more_than_it_may_last_is_refused_before_it_is_decoded() -> None:
    content = hours_of_silence(100)
    assert len(content) < 100_000
    calls: list[float] = []
    for attempt in (
        lambda: probe(content, max_seconds=43200),
        lambda: decode(content, max_seconds=43200, progress=calls.append),
    ):
        with pytest.raises(AudioTooLong, match=r"lasts 100.0 hours; audio may last 12.0 hours \(MAX_AUDIO_SECONDS\)"):
            attempt()
    assert calls == []
    assert probe(content).duration == 360_000


def test_a_file_with_a_false_length_is_refused_where_it_passes_the_bound() -> None:
    content = without_length(hours_of_silence(20))
    assert probe(content, max_seconds=3600).duration is None
    calls: list[float] = []
    memory = AudioMemory(64 << 20)
    with pytest.raises(AudioTooLong, match=r"more than 3600\.0 s"):
        decode(content, max_seconds=3600, progress=calls.append, memory=memory)
    assert calls[-1] < 0.5
    gc.collect()
    assert memory.used == 0


@pytest.mark.parametrize(("container", "codec", "rate"), INTACT)
def test_every_kind_of_file_is_held_to_the_bound(container: str, codec: str, rate: int) -> None:
    content = encode(sine(rate, 5.0), rate, container, codec)
    with pytest.raises(AudioTooLong):
        decode(content, max_seconds=4.0)
    assert decode(content, max_seconds=6.0).duration == pytest.approx(5.0, abs=0.17)
    started = decode(content, stop_at=2.0)
    assert started.duration == 2.0
    assert started.warnings == ()
    assert decode(content, stop_at=6.0, max_seconds=6.0).duration == pytest.approx(5.0, abs=0.17)


def test_a_guess_of_the_length_refuses_nothing() -> None:
    """An MP3 without a count of its frames that begins quietly: by its first bit rate it would be much longer."""
    quiet = encode(np.zeros(16000 * 3, np.float32), 16000, "mp3", "libmp3lame", write_xing="0", id3v2_version="0")
    loud = encode(sine(16000, 1.0), 16000, "mp3", "libmp3lame", write_xing="0", id3v2_version="0")
    content = quiet + loud * 3
    assert decode(content, max_seconds=10.0).duration < 10.0
    probe(content, max_seconds=1.0)


def test_a_header_that_states_more_than_the_file_is_long_refuses_nothing() -> None:
    """A recorder that was switched off: its header states 18 hours."""
    content = pcm16(sine(16000, 1.0), size=0x7FFE0000)
    assert probe(content, max_seconds=43200).duration == pytest.approx(1.0, abs=0.01)
    assert decode(content, max_seconds=43200).duration == 1.0


def test_a_hole_counts_and_is_not_put_in_beyond_the_bound() -> None:
    sound = click(48000, 2.0, at=0.5)
    content = encode(sound, 48000, "matroska", "libopus", pieces=[(0, 48000, 0), (48000, 96000, 3000 * 48000)])
    assert decode(content).duration == pytest.approx(3001, abs=1)
    with pytest.raises(AudioTooLong):
        decode(content, max_seconds=2000.0)
    tracemalloc.start()
    try:
        assert decode(content, stop_at=10.0).duration == 10.0
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_an_array_is_held_to_the_bound() -> None:
    for audio in (sine(16000, 5.0), (sine(16000, 5.0) * 32767).astype(np.int16)):
        with pytest.raises(AudioTooLong, match=r"the array lasts 5\.0 s"):
            decode(audio, max_seconds=4.0)
        assert decode(audio, stop_at=2.0).duration == 2.0


def test_beyond_the_memory_the_audio_is_the_same(tmp_path: Path) -> None:
    content = encode(click(44100, 200.0, at=150.0), 44100, "flac", "flac")
    memory = AudioMemory(1 << 20, tmp_path)
    for source in (content, sine(16000, 200.0).astype(np.float64)):
        mapped = decode(source, memory=memory).audio
        assert not mapped.flags.owndata
        np.testing.assert_array_equal(mapped, decode(source).audio)
    assert list(tmp_path.iterdir()) == []


# ---- damage


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("wav", "pcm_s16le", 16000),
        ("aiff", "pcm_s16be", 16000),
        ("flac", "flac", 16000),
        ("mp3", "libmp3lame", 16000),
        ("ogg", "libopus", 48000),
        ("webm", "libopus", 48000),
        ("flv", "aac", 44100),
    ],
)
def test_a_file_that_is_cut_short_gives_what_is_there(container: str, codec: str, rate: int) -> None:
    content = encode(sine(rate, 4.0), rate, container, codec)
    decoded = decode(content[: round(0.6 * len(content))])
    assert 1.5 < decoded.duration < 2.8
    assert any("cut short" in warning for warning in decoded.warnings)
    assert decode(content).warnings == ()


def test_an_mp4_without_its_index_says_so() -> None:
    content = encode(sine(16000, 2.0), 16000, "ipod", "aac")
    with pytest.raises(InvalidAudio, match=r"found an MP4, M4A or MOV file, perhaps cut short"):
        decode(content[: len(content) // 2])


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("mp3", "libmp3lame"), ("flac", "flac")])
def test_damage_in_the_middle_does_not_move_the_rest(container: str, codec: str) -> None:
    content = bytearray(encode(click(16000, 6.0, at=5.0), 16000, container, codec))
    middle = len(content) // 2
    content[middle : middle + 300] = np.random.default_rng(0).integers(0, 256, 300, np.uint8).tobytes()
    decoded = decode(bytes(content))
    assert decoded.warnings
    assert place_of_click(decoded.audio) == pytest.approx(5.0, abs=0.3 if container == "mp3" else 0.03)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("mp4", "aac"), ("matroska", "flac"), ("mpegts", "aac"), ("mp3", "libmp3lame")],
)
def test_no_damage_raises_anything_but_invalid_audio(container: str, codec: str) -> None:
    random = np.random.default_rng(len(container))
    content = encode(sine(16000, 1.0), 16000, container, codec, video_seconds=1.0 if container == "mpegts" else 0.0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(content)
        reach = 400 if random.random() < 0.5 else len(damaged)
        for place in random.integers(0, reach, random.integers(1, 40)):
            damaged[place] = random.integers(256)
        try:
            decoded = decode(bytes(damaged))
            assert np.isfinite(decoded.audio).all()
            outcomes.add("decoded")
        except InvalidAudio:
            outcomes.add("refused")
    assert "decoded" in outcomes


def test_a_header_that_claims_ten_hours_allocates_nothing() -> None:
    content = pcm16(sine(16000, 1.0), size=10 * 3600 * 32000)
    decoded, peak = measured(content)
    assert decoded.duration == 1.0
    assert peak < 20e6
    assert any("36000.0 s" in warning and "cut short" in warning for warning in decoded.warnings)


def test_a_sample_rate_of_one_hertz_is_refused() -> None:
    for attempt in (decode, probe):
        with pytest.raises(InvalidAudio, match="1 Hz"):
            attempt(pcm16(sine(16000, 1.0), rate=1))


def test_numbers_that_are_not_finite_become_zero() -> None:
    samples = sine(16000, 1.0).astype("<f4")
    samples[5000:5010] = np.nan
    samples[7000] = np.inf
    decoded = decode(wav(struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32), samples.tobytes()))
    assert np.isfinite(decoded.audio).all()
    assert any("not finite" in warning for warning in decoded.warnings)


# ---- what is not sound


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"Dear all,\nplease find the recording attached.\n", "is text, not audio"),
        ("Les mots d'été…".encode(), "is text"),
        ("notes".encode("utf-16"), "is text"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n/etc/passwd\n", "a playlist"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "is text"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "a PNG image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 64, "a JPEG image"),
        (b"%PDF-1.7\n\x93\x8c", "a PDF document"),
        (b"PK\x03\x04" + b"\0" * 64, "a ZIP archive"),
        (b"MThd\0\0\0\x06" + b"\0" * 64, "a MIDI file"),
        (b"RIFF\x24\0\0\0WAVE", "found a WAV file"),
        (b"\x01\x02\x03\x04" * 500, "unknown data"),
    ],
)
def test_a_file_that_is_no_audio_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "upload.bin"
    path.write_bytes(content)
    for attempt in (decode, probe):
        streamed: Any = Unseekable(content)
        for source in (content, path, streamed):
            with pytest.raises(InvalidAudio, match=message):
                attempt(source)


def test_a_video_without_sound_is_named() -> None:
    with io.BytesIO() as file:
        with av.open(file, "w", format="mp4") as output:
            picture: Any = output.add_stream("mpeg4", rate=10)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
            for _ in range(5):
                output.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
            output.mux(picture.encode(None))
        content = file.getvalue()
    for attempt in (decode, probe):
        with pytest.raises(InvalidAudio, match=r"has no sound.*picture \(mpeg4\)"):
            attempt(content)


@pytest.mark.parametrize("tag", [b"enca", b"drms"])
def test_encrypted_sound_is_named(tag: bytes) -> None:
    content = encode(sine(16000, 1.0), 16000, "ipod", "aac").replace(b"mp4a", tag, 1)
    with pytest.raises(InvalidAudio, match="encrypted"):
        decode(content)


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidAudio, match="is a directory"):
        decode(tmp_path)
    with pytest.raises(InvalidAudio, match="no such file") as raised:
        decode(str(tmp_path / "missing.wav"))
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    with pytest.raises(InvalidAudio, match="no such file"):
        decode("http://127.0.0.1/sound.wav")
    number: Any = 3
    with pytest.raises(InvalidAudio, match="int is not audio"):
        decode(number)
    text: Any = io.StringIO("text")
    with pytest.raises(InvalidAudio, match="binary mode"):
        decode(text)


# ---- kinds of source


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    content = encode(click(44100, 2.0, at=1.0), 44100, "mp3", "libmp3lame")
    path = tmp_path / "concat:naïve %03d.mp3"
    path.write_bytes(content)
    expected = decode(content).audio
    ended = io.BytesIO(content)
    ended.seek(0, os.SEEK_END)
    with path.open("rb") as opened:
        for source in (str(path), path, bytearray(content), memoryview(content), io.BytesIO(content), ended, opened):
            assert np.array_equal(decode(source).audio, expected)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("flac", "flac"), ("adts", "aac"), ("ipod", "aac"), ("matroska", "aac"), ("ogg", "flac")],
)
def test_a_stream_that_cannot_seek_gives_the_same(container: str, codec: str) -> None:
    content = encode(click(16000, 8.0, at=1.0), 16000, container, codec)
    streamed: Any = Unseekable(content)
    assert np.array_equal(decode(streamed).audio, decode(content).audio)


def test_probe_tells_the_header_and_leaves_the_file_as_it_was() -> None:
    sound = np.stack([sine(48000, 2.0)] * 6)
    file = io.BytesIO(encode(sound, 48000, "flac", "flac", layout="5.1"))
    assert probe(file) == AudioInfo("flac", "flac", 48000, 6, 2.0)
    assert file.tell() == 0


def test_an_array_is_used_unchanged() -> None:
    audio = sine(16000, 1.0)
    decoded = decode(audio)
    assert decoded.audio is audio or np.shares_memory(decoded.audio, audio)
    assert decoded.shared
    assert probe(audio) == AudioInfo("array", "float32", SAMPLE_RATE, 1, 1.0)
    for same in (audio[None, :], audio.astype(np.float64), audio.astype(">f4"), np.repeat(audio, 2)[::2]):
        np.testing.assert_array_equal(decode(same).audio, audio)
    whole = (audio * 32768).astype(np.int16)
    np.testing.assert_array_equal(decode(whole).audio, whole / np.float32(32768))
    assert not decode(whole).shared


def test_an_array_that_is_not_finite_is_copied_and_mended() -> None:
    audio = sine(16000, 1.0)
    audio[[3, 9]] = np.nan, -np.inf
    decoded = decode(audio)
    assert not decoded.shared
    assert np.isnan(audio[3])
    assert decoded.audio[3] == decoded.audio[9] == 0.0
    assert any("2 samples" in warning for warning in decoded.warnings)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 100), np.float32), "not mono"),
        (np.zeros((100, 1), np.float32), "not mono"),
        (np.zeros((), np.float32), "not mono"),
        (np.zeros(100, np.int32), "int32"),
        (np.zeros(100, np.complex64), "complex64"),
        (np.zeros(0, np.float32), "empty"),
    ],
)
def test_an_array_of_another_kind_is_refused_with_advice(array: NDArray[Any], message: str) -> None:
    with pytest.raises(InvalidAudio, match=message) as raised:
        decode(array)
    assert "16 kHz" in str(raised.value)


def test_float_samples_that_were_never_scaled_are_warned_about() -> None:
    assert any("scaled" in warning for warning in decode(sine(16000, 1.0) * 32768).warnings)


# ---- conduct


def test_cancellation_and_progress() -> None:
    content = encode(sine(16000, 30.0), 16000, "flac", "flac")
    seen: list[float] = []
    calls: list[int] = []
    decode(content, check=lambda: calls.append(1), progress=seen.append)
    assert len(calls) >= 10
    assert seen == sorted(seen)
    assert 0.0 <= seen[0] < 0.2
    assert seen[-1] == 1.0

    class Stop(Exception):
        pass

    def stop() -> None:
        if len(calls) > 20:
            raise Stop
        calls.append(1)

    calls.clear()
    with pytest.raises(Stop):
        decode(content, check=stop)


def test_threads_do_not_disturb_each_other() -> None:
    contents = [
        encode(sine(rate, 3.0, hertz), rate, container, codec)
        for container, codec, rate, hertz in (
            ("flac", "flac", 44100, 300.0),
            ("mp3", "libmp3lame", 16000, 500.0),
            ("ipod", "aac", 48000, 700.0),
            ("webm", "libopus", 48000, 900.0),
        )
    ]
    alone = [decode(content).audio for content in contents]
    barrier = threading.Barrier(4)

    def together(content: bytes) -> list[Signal]:
        barrier.wait()
        return [decode(content).audio for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(alone, pool.map(together, contents), strict=True):
            assert all(np.array_equal(expected, audio) for audio in found)


def measured(content: bytes) -> tuple[Decoded, int]:
    """The result, and the most bytes that Python and NumPy held on the way to it."""
    decode(pcm16(sine(16000, 0.1)))
    tracemalloc.start()
    try:
        return decode(content), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_the_decoded_array_and_a_constant(tmp_path: Path) -> None:
    path = tmp_path / "quarter.wav"
    path.write_bytes(wav(struct.pack("<HHIIHH", 7, 1, 8000, 8000, 1, 8), bytes(8000 * 900)))
    # The peak of a process of its own: tracemalloc counts an array that grows in place twice, from Python 3.13 on.
    code = (
        "import resource, sys\n"
        "from whisper_api.engine.audio.decode import decode\n"
        "unit = 1 if sys.platform == 'darwin' else 1024\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit\n"
        "decode(open(sys.argv[1], 'rb').read(80_000))\n"
        "before = peak()\n"
        "decoded = decode(sys.argv[1])\n"
        "assert decoded.duration == 900.0\n"
        "print(peak() - before - decoded.audio.nbytes)\n"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert int(found.stdout) < 10e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_decoding_again_and_again_keeps_nothing() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    contents = [
        encode(sine(44100, 1.0), 44100, container, codec)
        for container, codec in (("mp3", "libmp3lame"), ("ipod", "aac"), ("flac", "flac"))
    ]
    gc.collect()
    gc.disable()
    try:
        for content in contents * 20:
            decode(content)
        before = resident()
        for content in contents * 100:
            decode(content)
        assert resident() - before < 20e6
    finally:
        gc.enable()


# --- streams without an end


class Endless:
    """A live stream of a format that may need its end first: gives blocks for ever."""

    def __init__(self) -> None:
        self.given = 0

    def read(self, size: int) -> bytes:
        self.given += size
        return b"ftyp" * (size // 4)


class Stop(Exception):
    """Ends the work, as a canceled job does."""


def stop() -> None:
    raise Stop


@pytest.mark.parametrize("call", [decode, probe])
def test_a_stream_without_an_end_is_refused_at_the_bytes_of_the_longest_recording(
    call: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_file, "MOST_HEADER_BYTES", 1 << 20)
    monkeypatch.setattr(input_file, "MOST_BYTES_PER_SECOND", 1 << 20)
    stream: Any = Endless()
    with pytest.raises(AudioTooLong, match="not ended: give a stream that ends, or the path"):
        call(stream, max_seconds=2.0)
    assert stream.given <= 5 << 20


def test_a_check_ends_the_reading_of_a_stream_without_an_end() -> None:
    stream: Any = Endless()
    with pytest.raises(Stop):
        decode(stream, check=stop)
    assert stream.given <= 2 << 20


@pytest.mark.skipif(not hasattr(select, "poll"), reason="a pipe cannot be waited for")
@pytest.mark.parametrize("content", [b"", b"ftyp", b"RIFF"])
@pytest.mark.parametrize("buffering", [0, -1])
def test_a_check_ends_the_reading_of_a_pipe_that_gives_no_more(content: bytes, buffering: int) -> None:
    reader, writer = os.pipe()
    os.write(writer, content)
    # The pipe stays open: a read would wait for ever.
    with os.fdopen(writer, "wb"), os.fdopen(reader, "rb", buffering) as pipe, pytest.raises(Stop):
        decode(pipe, check=stop)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="writes to /dev/full")
def test_a_full_disk_names_the_stream_that_fills_it() -> None:
    class Full(AudioMemory):
        def temporary_file(self) -> IO[bytes]:
            return Path("/dev/full").open("wb", buffering=0)

    stream: Any = Endless()
    with pytest.raises(StorageFull, match=r"for a copy of the file object, .* or the path of a file"):
        decode(stream, memory=Full())
