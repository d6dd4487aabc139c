"""Errors as HTTP answers: problem details (RFC 9457), looked up along the error's class hierarchy."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from whisper_api import errors
from whisper_api.errors import Portable
from whisper_api.logs import Repeats
from whisper_api.server.responses.submission_responses import FileOutcome

__all__ = ["TOO_MANY_CONNECTIONS", "TOO_MANY_RESPONSES", "Problem", "ProblemBody", "ProblemResponse", "problem_of"]

log = logging.getLogger(__name__)
log.addFilter(Repeats())

MEDIA_TYPE = "application/problem+json"
STORAGE_RETRY_SECONDS = 10


class Problem(Portable):
    """Something that only HTTP knows of, and the answer to it.

    Args:
        status: the HTTP status.
        code: one word for programs.
        detail: one sentence for people: what is wrong and what to do.
        headers: to send along.
        field: of the form, which is wrong; None when it is none.
        jobs: what became of each file, where there were several.
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


class _Rule(NamedTuple):
    status: int
    code: str


# The most special class that an error belongs to decides. What is not here is 500, and its text stays in the log.
RULES: dict[type[Exception], _Rule] = {
    errors.InvalidAudio: _Rule(415, "invalid_audio"),
    errors.AudioTooLong: _Rule(413, "audio_too_long"),
    errors.InvalidOption: _Rule(400, "invalid_field"),
    errors.InvalidInput: _Rule(400, "invalid_input"),
    errors.ModelError: _Rule(422, "model_unavailable"),
    errors.UnknownModel: _Rule(422, "unknown_model"),
    errors.DeviceError: _Rule(422, "device_unavailable"),
    errors.JobNotFound: _Rule(404, "job_not_found"),
    errors.JobNotFinished: _Rule(409, "job_not_finished"),
    errors.JobIsProcessing: _Rule(409, "job_processing"),
    errors.JobFailed: _Rule(409, "job_failed"),
    errors.JobCanceled: _Rule(409, "job_canceled"),
    errors.ResultGone: _Rule(410, "result_gone"),
    errors.IdempotencyConflict: _Rule(422, "idempotency_conflict"),
    errors.QueueFull: _Rule(503, "queue_full"),
    errors.Draining: _Rule(503, "draining"),
    errors.CallerLimit: _Rule(429, "caller_limit"),
    errors.StorageError: _Rule(503, "storage_unavailable"),
    errors.StorageFull: _Rule(503, "storage_full"),
    errors.StorageLocked: _Rule(503, "storage_locked"),
    errors.EngineClosed: _Rule(503, "draining"),
}


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was refused, or failed (RFC 9457).

    Attributes:
        type: always ``about:blank``.
        title: what HTTP calls the status.
        status: of HTTP.
        detail: one sentence for people: what is wrong and what to do.
        error: the same as ``detail``.
        code: one word for programs.
        request_id: by which the server's log knows the request.
        jobs: what became of each file; only where there were several and none was accepted.
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
    """A problem as a response."""

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
    """The answer to an error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _of_framework(error)
    for kind in type(error).__mro__:
        rule = RULES.get(kind)
        if rule is not None:
            field = error.field if isinstance(error, errors.InvalidOption) else None
            return Problem(rule.status, rule.code, str(error), _headers(error), field=field)
    return Problem(500, "internal_error", "The server failed; its log has the reason under this request id")


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
