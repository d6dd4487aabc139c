"""The outcomes of a job that ran, or that ran when the process ended or its device failed.

A job may be to blame for such an end: its audio, its size, or a defect in a model. Therefore attempts are counted. From
its second attempt on, a job runs alone, and after ``MAX_JOB_ATTEMPTS`` it is Failed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from whisper_api.schema import Transcript
from whisper_api.store.rows import Job

AUDIO_NAME = "audio"
MAX_ERROR_LENGTH = 500
# After this number of attempts a job waits behind all others, so that no other job waits for one that ends the process.
ATTEMPTS_AT_POSITION = 2
# Absolute paths of two names or more, on any system, but not the path of a URL.
_PATH = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:)?(?:[/\\][\w.+@~-]+)+[/\\]([\w.+@~-]+)")


@dataclass(frozen=True)
class Completed:
    """The job has a transcript."""

    transcript: Transcript


@dataclass(frozen=True)
class Failed:
    """The job ended with an error: the name of its class, and a text for people."""

    error_name: str
    error: str


@dataclass(frozen=True)
class WasCanceled:
    """The job was canceled."""


@dataclass(frozen=True)
class PutBack:
    """The job runs again: after the next start, once its model is downloaded, or soon and alone after a crash.

    Attributes:
        counted: this attempt counts towards ``MAX_JOB_ATTEMPTS``.
        last: the job waits behind all others.
    """

    counted: bool
    last: bool = False


Outcome = Completed | Failed | WasCanceled | PutBack


def after_crash(job: Job, max_attempts: int, what: str) -> PutBack | Failed:
    """What becomes of a job under which something broke that all jobs share.

    Args:
        job: the job, as it was claimed.
        max_attempts: number of attempts at a job.
        what: what broke, for people: "the server ended".
    """
    attempts = job.attempts + 1
    if attempts < max_attempts:
        return PutBack(counted=True, last=attempts >= ATTEMPTS_AT_POSITION)
    return Failed("", f"{what} {attempts} times while this job ran: it is not tried again (MAX_JOB_ATTEMPTS)")


def failure_of(error: BaseException) -> Failed:
    """The failure that the client sees: the error in one line, without paths of this machine."""
    text = _PATH.sub(r"\1", " ".join(str(error).split()))
    if len(text) > MAX_ERROR_LENGTH:
        text = f"{text[: MAX_ERROR_LENGTH - 1]}…"
    name = type(error).__name__
    return Failed(name, text or name)
