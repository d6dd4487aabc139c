"""The front's side of one job: turns its messages into the executor's callbacks, its result and its errors."""

from __future__ import annotations

import logging
import threading
import time

import msgspec

from whisper_api.cluster import messages
from whisper_api.cluster.process import Call, DriverProcess
from whisper_api.errors import EngineLost
from whisper_api.jobs.executor import OnMissingModel, OnPartial, OnProgress
from whisper_api.schema import Progress, Transcript

log = logging.getLogger("whisper_api.cluster")

# How often a thread that waits looks whether its job was canceled.
LOOK_SECONDS = 0.1
# A job that waits for an engine shows that it is not stuck.
BEAT_SECONDS = 15.0


class JobCall:
    """Calls the executor's callbacks with the messages of one job.

    Args:
        driver: the driver process.
        call: the call of the job.
        cancel: set when the job is to stop.
        on_progress, on_partial, on_missing_model: the callbacks of ``Executor.run``.
    """

    def __init__(
        self,
        driver: DriverProcess,
        call: Call,
        cancel: threading.Event,
        on_progress: OnProgress,
        on_partial: OnPartial,
        on_missing_model: OnMissingModel,
    ) -> None:
        self._driver = driver
        self._call = call
        self._cancel = cancel
        self._on_progress = on_progress
        self._on_partial = on_partial
        self._on_missing_model = on_missing_model
        self._failure: BaseException | None = None
        self._asked_to_stop = False
        self._began = False

    def until_end(self) -> Transcript | None:
        """Handle messages until the job has ended.

        Returns:
            The transcript; None when the driver process ended before the job had begun.
        """
        beat = time.monotonic()
        while True:
            frame = self._call.next(LOOK_SECONDS)
            if self._cancel.is_set():
                self._stop()
            if frame is not None:
                kind, payload = frame
                if kind == messages.DONE:
                    return messages.transcript_decoder.decode(payload)
                if kind == messages.GONE and not self._began and self._failure is None:
                    return None
                self._handle(kind, payload)
            elif not self._began and time.monotonic() - beat > BEAT_SECONDS:
                beat = time.monotonic()
                self._on_progress(Progress(0.0, "load"))

    def _handle(self, kind: str, payload: bytes) -> None:
        match kind:
            case messages.BEGAN:
                self._began = True
                log.debug("job placed", extra={"engine": msgspec.msgpack.decode(payload, type=messages.Placed).engine})
            case messages.PROGRESS:
                self._on_progress(messages.progress_decoder.decode(payload))
            case messages.PARTIAL:
                self._on_partial(messages.partial_decoder.decode(payload))
            case messages.MISSING:
                try:
                    self._on_missing_model(payload.decode())
                    self._driver.send(messages.Proceed(self._call.number))
                except BaseException as error:
                    self._failure = error
                    self._stop()
            case messages.RAISED:
                raise self._failure or messages.decode_error(payload)
            case messages.LOST:
                raise self._failure or EngineLost(payload.decode())
            case messages.GONE:
                raise self._failure or EngineLost("the cluster is lost")

    def _stop(self) -> None:
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self._driver.send(messages.Cancel(self._call.number))
