"""Responses to a submission: 202 with the job's address, or with ``sync`` the result of the job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import Draining, JobFailed
from whisper_api.server.query import status_location, status_path
from whisper_api.server.realtime.waiting import wait_for_end
from whisper_api.server.resource import JsonResponse
from whisper_api.server.responses.problems import problem_of
from whisper_api.server.responses.results import failed_in_sync
from whisper_api.server.responses.submission_responses import Accepted
from whisper_api.server.state import state_of

__all__ = ["RETRY_SECONDS", "accepted_response", "when_ended"]

# When to ask for the status of a job that was just accepted.
RETRY_SECONDS = 1


def accepted_response(request: Request, job_id: str) -> Response:
    """202: the job's id and address."""
    headers = {"Location": status_location(request, job_id), "Retry-After": str(RETRY_SECONDS)}
    return JsonResponse(Accepted(job_id=job_id, status_url=status_path(job_id)), 202, headers)


async def when_ended(request: Request, job_id: str, answer: Callable[[], Awaitable[Response]]) -> Response:
    """Wait for a job, and respond with its result; after ``SYNC_REQUEST_TIMEOUT_SECONDS`` with 202 and its address.

    Args:
        request: whose body was read.
        job_id: which job.
        answer: makes the response when the job has ended.

    Raises:
        Problem: the job failed; or the server stops, and then ``Location`` names the job.
        JobError: the job has no result.
        ClientDisconnect: the client has gone; the job goes on.
    """
    try:
        if await wait_for_end(request, job_id, state_of(request).config.sync_timeout_seconds or None):
            return await answer()
        return accepted_response(request, job_id)
    except JobFailed as error:
        raise failed_in_sync(error) from error
    except Draining as error:
        problem = problem_of(error)
        problem.headers["Location"] = status_location(request, job_id)
        raise problem from error
