"""libav reads one file, through PyAV. Runs in the decoder process, which hostile files may bring down."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from whisper_api.engine.audio.messages import Finished, Request
from whisper_api.engine.audio.source import AudioSource
from whisper_api.engine.audio.timeline import PacketReader, Timeline, seconds
from whisper_api.engine.audio.track import ReserveTrack, Track
from whisper_api.errors import AudioTooLong, InvalidAudio, InvalidOption
from whisper_api.schema import SAMPLE_RATE

Progress = Callable[[float, int, float | None], None]
"""Called about once for each second of audio: seconds of audio, bytes of the file, the part done (0 to 1) or None."""
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
# Containers in which a second file can stand behind the first, where libav never looks: what the second begins with.
BEGINNINGS = {
    "aiff": re.compile(rb"FORM....AIF[FC]", re.DOTALL),
    "flv": re.compile(rb"FLV\x01[\x01\x04\x05]\0\0\0\x09"),
    "mp4": re.compile(rb"\0\0\0[\x08-\xff]ftyp[ -~]{4}"),
    "tta": re.compile(rb"TTA1\x01\0"),
}
# Sample entries of protected sound (ISO/IEC 14496-12, 8.12), and Audible's.
ENCRYPTED = ("enca", "drms", "aavd")
NAMED = 20


def decode_file(source: AudioSource, request: Request, reserve: ReserveTrack, progress: Progress) -> Finished:
    """Decode one audio stream to mono 16 kHz float32.

    The resampling and the mix of stereo are libswresample's, with its coefficients normalised so that full scale stays
    full scale; :class:`~whisper_api.engine.audio.mix.Mixer` mixes other layouts. Damaged packets are left out, and a
    file that is cut short gives what can be read; warnings say so.

    Args:
        source: the file.
        request: which stream, and how much of it.
        reserve: makes room for the samples of a track: 0 is the mix, 1 the first channel ...
        progress: called as the decoding advances.

    Raises:
        InvalidAudio, AudioTooLong, InvalidOption, StorageFull, StorageError: see
            :func:`whisper_api.engine.audio.decode.decode`.
        MemoryError: the file needs more memory than there is.
    """
    layout = source.wav
    source.splice()
    with _container(source) as container:
        stream, warnings = _audio_stream(container, source, request.audio_track)
        stated = _stated_seconds(container, stream, source)
        refuse_longer(source.name, _bounding_seconds(container, stream, source, stated), request.max_seconds)
        reader = PacketReader(container, stream)
        limits = [limit for limit in (request.max_seconds, request.stop_at) if limit is not None]
        shortest = min(limits, default=None)
        track = Track(functools.partial(reserve, 0))
        timeline = Timeline(
            container,
            stream,
            track,
            shortest,
            request.channels,
            lambda number: Track(functools.partial(reserve, 1 + number)),
        )
        tick = 0.0
        for packets, frame in enumerate(reader):
            if frame is not None:
                timeline.add(frame, lost=reader.take_lost())
            if timeline.clock - tick >= 1.0 or packets % 256 == 255:
                tick = timeline.clock
                timeline.drain()
                progress(tick, reader.position, _part(reader, source, timeline, stated))
            if shortest is not None and timeline.clock > shortest:
                if request.stop_at is None or request.stop_at > shortest:
                    refuse_longer(source.name, timeline.clock, request.max_seconds, decoded=True)
                break
        timeline.finish()
        samples = track.size
        if not samples:
            raise InvalidAudio(_nothing_decoded(source, stream, reader))
        warnings += reader.warnings() + timeline.warnings()
        if request.stop_at is not None and timeline.clock > request.stop_at:
            samples = min(samples, round(request.stop_at * SAMPLE_RATE))
        else:
            if layout is not None:
                warnings += layout.warnings
            warnings += _unread_warnings(container, source, reader, timeline, stated)
        return Finished(
            container=container.format.name,
            codec=stream.codec_context.name,
            sample_rate=timeline.first_rate,
            channels=timeline.first_channels,
            samples=samples,
            tracks=1 + len(timeline.channel_tracks),
            warnings=tuple(warnings),
            mix_warnings=tuple(timeline.mix_warnings()),
        )


def probe_file(source: AudioSource, request: Request) -> Finished:
    """Decode no more of a file than its first sound.

    Args:
        source: the file.
        request: which stream, and how long it may be.

    Raises:
        InvalidAudio, AudioTooLong, InvalidOption: see :func:`whisper_api.engine.audio.decode.probe`.
        MemoryError: the file needs more memory than there is.
    """
    source.splice()
    with _container(source) as container:
        stream, _ = _audio_stream(container, source, request.audio_track)
        stated = _stated_seconds(container, stream, source)
        bound = _bounding_seconds(container, stream, source, stated)
        refuse_longer(source.name, bound, request.max_seconds)
        reader = PacketReader(container, stream)
        timeline = Timeline(container, stream, Track(None), most=1.0, channels=request.channels)
        for packets, frame in enumerate(reader):
            if frame is not None and frame.samples:
                timeline.add(frame, lost=0.0)
                break
            if packets >= PROBE_PACKETS:
                raise InvalidAudio(_nothing_decoded(source, stream, reader))
        else:
            raise InvalidAudio(_nothing_decoded(source, stream, reader))
        duration = bound if container.format.name == "wav" else stated
        if duration is None:
            duration = seconds(stream.duration, stream.time_base) or seconds(container.duration, 1e-6)
        return Finished(
            container=container.format.name,
            codec=stream.codec_context.name,
            sample_rate=timeline.first_rate,
            channels=timeline.first_channels,
            duration=duration,
        )


@contextlib.contextmanager
def _container(source: AudioSource) -> Iterator[Any]:
    import av
    from av.error import FFmpegError

    try:
        # No protocol is allowed: a hostile file cannot make libav open anything but these bytes.
        container = av.open(
            source,
            mode="r",
            metadata_errors="replace",
            buffer_size=1 << 18,
            container_options={
                "format_whitelist": CONTAINERS,
                "protocol_whitelist": "none",
                # In WAV libav looks through many packets for DTS that passes for PCM, which takes ten times as long.
                **({"max_probe_packets": "2"} if source.head[8:12] == b"WAVE" else {}),
            },
        )
    except MemoryError:
        raise
    except FFmpegError as error:
        found = source.found()
        if found.startswith("an MP4") and b"moov" not in source.head:
            found += ", perhaps cut short before its index"
        raise InvalidAudio(f"{source.name} cannot be read as audio: found {found} ({error.strerror})") from error
    with container:
        try:
            yield container
        except MemoryError:
            raise
        except FFmpegError as error:
            raise InvalidAudio(f"{source.name} cannot be decoded: {error.strerror}") from error


def _stated_seconds(container: Any, stream: Any, source: AudioSource) -> float | None:
    """The length that the header states, from the file's zero; None where libav would only guess it from the size."""
    name = container.format.name
    rate = stream.codec_context.sample_rate
    if name == "mp3":
        frames = source.xing_frames()
        return frames * (1152 if rate >= 32000 else 576) / rate if frames and rate else None
    if STATES_LENGTH.isdisjoint(name.split(",")):
        return None
    if name == "wav":
        return source.wav.stated if source.wav is not None else None
    return seconds(container.duration, 1e-6)


def _bounding_seconds(container: Any, stream: Any, source: AudioSource, stated: float | None) -> float | None:
    """The length that a file is refused for; None where libav only guesses, since a wrong guess must refuse nothing."""
    name = container.format.name
    if name == "wav":
        # A header may state hours before the recording that is broken off: no more can be there than the file is long.
        rate = (stream.codec_context.bit_rate or 0) / 8
        return min(stated, source.size / rate) if stated is not None and source.size is not None and rate else None
    if name == "ogg":  # the time stamp of its last page
        return seconds(container.duration, 1e-6)
    own = seconds(stream.duration, stream.time_base)
    return own if stated is not None and own is not None else stated


def refuse_longer(name: str, length: float | None, max_seconds: float | None, *, decoded: bool = False) -> None:
    """Refuse audio that is too long.

    Args:
        name: of the audio, for the message.
        length: seconds; None when nobody knows.
        max_seconds: how long it may be; None for any length.
        decoded: True when decoding has come so far and the whole length is not known.

    Raises:
        AudioTooLong: it is longer than ``max_seconds``.
    """
    if length is None or max_seconds is None or length <= max_seconds:
        return
    lasts = f"more than {_hours(max_seconds)}" if decoded else _hours(length)
    raise AudioTooLong(
        f"{name} lasts {lasts}; audio may last {_hours(max_seconds)} (MAX_AUDIO_SECONDS): send it in parts"
    )


def _hours(length: float) -> str:
    return f"{length / 3600:.1f} hours" if length >= 7200 else f"{length:.1f} s"


def _unread_warnings(
    container: Any, source: AudioSource, reader: PacketReader, timeline: Timeline, stated: float | None
) -> list[str]:
    """Warnings about sound that the file states and that could not be read."""
    reached = max(timeline.clock, reader.reached)
    found = []
    if stated is not None and stated - reached > max(0.25, 0.001 * stated):
        found.append(
            f"the file states a length of {stated:.1f} s, of which {reached:.1f} s could be read: "
            "it is cut short or damaged"
        )
    elif stated is None and source.ends_inside_ogg_page():
        found.append(f"the file has no end mark: it seems cut short; {reached:.1f} s could be read")
    beginning = next((BEGINNINGS[name] for name in container.format.name.split(",") if name in BEGINNINGS), None)
    if beginning is not None and any(beginning.search(block) for block in source.following(reader.end, 16)):
        found.append("behind the sound is another file, which was left out: only the first one was read")
    return found


def _part(reader: PacketReader, source: AudioSource, timeline: Timeline, stated: float | None) -> float | None:
    if source.size:
        return min(1.0, reader.position / source.size)
    return min(1.0, timeline.clock / stated) if stated else None


def _nothing_decoded(source: AudioSource, stream: Any, reader: PacketReader) -> str:
    codec = stream.codec_context.name
    if not reader.packets:
        return f"{source.name} holds no sound: its audio stream ({codec}) is empty"
    if reader.samples:
        return f"{source.name} is too short to hold speech: it has {reader.samples} samples of sound"
    if not reader.damaged and not reader.broken_off:
        return f"{source.name} is too short to hold speech: its {reader.packets} packets ({codec}) give no samples"
    return f"no sound could be decoded from {source.name}: none of {reader.packets} packets ({codec}) is intact"


def _audio_stream(container: Any, source: AudioSource, audio_track: int | None) -> tuple[Any, list[str]]:
    """Choose the stream to decode.

    Args:
        container: libav's.
        source: the file, for its name.
        audio_track: number of the audio stream, counted from 1; None for the one that the file marks as default, else
            the first that can be decoded.

    Returns:
        The stream, and a warning when there were several and none was asked for.

    Raises:
        InvalidAudio: there is none, or it cannot be decoded.
        InvalidOption: there is no stream with this number.
    """
    streams = list(container.streams.audio)
    if not streams:
        raise InvalidAudio(_no_sound(container, source))
    if audio_track is not None and audio_track > len(streams):
        there = "one audio track" if len(streams) == 1 else f"{len(streams)} audio tracks: {_listed(streams)}"
        raise InvalidOption("audio_track", f"there is no number {audio_track}; {source.name} has {there}")
    wanted = streams if audio_track is None else [streams[audio_track - 1]]
    usable = [stream for stream in wanted if stream.codec_context and _tag(stream) not in ENCRYPTED]
    if not usable:
        tag = _tag(wanted[0])
        reason = "is encrypted (DRM)" if tag in ENCRYPTED else "is in a codec that libav does not know"
        raise InvalidAudio(f"the sound of {source.name} {reason}")
    chosen = next((stream for stream in usable if stream.disposition & stream.disposition.__class__.default), usable[0])
    warnings = []
    if len(streams) > 1 and audio_track is None:
        warnings.append(
            f"the file has {len(streams)} audio tracks ({_listed(streams)}): number {streams.index(chosen) + 1} was "
            "used; the option audio_track chooses another"
        )
    # Threads of a decoder bring nothing to audio, and a server has other work for the cores.
    chosen.codec_context.thread_count = 1
    return chosen, warnings


def _no_sound(container: Any, source: AudioSource) -> str:
    others = {stream.type: stream for stream in reversed(container.streams)}
    if "video" in others:
        codec = others["video"].codec_context
        kind = f"a picture ({codec.name})" if codec else "a picture"
        return f"{source.name} has no sound: it holds only {kind}"
    return f"{source.name} has no sound: found {source.found()} without an audio stream"


def _listed(streams: list[Any]) -> str:
    """The streams by number, with what tells them apart."""
    named = [f"{number} is {_described(stream)}" for number, stream in enumerate(streams[:NAMED], start=1)]
    return ", ".join(named) + (" ..." if len(streams) > NAMED else "")


def _described(stream: Any) -> str:
    codec = stream.codec_context.name if stream.codec_context else "unknown"
    about = (str(stream.metadata.get(key, ""))[:40] for key in ("language", "title"))
    return " ".join((codec, *(text for text in about if text.isprintable() and text not in ("", "und"))))


def _tag(stream: Any) -> str:
    try:
        return str(stream.codec_tag)
    except (AttributeError, UnicodeDecodeError):  # no decoder; a tag that is a number, as WAV's are
        return ""
