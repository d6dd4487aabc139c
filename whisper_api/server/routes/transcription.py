"""``POST /transcribe`` and ``POST /transcriptions``: an upload becomes a job, or several."""

from __future__ import annotations

import dataclasses

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import InvalidOption, JobCanceled, JobFailed, JobNotFound, ResultGone
from whisper_api.schema import JobResult
from whisper_api.server.operations import Answer, Cause, FormBody, Operation
from whisper_api.server.resource import JsonResponse
from whisper_api.server.responses.problems import Problem
from whisper_api.server.responses.results import result_response
from whisper_api.server.responses.submission_responses import Accepted, AcceptedFiles
from whisper_api.server.responses.sync_response import accepted_response, when_ended
from whisper_api.server.state import state_of
from whisper_api.server.uploads.forms import UploadForm, read_form
from whisper_api.server.uploads.incoming import IncomingForm
from whisper_api.server.uploads.submitting import UploadRules, accept, accept_files
from whisper_api.server.uploads.upload_fields import FILE, IDEMPOTENCY_KEY, JOB_FIELDS, SYNC, URL
from whisper_api.server.uploads.upload_fields import REFUSALS as OF_UPLOADS

__all__ = ["ACCEPTED", "IN_SYNC", "REFUSALS", "SUBMIT", "SUBMIT_SEVERAL"]

ACCEPTED = Answer(
    202,
    "The job is accepted",
    {"application/json": Accepted},
    {"Location": "The path of its status", "Retry-After": "Seconds after which to ask for it"},
)
REFUSALS: tuple[Cause, ...] = (
    *OF_UPLOADS,
    Problem(422, "device_not_served", "The models run on another device here"),
)
IN_SYNC: tuple[Cause, ...] = (JobFailed, JobCanceled, JobNotFound, ResultGone)


async def submit(request: Request) -> Response:
    """Accept audio: 202 with the job's id, or with ``sync``, its result when the job has ended.

    The audio comes as ``file``, or where the server fetches for its callers, as the address ``url``. It may also be the
    body itself, with its own ``Content-Type``; then the other fields are query parameters.
    """
    config, service = state_of(request).config, state_of(request).service

    def read(upload: IncomingForm) -> UploadForm:
        # The device is asked for in this thread: the answer may take the import of torch.
        return read_form(upload.fields, config, device=service.facts().device, known_speakers=True)

    job, form = await accept(request, read, UploadRules(raw=True))
    if not form.sync:
        return accepted_response(request, job.job_id)
    return await when_ended(request, job.job_id, lambda: result_response(request, job.job_id))


async def submit_several(request: Request) -> Response:
    """Accept several files, each as a job of its own: 202 with what became of each, in the order sent.

    The other fields hold for all of them. A file that cannot be used is named with its error and does not stop the
    others; when none is accepted, the answer is a 400 with the same list.
    """
    service = state_of(request).service
    # The answer is always a list, also where the configuration's default for one file is to wait.
    config = msgspec.structs.replace(state_of(request).config, default_sync=False)

    def read(upload: IncomingForm) -> UploadForm:
        form = read_form(upload.fields, config, device=service.facts().device, known_speakers=True)
        if form.sync:
            raise InvalidOption("sync", "this address answers with a list of jobs: leave it out, or POST /transcribe")
        return form

    return JsonResponse(AcceptedFiles(jobs=await accept_files(request, read)), 202)


SUBMIT = Operation(
    submit,
    "Transcription",
    (ACCEPTED, Answer(200, "The result, with sync", {"application/json": JobResult})),
    refusals=(*REFUSALS, *IN_SYNC),
    parameters=(IDEMPOTENCY_KEY,),
    body=FormBody((FILE, URL, *JOB_FIELDS, SYNC), raw=True),
)
SUBMIT_SEVERAL = Operation(
    submit_several,
    "Transcription",
    (Answer(202, "What became of each file", {"application/json": AcceptedFiles}),),
    refusals=(*REFUSALS, Problem(400, "no_file_accepted", "None of the files is accepted; `jobs` says why for each")),
    parameters=(IDEMPOTENCY_KEY,),
    body=FormBody((dataclasses.replace(FILE, repeated=True), dataclasses.replace(URL, repeated=True), *JOB_FIELDS)),
)
