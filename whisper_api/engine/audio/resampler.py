"""libswresample, for the mix of a stream and for its channels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from whisper_api.engine.audio.mix import Mixer
from whisper_api.engine.audio.track import Samples
from whisper_api.schema import SAMPLE_RATE

__all__ = ["Resampler", "Separator"]


class _Graph:
    """libswresample for frames of one rate, sample format and layout. One graph for each file: graphs keep state.

    Args:
        rate, sample_format, layout: of the input, by libav's names.
        mono: whether the output is mixed to mono; else it has the layout of the input.
    """

    def __init__(self, rate: int, sample_format: str, layout: str, *, mono: bool) -> None:
        from av.filter import Graph

        self._graph = graph = Graph()
        nodes = [
            graph.add(
                "abuffer",
                sample_rate=str(rate),
                sample_fmt=sample_format,
                channel_layout=layout,
                time_base=f"1/{rate}",
            )
        ]
        # Without this bound libswresample does not normalise the mix for float output: stereo comes out 3 dB too loud.
        nodes.append(graph.add("aresample", f"{SAMPLE_RATE}:rematrix_maxval=1"))
        layouts = "mono" if mono else layout
        nodes.append(graph.add("aformat", f"sample_fmts=flt:sample_rates={SAMPLE_RATE}:channel_layouts={layouts}"))
        nodes.append(graph.add("abuffersink"))
        for node, following in itertools.pairwise(nodes):
            node.link_to(following)
        graph.configure()
        graph.set_audio_frame_size(SAMPLE_RATE)
        self._input, self._output = nodes[0], nodes[-1]

    def pull(self) -> Iterator[Samples]:
        """Yield the blocks of samples that are ready. A block is valid until the next block is pulled."""
        from av.error import BlockingIOError as NotYet
        from av.error import EOFError as AtEnd

        while True:
            try:
                frame: Any = self._output.pull()
            except (NotYet, AtEnd):
                return
            yield self._samples(frame)

    def _samples(self, frame: Any) -> Samples:
        return np.frombuffer(frame.planes[0], dtype=np.float32, count=frame.samples)


class Separator(_Graph):
    """Resamples the channels of a stream without a mix. Its blocks have the shape (samples, channels)."""

    def __init__(self, frame: Any) -> None:
        super().__init__(frame.sample_rate, frame.format.name, frame.layout.name, mono=False)

    def push(self, frame: Any) -> None:
        frame.pts = None
        self._input.push(frame)

    def end(self) -> None:
        self._input.push(None)

    def _samples(self, frame: Any) -> Samples:
        channels = frame.layout.nb_channels
        return np.frombuffer(frame.planes[0], np.float32, count=frame.samples * channels).reshape(-1, channels)


class Resampler(_Graph):
    """Resamples the mix of a stream. Its blocks have the shape (samples,)."""

    def __init__(self, frame: Any, mixer: Mixer) -> None:
        self._mixer = mixer
        if mixer.mixes:
            super().__init__(frame.sample_rate, "fltp", "mono", mono=True)
        else:
            super().__init__(frame.sample_rate, frame.format.name, frame.layout.name, mono=True)

    def push(self, frame: Any) -> None:
        frame.pts = None
        for mixed in self._mixer.push(frame):
            self._input.push(mixed)

    def end(self) -> None:
        for mixed in self._mixer.flush():
            self._input.push(mixed)
        self._input.push(None)
