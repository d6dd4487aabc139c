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

log = logging.getLogger(__name__)
log.addFilter(Repeats())

MEDIA_TYPE = "application/problem+json"
STORAGE_RETRY_SECONDS = 10

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


class ProblemType(msgspec.Struct, frozen=True):
    """A type of problems that clients may know (RFC 9457, section 3.1.1).

    Attributes:
        uri: identifies the type.
        title: the type in a few words.
    """

    uri: str
    title: str


# draft-ietf-httpapi-ratelimit-headers, section 5
QUOTA_EXCEEDED = ProblemType("https://iana.org/assignments/http-problem-types#quota-exceeded", "Quota Exceeded")
REDUCED_CAPACITY = ProblemType(
    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity", "Temporary Reduced Capacity"
)


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
        kind: the type of the problem; None when it is only the status.
        policies: names of the limits that refuse the request.
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
        kind: ProblemType | None = None,
        policies: tuple[str, ...] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.field = field
        self.jobs = jobs
        self.kind = kind
        self.policies = policies


# Key of an ASGI scope: the problem that the application answers with instead of handling the request.
REFUSED = "whisper_api.refused"
# Key of an ASGI scope: the code of the problem that was the response.
CODE = "whisper_api.problem_code"
TOO_MANY_CONNECTIONS = Problem(
    503,
    "too_many_connections",
    "Too many connections are open, or too many from this address: try again later",
    {"Retry-After": "5"},
    kind=REDUCED_CAPACITY,
)
TOO_MANY_RESPONSES = Problem(
    503,
    "too_many_responses",
    "Responses that clients do not read fill the server's memory for responses, or the share of this address: read "
    "the open responses to their end, or try again later",
    {"Retry-After": "5"},
    kind=REDUCED_CAPACITY,
)


# The types of errors, by class as in errors.RULES.
TYPES: dict[type[Exception], ProblemType] = {
    errors.RateLimited: QUOTA_EXCEEDED,
    errors.QueueFull: REDUCED_CAPACITY,
}


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a request was refused or failed (RFC 9457).

    Attributes:
        type: identifies the type of the problem: of a limit and of a full server as
            draft-ietf-httpapi-ratelimit-headers names them, otherwise ``about:blank``.
        title: the type in words; HTTP's phrase for the status with ``about:blank``.
        status: the HTTP status.
        detail: one sentence for people: what is wrong and what to do.
        error: the same as ``detail``.
        code: the error as one word for programs.
        request_id: id of the request in the server's log.
        jobs: the outcome of each file; only when the request had several files and none was accepted.
        violated_policies: names of the limits that refuse the request, as in ``RateLimit-Policy``.
    """

    type: str
    title: str
    status: int
    detail: str
    error: str
    code: str
    request_id: str
    jobs: tuple[FileOutcome, ...] | msgspec.UnsetType = msgspec.UNSET
    violated_policies: tuple[str, ...] | msgspec.UnsetType = msgspec.field(
        name="violated-policies", default=msgspec.UNSET
    )


class ProblemResponse(Response):
    """A problem as JSON.

    Args:
        problem: the error.
        request_id: id of the request in the server's log.
    """

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, request_id: str) -> None:
        body = ProblemBody(
            type="about:blank" if problem.kind is None else problem.kind.uri,
            title=HTTPStatus(problem.status).phrase if problem.kind is None else problem.kind.title,
            status=problem.status,
            detail=problem.detail,
            error=problem.detail,
            code=problem.code,
            request_id=request_id,
            jobs=msgspec.UNSET if problem.jobs is None else problem.jobs,
            violated_policies=problem.policies or msgspec.UNSET,
        )
        super().__init__(msgspec.json.encode(body), problem.status, problem.headers)


def problem_of(error: Exception) -> Problem:
    """The problem that stands for an error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _of_framework(error)
    classes = type(error).__mro__
    for each in classes:
        rule = errors.RULES.get(each)
        if rule is not None:
            field = error.field if isinstance(error, errors.InvalidOption) else None
            kind = next((TYPES[each] for each in classes if each in TYPES), None)
            policies = error.policies if isinstance(error, errors.RateLimited) else ()
            return Problem(*rule, str(error), _headers(error), field=field, kind=kind, policies=policies)
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
        request.scope[CODE] = problem.code
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
