"""Runs decoder processes: starts them, keeps them for the next file, and replaces those that a file brings down."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Protocol

import msgspec

from whisper_api import errors
from whisper_api.engine.audio import messages
from whisper_api.engine.audio.track import Recording
from whisper_api.errors import InvalidAudio, WhisperApiError

IDLE_SECONDS = 600.0
# Processor time is limited in the decoder process itself; this is for one that waits for ever.
STALL_SECONDS = 120.0
# How often a thread that waits looks whether its job was canceled.
CHECK_SECONDS = 0.1
END_SECONDS = 5.0
# A message is short and comes whole, unless a hostile file has taken over the decoder process.
MESSAGE_BYTES = 1 << 20
MESSAGE_SECONDS = 10
# The module search path comes from this process, whatever it was made of.
COMMAND = (
    "import sys; sys.path[:] = sys.argv[3:]; from whisper_api.engine.audio.decoder import main;"
    " main(int(sys.argv[1]), float(sys.argv[2]))"
)
# Decoding uses one thread; NumPy's thread pool would only take time and memory.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_message = msgspec.msgpack.Decoder(messages.FromDecoder)


class Readable(Protocol):
    """The bytes of a file.

    Attributes:
        descriptor: of a regular file, from which the decoder process reads by itself; None for another source.
    """

    descriptor: int | None

    def read(self, offset: int, size: int) -> bytes:
        """Read up to ``size`` bytes; a stream gives its bytes in their order, whatever the offset."""


class DecoderProcess:
    """One decoder process, which serves one request at a time.

    Args:
        idle_seconds: without a request after which it ends by itself.
        stall_seconds: without a message after which it is killed.

    Attributes:
        usable: it can serve another request.

    Raises:
        WhisperApiError: the process cannot be started.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS, stall_seconds: float = STALL_SECONDS) -> None:
        self.usable = True
        self._ready = False
        self._stall_seconds = stall_seconds
        # A little less, so that no request meets a process that is about to end.
        self._idle_seconds = idle_seconds - min(10.0, idle_seconds / 2)
        self._last_used = time.monotonic()
        ours, theirs = socket.socketpair()
        for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, direction, struct.pack("ll", MESSAGE_SECONDS, 0))
        with ours, theirs:
            path = [str(Path(each).absolute()) for each in sys.path]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", COMMAND, str(theirs.fileno()), str(idle_seconds), *path],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, **ENVIRONMENT},
                    start_new_session=True,
                )
            except OSError as error:
                raise WhisperApiError(f"the decoder process cannot be started: {error.strerror}") from error
            self._connection: Connection[Any, Any] = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, and will for a while."""
        fresh = time.monotonic() - self._last_used < self._idle_seconds
        return self.usable and fresh and self._process.poll() is None

    def run(
        self,
        request: messages.Request,
        source: Readable,
        recordings: Sequence[Recording],
        check: Callable[[], None],
        progress: Callable[[float], None] | None,
    ) -> messages.Finished:
        """Decode or probe a file.

        Args:
            request: what to do.
            source: the file.
            recordings: take the samples, one for each track that the file may have.
            check: called about ten times a second, and once for each second of audio; may raise to end the request.
            progress: called with the part that is done, 0 to 1.

        Raises:
            InvalidAudio: the file cannot be decoded, or has brought the process down.
            WhisperApiError: see :func:`whisper_api.engine.audio.decode.decode`; or the process did not start.
        """
        # Whatever ends this call early leaves a process that is still busy with the file.
        self.usable = False
        self._send(request, request.name)
        if request.by_descriptor and source.descriptor is not None:
            self._send_descriptor(source.descriptor, request.name)
        sent: dict[int, int] = {}  # the descriptor that the process has, by track
        while True:
            message = self._receive(request.name, check)
            match message:
                case messages.Ready():
                    self._ready = True
                case messages.Read(offset, size):
                    self._send(messages.Block(source.read(offset, size)), request.name)
                case messages.Reserve(size, track) if 0 <= track < len(recordings):
                    descriptor, room = recordings[track].reserve(size)
                    moved = sent.get(track) != descriptor
                    self._send(messages.Room(room, moved=moved), request.name)
                    if moved:
                        self._send_descriptor(descriptor, request.name)
                    sent[track] = descriptor
                case messages.Tick(part):
                    check()
                    if progress is not None and part is not None:
                        progress(part)
                case messages.Finished() if 1 <= message.tracks <= len(recordings):
                    self._last_used = time.monotonic()
                    self.usable = not message.last
                    return message
                case messages.Refused():
                    self._last_used = time.monotonic()
                    self.usable = not message.last
                    raise _error(message)
                case _:
                    # Only a hostile file makes the process say this.
                    self._process.kill()
                    raise self._lost(request.name)

    def forget(self) -> None:
        """Leave the process to the parent of this process, which was forked from it."""
        self._connection.close()
        self._process.returncode = 0  # else Popen warns of a process that still runs

    def close(self) -> None:
        """End the process."""
        # An idle process ends when its connection is closed; a busy one may hang in libav.
        self._connection.close()
        if not self.usable:
            self._process.kill()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, message: msgspec.Struct, name: str) -> None:
        try:
            self._connection.send_bytes(msgspec.msgpack.encode(message))
        except OSError as error:
            raise self._lost(name) from error

    def _send_descriptor(self, descriptor: int, name: str) -> None:
        try:
            send_handle(self._connection, descriptor, self.pid)
        except OSError as error:
            raise self._lost(name) from error

    def _receive(self, name: str, check: Callable[[], None]) -> Any:
        deadline = time.monotonic() + self._stall_seconds
        while not self._connection.poll(CHECK_SECONDS):
            check()
            if time.monotonic() > deadline:
                raise InvalidAudio(f"{name} cannot be decoded: libav has hung for {self._stall_seconds:g} s")
        try:
            return _message.decode(self._connection.recv_bytes(MESSAGE_BYTES))
        except (ConnectionError, EOFError) as error:
            raise self._lost(name) from error
        except (OSError, msgspec.DecodeError) as error:
            self._process.kill()
            raise self._lost(name) from error

    def _lost(self, name: str) -> WhisperApiError:
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        end = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        if not self._ready:
            return WhisperApiError(f"the decoder process ended {end} before it was ready: see its standard error")
        if -code == signal.SIGXCPU:
            return InvalidAudio(f"{name} cannot be decoded: it takes too much processor time for the sound that it has")
        return InvalidAudio(f"{name} cannot be decoded: it brings libav down (the decoder process ended {end})")


class DecoderPool:
    """The decoder processes of this process: one for each file that is decoded, kept for the next ones.

    Args:
        limit: how many run at a time; None for as many as there are processors, four at least.
        idle_seconds, stall_seconds: see :class:`DecoderProcess`.

    Attributes:
        lost: how many processes died or were killed over a file so far.
    """

    def __init__(
        self, limit: int | None = None, idle_seconds: float = IDLE_SECONDS, stall_seconds: float = STALL_SECONDS
    ) -> None:
        self._limit = limit or max(4, os.cpu_count() or 1)
        self._idle_seconds = idle_seconds
        self._stall_seconds = stall_seconds
        self.lost = 0
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._end_all)

    def _begin(self) -> None:
        self._slots = threading.BoundedSemaphore(self._limit)
        self._lock = threading.Lock()
        self._idle: list[DecoderProcess] = []  # guarded by _lock, the last one used most recently
        self._processes: set[DecoderProcess] = set()  # guarded by _lock, the busy ones too

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that run."""
        with self._lock:
            return [process.pid for process in self._processes]

    @contextlib.contextmanager
    def lease(self, check: Callable[[], None]) -> Iterator[DecoderProcess]:
        """Have a process for one request.

        Args:
            check: called while all processes are busy; may raise.

        Raises:
            WhisperApiError: no process can be started.
        """
        while not self._slots.acquire(timeout=CHECK_SECONDS):
            check()
        try:
            process = self._take()
            try:
                yield process
            finally:
                with self._lock:
                    if process.usable and process in self._processes:
                        self._idle.append(process)
                    self.lost += not process.usable
                if not process.usable:
                    self._end([process])
        finally:
            self._slots.release()

    def prestart(self) -> None:
        """Start a process, if none is there, without waiting until it is ready.

        Raises:
            WhisperApiError: it cannot be started.
        """
        process = self._take()
        with self._lock:
            self._idle.append(process)

    def close(self) -> None:
        """End the processes that are idle. A later request starts a new one."""
        with self._lock:
            processes = [*self._idle]
        self._end(processes)

    def _end_all(self) -> None:
        with self._lock:
            processes = [*self._processes]
        self._end(processes)

    def _take(self) -> DecoderProcess:
        with self._lock:
            ended = [process for process in self._idle if not process.alive]
            self._idle = [process for process in self._idle if process not in ended]
            process = self._idle.pop() if self._idle else None
        self._end(ended)
        if process is None:
            process = DecoderProcess(self._idle_seconds, self._stall_seconds)
            with self._lock:
                self._processes.add(process)
        return process

    def _end(self, processes: list[DecoderProcess]) -> None:
        with self._lock:
            self._processes.difference_update(processes)
            self._idle = [process for process in self._idle if process not in processes]
        for process in processes:
            process.close()

    def _forget(self) -> None:
        """Begin anew in a forked process: the processes and the threads that use them are the parent's."""
        processes = self._processes
        self._begin()
        for process in processes:
            process.forget()


def _error(refused: messages.Refused) -> Exception:
    kind = getattr(errors, refused.error, None) if refused.error in errors.__all__ else None
    if kind is None:
        return RuntimeError("the decoder process has failed:\n" + "\n".join(refused.arguments))
    # As when it is unpickled: the constructor of some errors makes the message itself.
    error: Exception = kind.__new__(kind, *refused.arguments)
    vars(error).update(refused.attributes)
    return error


DECODERS = DecoderPool()
