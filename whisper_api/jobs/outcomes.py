"""The outcomes of a job that ran."""

from __future__ import annotations

import re
from dataclasses import dataclass

from whisper_api.schema import Transcript

AUDIO_NAME = "audio"
MAX_ERROR_LENGTH = 500
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


def failure_of(error: BaseException) -> Failed:
    """The failure that the client sees: the error in one line, without paths of this machine."""
    text = _PATH.sub(r"\1", " ".join(str(error).split()))
    if len(text) > MAX_ERROR_LENGTH:
        text = f"{text[: MAX_ERROR_LENGTH - 1]}…"
    name = type(error).__name__
    return Failed(name, text or name)
