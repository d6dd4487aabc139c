"""Errors of OpenAI's routes: the body that OpenAI's clients read, and the header that says whether to try again."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import AudioTooLong, InvalidAudio, InvalidInput, JobFailed, ModelError
from whisper_api.server.openai.bodies import ErrorBody, ErrorDetail, ErrorType
from whisper_api.server.responses.problems import Problem
from whisper_api.server.responses.results import failure_problem

# The tag of OpenAI's routes in the description of the API.
TAG = "OpenAI"
RETRY_HEADER = "x-should-retry"
# Errors that another attempt may avoid: a body that came too slowly, too many requests, a job that has not ended.
RETRIED_STATUSES = frozenset((408, 429))
RETRIED_CODES = frozenset(("job_not_finished", "job_processing"))
# This server's code to OpenAI's code.
CODES = {
    "unknown_model": "model_not_found",
    "unauthorized": "invalid_api_key",
    "key_expired": "invalid_api_key",
    "quota_exceeded": "insufficient_quota",
}
# Another attempt fails until the next day or month.
FINAL_CODES = frozenset(("quota_exceeded",))
FILE_CODES = ("invalid_audio", "audio_too_long", "no_file", "file_too_large")
# This server's code to the field in OpenAI's ``param``.
PARAMS = dict.fromkeys(FILE_CODES, "file") | {"unknown_model": "model"}
# Statuses by code, where OpenAI's differs. OpenAI refuses a file that cannot be read like any other value.
STATUSES = {"unknown_model": 404, "invalid_audio": 400}


def error_response(request: Request, problem: Problem) -> Response:
    """The response of OpenAI's routes to a problem.

    Args:
        request: the request; part of the signature of exception handlers.
        problem: the error.
    """
    status, headers = status_of(problem), dict(problem.headers)
    final = status not in RETRIED_STATUSES and status < 500 and problem.code not in RETRIED_CODES
    if final or problem.code in FINAL_CODES:
        headers.setdefault(RETRY_HEADER, "false")
    elif "Retry-After" in headers:
        headers.setdefault(RETRY_HEADER, "true")
    return Response(msgspec.json.encode(error_body(problem)), status, headers, "application/json")


def error_body(problem: Problem) -> ErrorBody:
    """A problem as the body that OpenAI's clients read."""
    status = status_of(problem)
    kind: ErrorType = "invalid_request_error"
    if problem.code == "quota_exceeded":
        kind = "insufficient_quota"
    elif status == 429:
        kind = "rate_limit_error"
    elif status >= 500:
        kind = "server_error"
    return ErrorBody(
        error=ErrorDetail(
            message=problem.detail,
            type=kind,
            param=PARAMS.get(problem.code, problem.field),
            code=CODES.get(problem.code, problem.code),
        )
    )


def status_of(problem: Problem) -> int:
    """The HTTP status of a problem on OpenAI's routes."""
    return STATUSES.get(problem.code, problem.status)


def job_problem(error: JobFailed) -> Problem:
    """The response to a request whose job failed; another attempt would fail too.

    A fault of the audio, a field or a model is reported as at the submission. Any other cause is the server's fault.
    """
    kinds = (AudioTooLong, InvalidAudio, InvalidInput, ModelError)
    problem = failure_problem(error, kinds) or Problem(500, "job_failed", str(error))
    problem.headers[RETRY_HEADER] = "false"
    if problem.code == "model_unavailable":
        problem.field = "model"
    return problem
