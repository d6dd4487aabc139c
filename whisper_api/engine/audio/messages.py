"""What a process and its decoder process say to each other.

The messages hold plain values and are checked when they are read. So a message cannot run code in the process that
reads it, as a pickle could, even when a hostile file has taken over the decoder process.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from whisper_api.options import Channels


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Decode or probe a file. Its descriptor follows when ``by_descriptor`` is true.

    Attributes:
        operation: decode, or probe.
        name: of the file, for messages.
        size: in bytes; None for a stream.
        by_descriptor: the decoder process reads the file itself; else it sends :class:`Read`.
        audio_track, max_seconds, stop_at, channels: see :func:`whisper_api.engine.audio.decode.decode`.
    """

    operation: Literal["decode", "probe"]
    name: str
    size: int | None
    by_descriptor: bool
    audio_track: int | None = None
    max_seconds: float | None = None
    stop_at: float | None = None
    channels: Channels = "mix"


class Block(msgspec.Struct, frozen=True):
    """Answers :class:`Read`: bytes of the file."""

    content: bytes


class Room(msgspec.Struct, frozen=True):
    """Answers :class:`Reserve`: bytes that have room. The descriptor of another file follows when ``moved`` is true."""

    size: int
    moved: bool


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The decoder process has started."""


class Read(msgspec.Struct, frozen=True, tag=True):
    """Asks for bytes of the file by offset and number."""

    offset: int
    size: int


class Reserve(msgspec.Struct, frozen=True, tag=True):
    """Asks for room for so many bytes of samples in all.

    Attributes:
        size: in bytes.
        track: 0 for the mix, 1 for the first channel ...; each has a file of its own.
    """

    size: int
    track: int = 0


class Tick(msgspec.Struct, frozen=True, tag=True):
    """The decoding advances. ``part`` is the part that is done, 0 to 1, where the length is known."""

    part: float | None


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The result of a request.

    Attributes:
        container, codec: libav's names for them.
        sample_rate: samples per second before resampling.
        channels: before the mix to mono.
        duration: seconds, of a file that was probed; None when its header does not tell.
        samples: written, of a file that was decoded; of each track when there are several.
        tracks: how many tracks were written: the mix alone, or the mix and each channel.
        warnings: what is wrong with the file, one sentence each.
        mix_warnings: what concerns the mix alone, where the channels are separate tracks, too.
        last: the decoder process ends now.
    """

    container: str
    codec: str
    sample_rate: int
    channels: int
    duration: float | None = None
    samples: int = 0
    tracks: int = 1
    warnings: tuple[str, ...] = ()
    mix_warnings: tuple[str, ...] = ()
    last: bool = False


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The request ended with an error.

    Attributes:
        error: the name of one of :mod:`whisper_api.errors`; empty for another error.
        arguments: of the exception.
        attributes: of the exception, as far as they are text.
        last: the decoder process ends now.
    """

    error: str
    arguments: tuple[str, ...]
    attributes: dict[str, str]
    last: bool = False


FromDecoder = Ready | Read | Reserve | Tick | Finished | Refused
