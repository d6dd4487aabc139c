"""Errors of OpenAI's routes, as OpenAI's clients read them, and whether it is of any use to try again."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api import errors
from whisper_api.errors import JobFailed
from whisper_api.server.openai.bodies import ErrorBody, ErrorDetail, ErrorType
from whisper_api.server.responses.problems import Problem

__all__ = ["RETRY_HEADER", "TAG", "ErrorResponse", "error_body", "error_response", "job_problem", "status_of"]

# Of OpenAI's routes in the description of the API.
TAG = "OpenAI"
RETRY_HEADER = "x-should-retry"
# What another attempt may change: a body that came too slowly, a job that has not ended, and too many requests.
MAY_PASS_STATUSES = frozenset((408, 429))
MAY_PASS_CODES = frozenset(("job_not_finished", "job_processing"))
# OpenAI's words for what we say otherwise.
CODES = {"unknown_model": "model_not_found", "unauthorized": "invalid_api_key"}
ABOUT_THE_FILE = ("invalid_audio", "audio_too_long", "no_file", "file_too_large")
PARAMS = dict.fromkeys(ABOUT_THE_FILE, "file") | {"unknown_model": "model"}
# By code. A file that cannot be read is refused like any other value.
STATUSES = {"unknown_model": 404, "invalid_audio": 400}


class ErrorResponse(Response):
    """A problem as OpenAI's clients read it.

    Args:
        problem: what is wrong.
    """

    media_type = "application/json"

    def __init__(self, problem: Problem) -> None:
        status = status_of(problem)
        headers = dict(problem.headers)
        retry = _should_retry(problem, status, headers)
        if retry is not None:
            headers.setdefault(RETRY_HEADER, retry)
        super().__init__(msgspec.json.encode(error_body(problem)), status, headers)


def error_response(request: Request, problem: Problem) -> Response:
    """The response of OpenAI's routes to a problem."""
    return ErrorResponse(problem)


def error_body(problem: Problem) -> ErrorBody:
    """A problem as a body."""
    status = status_of(problem)
    kind: ErrorType = "invalid_request_error"
    if status == 429:
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
    """The HTTP status that a problem has here."""
    return STATUSES.get(problem.code, problem.status)


def job_problem(error: JobFailed) -> Problem:
    """The answer to a request whose job failed, which another attempt would not change.

    What is wrong with the audio, a field or a model is said as it would have been before the job was accepted; the
    rest is the server's fault.
    """
    cause = getattr(errors, error.cause, None) if error.cause in errors.__all__ else None
    told = {RETRY_HEADER: "false"}
    if cause is not None and issubclass(cause, errors.AudioTooLong):
        return Problem(413, "audio_too_long", str(error), told, field="file")
    if cause is not None and issubclass(cause, errors.InvalidAudio):
        return Problem(400, "invalid_audio", str(error), told, field="file")
    if cause is not None and issubclass(cause, errors.InvalidInput):
        return Problem(400, "invalid_input", str(error), told)
    if cause is not None and issubclass(cause, errors.ModelError):
        return Problem(422, "model_unavailable", str(error), told, field="model")
    return Problem(500, "job_failed", str(error), told)


def _should_retry(problem: Problem, status: int, headers: dict[str, str]) -> str | None:
    if status in MAY_PASS_STATUSES or status >= 500 or problem.code in MAY_PASS_CODES:
        return "true" if "Retry-After" in headers else None
    return "false"
