"""``/transcription/{job_id}``, its result, and the list of a caller's jobs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.schema import JobState
from whisper_api.server.query import job_id_of, query_value
from whisper_api.server.resource import JsonResponse
from whisper_api.server.results import result_response
from whisper_api.server.state import blocking, state_of, viewer_of
from whisper_api.server.waiting import wait_for_change

__all__ = ["cancel", "jobs", "result", "status"]

WaitSeconds = Annotated[float, Meta(ge=0, le=60)]
PageLength = Annotated[int, Meta(ge=1, le=1000)]
DEFAULT_PAGE = 50


async def status(request: Request) -> Response:
    """Where a job stands; with ``?wait=N``, when its status has changed or N seconds have passed."""
    state = state_of(request)
    job_id = job_id_of(request)
    seconds = query_value(request, "wait", WaitSeconds, 0.0)
    if seconds:
        return JsonResponse(await wait_for_change(request, job_id, seconds))
    return JsonResponse(await blocking(state.reads, state.service.status, job_id, viewer_of(request)))


async def result(request: Request) -> Response:
    """What a job gave: JSON; with ``?format=``, the text in that format alone."""
    job_id = job_id_of(request)
    format = query_value(request, "format", str)
    return await result_response(request, job_id, None if format is None else format.lower())


async def cancel(request: Request) -> Response:
    """Cancel a job that waits, remove one that has ended; with ``?force=true``, stop one that runs."""
    state = state_of(request)
    job_id = job_id_of(request)
    force = query_value(request, "force", bool, False)
    # By force it takes until the running work item has ended.
    pool = None if force else state.uploads
    await blocking(pool, lambda: state.service.cancel(job_id, viewer_of(request), force=force))
    return JsonResponse({"success": True, "message": "Job canceled successfully"})


async def jobs(request: Request) -> Response:
    """The caller's jobs, newest first, a page at a time."""
    state = state_of(request)
    word = query_value(request, "status", JobState)
    limit = query_value(request, "limit", PageLength, DEFAULT_PAGE)
    after = query_value(request, "after", str)
    page, cursor = await blocking(
        state.reads, lambda: state.service.list(viewer_of(request), status=word, limit=limit, after=after)
    )
    return JsonResponse({"jobs": page, "next": cursor})
