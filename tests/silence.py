"""Small files that last for hours."""

from __future__ import annotations

import functools
import io
from typing import Any

import av
import numpy as np


@functools.cache
def hours_of_silence(hours: float) -> bytes:
    """A small FLAC file at 1 kHz."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as output:
        stream: Any = output.add_stream("flac", rate=1000, layout="mono", options={"frame_size": "65535"})
        left = round(hours * 3_600_000)
        while left > 0:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, min(left, 65535)), np.int16), "s16", "mono")
            frame.sample_rate = 1000
            output.mux(stream.encode(frame))
            left -= frame.samples
        output.mux(stream.encode(None))
    return file.getvalue()


def without_length(flac: bytes) -> bytes:
    """The same FLAC file, whose header does not tell how many samples there are."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]
