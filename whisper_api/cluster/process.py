"""The front's side of the driver process: starts it, starts it anew when it ends, and tells its frames apart."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from whisper_api.cluster.messages import GONE, STATE, ClusterState, Frame, Request, Setup
from whisper_api.cluster.security import ray_environment
from whisper_api.errors import EngineClosed

log = logging.getLogger("whisper_api.cluster")

PAUSES = (0.5, 1.0, 2.0, 5.0)
# A driver that ran for this time had a cluster: the next one is started without a longer pause.
STEADY_SECONDS = 30.0
END_SECONDS = 10.0
LOST_CLUSTER = "The cluster is lost; it is looked for again."
# The module search path comes from this process, whatever it was made of.
COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from whisper_api.cluster.driver import main; main(int(sys.argv[1]))"


class Call:
    """A call that the driver process handles.

    Attributes:
        number: its number.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._frames: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

    def put(self, kind: str, payload: bytes) -> None:
        """Add a frame."""
        self._frames.put((kind, payload))

    def next(self, timeout: float) -> tuple[str, bytes] | None:
        """The next frame's kind and payload; None when none has come within the time."""
        try:
            return self._frames.get(timeout=timeout)
        except queue.Empty:
            return None


class DriverProcess:
    """Keeps a driver process running. Any thread may call the methods.

    Args:
        setup: the first message to each process.
        on_state: receives each state of the cluster, in a thread of this object.
    """

    def __init__(self, setup: Setup, on_state: Callable[[ClusterState], None]) -> None:
        self._setup = setup
        self._on_state = on_state
        self._numbers = itertools.count(1)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._thread: threading.Thread | None = None
        self._connection: Connection[Any, Any] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._calls: dict[int, Call] = {}
        self._sending = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The number of the process that runs now."""
        with self._lock:
            return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process unless it was started. Returns at once."""
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._loop, name="cluster", daemon=True)
                self._thread.start()

    def open(self, request: Callable[[int], Request]) -> Call:
        """Begin a call. It gets GONE at once when no driver process runs.

        Args:
            request: makes the request from the number of the call.

        Raises:
            EngineClosed: this object was closed.
        """
        if self._closed.is_set():
            raise EngineClosed("the executor is closed")
        call = Call(next(self._numbers))
        with self._lock:
            self._calls[call.number] = call
            there = self._connection is not None
        if not there or not self.send(request(call.number)):
            call.put(GONE, b"")
        return call

    def end(self, call: Call) -> None:
        """Forget a call."""
        with self._lock:
            self._calls.pop(call.number, None)

    def send(self, request: Request) -> bool:
        """Send a request; whether it was sent."""
        with self._lock:
            connection = self._connection
        if connection is None:
            return False
        try:
            with self._sending:
                connection.send_bytes(msgspec.msgpack.encode(request))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End the process. Calls that are open get GONE."""
        self._closed.set()
        with self._lock:
            connection, process, thread = self._connection, self._process, self._thread
        if connection is not None:
            # Wakes the reading thread, which a mere close does not.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)
        if process is not None:
            _end(process)
        if thread is not None:
            thread.join(END_SECONDS)

    def _loop(self) -> None:
        failures = 0
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                self._serve_one()
            except Exception:
                log.exception("the driver of the cluster has failed")
            if self._closed.is_set():
                break
            failures = 0 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            self._closed.wait(PAUSES[min(failures, len(PAUSES) - 1)])

    def _serve_one(self) -> None:
        """Start a process and read its frames until it ends."""
        ours, theirs = socket.socketpair()
        path = [str(Path(each).absolute()) for each in sys.path]
        with ours, theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(theirs.fileno()), *path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if log.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **ray_environment(self._setup.address)},
                start_new_session=True,
            )
            connection: Connection[Any, Any] = Connection(ours.detach())
        connection.send_bytes(msgspec.msgpack.encode(self._setup))
        with self._lock:
            self._process, self._connection = process, connection
        decoder = msgspec.msgpack.Decoder(Frame)
        last = ClusterState()
        try:
            while True:
                number, messages = decoder.decode(connection.recv_bytes())
                with self._lock:
                    call = self._calls.get(number)
                for kind, payload in messages:
                    if kind == STATE:
                        last = msgspec.msgpack.decode(payload, type=ClusterState)
                        self._on_state(last)
                    elif call is not None:
                        call.put(kind, payload)
        except (EOFError, OSError):
            pass
        finally:
            with self._lock:
                self._connection = None
            connection.close()
            # A driver that could not join has said why.
            reason = last.reason if not last.connected else ""
            self._on_state(ClusterState(reason=reason or LOST_CLUSTER, wanted=last.wanted))
            # Last, so that a job that waits for the cluster does not find the old state.
            with self._lock:
                calls = list(self._calls.values())
            for each in calls:
                each.put(GONE, b"")
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process whose socket is closed."""
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
