"""The errors that Whisper API raises, by name. They do not depend on HTTP.

::

    WhisperApiError
    ├── InvalidInput               the caller's input cannot be used
    │   ├── InvalidAudio           the audio cannot be decoded; the message says what the file contains
    │   │   └── AudioTooLong       the audio is longer than the limit
    │   └── InvalidOption          an option's value is out of range or contradicts another
    ├── ConfigError                the configuration file or environment cannot be used
    ├── ModelError
    │   ├── UnknownModel           neither the catalogue nor the disk has the model
    │   ├── ModelUnavailable       a known model is not on this machine, and its download failed
    │   └── ModelCorrupt           the model's files differ from the catalogue's checksums
    ├── DeviceError
    │   ├── DeviceLost             the device has failed; only a new process can use it
    │   ├── DeviceUnavailable      the configured device does not exist on this machine
    │   └── OutOfMemory            a single work item does not fit in the device's memory
    ├── ExtraMissing               an optional part of the package is not installed; says how to install it
    ├── Canceled                   the caller's ``cancel`` event was set
    ├── EngineClosed               the engine was closed before or during the call
    │   └── EngineLost             the process, the device or the machine of a cluster's engine ended
    ├── ForkedProcess              an object from before a fork cannot be used after it; says what to do
    ├── JobError
    │   ├── JobNotFound            the job does not exist, or belongs to another caller
    │   ├── JobNotFinished         the job has no result yet
    │   ├── JobIsProcessing        a running job can be canceled only by force
    │   ├── JobFailed              the job ended without a result; says why
    │   ├── JobCanceled            the job was canceled, so there is no result
    │   ├── ResultGone             the job's result was delivered, has expired or was deleted
    │   ├── UploadMissing          the job's audio is not there, as after a restore without it
    │   └── IdempotencyConflict    the same idempotency key came with another payload
    ├── SpeakerError
    │   ├── SpeakerNotFound        the known speaker does not exist, or belongs to another caller
    │   ├── SpeakerExists          the caller has another known speaker of this name
    │   └── SpeakerLimit           the caller has as many known speakers as one may have
    ├── AccessError
    │   ├── KeyNotFound            no valid key has this id
    │   ├── KeyExpired             the key has expired, or a rotation has replaced its secret
    │   ├── ScopeMissing           the scopes of the caller's key do not allow this
    │   └── LastAdminKey           the last key that can manage keys would be lost
    ├── VocabularyNotFound         the vocabulary does not exist, or belongs to another caller
    ├── WebhookError
    │   ├── WebhookNotFound        the endpoint does not exist, or belongs to another caller
    │   ├── DeliveryNotFound       the delivery does not exist, or belongs to another caller
    │   └── InvalidWebhook         a received request is no delivery of the server that knows the secret
    ├── Busy                       the server accepts no job now; says when to try again
    │   ├── QueueFull              the queue is full
    │   ├── CallerLimit            the caller has too many unfinished jobs
    │   ├── RateLimited            the caller has sent too many requests
    │   │   └── QuotaExceeded      the caller has used up a quota of audio or jobs
    │   └── Draining               the service is stopping and accepts no new work
    ├── StorageError               the job database or the upload directory cannot be used
    │   ├── StorageFull            no space is left on the disk
    │   └── StorageLocked          another process holds the database
    └── RequestError               a server refused a client's request, or could not be reached

Every error can be pickled and copied and keeps its message and attributes, so a process pool passes a worker's error on
unchanged.
"""

from __future__ import annotations

from typing import Any


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
    """The base class of all errors that Whisper API raises on purpose."""


class InvalidInput(WhisperApiError):
    """The caller's input cannot be used."""


class InvalidAudio(InvalidInput):
    """The audio cannot be decoded. The message says what the file contains."""


class AudioTooLong(InvalidAudio):
    """The audio is longer than the limit. The message gives both lengths."""


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
    """The base class of errors about models."""


class UnknownModel(ModelError):
    """The name is neither in the catalogue, nor a directory, nor a hub id."""


class ModelUnavailable(ModelError):
    """A known model is not on this machine, and its download failed. The message says why and what to do."""


class ModelCorrupt(ModelError):
    """A model's files cannot be loaded, or differ from the SHA-256 checksums of the catalogue."""


class DeviceError(WhisperApiError):
    """The base class of errors about the device that runs the models."""


class DeviceLost(DeviceError):
    """The device has failed (an illegal memory access, an ECC error ...), and with it all models of this process.

    Every further call on the engine raises this error. Start a new process: a CUDA context cannot be repaired.
    """


class DeviceUnavailable(DeviceError):
    """The configured device does not exist on this machine or cannot be used."""


class OutOfMemory(DeviceError):
    """A single work item does not fit into the device's memory."""


class ExtraMissing(WhisperApiError):
    """A request needs an optional part of the package that is not installed. The message says how to install it."""


class Canceled(WhisperApiError):
    """The job was canceled by its caller."""


class EngineClosed(WhisperApiError):
    """The engine was closed."""


class EngineLost(EngineClosed):
    """The process, the device or the machine of a cluster's engine ended under the job. Other engines go on."""


class ForkedProcess(WhisperApiError):
    """A process uses an object that its parent used before the fork; threads and locks do not survive a fork."""


class JobError(WhisperApiError):
    """The base class of errors about a job.

    Args:
        job_id: the id of the job.
        message: the error message.
    """

    def __init__(self, job_id: str, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobNotFound(JobError):
    """The job does not exist or belongs to another caller; the error does not tell which."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, f"Job not found: {job_id}")


class JobNotFinished(JobError):
    """The job has no result yet."""


class JobIsProcessing(JobError):
    """The job runs, and a running job can be canceled only by force."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, "Cannot cancel a job that is currently processing")


class JobFailed(JobError):
    """The job ended without a result.

    Args:
        job_id: the id of the job.
        message: the reason.
        cause: the class name of the job's error, when this module defines the class; empty otherwise.
    """

    def __init__(self, job_id: str, message: str, cause: str = "") -> None:
        super().__init__(job_id, message)
        self.cause = cause


class JobCanceled(JobError):
    """The job was canceled, so there is no result."""


class ResultGone(JobError):
    """The result was delivered, has expired or was deleted."""


class UploadMissing(JobError):
    """The audio of the job is not on this machine: the database was restored from a backup without it."""


class IdempotencyConflict(JobError):
    """The idempotency key was used before, with another payload."""


class SpeakerError(WhisperApiError):
    """The base class of errors about known speakers. No message has a name, because errors are logged."""


class SpeakerNotFound(SpeakerError):
    """The known speaker does not exist or belongs to another caller; the error does not tell which.

    Args:
        speaker_id: the id of the speaker.
    """

    def __init__(self, speaker_id: str) -> None:
        super().__init__(f"Speaker not found: {speaker_id}")
        self.speaker_id = speaker_id


class SpeakerExists(SpeakerError):
    """The caller has another known speaker of this name."""


class SpeakerLimit(SpeakerError):
    """The caller has as many known speakers, or this speaker as many recordings, as the server allows."""


class AccessError(WhisperApiError):
    """A key cannot be used or changed in this way."""


class KeyNotFound(AccessError):
    """No valid key has this id."""


class KeyExpired(AccessError):
    """The key has expired, or a rotation has replaced its secret."""


class ScopeMissing(AccessError):
    """The scopes of the caller's key do not allow this."""


class LastAdminKey(AccessError):
    """The last key that can manage keys would be lost."""


class VocabularyNotFound(WhisperApiError):
    """The vocabulary does not exist or belongs to another caller; the error does not tell which."""


class WebhookError(WhisperApiError):
    """The base class of errors about webhooks. No message has an address, because errors are logged."""


class WebhookNotFound(WebhookError):
    """The endpoint does not exist or belongs to another caller; the error does not tell which."""


class DeliveryNotFound(WebhookError):
    """The delivery does not exist or belongs to another caller; the error does not tell which."""


class InvalidWebhook(WebhookError):
    """A received request is no delivery of the server that knows the secret. The message says why."""


class Busy(WhisperApiError):
    """The server accepts no job now.

    Args:
        message: the reason.
        retry_after: seconds to wait before the next attempt.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Busy):
    """The queue is full."""


class CallerLimit(Busy):
    """The caller has too many unfinished jobs."""


class RateLimited(Busy):
    """The caller has sent too many requests.

    Args:
        message: the reason.
        retry_after: seconds to wait before the next attempt.
        policies: names of the limits, as in the field ``RateLimit-Policy`` of responses.
    """

    def __init__(self, message: str, retry_after: float, policies: tuple[str, ...] = ()) -> None:
        super().__init__(message, retry_after)
        self.policies = policies


class QuotaExceeded(RateLimited):
    """The caller has used up a quota of audio or jobs, or the recording is longer than what is left of it."""


class Draining(Busy):
    """The service is stopping and accepts no new work."""


class StorageError(WhisperApiError):
    """The job database or the upload directory cannot be used. Nothing was accepted, nothing is lost."""


class StorageFull(StorageError):
    """No space is left on the disk."""


class StorageLocked(StorageError):
    """Another process holds the job database."""


class RequestError(WhisperApiError):
    """A server refused a client's request, or could not be reached.

    Args:
        message: the server's message, or the reason why the server could not be reached.
        status: the HTTP status; None without a response.
        code: the ``code`` of the server's problem document; empty without one.
    """

    def __init__(self, message: str, status: int | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


# How the REST API answers: the HTTP status and the word for programs, by the class of the error or its nearest base.
RULES: dict[type[WhisperApiError], tuple[int, str]] = {
    InvalidAudio: (415, "invalid_audio"),
    AudioTooLong: (413, "audio_too_long"),
    InvalidOption: (400, "invalid_field"),
    InvalidInput: (400, "invalid_input"),
    ModelError: (422, "model_unavailable"),
    UnknownModel: (422, "unknown_model"),
    DeviceError: (422, "device_unavailable"),
    ExtraMissing: (422, "extra_missing"),
    JobNotFound: (404, "job_not_found"),
    JobNotFinished: (409, "job_not_finished"),
    JobIsProcessing: (409, "job_processing"),
    JobFailed: (409, "job_failed"),
    JobCanceled: (409, "job_canceled"),
    ResultGone: (410, "result_gone"),
    KeyNotFound: (404, "key_not_found"),
    KeyExpired: (401, "key_expired"),
    ScopeMissing: (403, "forbidden_scope"),
    LastAdminKey: (409, "last_admin_key"),
    VocabularyNotFound: (404, "vocabulary_not_found"),
    WebhookNotFound: (404, "webhook_not_found"),
    DeliveryNotFound: (404, "delivery_not_found"),
    IdempotencyConflict: (422, "idempotency_conflict"),
    SpeakerNotFound: (404, "speaker_not_found"),
    SpeakerExists: (409, "speaker_exists"),
    SpeakerLimit: (409, "speaker_limit"),
    QueueFull: (503, "queue_full"),
    Draining: (503, "draining"),
    CallerLimit: (429, "caller_limit"),
    RateLimited: (429, "rate_limit_exceeded"),
    QuotaExceeded: (429, "quota_exceeded"),
    StorageError: (503, "storage_unavailable"),
    StorageFull: (503, "storage_full"),
    StorageLocked: (503, "storage_locked"),
    EngineClosed: (503, "draining"),
}

__all__ = sorted(
    name for name, value in globals().copy().items() if isinstance(value, type) and issubclass(value, WhisperApiError)
)
