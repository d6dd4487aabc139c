"""Errors as HTTP responses: problem details (RFC 9457), looked up along the error's class hierarchy."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from whisper_api import errors
from whisper_api.errors import Portable
from whisper_api.logs import Repeats

__all__ = [
    "TOO_MANY_CONNECTIONS",
    "TOO_MANY_RESPONSES",
    "ErrorHandler",
    "FileError",
    "FileOutcome",
    "Problem",
    "ProblemBody",
    "ProblemResponse",
    "handler",
    "problem_of",
    "problem_response",
]

log = logging.getLogger(__name__)
log.addFilter(Repeats())

MEDIA_TYPE = "application/problem+json"
STORAGE_RETRY_SECONDS = 10

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


class FileError(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why one file of several did not become a job.

    Attributes:
        status: the HTTP status of a request with this file alone.
        code: the error as one word for programs.
        detail: one sentence for people: what is wrong and what to do.
    """

    status: int
    code: str
    detail: str


class FileOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one file of several: a job, or an error.

    Attributes:
        file_name: the client's name for the file; None when the client gave no name.
        job_id: a UUID; absent for a refused file.
        status_url: path of the job's status; absent for a refused file.
        error: the reason for the refusal; absent for an accepted file.
    """

    file_name: str | None
    job_id: str | msgspec.UnsetType = msgspec.UNSET
    status_url: str | msgspec.UnsetType = msgspec.UNSET
    error: FileError | msgspec.UnsetType = msgspec.UNSET


class Problem(Portable):
    """An error response. Errors that only HTTP has are raised as a problem; other errors become one.

    Args:
        status: the HTTP status.
        code: the error as one word for programs.
        detail: one sentence for people: what is wrong and what to do.
        headers: headers of the response.
        field: the form field that is wrong; None when the error is not about a field.
        jobs: the outcome of each file of a request with several files.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        *,
        field: str | None = None,
        jobs: tuple[FileOutcome, ...] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.field = field
        self.jobs = jobs


# Key of an ASGI scope: the problem that the application answers with instead of handling the request.
REFUSED = "whisper_api.refused"
TOO_MANY_CONNECTIONS = Problem(
    503,
    "too_many_connections",
    "Too many connections are open, or too many from this address: try again later",
    {"Retry-After": "5"},
)
TOO_MANY_RESPONSES = Problem(
    503,
    "too_many_responses",
    "Responses that clients do not read fill the server's memory for responses, or the share of this address: read "
    "the open responses to their end, or try again later",
    {"Retry-After": "5"},
)


# Status and code by class; the nearest class along an error's MRO decides. An error of any other class is a 500, and
# its text appears in the log only.
RULES: dict[type[Exception], tuple[int, str]] = {
    errors.InvalidAudio: (415, "invalid_audio"),
    errors.AudioTooLong: (413, "audio_too_long"),
    errors.InvalidOption: (400, "invalid_field"),
    errors.InvalidInput: (400, "invalid_input"),
    errors.ModelError: (422, "model_unavailable"),
    errors.UnknownModel: (422, "unknown_model"),
    errors.DeviceError: (422, "device_unavailable"),
    errors.ExtraMissing: (422, "extra_missing"),
    errors.JobNotFound: (404, "job_not_found"),
    errors.JobNotFinished: (409, "job_not_finished"),
    errors.JobIsProcessing: (409, "job_processing"),
    errors.JobFailed: (409, "job_failed"),
    errors.JobCanceled: (409, "job_canceled"),
    errors.ResultGone: (410, "result_gone"),
    errors.VocabularyNotFound: (404, "vocabulary_not_found"),
    errors.WebhookNotFound: (404, "webhook_not_found"),
    errors.DeliveryNotFound: (404, "delivery_not_found"),
    errors.IdempotencyConflict: (422, "idempotency_conflict"),
    errors.SpeakerNotFound: (404, "speaker_not_found"),
    errors.SpeakerExists: (409, "speaker_exists"),
    errors.SpeakerLimit: (409, "speaker_limit"),
    errors.QueueFull: (503, "queue_full"),
    errors.Draining: (503, "draining"),
    errors.CallerLimit: (429, "caller_limit"),
    errors.StorageError: (503, "storage_unavailable"),
    errors.StorageFull: (503, "storage_full"),
    errors.StorageLocked: (503, "storage_locked"),
    errors.EngineClosed: (503, "draining"),
}


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a request was refused or failed (RFC 9457).

    Attributes:
        type: always ``about:blank``.
        title: HTTP's phrase for the status.
        status: the HTTP status.
        detail: one sentence for people: what is wrong and what to do.
        error: the same as ``detail``.
        code: the error as one word for programs.
        request_id: id of the request in the server's log.
        jobs: the outcome of each file; only when the request had several files and none was accepted.
    """

    type: str
    title: str
    status: int
    detail: str
    error: str
    code: str
    request_id: str
    jobs: tuple[FileOutcome, ...] | msgspec.UnsetType = msgspec.UNSET


class ProblemResponse(Response):
    """A problem as JSON.

    Args:
        problem: the error.
        request_id: id of the request in the server's log.
    """

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, request_id: str) -> None:
        body = ProblemBody(
            type="about:blank",
            title=HTTPStatus(problem.status).phrase,
            status=problem.status,
            detail=problem.detail,
            error=problem.detail,
            code=problem.code,
            request_id=request_id,
            jobs=msgspec.UNSET if problem.jobs is None else problem.jobs,
        )
        super().__init__(msgspec.json.encode(body), problem.status, problem.headers)


def problem_of(error: Exception) -> Problem:
    """The problem that stands for an error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _of_framework(error)
    for kind in type(error).__mro__:
        rule = RULES.get(kind)
        if rule is not None:
            field = error.field if isinstance(error, errors.InvalidOption) else None
            return Problem(*rule, str(error), _headers(error), field=field)
    return Problem(500, "internal_error", "The server failed; its log has the reason under this request id")


def handler(respond: Callable[[Request, Problem], Response]) -> ErrorHandler:
    """An exception handler that logs internal errors of the server and responds with one shape of body.

    Args:
        respond: makes the response from the request and the problem.
    """

    async def handle(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if problem.status == 500:
            log.error("a request failed", exc_info=error)
        return respond(request, problem)

    return handle


def problem_response(request: Request, problem: Problem) -> Response:
    """Problem details (RFC 9457) with the id of the request.

    Args:
        request: the request, which has an id.
        problem: the error.
    """
    return ProblemResponse(problem, str(request.scope.get("request_id", "")))


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, errors.Busy):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, errors.StorageError):
        return {"Retry-After": str(STORAGE_RETRY_SECONDS)}
    if isinstance(error, errors.JobNotFinished):
        return {"Retry-After": "1"}
    return {}


def _of_framework(error: HTTPException) -> Problem:
    codes = {
        404: ("not_found", "There is nothing at this address"),
        405: ("method_not_allowed", "This address does not take this method"),
    }
    code, detail = codes.get(error.status_code, ("http_error", str(error.detail)))
    return Problem(error.status_code, code, detail, error.headers)
