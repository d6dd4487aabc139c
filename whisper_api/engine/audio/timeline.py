"""Packets become frames, and frames become samples at 16 kHz, each at its time.

Nothing that a header claims is allocated: the track grows as samples come.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from whisper_api.engine.audio.mix import Mixer, Resampler
from whisper_api.engine.audio.track import MAX_CHANNELS, Track
from whisper_api.errors import InvalidAudio, InvalidOption
from whisper_api.options import Channels
from whisper_api.schema import SAMPLE_RATE

MAX_SILENCE = 3600.0  # seconds put in for holes, in all: time stamps can claim anything, memory is finite
GAP = 0.1  # seconds by which time stamps may wander from the samples before the difference counts as a hole
EXACT_GAP = 0.02  # the same where time stamps count samples and cannot wander
START_GAP = 0.005  # the same before the first sample and after a lost packet, where silence tears nothing apart
LEAST = 1e-9  # seconds that stand for a loss of unknown length
LEAST_RATE = 1000  # samples per second; a lower one makes a small file a huge array,
MOST_RATE = 400_000  # and a higher one needs a huge filter
# Codecs whose time stamps count samples. Vorbis is none of them: libav's stamps of its frames are off by a quarter of a
# block, up to 50 ms, where long and short blocks meet.
COUNTS_SAMPLES = ("flac", "opus")
# Containers that store times. For others libav counts the packets, which goes wrong where a stream changes its rate.
STAMPED = frozenset(
    ["matroska", "mov", "mpegts", "mpeg", "asf", "flv", "ogg", "flac", "nut", "mxf", "rm", "wtv", "nsv"]
)


class PacketReader:
    """Decodes one stream: gives each frame, and None for each packet that gave none (other streams', damaged ones)."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container = container
        self.stream = stream
        self.position = 0  # bytes of the file
        self.reached = 0.0  # end of the latest packet of any stream, in the file's time stamps
        self.end = 0  # bytes of the file up to which packets were read
        self.packets = 0
        self.damaged = 0
        self.samples = 0  # decoded, before resampling
        self.broken_off: str | None = None
        self._lost = 0.0
        self._time_bases = [float(other.time_base or 0) for other in container.streams]

    def __iter__(self) -> Iterator[Any]:
        from av.error import FFmpegError

        errors = 0
        while errors < 3:
            try:
                for packet in self.container.demux():
                    errors = 0
                    frames = self._frames(packet)
                    yield from frames or (None,)
                return
            except FFmpegError as error:  # noqa: PERF203
                if isinstance(error, MemoryError):
                    raise
                # A demuxer can often go on behind the damage; at a real end it fails again at once.
                errors += 1
                self._lost += LEAST
                self.broken_off = error.strerror
            except IndexError:
                # PyAV stumbles at the end over streams that were not in the header, before it empties the decoder.
                break
        with contextlib.suppress(FFmpegError):
            yield from self.stream.codec_context.decode(None)

    def _frames(self, packet: Any) -> list[Any]:
        from av.error import FFmpegError

        if packet.pos is not None and packet.pos > self.position:
            self.position = packet.pos
            self.end = packet.pos + packet.size
        if packet.pts is not None and packet.stream_index < len(self._time_bases):
            end = (packet.pts + (packet.duration or 0)) * self._time_bases[packet.stream_index]
            if end > self.reached:
                self.reached = end
        if packet.stream is not self.stream:  # the packet that empties a decoder at the end has no true index
            return []
        self.packets += bool(packet.size)
        try:
            frames: list[Any] = packet.decode()
        except MemoryError:
            raise
        except FFmpegError:
            self.damaged += bool(packet.size)
            self._lost += LEAST + (packet.duration or 0) * self._time_bases[packet.stream_index]
            return []
        self.samples += sum(frame.samples for frame in frames)
        return frames

    def take_lost(self) -> float:
        """Seconds that could not be decoded since the last call, as far as they are known; above 0 when any were."""
        lost, self._lost = self._lost, 0.0
        return lost

    def warnings(self) -> list[str]:
        found = []
        if self.damaged:
            found.append(f"{self.damaged} of {self.packets} packets of sound are damaged and were left out")
        if self.broken_off:
            found.append(f"the file is damaged: reading met an error ({self.broken_off})")
        return found


class Timeline:
    """Writes decoded frames where their time stamps say.

    Args:
        container, stream: libav's, of the file that is decoded.
        track: takes the samples of the mix.
        most: seconds that are wanted at most; silence beyond them is not put in.
        channels: whether the channels are written separately, too, if there are several.
        channel_track: makes the track of a channel, counted from 0.
    """

    def __init__(
        self,
        container: Any,
        stream: Any,
        track: Track,
        most: float | None = None,
        channels: Channels = "mix",
        channel_track: Callable[[int], Track] = lambda _: Track(None),
    ) -> None:
        self.origin = seconds(container.start_time, 1e-6) or 0.0
        self.clock = 0.0  # seconds from the file's zero up to which everything was taken
        self.first_rate = 0
        self.first_channels = 0
        self._time_base = float(stream.time_base or 0)
        self._end = seconds(container.duration, 1e-6)
        self._stamped = not STAMPED.isdisjoint(container.format.name.split(","))
        exact = container.format.name in ("flac", "ogg") and stream.codec_context.name in COUNTS_SAMPLES
        self._gap = EXACT_GAP if exact else GAP
        self._most = most
        self._track = track
        self.channel_tracks: list[Track] = []
        self._channels = channels
        self._channel_track = channel_track
        self._channels_lost = False
        self._separator: Resampler | None = None
        self._resampler: Resampler | None = None
        self._mixer: Mixer | None = None
        self._mix_warnings: dict[str, None] = {}
        self._key: tuple[Any, ...] = ()
        self._base = 0.0  # clock when the present run of frames of one rate began, and its samples since
        self._run = 0
        self._filled = 0.0
        self._holes: list[float] = []
        self._refused = 0.0

    def add(self, frame: Any, *, lost: float) -> None:
        rate, samples = frame.sample_rate, frame.samples
        if not samples:
            return
        first = not self.first_rate
        if not LEAST_RATE <= rate <= MOST_RATE:
            if first:
                raise InvalidAudio(f"a sample rate of {rate} Hz is not that of sound")
            return
        if first:
            self.first_rate, self.first_channels = rate, frame.layout.nb_channels
            self._begin_channels(frame.layout.nb_channels)
        gap = lost
        if self._stamped and frame.pts is not None:
            gap = frame.pts * self._time_base - self.origin - self.clock
        if gap > (START_GAP if first or lost else self._gap):
            self._fill(gap, is_hole=not first and not lost)
        elif gap < -GAP:
            self.origin += gap
        key = (rate, frame.format.name, frame.layout.name)
        if key != self._key:
            self._flush()
            self._end_mixer()
            self._key = key
            self._base, self._run = self.clock, 0
        if self._resampler is None:
            if self._mixer is None:
                self._mixer = Mixer(frame)
            self._resampler = Resampler(frame, self._mixer)
            if self.channel_tracks:
                self._separator = Resampler(frame, None)
                if frame.layout.nb_channels > len(self.channel_tracks):
                    self._channels_lost = True
        if self._separator is not None:
            self._separator.push(frame)
        self._resampler.push(frame)
        self._run += samples
        self.clock = self._base + self._run / rate

    def _begin_channels(self, count: int) -> None:
        """Make the tracks of the channels.

        Raises:
            InvalidOption: there are too many channels to separate them.
        """
        if self._channels == "mix" or count < 2:
            return
        if count <= MAX_CHANNELS:
            self.channel_tracks = [self._channel_track(number) for number in range(count)]
        elif self._channels == "separate":
            raise InvalidOption("channels", f"the file has {count} channels; separate takes up to {MAX_CHANNELS}")
        else:
            self._mix_warnings[f"the channels were mixed: {count} are more than the {MAX_CHANNELS} that auto takes"] = (
                None
            )

    def _fill(self, gap: float, *, is_hole: bool) -> None:
        beyond = self._end is not None and 0 < self._end < self.clock + gap - 1.0
        if beyond or self._filled + gap > MAX_SILENCE:
            self._refused += gap
            self.origin += gap
            return
        if self._most is not None:
            gap = min(gap, max(0.0, self._most + 1.0 - self.clock))
        self._flush()
        self.clock += gap
        self._base, self._run = self.clock, 0
        self._filled += gap
        if is_hole:
            self._holes.append(gap)
        self._track.silence_until(round(self.clock * SAMPLE_RATE))
        self._align_channels()

    def drain(self) -> None:
        if self._resampler is not None:
            for block in self._resampler.pull():
                self._track.append(block)
        if self._separator is not None:
            for block in self._separator.pull():
                # A file can change its layout. Channels beyond those of its beginning are only in the mix.
                for track, samples in zip(self.channel_tracks, block.T, strict=False):
                    track.append(samples)

    def _flush(self) -> None:
        if self._separator is not None:
            self._separator.end()
        if self._resampler is not None:
            self._resampler.end()
            self.drain()
            self._resampler = self._separator = None
            self._align_channels()

    def _align_channels(self) -> None:
        """Make every channel as long as the mix."""
        for track in self.channel_tracks:
            track.silence_until(self._track.size)

    def finish(self) -> None:
        """Write what the resampler still holds."""
        self._flush()
        self._end_mixer()

    def _end_mixer(self) -> None:
        if self._mixer is not None:
            self._mix_warnings.update(dict.fromkeys(self._mixer.warnings()))
            self._mixer = None

    def mix_warnings(self) -> list[str]:
        """Warnings about the mix, where the channels have tracks of their own."""
        return list(self._mix_warnings) if self.channel_tracks else []

    def warnings(self) -> list[str]:
        found = value_warnings(self._track.not_finite, self._track.peak)
        if self._channels_lost:
            count = len(self.channel_tracks)
            found.append(f"the file has more channels later: only the first {count} were separated")
        if not self.channel_tracks:
            found += self._mix_warnings
        if len(self._holes) == 1:
            found.append(f"the file's sound has a hole of {_length(self._holes[0])}, which stands as silence")
        elif self._holes:
            total = _length(sum(self._holes))
            found.append(f"the file's sound has {len(self._holes)} holes, {total} in all, which stand as silence")
        if self._refused:
            found.append(
                f"time stamps that jump by {self._refused:.0f} s were not believed: "
                "times after that may differ from those of a player"
            )
        return found


def seconds(value: int | None, time_base: Any) -> float | None:
    """A time stamp of libav in seconds; None if there is none."""
    return None if value is None or not time_base else float(value * time_base)


def _length(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.95 else f"{1000 * seconds:.0f} ms"


def value_warnings(not_finite: int, peak: float) -> list[str]:
    """Warnings about samples that are no sound.

    Args:
        not_finite: how many samples were infinite or NaN.
        peak: the largest absolute value; 1 is full scale.
    """
    found = []
    if not_finite:
        found.append(f"{not_finite} samples were not finite numbers (NaN or infinite) and stand as 0")
    if peak > 16.0:
        found.append(f"samples reach {peak:.6g} where full scale is 1: were they scaled?")
    return found
