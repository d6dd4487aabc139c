"""Decode: anything libav reads becomes mono 16 kHz float32, in this process, through PyAV.

Times are those of the file as a player shows it: zero is the earliest time stamp of its sound or picture. Sound that
begins later is preceded by silence, and holes of more than a tenth of a second in the time stamps are filled with it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.source import AudioSource, opened
from whisper_api.engine.audio.timeline import PacketReader, Timeline, seconds, value_warnings
from whisper_api.engine.audio.track import AudioMemory, Samples, Track
from whisper_api.engine.audio.tracks import audio_stream
from whisper_api.errors import AudioTooLong, InvalidAudio
from whisper_api.schema import SAMPLE_RATE

__all__ = ["SAMPLE_RATE", "AudioInfo", "AudioInput", "Decoded", "decode", "probe"]

AudioInput = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, NDArray[Any]]
PROBE_PACKETS = 1000
# Samples of an array that are converted at a time.
BLOCK = 1 << 20
# Playlists, subtitles, images and devices are not here: some of them make libav open other files or addresses.
CONTAINERS = (
    "3g2 3gp aa aac aax ac3 ac4 act aea aiff amr amrnb amrwb apac ape apc asf asf_o ast au avi avr bonk caf "
    "codec2 dsf dss dts dtshd dv eac3 epaf flac flv gsm gxf hca hcom iff ilbc ircam iss kux lc3 live_flv lmlm4 "
    "loas lvf m4v matroska mca mlp mmf mov mp3 mp4 mpc mpc8 mpeg mpegts msf mtv mxf nistsphere nsv nut ogg oma "
    "osq paf pva pvf qcp qoa rka rm rso sbc sds shn siff smjpeg sol sox spdif swf tak truehd tta txd voc vqf "
    "w64 wav wavarc webm wsd wtv wv wve xa xwma"
).replace(" ", ",")
STATES_LENGTH = frozenset(["wav", "w64", "aiff", "caf", "flac", "asf", "flv", "avi", "au", "mp4", "matroska"])
# Containers in which a second file can stand behind the first, where libav never looks: what the second begins with.
BEGINNINGS = {
    "aiff": re.compile(rb"FORM....AIF[FC]", re.DOTALL),
    "flv": re.compile(rb"FLV\x01[\x01\x04\x05]\0\0\0\x09"),
    "mp4": re.compile(rb"\0\0\0[\x08-\xff]ftyp[ -~]{4}"),
    "tta": re.compile(rb"TTA1\x01\0"),
}


@dataclass(frozen=True)
class Decoded:
    """What :func:`decode` gives.

    Attributes:
        audio: float32, shape (samples,), mono at 16 kHz, C-contiguous; full scale is -1 to 1.
        warnings: what was not as it should be, one sentence each.
        container, codec: libav's names for them; ``array`` and the type's name for an array.
        source_sample_rate: samples per second before resampling.
        channels: before the mix to mono.
        shared: True when ``audio`` is the caller's own array.
    """

    audio: Samples
    warnings: tuple[str, ...]
    container: str
    codec: str
    source_sample_rate: int
    channels: int
    shared: bool = False

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.audio) / SAMPLE_RATE


@dataclass(frozen=True)
class AudioInfo:
    """What :func:`probe` gives.

    Attributes:
        container, codec: libav's names for them.
        sample_rate: samples per second.
        channels: of the stream that would be decoded.
        duration: seconds, as the header states or the size suggests; None when neither tells.
    """

    container: str
    codec: str
    sample_rate: int
    channels: int
    duration: float | None


def decode(
    source: AudioInput,
    *,
    check: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
    audio_track: int | None = None,
    max_seconds: float | None = None,
    stop_at: float | None = None,
    memory: AudioMemory | None = None,
) -> Decoded:
    """Decode a file to mono 16 kHz float32.

    The mix to mono and the resampling are libswresample's, with its coefficients normalised so that full scale stays
    full scale. Damaged packets are left out, a file that is cut short gives what can be read; ``warnings`` tells so.

    Args:
        source: a path; the file's bytes; a binary file object; or an array, mono at 16 kHz, of shape (samples,) or
            (1, samples), float32 or float64 of full scale -1 to 1, or int16. A contiguous float32 array of finite
            values is not copied. A seekable file object is read from its beginning. One that cannot seek is read as
            it comes where the format allows that (WAV, MP3, FLAC, Ogg, WebM, ADTS, MPEG-TS ...); the encoded bytes of
            other formats, MP4 first of all, are held in memory, since they may need their end before their beginning.
        check: called about once for each second of audio; what it raises ends the decoding.
        progress: called as often with the part that is done, 0 to 1, where the length is known.
        audio_track: which of several audio streams, counted from 1; None for the one that the file marks as default,
            else the first.
        max_seconds: how long the audio may be; None for any length. A file that states more is refused before it is
            decoded, and decoding ends as soon as there is more.
        stop_at: seconds that are enough: decoding ends there without an error. None for the whole file.
        memory: the budget of decoded audio; None to keep all of it in memory.

    Raises:
        InvalidAudio: the source is not audio that can be decoded; the message says what was found.
        AudioTooLong: it lasts longer than ``max_seconds``.
        InvalidOption: the file has no such ``audio_track``.
        StorageFull, StorageError: the decoded audio finds no room on the disk.
    """
    check = check or _nothing
    if isinstance(source, np.ndarray):
        return _from_array(source, max_seconds, stop_at, memory)
    with opened(source, check) as data:
        layout = data.wav
        data.splice()
        with _container(data) as container:
            stream, warnings = audio_stream(container, data, audio_track)
            stated = _stated_seconds(container, stream, data)
            _refuse_longer(data.name, _bounding_seconds(container, stream, data, stated), max_seconds)
            reader = PacketReader(container, stream)
            # As every length here: the shorter of the two that were asked for.
            most = min((each for each in (max_seconds, stop_at) if each is not None), default=None)
            with contextlib.closing(Timeline(container, stream, memory, most)) as timeline:
                tick = 0.0
                for packets, frame in enumerate(reader):
                    if frame is not None:
                        timeline.add(frame, lost=reader.take_lost())
                    if timeline.clock - tick >= 1.0 or packets % 256 == 255:
                        tick = timeline.clock
                        check()
                        timeline.drain()
                        if progress and (part := _part(reader, data, timeline, stated)) is not None:
                            progress(part)
                    if most is not None and timeline.clock > most:
                        if stop_at is None or stop_at > most:
                            _refuse_longer(data.name, timeline.clock, max_seconds, decoded=True)
                        break
                audio = timeline.finish()
                if not len(audio):
                    raise InvalidAudio(_nothing_decoded(data, stream, reader))
                if progress:
                    progress(1.0)
                warnings += reader.warnings() + timeline.warnings()
                if stop_at is not None and timeline.clock > stop_at:
                    audio = audio[: round(stop_at * SAMPLE_RATE)]
                else:
                    if layout is not None:
                        warnings += layout.warnings
                    warnings += _unread_warnings(container, data, reader, timeline, stated)
            return Decoded(
                audio=audio,
                warnings=tuple(warnings),
                container=container.format.name,
                codec=stream.codec_context.name,
                source_sample_rate=timeline.first_rate,
                channels=timeline.first_channels,
            )


def probe(source: AudioInput, *, audio_track: int | None = None, max_seconds: float | None = None) -> AudioInfo:
    """Tell what a file is, having decoded no more of it than its first sound.

    A file object that can seek is left at its beginning, so that it can be decoded next; one that cannot is used up.

    Args:
        source, audio_track: as for :func:`decode`.
        max_seconds: how long the audio may be, as its header states it; None for any length.

    Raises:
        InvalidAudio: as :func:`decode` raises it, but for damage that comes later in the file.
        AudioTooLong: the file states more than ``max_seconds``.
        InvalidOption: the file has no such ``audio_track``.
    """
    if isinstance(source, np.ndarray):
        audio = _from_array(source, max_seconds)
        return AudioInfo(audio.container, audio.codec, SAMPLE_RATE, 1, audio.duration)
    with opened(source, _nothing) as data:
        data.splice()
        with _container(data) as container:
            stream, _ = audio_stream(container, data, audio_track)
            stated = _stated_seconds(container, stream, data)
            bound = _bounding_seconds(container, stream, data, stated)
            _refuse_longer(data.name, bound, max_seconds)
            reader = PacketReader(container, stream)
            with contextlib.closing(Timeline(container, stream, most=1.0)) as timeline:
                for packets, frame in enumerate(reader):
                    if frame is not None and frame.samples:
                        timeline.add(frame, lost=0.0)
                        break
                    if packets >= PROBE_PACKETS:
                        raise InvalidAudio(_nothing_decoded(data, stream, reader))
                else:
                    raise InvalidAudio(_nothing_decoded(data, stream, reader))
            duration = bound if container.format.name == "wav" else stated
            if duration is None:
                duration = seconds(stream.duration, stream.time_base) or seconds(container.duration, 1e-6)
            return AudioInfo(
                container.format.name,
                stream.codec_context.name,
                timeline.first_rate,
                timeline.first_channels,
                duration,
            )


def _nothing() -> None:
    return None


@contextlib.contextmanager
def _container(data: AudioSource) -> Iterator[Any]:
    import av
    from av.error import FFmpegError

    try:
        # No protocol is allowed: a hostile file cannot make libav open anything but these bytes.
        container = av.open(
            data,
            mode="r",
            metadata_errors="replace",
            buffer_size=1 << 18,
            container_options={
                "format_whitelist": CONTAINERS,
                "protocol_whitelist": "none",
                # In WAV libav looks through many packets for DTS that passes for PCM, which takes ten times as long.
                **({"max_probe_packets": "2"} if data.head[8:12] == b"WAVE" else {}),
            },
        )
    except FFmpegError as error:
        found = data.found()
        if found.startswith("an MP4") and b"moov" not in data.head:
            found += ", perhaps cut short before its index"
        raise InvalidAudio(f"{data.name} cannot be read as audio: found {found} ({error.strerror})") from error
    with container:
        try:
            yield container
        except FFmpegError as error:
            raise InvalidAudio(f"{data.name} cannot be decoded: {error.strerror}") from error


def _stated_seconds(container: Any, stream: Any, data: AudioSource) -> float | None:
    """The length that the header states, from the file's zero; None where libav would only guess it from the size."""
    name = container.format.name
    rate = stream.codec_context.sample_rate
    if name == "mp3":
        frames = data.xing_frames()
        return frames * (1152 if rate >= 32000 else 576) / rate if frames and rate else None
    if STATES_LENGTH.isdisjoint(name.split(",")):
        return None
    if name == "wav":
        return data.wav.stated if data.wav is not None else None
    return seconds(container.duration, 1e-6)


def _bounding_seconds(container: Any, stream: Any, data: AudioSource, stated: float | None) -> float | None:
    """The length that a file is refused for; None where libav only guesses, since a wrong guess must refuse nothing."""
    name = container.format.name
    if name == "wav":
        # A header may state hours before the recording that is broken off: no more can be there than the file is long.
        rate = (stream.codec_context.bit_rate or 0) / 8
        return min(stated, data.size / rate) if stated is not None and data.size is not None and rate else None
    if name == "ogg":  # the time stamp of its last page
        return seconds(container.duration, 1e-6)
    own = seconds(stream.duration, stream.time_base)
    return own if stated is not None and own is not None else stated


def _refuse_longer(name: str, length: float | None, max_seconds: float | None, *, decoded: bool = False) -> None:
    if length is None or max_seconds is None or length <= max_seconds:
        return
    lasts = f"more than {_hours(max_seconds)}" if decoded else _hours(length)
    raise AudioTooLong(
        f"{name} lasts {lasts}; audio may last {_hours(max_seconds)} (MAX_AUDIO_SECONDS): send it in parts"
    )


def _hours(length: float) -> str:
    return f"{length / 3600:.1f} hours" if length >= 7200 else f"{length:.1f} s"


def _unread_warnings(
    container: Any, data: AudioSource, reader: PacketReader, timeline: Timeline, stated: float | None
) -> list[str]:
    """What was not read of a file that was decoded to its end."""
    reached = max(timeline.clock, reader.reached)
    found = []
    if stated is not None and stated - reached > max(0.25, 0.001 * stated):
        found.append(
            f"the file states a length of {stated:.1f} s, of which {reached:.1f} s could be read: "
            "it is cut short or damaged"
        )
    elif stated is None and data.ends_inside_ogg_page():
        found.append(f"the file has no end mark: it seems cut short; {reached:.1f} s could be read")
    beginning = next((BEGINNINGS[name] for name in container.format.name.split(",") if name in BEGINNINGS), None)
    if beginning is not None and any(beginning.search(block) for block in data.following(reader.end, 16)):
        found.append("behind the sound is another file, which was left out: only the first one was read")
    return found


def _part(reader: PacketReader, data: AudioSource, timeline: Timeline, stated: float | None) -> float | None:
    if data.size:
        return min(1.0, reader.position / data.size)
    return min(1.0, timeline.clock / stated) if stated else None


def _nothing_decoded(data: AudioSource, stream: Any, reader: PacketReader) -> str:
    codec = stream.codec_context.name
    if not reader.packets:
        return f"{data.name} holds no sound: its audio stream ({codec}) is empty"
    if reader.samples:
        return f"{data.name} is too short to hold speech: it has {reader.samples} samples of sound"
    if not reader.damaged and not reader.broken_off:
        return f"{data.name} is too short to hold speech: its {reader.packets} packets ({codec}) give no samples"
    return f"no sound could be decoded from {data.name}: none of {reader.packets} packets ({codec}) is intact"


def _from_array(
    array: NDArray[Any],
    max_seconds: float | None = None,
    stop_at: float | None = None,
    memory: AudioMemory | None = None,
) -> Decoded:
    advice = "give mono audio at 16 kHz as float32 or float64 from -1 to 1, or as int16, of shape (samples,)"
    if array.ndim == 2 and array.shape[0] == 1:
        flat = array[0]
    elif array.ndim == 1:
        flat = array
    else:
        raise InvalidAudio(f"an array of shape {array.shape} is not mono: {advice}; average its channels first")
    if not flat.size:
        raise InvalidAudio(f"the array is empty: {advice}")
    kind = flat.dtype.newbyteorder("=")
    if kind not in (np.dtype(np.int16), np.dtype(np.float32), np.dtype(np.float64)):
        raise InvalidAudio(f"an array of {array.dtype} is not audio: {advice}")
    if stop_at is not None:
        flat = flat[: round(stop_at * SAMPLE_RATE)]
    _refuse_longer("the array", len(flat) / SAMPLE_RATE, max_seconds)
    track = Track(memory)
    shared = flat.dtype == np.float32 and flat.flags.c_contiguous
    if shared:
        shared = all(math.isfinite(float(np.abs(block).max())) for block in _blocks(flat))
    if shared:
        audio: Samples = flat
        peak = max(float(np.abs(block).max()) for block in _blocks(flat))
    else:
        with contextlib.closing(track), np.errstate(over="ignore"):
            for block in _blocks(flat):
                track.append(_as_float(block))
            audio, peak = track.finish(), track.peak
    return Decoded(
        audio=audio,
        warnings=tuple(value_warnings(track.not_finite, peak)),
        container="array",
        codec=str(array.dtype),
        source_sample_rate=SAMPLE_RATE,
        channels=1,
        shared=shared,
    )


def _blocks(samples: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK))


def _as_float(block: NDArray[Any]) -> Samples:
    floats: Samples = block.astype(np.float32)
    return floats / np.float32(32768.0) if block.dtype.kind == "i" else floats
