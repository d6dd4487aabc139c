"""Runs the alignment model on a short recording while Whisper decodes it, on cores that would be idle.

What the model hears in a window does not depend on the window's text, which alignment needs afterwards.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whisper_api.engine.align.models import AlignmentModel, AlignmentSource, EmissionInput, Emissions, chosen_columns
from whisper_api.engine.context import JobContext, forget_frames
from whisper_api.engine.vad import Span
from whisper_api.schema import SAMPLE_RATE, Segment

log = logging.getLogger(__name__)

# Number of work items in flight.
WINDOW = 32
# Limits of a batch in segments and seconds of audio. On a CPU, a batch saves no time, and a long one delays other jobs.
BATCH_SEGMENTS = {"cpu": 1, "cuda": 64}
BATCH_SECONDS = {"cpu": 30.0, "cuda": 480.0}

Floats = npt.NDArray[np.float32]
Key = TypeVar("Key")


def operation_of(ctx: JobContext, source: AlignmentSource, model: AlignmentModel) -> Emissions:
    """The operation that runs a leased model.

    Args:
        ctx: the job.
        source: the model's source.
        model: the model.
    """
    kind = ctx.device.kind
    return Emissions(model, BATCH_SEGMENTS[kind], BATCH_SECONDS[kind], memory_key=("alignment", source))


def samples_of(audio: Floats, start: float, end: float) -> Floats:
    """The samples of a segment.

    Args:
        audio: shape (samples,), mono, 16 kHz.
        start: of the segment, in seconds.
        end: of the segment, in seconds.
    """
    return audio[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]


class EmissionsAhead:
    """What the alignment model hears in the windows of a recording that leaves lanes of a CPU idle.

    Args:
        audio: float32, shape (samples,), mono, 16 kHz.
        windows: windows that are decoded.
    """

    def __init__(self, audio: Floats, windows: Sequence[Span]) -> None:
        self._audio = audio
        self.windows = windows
        self._futures: dict[tuple[float, float], Future[Any]] = {}

    @classmethod
    def of(cls, ctx: JobContext, audio: Floats, windows: Sequence[Span], lanes: int) -> EmissionsAhead | None:
        """For the idle lanes of a recording; None if there are none.

        Args:
            ctx: the job.
            audio: as for the class.
            windows: all windows that are decoded, each on one lane.
            lanes: number of batches that run at once.
        """
        idle = lanes - len(windows) if ctx.device.kind == "cpu" else 0
        return cls(audio, windows[:idle]) if windows and idle > 0 else None

    def begin(self, ctx: JobContext, source: AlignmentSource, model: AlignmentModel) -> None:
        """Submit the windows, unless the device has work of other jobs.

        Args:
            ctx: the job.
            source: the model's source.
            model: the model, which is leased until the job ends.
        """
        operation = operation_of(ctx, source, model)
        for window in self.windows:
            # As the window's segment has them.
            start, end = round(window.start / SAMPLE_RATE, 3), round(window.end / SAMPLE_RATE, 3)
            samples = samples_of(self._audio, start, end)
            future = ctx.submit_if_idle(operation, EmissionInput(samples, None), len(samples) / SAMPLE_RATE)
            if future is None:
                return
            self._futures[start, end] = future

    def emission(self, ctx: JobContext, segment: Segment) -> Floats | None:
        """Log probabilities of all labels in a segment, shape (frames, labels); None if they were not computed.

        Raises:
            Canceled: the job was canceled while it waited.
        """
        future = self._futures.pop((segment.start, segment.end), None)
        if future is None:
            return None
        try:
            found: Floats = ctx.result_of(future)
        except Exception as error:
            if ctx.is_fatal(error):
                raise
            log.info("a window is aligned again: %s", error)
            forget_frames(error)
            return None
        return found


def emissions_of(
    ctx: JobContext,
    operation: Emissions,
    inputs: Iterable[tuple[Key, Segment, EmissionInput]],
    ahead: EmissionsAhead | None,
) -> Generator[tuple[Key, Floats], None, None]:
    """Run the alignment model on segments.

    Args:
        ctx: the job.
        operation: runs the model.
        inputs: what the caller knows a segment by, the segment, and its input.
        ahead: what the model has heard already.

    Yields:
        What the caller knows the segment by, and its log probabilities.
    """
    waiting: deque[Key] = deque()
    rest: Iterable[tuple[Key, Segment, EmissionInput]] = inputs
    if ahead is not None:
        rest = []
        for key, segment, item in inputs:
            heard = ahead.emission(ctx, segment)
            if heard is None:
                rest.append((key, segment, item))
            else:
                yield key, chosen_columns(heard, item, operation.model.blank)

    def items() -> Iterator[tuple[Emissions, EmissionInput, float]]:
        for key, _, item in rest:
            waiting.append(key)
            yield operation, item, len(item.samples) / SAMPLE_RATE

    with closing(ctx.run(items(), window=WINDOW)) as emissions:
        for emission in emissions:
            yield waiting.popleft(), emission
