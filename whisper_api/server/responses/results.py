"""The result of a job as a response: rendered when it is asked for, marked delivered when it has arrived."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_api import errors
from whisper_api.errors import InvalidOption, JobFailed, StorageError
from whisper_api.formats import FORMATS, rendered
from whisper_api.schema import job_result
from whisper_api.server.responses.delivery import DeliveredResponse
from whisper_api.server.responses.problems import Problem
from whisper_api.server.responses.warning_headers import add_warnings
from whisper_api.server.state import ServerState, blocking, caller_of, state_of, viewer_of

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService

__all__ = ["failed_in_sync", "in_turn", "note_delivery", "result_response"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Body(NamedTuple):
    content: bytes
    content_type: str
    warnings: tuple[str, ...] = ()


async def result_response(
    request: Request, job_id: str, format: str | None = None, layout: Mapping[str, Any] | None = None
) -> Response:
    """Answer with a job's result.

    Args:
        request: who asks.
        job_id: which job.
        format: a name in :data:`~whisper_api.formats.FORMATS`, for that text alone; None for JSON with everything,
            whose ``text`` is in the job's own format.
        layout: fields of :class:`~whisper_api.schema.RenderOptions` that hold in the place of the job's own.

    Raises:
        InvalidOption: there is no such format.
        JobError: there is no result; says why.
    """
    if format is not None and format not in FORMATS:
        raise InvalidOption("format", f"unknown format {format!r}; valid are {', '.join(FORMATS)}")
    state = state_of(request)
    body = await in_turn(request, _body, state.service, job_id, viewer_of(request), format, layout or {})
    response = DeliveredResponse(
        body.content,
        headers={"Content-Type": body.content_type},
        on_delivered=functools.partial(note_delivery, state, job_id),
    )
    add_warnings(response, body.warnings)
    return response


async def in_turn(request: Request, function: Callable[..., T], *args: object) -> T:
    """Read or render a result in a thread, one for each caller and two for all callers at a time.

    Args:
        request: for which the result is. Its body was read.
        function: to be called in the thread.
        args: its arguments.

    Raises:
        ClientDisconnect: the client went away before its turn came.
    """
    state = state_of(request)
    async with state.caller_renders.taken(caller_of(request), math.inf):
        # The first message may be the end of the request.
        if await request.is_disconnected() or await request.is_disconnected():
            raise ClientDisconnect
        return await blocking(state.renders, function, *args)


async def note_delivery(state: ServerState, job_id: str) -> None:
    """Note that a client has had a job's result in full."""
    try:
        await blocking(None, state.service.mark_delivered, job_id)
    except StorageError as error:
        # The client has its result, and the only harm is that it stays for longer.
        log.warning("that a result was delivered could not be noted: %s", error, extra={"job_id": job_id})


def failed_in_sync(error: JobFailed) -> Problem:
    """The answer to a request that waited for a job which failed: as if it had failed before it was accepted.

    What is wrong with the audio, an option or a model is said with the status that it would have had then. The rest is
    a conflict.
    """
    cause = getattr(errors, error.cause, None) if error.cause in errors.__all__ else None
    if cause is not None and issubclass(cause, errors.AudioTooLong):
        return Problem(413, "audio_too_long", str(error))
    if cause is not None and issubclass(cause, errors.InvalidOption):
        return Problem(400, "invalid_field", str(error))
    if cause is not None and issubclass(cause, errors.InvalidAudio):
        return Problem(415, "invalid_audio", str(error))
    if cause is not None and issubclass(cause, errors.ModelError):
        return Problem(422, "model_unavailable", str(error))
    return Problem(409, "job_failed", str(error))


def _body(service: JobService, job_id: str, viewer: str | None, format: str | None, layout: Mapping[str, Any]) -> _Body:
    job, transcript = service.result(job_id, viewer)
    options = msgspec.structs.replace(job.render_options, **layout)
    text, warnings = rendered(transcript, format or job.output_format, options)
    if format is None:
        whole = job_result(transcript, text, (*job.warnings, *warnings), job.metadata)
        return _Body(msgspec.json.encode(whole), "application/json")
    media_type = FORMATS[format].media_type
    suffix = "" if media_type.endswith("json") else "; charset=utf-8"
    return _Body(text.encode(), f"{media_type}{suffix}", warnings)
