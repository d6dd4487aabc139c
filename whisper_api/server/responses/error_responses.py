"""An error as a response, in the shape that the clients of its address read."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.logs import Repeats
from whisper_api.server.openai.errors import ErrorResponse, is_openai
from whisper_api.server.responses.problems import ProblemResponse, problem_of

__all__ = ["answer"]

log = logging.getLogger(__name__)
log.addFilter(Repeats())


async def answer(request: Request, error: Exception) -> Response:
    """Exception handler: the problem that an error is, in the shape that the clients of its address read.

    Args:
        request: what failed.
        error: how.
    """
    problem = problem_of(error)
    if problem.status == 500:
        log.error("a request failed", exc_info=error)
    if is_openai(request):
        return ErrorResponse(problem)
    return ProblemResponse(problem, str(request.scope.get("request_id", "")))
