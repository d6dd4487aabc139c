"""The audio streams of a file, and which of them is decoded."""

from __future__ import annotations

from typing import Any

from whisper_api.engine.audio.source import AudioSource
from whisper_api.errors import InvalidAudio, InvalidOption

__all__ = ["audio_stream"]

# Sample entries of protected sound (ISO/IEC 14496-12, 8.12), and Audible's.
ENCRYPTED = ("enca", "drms", "aavd")
NAMED = 20


def audio_stream(container: Any, data: AudioSource, audio_track: int | None) -> tuple[Any, list[str]]:
    """Choose the stream to decode.

    Args:
        container: libav's.
        data: the file, for its name.
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
        raise InvalidAudio(_no_sound(container, data))
    if audio_track is not None and audio_track > len(streams):
        there = "one audio track" if len(streams) == 1 else f"{len(streams)} audio tracks: {_listed(streams)}"
        raise InvalidOption("audio_track", f"there is no number {audio_track}; {data.name} has {there}")
    wanted = streams if audio_track is None else [streams[audio_track - 1]]
    usable = [stream for stream in wanted if stream.codec_context and _tag(stream) not in ENCRYPTED]
    if not usable:
        tag = _tag(wanted[0])
        reason = "is encrypted (DRM)" if tag in ENCRYPTED else "is in a codec that libav does not know"
        raise InvalidAudio(f"the sound of {data.name} {reason}")
    chosen = next(
        (stream for stream in usable if stream.disposition & stream.disposition.__class__.default),
        usable[0],
    )
    warnings = []
    if len(streams) > 1 and audio_track is None:
        warnings.append(
            f"the file has {len(streams)} audio tracks ({_listed(streams)}): number {streams.index(chosen) + 1} was "
            "used; the option audio_track chooses another"
        )
    # Threads of a decoder bring nothing to audio, and a server has other work for the cores.
    chosen.codec_context.thread_count = 1
    return chosen, warnings


def _no_sound(container: Any, data: AudioSource) -> str:
    others = {stream.type: stream for stream in reversed(container.streams)}
    if "video" in others:
        codec = others["video"].codec_context
        kind = f"a picture ({codec.name})" if codec else "a picture"
        return f"{data.name} has no sound: it holds only {kind}"
    return f"{data.name} has no sound: found {data.found()} without an audio stream"


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
