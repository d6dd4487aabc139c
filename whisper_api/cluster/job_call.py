"""The front's side of one job: turns its messages into the executor's callbacks, its result and its errors."""

from __future__ import annotations

import logging
import threading
import time

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


def until_end(
    driver: DriverProcess,
    call: Call,
    cancel: threading.Event,
    on_progress: OnProgress,
    on_partial: OnPartial,
    on_missing_model: OnMissingModel,
) -> Transcript | None:
    """Call the executor's callbacks with the messages of one job, until the job has ended.

    Args:
        driver: the driver process.
        call: the call of the job.
        cancel: set when the job is to stop.
        on_progress: as with ``Executor.run``.
        on_partial: as with ``Executor.run``.
        on_missing_model: as with ``Executor.run``.

    Returns:
        The transcript; None when the driver process ended before the job had begun.
    """
    beat = time.monotonic()
    began = asked_to_stop = False
    failure: BaseException | None = None
    while True:
        if (cancel.is_set() or failure is not None) and not asked_to_stop:
            asked_to_stop = True
            driver.send(messages.Cancel(call.number))
        match call.next(LOOK_SECONDS):
            case (messages.BEGAN, payload):
                began = True
                log.debug("job placed", extra={"engine": payload.decode()})
            case (messages.PROGRESS, payload):
                on_progress(messages.progress_decoder.decode(payload))
            case (messages.PARTIAL, payload):
                on_partial(messages.partial_decoder.decode(payload))
            case (messages.MISSING, payload):
                try:
                    on_missing_model(payload.decode())
                    driver.send(messages.Proceed(call.number))
                except BaseException as error:
                    failure = error
            case (messages.DONE, payload):
                return messages.transcript_decoder.decode(payload)
            case (messages.RAISED, payload):
                raise failure or messages.decode_error(payload)
            case (messages.LOST, payload):
                raise failure or EngineLost(payload.decode())
            case (messages.GONE, _) if began or failure is not None:
                raise failure or EngineLost("the cluster is lost")
            case (messages.GONE, _):
                return None
            case None if not began and time.monotonic() - beat > BEAT_SECONDS:
                beat = time.monotonic()
                on_progress(Progress(0.0, "load"))
