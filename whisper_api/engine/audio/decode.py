"""Decode: anything libav reads becomes mono 16 kHz float32.

A decoder process runs libav, so that no file can harm this process; where a platform cannot hand files to another
process (Windows), libav runs in this one.

Times are those of the file as a player shows it: zero is the earliest time stamp of its sound or picture. Sound that
begins later is preceded by silence, and holes of more than a tenth of a second in the time stamps are filled with it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.input_file import ISOLATED, InputFile, opened
from whisper_api.engine.audio.libav import decode_file, probe_file, refuse_longer
from whisper_api.engine.audio.messages import Finished, Request
from whisper_api.engine.audio.process import DECODERS
from whisper_api.engine.audio.source import AudioSource
from whisper_api.engine.audio.timeline import value_warnings
from whisper_api.engine.audio.track import MAX_CHANNELS, AudioMemory, Recording, Samples, Track
from whisper_api.errors import InvalidAudio
from whisper_api.options import Channels
from whisper_api.schema import SAMPLE_RATE

AudioInput = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, NDArray[Any]]
# Samples of an array that are converted at a time.
BLOCK = 1 << 20


@dataclass(frozen=True)
class Decoded:
    """What :func:`decode` gives.

    Attributes:
        audio: float32, shape (samples,), mono at 16 kHz, C-contiguous; full scale is -1 to 1.
        warnings: what was not as it should be, one sentence each.
        shared: True when ``audio`` is the caller's own array.
        separate: the channels, each as ``audio``; empty unless the caller asks for channels and there are several.
        mix_warnings: what concerns the mix alone, where there are separate channels.
    """

    audio: Samples
    warnings: tuple[str, ...]
    shared: bool = False
    separate: tuple[Samples, ...] = ()
    mix_warnings: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.audio) / SAMPLE_RATE


@dataclass(frozen=True)
class AudioInfo:
    """What :func:`probe` gives.

    Attributes:
        container, codec: libav's names for them; ``array`` and the type's name for an array.
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
    audio_track: int | None = None,
    channels: Channels = "mix",
    max_seconds: float | None = None,
    stop_at: float | None = None,
    memory: AudioMemory | None = None,
) -> Decoded:
    """Decode a file to mono 16 kHz float32.

    Damaged packets are left out, and a file that is cut short gives what can be read; ``warnings`` says so. The samples
    of a file are memory that this process shares with the decoder process.

    Args:
        source: a path; the file's bytes; a binary file object; or an array, mono at 16 kHz, of shape (samples,) or
            (1, samples), float32 or float64 of full scale -1 to 1, or int16. A contiguous float32 array of finite
            values is not copied. A seekable file object is read from its beginning. One that cannot seek is read as
            it comes where the format allows that (WAV, MP3, FLAC, Ogg, WebM, ADTS, MPEG-TS ...); the encoded bytes of
            other formats, MP4 first of all, are copied to a temporary file, since they may need their end before their
            beginning; such a stream must end before it has more bytes than ``max_seconds`` of audio can have.
        check: called once for each of the first seconds of audio, and ten to fifty times a second; what it raises ends
            the decoding.
        progress: called as often with the part that is done, 0 to 1, where the length is known.
        audio_track: which of several audio streams, counted from 1; None for the one that the file marks as default,
            else the first.
        channels: ``mix`` for the mix alone. Otherwise up to :data:`MAX_CHANNELS` channels are decoded separately, too;
            more are an error for ``separate``, and a warning for ``auto``.
        max_seconds: how long the audio may be; None for any length. A file that states more is refused before it is
            decoded, and decoding ends as soon as there is more.
        stop_at: seconds that are enough: decoding ends there without an error. None for the whole file.
        memory: the budget of decoded audio; None to keep all of it in memory.

    Raises:
        InvalidAudio: the source is not audio that can be decoded; the message says what was found. So does a file on
            which libav crashes, hangs, or takes too much memory or processor time.
        AudioTooLong: it lasts longer than ``max_seconds``.
        InvalidOption: the file has no such ``audio_track``, or too many channels to separate them.
        StorageFull, StorageError: the decoded audio, or the copy of a stream, finds no room on the disk.
        WhisperApiError: the decoder process cannot be started.
    """
    check = check or _nothing
    if isinstance(source, np.ndarray):
        return _from_array(source, max_seconds, stop_at, memory)
    with contextlib.ExitStack() as stack:
        count = 1 if channels == "mix" else 1 + MAX_CHANNELS
        recordings = [stack.enter_context(contextlib.closing(Recording(memory))) for _ in range(count)]
        file = stack.enter_context(opened(source, check, memory, max_seconds))
        request = file.request(
            "decode", audio_track=audio_track, channels=channels, max_seconds=max_seconds, stop_at=stop_at
        )
        found = _run(request, file, recordings, check, progress)
        audio, *separate = [recording.finish(found.samples) for recording in recordings[: found.tracks]]
    if progress is not None:
        progress(1.0)
    return Decoded(audio, found.warnings, separate=tuple(separate), mix_warnings=found.mix_warnings)


def probe(
    source: AudioInput, *, audio_track: int | None = None, channels: Channels = "mix", max_seconds: float | None = None
) -> AudioInfo:
    """Tell what a file is; decodes no more of the file than its first sound.

    A file object that can seek is left at its beginning, so that it can be decoded next; one that cannot is used up.

    Args:
        source: as for :func:`decode`.
        audio_track: as for :func:`decode`.
        channels: as for :func:`decode`.
        max_seconds: how long the audio may be, as its header states it; None for any length.

    Raises:
        InvalidAudio: as :func:`decode` raises it, but for damage that comes later in the file.
        AudioTooLong: the file states more than ``max_seconds``.
        InvalidOption: the file has no such ``audio_track``, or too many channels to separate them.
    """
    if isinstance(source, np.ndarray):
        duration = _from_array(source, max_seconds).duration
        return AudioInfo("array", str(source.dtype), SAMPLE_RATE, 1, duration)
    with opened(source, _nothing, None, max_seconds) as file:
        request = file.request("probe", audio_track=audio_track, channels=channels, max_seconds=max_seconds)
        found = _run(request, file, [Recording()], _nothing, None)
    return AudioInfo(found.container, found.codec, found.sample_rate, found.channels, found.duration)


def _nothing() -> None:
    return None


def _run(
    request: Request,
    file: InputFile,
    recordings: Sequence[Recording],
    check: Callable[[], None],
    progress: Callable[[float], None] | None,
) -> Finished:
    if ISOLATED:
        with DECODERS.lease(check) as process:
            return process.run(request, file, recordings, check, progress)

    def advanced(_seconds: float, _position: int, part: float | None) -> None:
        check()
        if progress is not None and part is not None:
            progress(part)

    source = AudioSource(file.read, file.size, file.name)
    if request.operation == "probe":
        return probe_file(source, request)
    return decode_file(source, request, lambda track, size: recordings[track].reserve(size), advanced)


def _from_array(
    array: NDArray[Any],
    max_seconds: float | None = None,
    stop_at: float | None = None,
    memory: AudioMemory | None = None,
) -> Decoded:
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
    if kind not in (np.dtype(np.int16), np.dtype(np.float32), np.dtype(np.float64)):
        raise InvalidAudio(f"an array of {array.dtype} is not audio: {advice}")
    if stop_at is not None:
        flat = flat[: round(stop_at * SAMPLE_RATE)]
    refuse_longer("the array", len(flat) / SAMPLE_RATE, max_seconds)
    not_finite, peak = 0, math.nan
    if flat.dtype == np.float32 and flat.flags.c_contiguous:
        # A NaN is the greatest of all for NumPy.
        peak = float(np.max([np.abs(block).max() for block in _blocks(flat)]))
    shared = math.isfinite(peak)
    if shared:
        audio: Samples = flat
    else:
        with contextlib.closing(Recording(memory)) as recording, np.errstate(over="ignore"):
            track = Track(recording.reserve)
            for block in _blocks(flat):
                track.append(_as_float(block))
            audio, not_finite, peak = recording.finish(track.size), track.not_finite, track.peak
    return Decoded(audio, tuple(value_warnings(not_finite, peak)), shared=shared)


def _blocks(samples: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK))


def _as_float(block: NDArray[Any]) -> Samples:
    floats: Samples = block.astype(np.float32)
    return floats / np.float32(32768.0) if block.dtype.kind == "i" else floats
