"""``POST /transcribe``: an upload becomes a job."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import (
    CallerLimit,
    Draining,
    IdempotencyConflict,
    InvalidAudio,
    InvalidOption,
    JobFailed,
    ModelUnavailable,
    QueueFull,
    StorageError,
    UnknownModel,
)
from whisper_api.jobs.service import Submission
from whisper_api.schema import JobResult
from whisper_api.server.forms import Form, read_form
from whisper_api.server.operations import Answer, Operation
from whisper_api.server.problems import problem_of
from whisper_api.server.query import address_of, idempotency_key
from whisper_api.server.resource import JsonResponse
from whisper_api.server.results import failed_in_sync, result_response
from whisper_api.server.state import ServerState, blocking, owner_of, state_of
from whisper_api.server.uploads import Limits, Upload, receive_upload
from whisper_api.server.waiting import unless_draining, wait_for_end

if TYPE_CHECKING:
    from whisper_api.jobs.service import Reservation
    from whisper_api.jobs.store import Job

__all__ = ["SUBMIT"]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A job was accepted: it will be run whatever happens to the process.

    Attributes:
        job_id: a UUID.
        status_url: the path to ask for its status at.
    """

    job_id: str
    status_url: str


# When to ask for the status of a job that was just accepted.
RETRY_SECONDS = 1


async def submit(request: Request) -> Response:
    """Accept audio: 202 with the job's id, or with ``sync``, its result when the job has ended.

    What is refused is refused as early as it can be told: a full queue before the upload is read, a file that is too
    large while it comes, what is not audio before it is queued.
    """
    state = state_of(request)
    key = idempotency_key(request)
    async with _reserved(state, owner_of(request)) as place:
        config = state.config
        limits = Limits(max_file_size=config.max_file_size, timeout_seconds=config.timeout_seconds)
        upload: Upload = await unless_draining(
            state,
            receive_upload(request, place.directory, limits, state.uploads, fingerprint=key is not None),
        )
        job, form = await blocking(state.uploads, _new_job, state, place, upload, key)
    request.scope["job_id"] = job.job_id
    if form.sync:
        return await _in_sync(request, job.job_id)
    return _accepted(request, job.job_id)


def _new_job(state: ServerState, place: Reservation, upload: Upload, key: str | None) -> tuple[Job, Form]:
    """What the form asks for, looked at, and accepted."""
    form = read_form(upload.fields, state.config, device=state.service.executor.device)
    submission = Submission(
        job_id=place.job_id,
        owner=place.owner,
        options=form.options,
        output_format=form.output_format,
        keep_result=form.keep_result,
        file_name=upload.file_name,
        audio_bytes=upload.size,
        audio_seconds=_length(upload),
        hf_token=form.hf_token,
        warnings=form.warnings,
        idempotency_key=key,
        fingerprint=upload.fingerprint,
    )
    return state.service.submit(submission, place), form


async def _in_sync(request: Request, job_id: str) -> Response:
    """Wait for the job; when that takes too long, answer as if nobody had asked to."""
    try:
        if await wait_for_end(request, job_id, state_of(request).config.sync_timeout_seconds or None):
            return await result_response(request, job_id)
        return _accepted(request, job_id)
    except JobFailed as error:
        raise failed_in_sync(error) from error
    except Draining as error:
        problem = problem_of(error)
        problem.headers["Location"] = address_of(request, job_id)
        raise problem from error


def _accepted(request: Request, job_id: str) -> Response:
    address = address_of(request, job_id)
    headers = {"Location": address, "Retry-After": str(RETRY_SECONDS)}
    return JsonResponse(Accepted(job_id=job_id, status_url=address), 202, headers)


def _length(upload: Upload) -> float | None:
    from whisper_api.engine.decode import probe

    with io.FileIO(upload.path) as file:
        # As the client knows it, for the message that it gets when this is not audio.
        file.name = upload.file_name or "the file"
        return probe(file).duration


@contextlib.asynccontextmanager
async def _reserved(state: ServerState, owner: str) -> AsyncIterator[Reservation]:
    """A place in the queue, given back however this ends."""

    def take() -> Reservation:
        return state.service.reserve(owner).__enter__()

    place = await blocking(state.uploads, take)
    try:
        yield place
    finally:
        if place.open:
            # Files are removed in it, and that must not be left undone because the request is ended meanwhile.
            await asyncio.shield(blocking(state.uploads, place.__exit__, None, None, None))


SUBMIT = Operation(
    submit,
    "Transcription",
    (
        Answer(202, "The job is accepted", {"application/json": Accepted}),
        Answer(200, "The result, with sync", {"application/json": JobResult}),
    ),
    refusals=(
        InvalidOption,
        InvalidAudio,
        UnknownModel,
        ModelUnavailable,
        IdempotencyConflict,
        QueueFull,
        CallerLimit,
        Draining,
        StorageError,
        JobFailed,
        408,
        413,
    ),
)
