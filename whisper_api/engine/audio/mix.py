"""The mix to mono, which contains every channel that carries sound, and libswresample for the mix and for the channels.

libswresample's own mix of more than two channels drops channels: it takes a file of six channels for 5.1 and leaves out
the fourth, the bass. Recorders put a microphone on any channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.track import Samples
from whisper_api.schema import SAMPLE_RATE

# Layouts that libswresample mixes: ordinary files come out as every other program decodes them.
PLAIN_LAYOUTS = ("mono", "1 channels", "stereo", "2 channels")
NUMPY_FORMATS = ("u8", "u8p", "s16", "s16p", "s32", "s32p", "flt", "fltp", "dbl", "dblp")
MOST_PLANES = 7
# The mix is decided anew for each block. Frames of 24 channels can be as short as 2 ms.
BLOCK_SECONDS = 0.25
# The two channels of a plain file are compared once a second, by each fourth frame.
PLAIN_BLOCK_SECONDS = 1.0
PLAIN_STEP = 4
# Half-lives of the averages that compare channels, and that notice when a channel falls silent.
HALF_LIFE_SECONDS = 2.0
SILENT_HALF_LIFE_SECONDS = 0.5
RAMP_SECONDS = 0.02
# Power of a channel that carries sound: -80 dBFS at least, and at most 30 dB below the loudest channel. The noise of 23
# idle microphones would cover the voice on the 24th.
LEAST_POWER = 1e-8
LEAST_SHARE = 1e-3
# Correlation at which a channel is inverted, and at which it no longer is.
OPPOSITE, NOT_OPPOSITE = -0.8, -0.4
# A channel outside the mix may hold a voice: above -60 dBFS, 15 dB above the channel's own noise, and unlike the mix.
VOICE_POWER = 1e-6
ABOVE_NOISE = 30.0
ALIKE = 0.5
LOST_SECONDS = 1.0
# The two channels of a plain file have voices of their own where their levels, in decibels, rise and fall apart: the
# levels of two people who talk at once have a correlation of 0.2, those of stereo recordings of one room above 0.9.
LEVEL_SECONDS = 0.05
INDEPENDENT = 0.5
LEAST_LEVELS = 20
LEAST_SWING = 4.0  # decibels, the standard deviation: noise has less, speech about 10
BELOW_LOUDEST = 20.0  # decibels below the loudest speech of a channel, where the channel still speaks

Weights = NDArray[np.float32]


class Mixer:
    """Prepares the frames of one stream for the resampler.

    Frames of a plain layout come out as they went in, but for a phase-inverted second channel, which is inverted back.
    Frames of another layout come out as mono float32.

    Args:
        frame: the first frame; all others have its rate, sample format and layout.

    Attributes:
        mixes: whether the layout is not plain.
    """

    def __init__(self, frame: Any) -> None:
        from av import AudioResampler

        channels = frame.layout.nb_channels
        self.mixes = frame.layout.name not in PLAIN_LAYOUTS
        self._rate = frame.sample_rate
        # PyAV has no array for 64-bit integers, and reads beyond the planes of eight channels.
        known = frame.format.name in NUMPY_FORMATS
        self._passes = not self.mixes and (channels == 1 or not known)
        foreign = not known or (frame.format.is_planar and channels > MOST_PLANES)
        self._to_floats = AudioResampler("flt", frame.layout, self._rate) if self.mixes and foreign else None
        self._frames: list[Any] = []
        self._buffered = 0
        # Averages over the recent sound: products of all pairs of channels, and the power of each channel.
        self._products = np.zeros((channels, channels))
        self._power = np.zeros(channels)
        self._noise = np.full(channels, np.inf)
        self._signs = np.ones(channels)
        self._weights: Weights = np.zeros(channels, np.float32)
        self._inverted = np.zeros(channels)
        self._lost = np.zeros(channels)
        self._levels: list[Samples] = []
        self._seconds = 0.0

    def push(self, frame: Any) -> Iterator[Any]:
        """Add a frame, and yield the frames that are ready for the resampler."""
        if self._passes:
            yield frame
            return
        self._frames.append(frame)
        self._buffered += frame.samples
        if self._buffered >= (BLOCK_SECONDS if self.mixes else PLAIN_BLOCK_SECONDS) * self._rate:
            yield from self.flush()

    def flush(self) -> Iterator[Any]:
        """Yield the frames that are still buffered."""
        frames, self._frames, self._buffered = self._frames, [], 0
        if not frames:
            return
        looked_at = frames if self.mixes else frames[::PLAIN_STEP]
        block = np.concatenate([self._planar(frame) for frame in looked_at], axis=1)
        seconds = sum(frame.samples for frame in frames) / self._rate
        weights = self._decide(block, seconds)
        if not self.mixes:
            self._measure_levels(block, seconds)
        if self.mixes:
            yield self._mixed(block, weights)
        elif self._signs[1] < 0:
            yield from map(_second_inverted, frames)
        else:
            yield from frames

    def warnings(self) -> list[str]:
        """Warnings about inverted and inaudible channels, one sentence each."""
        found = []
        if inverted := _numbers(self._inverted):
            them = "them" if "," in inverted else "it"
            found.append(f"{inverted} phase-inverted: the mix inverts {them} back, or the sound would cancel itself")
        if lost := _numbers(self._lost):
            found.append(f"{lost} too quiet beside the others to be heard in the mix")
        if (both := self._seconds_of_both()) >= LOST_SECONDS:
            found.append(
                f"the two channels have different voices, at once for {both:.1f} s, of which the mix may lose one; "
                "channels=separate recognizes each by itself"
            )
        return found

    def _measure_levels(self, block: Samples, seconds: float) -> None:
        """Keep the levels of both channels of a block, shape (2, samples), that lasts so many seconds."""
        step = max(1, round(LEVEL_SECONDS * self._rate))
        whole = block[:, : block.shape[1] // step * step].reshape(2, -1, step)
        power = np.einsum("cns,cns->cn", whole, whole) / step
        self._levels.append(10 * np.log10(np.nan_to_num(power, posinf=1.0) + 1e-12).astype(np.float32))
        self._seconds += seconds

    def _seconds_of_both(self) -> float:
        """The seconds in which both channels of a plain file have sound at once; 0 where it is the same sound."""
        levels = np.concatenate(self._levels, axis=1) if self._levels else np.zeros((2, 0), np.float32)
        least = 10 * np.log10(VOICE_POWER)
        sounding = levels[:, levels.max(axis=0, initial=-np.inf) > least]
        if sounding.shape[1] < LEAST_LEVELS or sounding.std(axis=1).min() < LEAST_SWING:
            return 0.0
        if float(np.min(np.corrcoef(sounding))) > INDEPENDENT:
            return 0.0
        loud = np.maximum(np.percentile(sounding, 95, axis=1) - BELOW_LOUDEST, least)
        both = int(np.count_nonzero((levels > loud[:, None]).all(axis=0)))
        return float(self._seconds * both / levels.shape[1])

    def _decide(self, block: Samples, seconds: float) -> Weights:
        """Choose the weight of each channel for a block, shape (channels, samples), that lasts so many seconds."""
        samples = block.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            products = (block @ block.T).astype(np.float64)
        # The track counts samples that are not finite; they have no influence here.
        products = np.where(np.isfinite(products), products, 0.0)
        power = products.diagonal() / samples
        self._products = self._products * 0.5 ** (seconds / HALF_LIFE_SECONDS) + products
        self._power = recent = np.maximum(power, self._power * 0.5 ** (seconds / SILENT_HALF_LIFE_SECONDS))
        sounding = recent >= max(LEAST_POWER, LEAST_SHARE * recent.max(initial=0.0))
        self._choose_signs(np.flatnonzero(sounding)[np.argsort(-recent[sounding], kind="stable")])
        weights: Weights = (self._signs * sounding / max(1, int(sounding.sum()))).astype(np.float32)
        self._inverted += seconds * (sounding & (self._signs < 0))
        self._noise = np.minimum(self._noise * 2 ** (seconds / HALF_LIFE_SECONDS), np.maximum(power, LEAST_POWER))
        if self.mixes:
            alike = np.abs(self._correlation(weights)) > ALIKE
            voiced = (power > VOICE_POWER) & (power > ABOVE_NOISE * self._noise)
            self._lost += seconds * (voiced & ~sounding & ~alike)
        return weights

    def _choose_signs(self, loudest_first: NDArray[np.intp]) -> None:
        """Invert each channel that would cancel the louder ones."""
        mix = np.zeros(len(self._signs))
        for channel in loudest_first.tolist():
            limit = OPPOSITE if self._signs[channel] > 0 else NOT_OPPOSITE
            opposite = mix.any() and float(self._correlation(mix)[channel]) < limit
            self._signs[channel] = mix[channel] = -1.0 if opposite else 1.0
        # Of two opposite channels the second is inverted, whichever is louder.
        if len(loudest_first) and self._signs[loudest_first.min()] < 0:
            self._signs = -self._signs

    def _correlation(self, weights: NDArray[Any]) -> NDArray[np.float64]:
        """The correlation of each channel with a mix of them."""
        with_mix = self._products @ weights
        scale = np.sqrt(self._products.diagonal() * max(float(weights @ with_mix), 0.0))
        return np.asarray(np.divide(with_mix, scale, out=np.zeros_like(scale), where=scale > 0))

    def _planar(self, frame: Any) -> Samples:
        """The samples of a frame as float32 of full scale -1 to 1, shape (channels, samples)."""
        if self._to_floats is not None:
            (frame,) = self._to_floats.resample(frame)
        values = frame.to_ndarray()
        if not frame.format.is_planar:
            values = values.reshape(-1, frame.layout.nb_channels).T
        floats: Samples = values.astype(np.float32)
        if values.dtype == np.uint8:
            return floats / 128.0 - 1.0
        return floats / np.float32(-float(np.iinfo(values.dtype).min)) if values.dtype.kind == "i" else floats

    def _mixed(self, block: Samples, weights: Weights) -> Any:
        from av import AudioFrame

        mono = weights @ block
        # A step in the weights would be a click.
        ramp = min(block.shape[1], round(RAMP_SECONDS * self._rate))
        if self._weights.any() and not np.array_equal(self._weights, weights):
            fade = np.linspace(1.0, 0.0, ramp, endpoint=False, dtype=np.float32)
            mono[:ramp] += fade * ((self._weights - weights) @ block[:, :ramp])
        self._weights = weights
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(mono[None], np.float32), "fltp", "mono")
        frame.sample_rate = self._rate
        return frame


def _second_inverted(frame: Any) -> Any:
    """The same stereo frame, with its second channel turned upside down."""
    values = frame.to_ndarray()
    second = values[1] if frame.format.is_planar else values[0, 1::2]
    # ~x is -x - 1 for signed integers and 255 - x for unsigned ones: neither overflows.
    second[:] = ~second if second.dtype.kind in "iu" else -second
    # Written into the frame, since libav takes a new frame's layout for another one.
    frame.make_writable()
    for plane, row in zip(frame.planes, values, strict=True):
        np.frombuffer(plane, values.dtype)[: len(row)] = row
    return frame


def _numbers(seconds: NDArray[np.float64]) -> str:
    """The channels, counted from 1, that have more than a second, with their verb; empty for none."""
    found = [str(number + 1) for number in np.flatnonzero(seconds >= LOST_SECONDS)]
    if not found:
        return ""
    return f"channel {found[0]} is" if len(found) == 1 else f"channels {', '.join(found)} are"


class Resampler:
    """libswresample for frames of one rate, sample format and layout. Each file needs its own, which keeps state.

    Args:
        frame: the first of the frames.
        mixer: prepares the frames for the mix, whose blocks have the shape (samples,). None keeps the channels apart:
            the blocks have the shape (samples, channels).
    """

    def __init__(self, frame: Any, mixer: Mixer | None) -> None:
        from av.filter import Graph

        self._mixer = mixer
        rate, sample_format, layout = frame.sample_rate, frame.format.name, frame.layout.name
        if mixer is not None and mixer.mixes:
            sample_format, layout = "fltp", "mono"
        self._graph = graph = Graph()
        options = {"sample_rate": str(rate), "sample_fmt": sample_format, "channel_layout": layout}
        nodes = [graph.add("abuffer", time_base=f"1/{rate}", **options)]
        # Without this bound libswresample does not normalise the mix for float output: stereo comes out 3 dB too loud.
        nodes.append(graph.add("aresample", f"{SAMPLE_RATE}:rematrix_maxval=1"))
        layouts = layout if mixer is None else "mono"
        nodes.append(graph.add("aformat", f"sample_fmts=flt:sample_rates={SAMPLE_RATE}:channel_layouts={layouts}"))
        nodes.append(graph.add("abuffersink"))
        for node, following in itertools.pairwise(nodes):
            node.link_to(following)
        graph.configure()
        graph.set_audio_frame_size(SAMPLE_RATE)
        self._input, self._output = nodes[0], nodes[-1]

    def push(self, frame: Any) -> None:
        frame.pts = None
        for each in (frame,) if self._mixer is None else self._mixer.push(frame):
            self._input.push(each)

    def end(self) -> None:
        for each in () if self._mixer is None else self._mixer.flush():
            self._input.push(each)
        self._input.push(None)

    def pull(self) -> Iterator[Samples]:
        """Yield the blocks of samples that are ready. A block is valid until the next block is pulled."""
        from av.error import BlockingIOError as NotYet
        from av.error import EOFError as AtEnd

        while True:
            try:
                frame: Any = self._output.pull()
            except (NotYet, AtEnd):
                return
            channels = frame.layout.nb_channels
            samples = np.frombuffer(frame.planes[0], np.float32, count=frame.samples * channels)
            yield samples if self._mixer is not None else samples.reshape(-1, channels)
