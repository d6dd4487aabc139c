"""What may become of a job that ran, and how it is told."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from whisper_api.schema import (
    JobCanceledEvent,
    JobCompletedEvent,
    JobEvent,
    JobFailedEvent,
    JobProgressEvent,
    JobQueuedEvent,
    Transcript,
)
from whisper_api.store.jobs import Job

__all__ = [
    "AUDIO_NAME",
    "Completed",
    "Failed",
    "Outcome",
    "PutBack",
    "WasCanceled",
    "event_of",
    "failure_of",
    "remove_upload",
]

log = logging.getLogger("whisper_api.jobs")

AUDIO_NAME = "audio"
MAX_ERROR_LENGTH = 500
# Absolute paths of two names or more, on any system; an address's is none.
_PATH = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:)?(?:[/\\][\w.+@~-]+)+[/\\]([\w.+@~-]+)")


@dataclass(frozen=True)
class Completed:
    """It has a transcript."""

    transcript: Transcript


@dataclass(frozen=True)
class Failed:
    """It ended with an error: its class, and its text for people."""

    error_name: str
    error: str


@dataclass(frozen=True)
class WasCanceled:
    """Its caller wanted it no more."""


@dataclass(frozen=True)
class PutBack:
    """The job runs again: after the next start or, when the executor failed as a whole, soon and alone.

    Attributes:
        counted: this attempt counts towards ``MAX_JOB_ATTEMPTS``.
    """

    counted: bool


Outcome = Completed | Failed | WasCanceled | PutBack


def failure_of(error: BaseException) -> Failed:
    """An error as the client sees it: in one line, and without the machine's paths."""
    text = _PATH.sub(r"\1", " ".join(str(error).split()))
    if len(text) > MAX_ERROR_LENGTH:
        text = f"{text[: MAX_ERROR_LENGTH - 1]}…"
    name = type(error).__name__
    return Failed(name, text or name)


def event_of(job: Job, position: int = 1) -> JobEvent:
    """The event that a job's state is.

    Args:
        job: as the store has it.
        position: its place in the queue, should it be there.
    """
    match job.state:
        case "Completed":
            return JobCompletedEvent(job_id=job.job_id)
        case "Failed":
            return JobFailedEvent(job_id=job.job_id, error=job.error or "")
        case "Canceled":
            return JobCanceledEvent(job_id=job.job_id)
        case "Processing":
            return JobProgressEvent(job_id=job.job_id, progress=0.0, stage="load")
        case _:
            return JobQueuedEvent(job_id=job.job_id, queue_position=position)


def remove_upload(uploads_dir: Path, job_id: str) -> None:
    """Remove what a client sent. What cannot be removed now is left to the next sweep."""
    directory = uploads_dir / job_id
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("an upload could not be removed: %s", error.strerror, extra={"job_id": job_id})
