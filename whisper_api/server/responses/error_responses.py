"""Exception handlers: an error as the response that the clients of an application read."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.logs import Repeats
from whisper_api.server.responses.problems import Problem, ProblemResponse, problem_of

__all__ = ["ErrorHandler", "handler", "problem_response"]

log = logging.getLogger(__name__)
log.addFilter(Repeats())

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def handler(respond: Callable[[Request, Problem], Response]) -> ErrorHandler:
    """An exception handler that logs errors of the server itself and answers with one shape of body.

    Args:
        respond: makes the response to a request from the problem that the error is.
    """

    async def handle(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if problem.status == 500:
            log.error("a request failed", exc_info=error)
        return respond(request, problem)

    return handle


def problem_response(request: Request, problem: Problem) -> Response:
    """Problem details (RFC 9457) with the id of the request."""
    return ProblemResponse(problem, str(request.scope.get("request_id", "")))
