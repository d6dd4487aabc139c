"""The errors that Whisper API raises, by name. None of them knows about HTTP.

::

    WhisperApiError
    ├── InvalidInput               what the caller gave cannot be used
    │   ├── InvalidAudio           not audio that can be decoded; says what was found instead
    │   │   └── AudioTooLong       it lasts longer than audio may
    │   └── InvalidOption          an option's value is out of range or contradicts another
    ├── ConfigError                the configuration file or environment cannot be used
    ├── ModelError
    │   ├── UnknownModel           no such name in the catalogue, no such directory
    │   ├── ModelUnavailable       a known model that is not here and could not be fetched
    │   └── ModelCorrupt           files are here but are not the files the catalogue names
    ├── DeviceError
    │   ├── DeviceUnavailable      the device asked for does not exist on this machine
    │   └── OutOfMemory            one work item alone does not fit the device
    ├── Canceled                   the caller's ``cancel`` event was set
    ├── EngineClosed               the engine was closed while, or before, the call ran
    ├── ForkedProcess              what this process inherited by a fork cannot be used in it; says what to do
    ├── JobError
    │   ├── JobNotFound            no such job, or one that is not this caller's
    │   ├── JobNotFinished         its result was asked for too early
    │   ├── JobIsProcessing        it cannot be canceled while it runs, unless by force
    │   ├── JobFailed              it ended without a result; says why
    │   ├── JobCanceled            it was canceled, so there is no result
    │   ├── ResultGone             its result was delivered, has expired or was deleted
    │   └── IdempotencyConflict    the same idempotency key came with another payload
    ├── Busy                       not now; says after how many seconds to try again
    │   ├── QueueFull              as many jobs wait as may
    │   ├── CallerLimit            this caller has as many unfinished jobs as one may have
    │   └── Draining               the service is stopping and takes no new work
    ├── StorageError               the job database or the upload directory cannot be used
    │   ├── StorageFull            no space is left on the disk
    │   └── StorageLocked          another process holds the database
    └── RequestError               a server refused what a client asked for, or could not be reached

Every one of them can be pickled and copied, and keeps its message and its attributes: a process pool hands an error of
a worker process over as it was raised.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AudioTooLong",
    "Busy",
    "CallerLimit",
    "Canceled",
    "ConfigError",
    "DeviceError",
    "DeviceUnavailable",
    "Draining",
    "EngineClosed",
    "ForkedProcess",
    "IdempotencyConflict",
    "InvalidAudio",
    "InvalidInput",
    "InvalidOption",
    "JobCanceled",
    "JobError",
    "JobFailed",
    "JobIsProcessing",
    "JobNotFinished",
    "JobNotFound",
    "ModelCorrupt",
    "ModelError",
    "ModelUnavailable",
    "OutOfMemory",
    "QueueFull",
    "RequestError",
    "ResultGone",
    "StorageError",
    "StorageFull",
    "StorageLocked",
    "UnknownModel",
    "WhisperApiError",
]


class Portable(Exception):
    """An exception that can be pickled and copied whatever its constructor takes.

    Python rebuilds an exception by calling its class with ``args``, which fails, or changes the message, when the
    constructor makes the message itself. This class is rebuilt without its constructor.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args), self.__dict__


def _rebuilt(kind: type[Portable], args: tuple[Any, ...]) -> Portable:
    return kind.__new__(kind, *args)


class WhisperApiError(Portable):
    """The root: catch this to catch everything that Whisper API raises on purpose."""


class InvalidInput(WhisperApiError):
    """What the caller gave cannot be used."""


class InvalidAudio(InvalidInput):
    """The input is not audio that can be decoded. The message says what was found."""


class AudioTooLong(InvalidAudio):
    """The audio lasts longer than it may. The message says how long it is and how long it may be."""


class InvalidOption(InvalidInput):
    """An option has a value that cannot be used.

    Args:
        field: the option's name, as in :class:`whisper_api.TranscriptionOptions`.
        message: what is wrong with the value and which values are accepted.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ConfigError(WhisperApiError):
    """The configuration cannot be used. The message names the key and where its value came from."""


class ModelError(WhisperApiError):
    """Something about a model."""


class UnknownModel(ModelError):
    """A name that is neither in the catalogue, nor a directory, nor a hub id."""


class ModelUnavailable(ModelError):
    """A known model that is not on this machine and could not be fetched. The message says why and what to do."""


class ModelCorrupt(ModelError):
    """A model's files differ from those the catalogue names (by SHA-256), or cannot be loaded."""


class DeviceError(WhisperApiError):
    """Something about the device that models run on."""


class DeviceUnavailable(DeviceError):
    """The device asked for does not exist here or cannot be used."""


class OutOfMemory(DeviceError):
    """A single work item does not fit into the device's memory."""


class Canceled(WhisperApiError):
    """The job was canceled by its caller."""


class EngineClosed(WhisperApiError):
    """The engine was closed."""


class ForkedProcess(WhisperApiError):
    """A process uses what its parent used before the fork: threads and their locks do not survive a fork."""


class JobError(WhisperApiError):
    """Something about one job.

    Args:
        job_id: which.
        message: what is wrong with it.
    """

    def __init__(self, job_id: str, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobNotFound(JobError):
    """There is no such job, or it belongs to somebody else: the two look the same."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, f"Job not found: {job_id}")


class JobNotFinished(JobError):
    """The result of a job was asked for before it had one."""


class JobIsProcessing(JobError):
    """A running job cannot be canceled, unless by force."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, "Cannot cancel a job that is currently processing")


class JobFailed(JobError):
    """The job ended without a result.

    Args:
        job_id: which.
        message: why.
        cause: the name of the error it ended with, as in this module; empty when it was none of these.
    """

    def __init__(self, job_id: str, message: str, cause: str = "") -> None:
        super().__init__(job_id, message)
        self.cause = cause


class JobCanceled(JobError):
    """The job was canceled, so there is no result."""


class ResultGone(JobError):
    """The result was delivered, has expired or was deleted."""


class IdempotencyConflict(JobError):
    """The idempotency key was used before, with another payload."""


class Busy(WhisperApiError):
    """Not now.

    Args:
        message: why.
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Busy):
    """As many jobs wait as may."""


class CallerLimit(Busy):
    """This caller has as many unfinished jobs as one may have."""


class Draining(Busy):
    """The service is stopping and takes no new work."""


class StorageError(WhisperApiError):
    """The job database or the upload directory cannot be used. Nothing was accepted, nothing is lost."""


class StorageFull(StorageError):
    """No space is left on the disk."""


class StorageLocked(StorageError):
    """Another process holds the job database."""


class RequestError(WhisperApiError):
    """A server refused what a client asked for, or could not be reached.

    Args:
        message: what the server said, or why it could not be reached.
        status: the HTTP status; None when there was no answer.
        code: the server's word for what is wrong; empty when there is none.
    """

    def __init__(self, message: str, status: int | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
