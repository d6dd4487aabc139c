"""Silero's voice activity detection: the ONNX model that faster-whisper ships, on the CPU.

The state of the model degrades without speech: after a minute of room noise the model misses up to a sixth of the
speech that follows. So the state is reset after some seconds without speech. What follows a reset depends on nothing
before it, so threads go through a long recording from several places at once, and the result is the same.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.level import hearing_gains
from whisper_api.engine.worker.device import physical_cores
from whisper_api.options import VAD_ONSET
from whisper_api.schema import SAMPLE_RATE

SILERO_FRAME = 512
CONTEXT = 64
# Frames of one call of the model: half a second.
CHUNK = 16
# The state is reset after 2 s of frames that are surely no speech, and after 10 s without a frame that surely is
# speech. The model then reads the last quarter of a second again, to know the room. On 21 recordings no frame of speech
# is lost by that.
QUIET = 62
QUIET_BELOW = 0.1
UNVOICED = 313
WARM_UP = 8
# Chunks of digital silence after sound that the model is run on: one second.
REACH = 2
# A recording is divided among threads when each gets so many chunks: ten minutes.
LEAST_CHUNKS = 600 * SAMPLE_RATE // (SILERO_FRAME * CHUNK)
MOST_THREADS = 8
# Between two reports of progress, from the threads or from this one: a minute of audio.
REPORT_SECONDS = 0.1
REPORT_CHUNKS = 125

Floats = NDArray[np.float32]


@functools.lru_cache(maxsize=1)
def silero_session() -> Any:
    """The ONNX session of Silero's model, which is loaded once."""
    from faster_whisper.vad import get_vad_model

    return get_vad_model().session


def silero_probabilities(
    audio: Floats, progress: Callable[[float], None] = lambda done: None, threads: int | None = None
) -> Floats:
    """The probability of speech in each frame of 32 ms.

    Args:
        audio: shape (samples,), mono, 16 kHz.
        progress: called from this thread with the completed fraction; its error ends the work.
        threads: number of threads; None for as many as the recording's length and the machine's cores allow. The
            result does not depend on it.

    Returns:
        Shape (frames,).
    """
    recording = _Recording(audio, hearing_gains(audio), progress)
    chunks = recording.chunks
    if threads is None:
        threads = min(chunks // LEAST_CHUNKS, MOST_THREADS, physical_cores()) if chunks >= 2 * LEAST_CHUNKS else 1
    if threads <= 1:
        return recording.run(0, chunks, _Silero()).probabilities
    bounds = [chunks * number // threads for number in range(threads + 1)]
    with ThreadPoolExecutor(threads, "silero") as pool:
        parts = recording.wait(
            [pool.submit(recording.run, first, after, _Silero()) for first, after in itertools.pairwise(bounds)]
        )
        bridges = recording.wait(
            [pool.submit(recording.go_on, before, part) for before, part in itertools.pairwise(parts)]
        )
        return _joined(recording, parts, bridges)


def fresh_probabilities(audio: Floats, begin: int, end: int, gain: float) -> Floats:
    """The probability of speech in frames of a recording, by a model that has heard nothing before them.

    Args:
        audio: shape (samples,), mono, 16 kHz.
        begin: the first frame.
        end: the frame after the last.
        gain: factor of the samples.
    """
    return _Silero().probabilities(_inputs(audio, begin, end) * np.float32(gain))


def _joined(recording: _Recording, parts: Sequence[_Part], bridges: Sequence[_Part]) -> Floats:
    """Join the parts of a recording, each of which began without what was before it.

    Args:
        recording: the recording.
        parts: in order.
        bridges: what each part but the last makes of the beginning of the next one.
    """
    joined, last = [parts[0].probabilities], parts[0]
    for before, part, bridge in zip(parts, parts[1:], bridges, strict=False):
        if last is not before:
            # The part before was never reset where the one before it was, so it does not count.
            bridge = recording.go_on(last, part)
        joined += [bridge.probabilities, part.probabilities[len(bridge.probabilities) :]]
        last = part if bridge.after < part.after else bridge
    return np.concatenate(joined)


@dataclass(frozen=True, eq=False)
class _Part:
    """What one pass through a part of a recording gave.

    Attributes:
        first, after: the first chunk, and the one after the last.
        probabilities: shape (frames,).
        resets: the chunks before which the state was reset.
        silero: the state at the end.
    """

    first: int
    after: int
    probabilities: Floats
    resets: frozenset[int]
    silero: _Silero


class _Recording:
    """A recording, in chunks.

    Args:
        audio: shape (samples,), mono, 16 kHz.
        gains: the factor of each frame; None where all are 1.
        progress: as for :func:`silero_probabilities`.

    Attributes:
        chunks: their number.
    """

    def __init__(self, audio: Floats, gains: Floats | None, progress: Callable[[float], None]) -> None:
        self._audio = audio
        self._gains = gains
        self._progress = progress
        self._frames = -(-len(audio) // SILERO_FRAME)
        self.chunks = -(-self._frames // CHUNK)
        self._thread = threading.get_ident()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._done = 0

    def wait(self, futures: Sequence[Future[_Part]]) -> list[_Part]:
        """The results of threads. Reports their progress meanwhile."""
        try:
            while wait(futures, timeout=REPORT_SECONDS).not_done:
                self._report()
            return [future.result() for future in futures]
        except BaseException:
            self._stopped.set()
            raise

    def go_on(self, before: _Part, part: _Part) -> _Part:
        """Continue a part into the next one, up to the first chunk before which both reset their states.

        From there on, both give the same.
        """
        return self.run(part.first, part.after, copy.copy(before.silero), part.resets)

    def run(self, first: int, after: int, silero: _Silero, until: Collection[int] = ()) -> _Part:
        """Run the model over chunks, up to the first of ``until`` before which the state is reset."""
        start = first * CHUNK
        probabilities = np.zeros(min(self._frames, after * CHUNK) - start, np.float32)
        resets: list[int] = []
        for chunk in range(first, after):
            if self._stopped.is_set():
                break
            if chunk % REPORT_CHUNKS == 0 and threading.get_ident() == self._thread:
                self._report()
            if self._step(chunk, silero, probabilities[chunk * CHUNK - start :][:CHUNK], until):
                resets.append(chunk)
                if chunk in until:
                    return _Part(first, chunk, probabilities[: chunk * CHUNK - start], frozenset(resets), silero)
            with self._lock:
                self._done += 1
        return _Part(first, after, probabilities, frozenset(resets), silero)

    def _step(self, chunk: int, silero: _Silero, found: Floats, until: Collection[int]) -> bool:
        """Run the model over a chunk, unless it is one of ``until``. Returns whether the state was reset before it."""
        begin = chunk * CHUNK
        sound = np.flatnonzero(self._sound(chunk, chunk + 1))
        silent = chunk >= REACH and not self._sound(chunk - REACH, chunk).any()
        if silent and not len(sound):
            # The model does not run on digital silence, since a small file can hold hours of it.
            silero.quiet += len(found)
            return False
        reset = silero.reset_after_quiet()
        if reset and chunk in until:
            return True
        if reset:
            # Digital silence says nothing about the room.
            begin = begin + int(sound[0]) // SILERO_FRAME if silent else max(0, begin - WARM_UP)
        after = chunk * CHUNK + len(found)
        inputs = _inputs(self._audio, begin, after)
        if self._gains is not None:
            inputs = inputs * self._gains[begin:after, None]
        wanted = min(after - begin, len(found))
        found[len(found) - wanted :] = silero.probabilities(inputs)[-wanted:]
        return reset

    def _sound(self, first: int, after: int) -> Floats:
        return self._audio[first * CHUNK * SILERO_FRAME : after * CHUNK * SILERO_FRAME]

    def _report(self) -> None:
        self._progress(min(1.0, self._done / max(1, self.chunks)))


def _inputs(audio: Floats, begin: int, end: int) -> Floats:
    """Frames of audio as the model takes them: each begins with the last samples of the frame before it."""
    start = begin * SILERO_FRAME - CONTEXT
    piece = audio[max(0, start) : end * SILERO_FRAME]
    before = max(0, -start)
    piece = np.pad(piece, (before, -(before + len(piece) - CONTEXT) % SILERO_FRAME))
    return np.lib.stride_tricks.sliding_window_view(piece, CONTEXT + SILERO_FRAME)[::SILERO_FRAME]


class _Silero:
    """The model's state while it goes through a recording.

    Attributes:
        quiet: frames since the last one that may be speech.
    """

    def __init__(self) -> None:
        self._session = silero_session()
        self._h = self._c = np.zeros((1, 1, 128), np.float32)
        self.quiet = self._unvoiced = 0

    def reset_after_quiet(self) -> bool:
        """Reset the state after some seconds without speech. Returns whether it was reset."""
        due = self.quiet >= QUIET or self._unvoiced >= UNVOICED
        if due:
            self._h = self._c = np.zeros((1, 1, 128), np.float32)
            self.quiet = self._unvoiced = 0
        return due

    def probabilities(self, inputs: Floats) -> Floats:
        """The probability of speech in the next frames, shape (frames, samples)."""
        output, self._h, self._c = self._session.run(None, {"input": inputs, "h": self._h, "c": self._c})
        probabilities: Floats = np.asarray(output, np.float32).reshape(-1)
        loudest = float(probabilities.max())
        self.quiet = self.quiet + len(inputs) if loudest < QUIET_BELOW else 0
        self._unvoiced = self._unvoiced + len(inputs) if loudest < VAD_ONSET else 0
        return probabilities
