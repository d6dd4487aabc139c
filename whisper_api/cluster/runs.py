"""One job on the cluster: finds an engine, brings the audio there, and passes the engine's messages on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_api.cluster import messages
from whisper_api.cluster.placement import Load
from whisper_api.errors import Canceled

if TYPE_CHECKING:
    from whisper_api.cluster.keeper import Keeper

# Larger files pass in pieces of this size, of which two are on their way at a time: neither the front nor the object
# store ever holds a whole upload.
PIECE_BYTES = 8 << 20
PIECES = 2
AGAIN_SECONDS = 0.3


class Run:
    """One job.

    Args:
        request: the job.
        keeper: has the engines.
        send: sends messages about the job to the front.
    """

    def __init__(self, request: messages.RunJob, keeper: Keeper, send: Callable[..., None]) -> None:
        self.call = request.call
        self._request = request
        self._keeper = keeper
        self._send = send
        self._load = Load(request.call, request.audio_seconds, request.model, request.needs, request.alone)
        self._canceled = threading.Event()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._engine = ""

    def cancel(self) -> None:
        """Stop the job within one work item."""
        self._canceled.set()
        self._keeper.wake()
        self._tell("cancel")

    def proceed(self) -> None:
        """Let the job go on without the model that was missing."""
        self._tell("proceed")

    def until_end(self) -> None:
        """Run the job on an engine; on another one when that ends before it has the job."""
        while True:
            name = self._keeper.take(self._load, self._canceled)
            if name is None:
                self._send(self.call, (messages.RAISED, messages.encode_error(Canceled("the job was canceled"))))
                return
            with self._lock:
                self._engine = name
            try:
                if self._run_on(name):
                    return
            finally:
                with self._lock:
                    self._engine = ""
                self._keeper.give_back(name, self._load)
            time.sleep(AGAIN_SECONDS)

    def _run_on(self, name: str) -> bool:
        """Run the job on an engine.

        Returns:
            Whether the job has ended; False when the engine ended before it had the job.
        """
        import ray
        from ray.exceptions import RayError

        began = False
        try:
            pieces = self._bring_files(name)
            # A cancellation before this point has found no engine to tell.
            if self._canceled.is_set():
                self._tell("cancel")
            given = (str(self.call), self._request.job, pieces, self._request.voices)
            stream = self._keeper.stream(name, "run", *given)
            # From here on, the end of the engine counts as an attempt, since the job may have been its cause.
            began = True
            self._send(self.call, (messages.BEGAN, name.encode()))
            for ref in stream:
                sent = ray.get(ref)
                del ref
                self._note(name, sent)
                self._send(self.call, *sent)
        except RayError as error:
            self._keeper.lost(name)
            if began:
                reason = f"engine {name} has ended ({type(error).__name__})"
                self._send(self.call, (messages.LOST, reason.encode()))
            return began
        return True

    def _note(self, name: str, sent: list[messages.Message]) -> None:
        """Take from the messages what the placement needs."""
        reports = [payload for kind, payload in sent if kind == messages.PROGRESS]
        if reports:
            self._load.fraction = messages.progress_decoder.decode(reports[-1]).fraction
        if sent[-1][0] == messages.MISSING:
            # The job goes back to the queue for a download, and must not come here again when that fails.
            self._keeper.learn(name, self._load.needs, (sent[-1][1].decode(),))
        elif sent[-1][0] == messages.LOST:
            self._keeper.lost(name)
        elif sent[-1][0] == messages.DONE:
            self._keeper.completed(name, self._load)

    def _bring_files(self, name: str) -> dict[str, tuple[int, Any]]:
        """Send all files but their last pieces, which go with the call itself."""
        import ray

        last: dict[str, tuple[int, Any]] = {}
        waiting: list[Any] = []
        for file, path in self._request.files.items():
            for offset, piece, is_last in _pieces(Path(path)):
                if is_last:
                    last[file] = offset, piece
                    break
                waiting.append(self._keeper.invoke(name, "receive", str(self.call), file, offset, piece))
                if len(waiting) >= PIECES:
                    ray.get(waiting.pop(0))
        ray.get(waiting)
        return last

    def _tell(self, method: str) -> None:
        with self._lock:
            name = self._engine
        if name:
            self._keeper.invoke(name, method, str(self.call))


def _pieces(path: Path) -> Iterator[tuple[int, Any, bool]]:
    """The pieces of a file as arrays, which Ray copies once: offset, bytes, whether it is the last."""
    import numpy as np

    size = path.stat().st_size
    with path.open("rb") as file:
        for offset in range(0, max(size, 1), PIECE_BYTES):
            count = min(PIECE_BYTES, size - offset)
            piece = np.fromfile(file, dtype=np.uint8, count=count)
            yield offset, piece, offset + PIECE_BYTES >= size
