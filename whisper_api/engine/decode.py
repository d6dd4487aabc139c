"""Decode: anything libav reads becomes mono 16 kHz float32, in this process, through PyAV.

Times are those of the file as a player shows it: zero is the earliest time stamp of its sound or picture. Sound that
begins later is preceded by silence, and holes of more than a tenth of a second in the time stamps are filled with it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio_source import AudioSource, opened
from whisper_api.engine.timeline import (
    SAMPLE_RATE,
    PacketReader,
    Samples,
    Timeline,
    replace_not_finite,
    seconds,
    value_warnings,
)
from whisper_api.errors import InvalidAudio

__all__ = ["SAMPLE_RATE", "AudioInfo", "AudioInput", "Decoded", "decode", "probe"]

AudioInput = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, NDArray[Any]]
PROBE_PACKETS = 1000
# Playlists, subtitles, images and devices are not here: some of them make libav open other files or addresses.
CONTAINERS = (
    "3g2 3gp aa aac aax ac3 ac4 act aea aiff amr amrnb amrwb apac ape apc asf asf_o ast au avi avr bonk caf "
    "codec2 dsf dss dts dtshd dv eac3 epaf flac flv gsm gxf hca hcom iff ilbc ircam iss kux lc3 live_flv lmlm4 "
    "loas lvf m4v matroska mca mlp mmf mov mp3 mp4 mpc mpc8 mpeg mpegts msf mtv mxf nistsphere nsv nut ogg oma "
    "osq paf pva pvf qcp qoa rka rm rso sbc sds shn siff smjpeg sol sox spdif swf tak truehd tta txd voc vqf "
    "w64 wav wavarc webm wsd wtv wv wve xa xwma"
).replace(" ", ",")
STATES_LENGTH = frozenset(["wav", "w64", "aiff", "caf", "flac", "asf", "flv", "avi", "au", "mp4", "matroska"])
ENCRYPTED = (
    "enca",
    "drms",
    "aavd",
)  # sample entries of protected sound (ISO/IEC 14496-12, 8.12), and Audible's


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

    Raises:
        InvalidAudio: the source is not audio that can be decoded; the message says what was found.
    """
    check = check or _nothing
    if isinstance(source, np.ndarray):
        return _from_array(source)
    with opened(source, check) as data, _container(data) as container:
        stream, warnings = _audio_stream(container, data)
        timeline = Timeline(container, stream)
        reader = PacketReader(container, stream)
        stated = _stated_seconds(container, stream, data)
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
        audio = timeline.finish()
        if not len(audio):
            raise InvalidAudio(_nothing_decoded(data, stream, reader))
        if progress:
            progress(1.0)
        warnings += reader.warnings() + timeline.warnings()
        reached = max(timeline.clock, reader.reached)
        if stated is not None and stated - reached > max(0.25, 0.001 * stated):
            warnings.append(
                f"the file states a length of {stated:.1f} s, of which {reached:.1f} s could be read: "
                "it is cut short or damaged"
            )
        elif stated is None and data.ends_inside_ogg_page():
            warnings.append(f"the file has no end mark: it seems cut short; {reached:.1f} s could be read")
        return Decoded(
            audio=audio,
            warnings=tuple(warnings),
            container=container.format.name,
            codec=stream.codec_context.name,
            source_sample_rate=timeline.first_rate,
            channels=timeline.first_channels,
        )


def probe(source: AudioInput) -> AudioInfo:
    """Tell what a file is, having decoded no more of it than its first sound.

    A file object that can seek is left at its beginning, so that it can be decoded next; one that cannot is used up.

    Args:
        source: as for :func:`decode`.

    Raises:
        InvalidAudio: as :func:`decode` raises it, but for damage that comes later in the file.
    """
    if isinstance(source, np.ndarray):
        audio = _from_array(source)
        return AudioInfo(audio.container, audio.codec, SAMPLE_RATE, 1, audio.duration)
    with opened(source, _nothing) as data, _container(data) as container:
        stream, _ = _audio_stream(container, data)
        timeline = Timeline(container, stream)
        reader = PacketReader(container, stream)
        for packets, frame in enumerate(reader):
            if frame is not None and frame.samples:
                timeline.add(frame, lost=0.0)
                break
            if packets >= PROBE_PACKETS:
                raise InvalidAudio(_nothing_decoded(data, stream, reader))
        else:
            raise InvalidAudio(_nothing_decoded(data, stream, reader))
        duration = _stated_seconds(container, stream, data)
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


def _audio_stream(container: Any, data: AudioSource) -> tuple[Any, list[str]]:
    streams = list(container.streams.audio)
    if not streams:
        others = {stream.type: stream for stream in reversed(container.streams)}
        if "video" in others:
            codec = others["video"].codec_context
            kind = f"a picture ({codec.name})" if codec else "a picture"
            raise InvalidAudio(f"{data.name} has no sound: it holds only {kind}")
        raise InvalidAudio(f"{data.name} has no sound: found {data.found()} without an audio stream")
    usable = [stream for stream in streams if stream.codec_context and _tag(stream) not in ENCRYPTED]
    if not usable:
        tag = _tag(streams[0])
        reason = "is encrypted (DRM)" if tag in ENCRYPTED else "is in a codec that libav does not know"
        raise InvalidAudio(f"the sound of {data.name} {reason}")
    chosen = next(
        (stream for stream in usable if stream.disposition & stream.disposition.__class__.default),
        usable[0],
    )
    warnings = []
    if len(streams) > 1:
        language = f", {chosen.metadata['language']}" if "language" in chosen.metadata else ""
        warnings.append(
            f"the file has {len(streams)} audio streams: number {streams.index(chosen) + 1} "
            f"({chosen.codec_context.name}{language}) was used"
        )
    # Threads of a decoder bring nothing to audio, and a server has other work for the cores.
    chosen.codec_context.thread_count = 1
    return chosen, warnings


def _tag(stream: Any) -> str:
    try:
        return str(stream.codec_tag)
    except (
        AttributeError,
        UnicodeDecodeError,
    ):  # no decoder; a tag that is a number, as WAV's are
        return ""


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
        return data.wav_seconds()
    return seconds(container.duration, 1e-6)


def _part(reader: PacketReader, data: AudioSource, timeline: Timeline, stated: float | None) -> float | None:
    if data.size:
        return min(1.0, reader.position / data.size)
    return min(1.0, timeline.clock / stated) if stated else None


def _nothing_decoded(data: AudioSource, stream: Any, reader: PacketReader) -> str:
    codec = stream.codec_context.name
    if not reader.packets:
        return f"{data.name} holds no sound: its audio stream ({codec}) is empty"
    return f"no sound could be decoded from {data.name}: none of {reader.packets} packets ({codec}) is intact"


def _from_array(array: NDArray[Any]) -> Decoded:
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
    audio: Samples
    if kind == np.int16:
        audio = flat.astype(np.float32)
        audio /= 32768.0
    elif kind in (np.dtype(np.float32), np.dtype(np.float64)):
        with np.errstate(over="ignore"):
            audio = np.ascontiguousarray(flat, dtype=np.float32)
    else:
        raise InvalidAudio(f"an array of {array.dtype} is not audio: {advice}")
    not_finite, peak = 0, 0.0
    for start in range(0, len(audio), 1 << 20):
        block = audio[start : start + (1 << 20)]
        high = float(np.abs(block).max())
        if not math.isfinite(high):
            if np.shares_memory(audio, array):
                audio = audio.copy()
                block = audio[start : start + (1 << 20)]
            not_finite += replace_not_finite(block)
            high = float(np.abs(block).max())
        peak = max(peak, high)
    return Decoded(
        audio=audio,
        warnings=tuple(value_warnings(not_finite, peak)),
        container="array",
        codec=str(array.dtype),
        source_sample_rate=SAMPLE_RATE,
        channels=1,
        shared=np.shares_memory(audio, array),
    )
