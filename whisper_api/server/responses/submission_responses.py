"""Responses to a submission: 202 with the job's address, or with ``sync`` the result of the job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import Draining, JobFailed
from whisper_api.server.operations import JsonResponse
from whisper_api.server.query import status_location, status_path
from whisper_api.server.realtime.waiting import wait_for_end
from whisper_api.server.responses.problems import FileOutcome, problem_of
from whisper_api.server.responses.results import failed_in_sync

# The client asks for the status of a new job after this time.
RETRY_SECONDS = 1


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The server has stored the job and runs it, also after a crash or a restart.

    Attributes:
        job_id: a UUID.
        status_url: path of the job's status; append it to the server's address with its prefix.
    """

    job_id: str
    status_url: str


class AcceptedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a request with several files.

    Attributes:
        jobs: one outcome for each file, in the order in which the files were sent.
    """

    jobs: tuple[FileOutcome, ...]


def accepted_response(request: Request, job_id: str) -> Response:
    """A 202 response with the job's id and the address of its status.

    Args:
        request: the submission.
        job_id: id of the new job.
    """
    headers = {"Location": status_location(request, job_id), "Retry-After": str(RETRY_SECONDS)}
    return JsonResponse(Accepted(job_id=job_id, status_url=status_path(job_id)), 202, headers)


async def when_ended(
    request: Request, job_id: str, respond: Callable[[], Awaitable[Response]], seconds: float | None
) -> Response:
    """Wait for a job and respond with its result, or after the time limit with 202 and the job's address.

    Args:
        request: a request whose body was read.
        job_id: id of the job.
        respond: makes the response when the job has ended.
        seconds: the time limit; None for no limit.

    Raises:
        Problem: the job failed; or the server stops, and then the header ``Location`` names the job.
        JobError: the job has no result.
        ClientDisconnect: the client has gone; the job goes on.
    """
    try:
        if await wait_for_end(request, job_id, seconds):
            return await respond()
        return accepted_response(request, job_id)
    except JobFailed as error:
        raise failed_in_sync(error) from error
    except Draining as error:
        problem = problem_of(error)
        problem.headers["Location"] = status_location(request, job_id)
        raise problem from error
