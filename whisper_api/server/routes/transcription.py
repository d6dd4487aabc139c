"""``POST /transcribe`` and ``POST /transcriptions``: make jobs of one or several recordings."""

from __future__ import annotations

import dataclasses

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import InvalidOption, JobCanceled, JobFailed, JobNotFound, ResultGone
from whisper_api.job_values import JobResult
from whisper_api.server.operations import Answer, Cause, FormBody, operation
from whisper_api.server.responses.problems import Problem
from whisper_api.server.responses.results import Accepted, AcceptedFiles, accepted_response, result_response, when_ended
from whisper_api.server.state import state_of
from whisper_api.server.uploads.forms import (
    FILE,
    IDEMPOTENCY_KEY,
    JOB_FIELDS,
    SYNC,
    UPLOAD_REFUSALS,
    URL,
    UploadForm,
    read_form,
)
from whisper_api.server.uploads.incoming import IncomingForm
from whisper_api.server.uploads.submitter import UploadRules
from whisper_api.server.uploads.submitting import accept, accept_files

ACCEPTED = Answer(
    202,
    "The job is accepted",
    {"application/json": Accepted},
    {"Location": "Path of the job's status", "Retry-After": "Seconds after which to ask for the status"},
)
REFUSALS: tuple[Cause, ...] = (
    *UPLOAD_REFUSALS,
    Problem(422, "device_not_served", "The server runs the models on another device"),
)
IN_SYNC: tuple[Cause, ...] = (JobFailed, JobCanceled, JobNotFound, ResultGone)


@operation(
    ACCEPTED,
    Answer(200, "The result, with sync", {"application/json": JobResult}),
    tag="Transcription",
    refusals=(*REFUSALS, *IN_SYNC),
    parameters=(IDEMPOTENCY_KEY,),
    body=FormBody((FILE, URL, *JOB_FIELDS, SYNC), raw=True),
    audit="job.submit",
    scope="transcribe",
)
async def submit(request: Request) -> Response:
    """Accept a recording: the response is 202 with the job's id, or with ``sync`` the result when the job has ended.

    The field ``file`` contains the recording; where the server fetches files for its callers, ``url`` may name it
    instead. The recording may also be the body itself, with its own ``Content-Type``; then the other fields are query
    parameters.
    """
    config, service = state_of(request).config, state_of(request).service

    def read(upload: IncomingForm) -> UploadForm:
        # In a thread, because facts() may import torch.
        return read_form(upload.fields, config, device=service.facts().device, known_speakers=True)

    job, form = await accept(request, read, UploadRules(raw=True))
    if not form.sync:
        return accepted_response(request, job.job_id)
    limit = config.sync_timeout_seconds or None
    return await when_ended(request, job.job_id, lambda: result_response(request, job.job_id), limit)


@operation(
    Answer(202, "The outcome of each file", {"application/json": AcceptedFiles}),
    tag="Transcription",
    refusals=(*REFUSALS, Problem(400, "no_file_accepted", "No file is accepted; `jobs` has the reason for each file")),
    parameters=(IDEMPOTENCY_KEY,),
    body=FormBody((dataclasses.replace(FILE, repeated=True), dataclasses.replace(URL, repeated=True), *JOB_FIELDS)),
    audit="job.submit",
    scope="transcribe",
)
async def submit_several(request: Request) -> AcceptedFiles:
    """Accept several recordings, each as a job of its own: 202 with the outcome of each, in the order sent.

    The other fields apply to all recordings. A recording that cannot be used is named with its error and does not stop
    the others; when no recording is accepted, the response is a 400 with the same list.
    """
    service = state_of(request).service
    # The response is always a list, also when the configuration makes the single upload synchronous.
    config = msgspec.structs.replace(state_of(request).config, default_sync=False)

    def read(upload: IncomingForm) -> UploadForm:
        form = read_form(upload.fields, config, device=service.facts().device, known_speakers=True)
        if form.sync:
            raise InvalidOption("sync", "POST /transcriptions lists jobs: leave the field out, or use POST /transcribe")
        return form

    return AcceptedFiles(jobs=await accept_files(request, read))
