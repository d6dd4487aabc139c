"""Responses to a submission, and with the result of a job: rendered, and noted as delivered when the client has it."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_api import errors
from whisper_api.errors import Draining, JobFailed
from whisper_api.formats import DOCUMENTS, FORMATS, document, option_warnings, rendered
from whisper_api.job_values import job_result
from whisper_api.options import RenderOptions
from whisper_api.server.operations import JsonResponse
from whisper_api.server.realtime.waiting import wait_for_end
from whisper_api.server.responses.delivery import DeliveredResponse
from whisper_api.server.responses.problems import FileOutcome, Problem, problem_of
from whisper_api.server.state import ServerState, blocking, caller_of, state_of, viewer_of

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService


log = logging.getLogger(__name__)

T = TypeVar("T")


class Body(NamedTuple):
    """A rendered result.

    Attributes:
        content: the bytes.
        content_type: the media type with its parameters.
        warnings: a sentence for each option without effect, and for each rule of a layout that does not hold.
    """

    content: bytes
    content_type: str
    warnings: tuple[str, ...] = ()


async def result_response(
    request: Request, job_id: str, format: str | None = None, layout: Mapping[str, Any] | None = None
) -> Response:
    """Respond with a job's result.

    Args:
        request: the caller's request.
        job_id: id of the job.
        format: a name in :data:`~whisper_api.formats.FORMATS` or :data:`~whisper_api.formats.DOCUMENTS`, for that file
            alone; None for JSON with the whole result, whose ``text`` is in the job's own format.
        layout: fields of :class:`~whisper_api.schema.RenderOptions` that replace the job's own.

    Raises:
        InvalidOption: the format does not exist.
        JobError: the job has no result; the class says why.
    """
    if format is not None and format not in (*FORMATS, *DOCUMENTS):
        raise errors.InvalidOption(
            "format", f"unknown format {format!r}; valid are {', '.join((*FORMATS, *DOCUMENTS))}"
        )
    service = state_of(request).service
    body = await in_turn(request, _body, service, job_id, viewer_of(request), format, layout or {})
    response = delivered(request, job_id, body.content, {"Content-Type": body.content_type})
    add_warnings(response, body.warnings)
    return response


def delivered(request: Request, job_id: str, body: str | bytes, headers: Mapping[str, str]) -> Response:
    """A response with a job's result; the server notes the delivery when the client has all of it.

    Args:
        request: the request for the result.
        job_id: id of the job.
        body: the rendered result.
        headers: headers of the response, with ``Content-Type``.
    """
    noted = functools.partial(note_delivery, state_of(request), job_id)
    return DeliveredResponse(body, headers=headers, on_delivered=noted)


async def in_turn(request: Request, function: Callable[..., T], *args: object) -> T:
    """Read or render a result in a thread, one result at a time for each caller.

    Args:
        request: a request whose body was read.
        function: the function to call in the thread.
        args: its arguments.

    Raises:
        ClientDisconnect: the client went away while the request waited for its turn.
    """
    state = state_of(request)
    async with state.caller_renders.taken(caller_of(request), math.inf):
        # The first message may be the end of the request.
        if await request.is_disconnected() or await request.is_disconnected():
            raise ClientDisconnect
        return await blocking(state.renders, function, *args)


async def note_delivery(state: ServerState, job_id: str) -> None:
    """Note that a client has received a job's whole result.

    Args:
        state: the server's state.
        job_id: id of the job.
    """
    try:
        await blocking(None, state.service.mark_delivered, job_id)
    except errors.StorageError as error:
        # The client has its result; the server only keeps the result for longer.
        log.warning("the delivery of a result could not be noted: %s", error, extra={"job_id": job_id})


def failure_problem(error: errors.JobFailed, kinds: tuple[type[errors.WhisperApiError], ...]) -> Problem | None:
    """The problem that a failed job's cause would have been before the job was accepted.

    Args:
        error: the failure, which names the class of its cause.
        kinds: classes of causes that the caller of the API can act on; a subclass comes before its base.

    Returns:
        None for a cause of another class.
    """
    cause = getattr(errors, error.cause, None) if error.cause in errors.__all__ else None
    for kind in kinds:
        if cause is not None and issubclass(cause, kind):
            return Problem(*errors.RULES[kind], str(error))
    return None


def failed_in_sync(error: errors.JobFailed) -> Problem:
    """The response to a request that waited for a job which failed.

    A fault of the audio, an option or a model has the status that it would have had at the submission. Any other cause
    is a conflict (409).
    """
    kinds = (errors.AudioTooLong, errors.InvalidOption, errors.InvalidAudio, errors.ModelError)
    return failure_problem(error, kinds) or Problem(*errors.RULES[errors.JobFailed], str(error))


def _body(service: JobService, job_id: str, viewer: str | None, format: str | None, layout: Mapping[str, Any]) -> Body:
    job, transcript = service.result(job_id, viewer)
    options = msgspec.structs.replace(job.render_options, **layout)
    if format in DOCUMENTS:
        warnings = option_warnings(msgspec.structs.replace(RenderOptions(), **layout), format)
        return Body(document(transcript, format), DOCUMENTS[format].media_type, warnings)
    text, warnings = rendered(transcript, format or job.output_format, options)
    if format is None:
        whole = job_result(transcript, text, (*job.warnings, *warnings), job.metadata)
        return Body(msgspec.json.encode(whole), "application/json")
    media_type = FORMATS[format].media_type
    suffix = "" if media_type.endswith("json") else "; charset=utf-8"
    return Body(text.encode(), f"{media_type}{suffix}", warnings)


# RFC 7234, section 5.5. RFC 9111 has dropped the field because caches made no use of it; its name stays registered.
WARNING = "Warning"
# "Miscellaneous persistent warning".
CODE = 299
MAX_WARNINGS = 10
MAX_CHARACTERS = 400


def add_warnings(response: Response, warnings: Iterable[str]) -> None:
    """Add a header for each warning, in ASCII and on one line whatever words of a client it contains.

    Args:
        response: a response that was not sent yet.
        warnings: one sentence each; those after the first ten are left out.
    """
    for warning in list(dict.fromkeys(warnings))[:MAX_WARNINGS]:
        text = "".join(each if each.isprintable() else " " for each in warning[:MAX_CHARACTERS])
        quoted = text.encode("ascii", "backslashreplace").decode().replace("\\", "\\\\").replace('"', '\\"')
        response.headers.append(WARNING, f'{CODE} - "{quoted}"')


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


def status_path(job_id: str) -> str:
    """The path of a job's status, without the prefix of the application."""
    return f"/transcription/{job_id}"


def status_location(request: Request, job_id: str) -> str:
    """The path of a job's status with the prefix of the application, for the header ``Location``.

    Args:
        request: a request to the application.
        job_id: id of the job.
    """
    return f"{request.scope.get('root_path', '')}{status_path(job_id)}"
