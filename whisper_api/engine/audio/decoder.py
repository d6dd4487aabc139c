"""The decoder process: it reads files with libav for the process that started it, within limits of memory and time.

libav reads hostile bytes. A file that crashes or stalls libav, or makes it take memory, ends this process and no other.
The process ends when its parent closes the connection, or has asked for nothing for a while.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from whisper_api.engine.audio import messages
from whisper_api.engine.audio.libav import decode_file, probe_file
from whisper_api.engine.audio.source import AudioSource
from whisper_api.errors import InvalidAudio, WhisperApiError

T = TypeVar("T")

MEMORY_BYTES = 1 << 30
# A process that has had more than this ends after the file, since the allocator gives little of that back.
KEPT_BYTES = 256 << 20
# Processor seconds: without a new second of audio, and in all. The system counts them, so that a file is not refused
# because the machine is busy. Reading a long film takes time for its bytes, not for its sound.
STALL_CPU_SECONDS = 10.0
START_CPU_SECONDS = 30.0
CPU_SECONDS_PER_AUDIO_SECOND = 0.1
BYTES_PER_CPU_SECOND = 20e6
# The parent hears of a long file at most fifty times a second. A message for each second of audio would make decoding
# 5 % slower, and take the parent's processor.
TICK_SECONDS = 0.02
EVERY_TICK_UNTIL = 60.0


class _Decoder:
    """Serves one request after the other.

    Args:
        connection: to the parent.
    """

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._encoder = msgspec.msgpack.Encoder()
        self._descriptors: dict[int, int] = {}  # of the files that hold the samples, by track

    def run(self, idle_seconds: float) -> None:
        self._send(messages.Ready())
        while self._connection.poll(idle_seconds):
            answer = self._serve(self._receive(messages.Request))
            self._send(answer)
            if answer.last:
                return

    def _serve(self, request: messages.Request) -> messages.Finished | messages.Refused:
        with contextlib.ExitStack() as stack:
            descriptor = None
            if request.by_descriptor:
                descriptor = recv_handle(self._connection)
                stack.callback(os.close, descriptor)
            stack.callback(self._close_samples)
            limit = _TimeLimit()
            stack.callback(limit.end)
            try:
                return self._answer(request, descriptor, limit)
            except MemoryError:
                # What the allocator could not give to this file may be missing for the next one.
                most = f"{MEMORY_BYTES >> 20} MB"
                return _refused(InvalidAudio(f"{request.name} takes more than {most} of memory to decode"), last=True)
            except Exception as error:
                return _refused(error)

    def _answer(self, request: messages.Request, descriptor: int | None, limit: _TimeLimit) -> messages.Finished:
        def read(offset: int, size: int) -> bytes:
            if descriptor is not None:
                try:
                    return os.pread(descriptor, size, offset)
                except OSError as error:
                    raise InvalidAudio(f"{request.name} cannot be read: {error.strerror}") from error
            self._send(messages.Read(offset, size))
            return self._receive(messages.Block).content

        next_tick = 0.0

        def progress(seconds: float, position: int, part: float | None) -> None:
            nonlocal next_tick
            now = time.monotonic()
            if seconds > EVERY_TICK_UNTIL and now < next_tick:
                return
            next_tick = now + TICK_SECONDS
            limit.extend(seconds, position)
            self._send(messages.Tick(part))

        source = AudioSource(read, request.size, request.name)
        if request.operation == "probe":
            return probe_file(source, request)
        found = decode_file(source, request, self._reserve, progress)
        return msgspec.structs.replace(found, last=_peak_bytes() > KEPT_BYTES)

    def _reserve(self, track: int, size: int) -> tuple[int, int]:
        self._send(messages.Reserve(size, track))
        room = self._receive(messages.Room)
        if room.moved:
            if track in self._descriptors:
                os.close(self._descriptors.pop(track))
            self._descriptors[track] = recv_handle(self._connection)
        if track not in self._descriptors:
            raise RuntimeError("there is no file for the samples")
        return self._descriptors[track], room.size

    def _close_samples(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _send(self, message: messages.FromDecoder) -> None:
        try:
            self._connection.send_bytes(self._encoder.encode(message))
        except OSError:
            os._exit(0)  # the parent is gone, maybe in the middle of a call of libav, which no exception would end

    def _receive(self, kind: type[T]) -> T:
        try:
            return msgspec.msgpack.decode(self._connection.recv_bytes(), type=kind)
        except (OSError, EOFError):
            os._exit(0)


class _TimeLimit:
    """Lets the system end this process (SIGXCPU) when a file takes too much processor time."""

    def __init__(self) -> None:
        self._begin = _cpu_seconds()
        self.extend(0.0, 0)

    def extend(self, seconds: float, position: int) -> None:
        """Allow more.

        Args:
            seconds: of audio so far.
            position: bytes of the file so far.
        """
        whole = START_CPU_SECONDS + CPU_SECONDS_PER_AUDIO_SECOND * seconds + position / BYTES_PER_CPU_SECOND
        _set_limit(resource.RLIMIT_CPU, math.ceil(min(_cpu_seconds() + STALL_CPU_SECONDS, self._begin + whole)))

    def end(self) -> None:
        _set_limit(resource.RLIMIT_CPU, resource.RLIM_INFINITY)


def _refused(error: Exception, *, last: bool = False) -> messages.Refused:
    if isinstance(error, WhisperApiError):
        attributes = {name: value for name, value in vars(error).items() if isinstance(value, str)}
        return messages.Refused(type(error).__name__, tuple(str(argument) for argument in error.args), attributes, last)
    return messages.Refused("", ("".join(traceback.format_exception(error)),), {}, last)


def _set_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak_bytes() -> int:
    # Linux hands ru_maxrss on to a started program, so it may be the peak of the process that started this one.
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _limit_memory() -> None:
    """Limit what this process may take beyond what its libraries take. Only Linux tells how much that is."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _set_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES)
    with contextlib.suppress(OSError):
        # When the machine runs out of memory, the system ends this process rather than the one that has the models.
        Path("/proc/self/oom_score_adj").write_text("1000")


def main(descriptor: int, idle_seconds: float) -> None:
    """Serve the parent until it closes the connection.

    Args:
        descriptor: of the socket that leads to the parent.
        idle_seconds: without a request after which the process ends.
    """
    # A terminal or a service manager signals all processes. The parent decides when to stop, after its jobs.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Loaded before the memory is limited and the first file comes.
    import av.filter

    av.filter.Graph()
    _limit_memory()
    _Decoder(Connection(descriptor)).run(idle_seconds)
