"""``/v1``: transcriptions, translations and models as OpenAI's clients ask for them."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import InvalidInput, JobCanceled, JobFailed, JobNotFound, ResultGone, UnknownModel
from whisper_api.options import Task
from whisper_api.server.openai import bodies
from whisper_api.server.openai.answers import rendered_body
from whisper_api.server.openai.errors import TAG, job_problem
from whisper_api.server.openai.models import model_named, models_here
from whisper_api.server.openai.openai_request import (
    JSON_FIELDS,
    TRANSCRIPTION_FIELDS,
    TRANSLATION_FIELDS,
    OpenAIRequest,
    read_fields,
)
from whisper_api.server.openai.streaming import stream_response
from whisper_api.server.operations import Answer, Cause, FormBody, Parameter, operation
from whisper_api.server.realtime.waiting import wait_for_end
from whisper_api.server.responses.problems import Problem
from whisper_api.server.responses.results import WARNING, Body, add_warnings, delivered, in_turn
from whisper_api.server.state import state_of, viewer_of
from whisper_api.server.uploads.forms import IDEMPOTENCY_KEY, UPLOAD_REFUSALS
from whisper_api.server.uploads.incoming import IncomingForm
from whisper_api.server.uploads.submitter import UploadRules
from whisper_api.server.uploads.submitting import accept_waited

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService

JOB_HEADER = "X-Job-ID"
# Part of a request's identity: the same upload for another task is another request.
PURPOSES: dict[Task, str] = {"transcribe": "/v1/audio/transcriptions", "translate": "/v1/audio/translations"}


TEXTS = {"text/plain": str, "application/x-subrip": str, "text/vtt": str}
HEADERS = {
    JOB_HEADER: "Id of the job",
    WARNING: "A field that was ignored, or a request that could not be followed; the header may be repeated",
}
REFUSALS: tuple[Cause, ...] = (
    *UPLOAD_REFUSALS,
    InvalidInput,
    JobCanceled,
    JobNotFound,
    ResultGone,
    Problem(500, "job_failed", "The job ended without a result, and another attempt would fail too"),
)

audio_call = functools.partial(operation, tag=TAG, refusals=REFUSALS, audit="job.submit", scope="transcribe")
transcribe_call = functools.partial(
    audio_call,
    Answer(
        200,
        "The transcript in the requested format",
        {
            "application/json": bodies.Transcription | bodies.VerboseTranscription | bodies.DiarizedTranscription,
            **TEXTS,
            "text/event-stream": bodies.StreamEvent,
        },
        headers=HEADERS,
    ),
    body=FormBody(TRANSCRIPTION_FIELDS, json_fields=JSON_FIELDS),
)
translate_call = functools.partial(
    audio_call,
    Answer(
        200,
        "The English text in the requested format",
        {"application/json": bodies.Translation | bodies.VerboseTranslation, **TEXTS},
        headers=HEADERS,
    ),
    body=FormBody(TRANSLATION_FIELDS, json_fields=JSON_FIELDS),
)
OF_DEPLOYMENT = (
    IDEMPOTENCY_KEY,
    Parameter("deployment", str, "The name of a model", location="path", required=True),
    Parameter("api-version", str, "Ignored"),
)


@transcribe_call(parameters=(IDEMPOTENCY_KEY,))
async def transcribe(request: Request) -> Response:
    """Transcribe audio, as OpenAI's route of this name does.

    The response comes when the job has ended, however long that takes. With ``stream`` the text comes as it is decoded:
    events ``transcript.text.delta``, for ``diarized_json`` then ``transcript.text.segment``, and at the end one
    ``transcript.text.done`` with the whole text, or an event ``error``.

    A client that goes away cancels its job after ten seconds, or a minute after a restart of the server, unless the
    client sends the same upload again or has sent an ``Idempotency-Key``. The same upload from the same key joins the
    running job. ``X-Job-ID`` names the job.

    Fields that have no effect are ignored and named in ``Warning`` headers.
    """
    return await _answer(request, "transcribe")


@translate_call(parameters=(IDEMPOTENCY_KEY,))
async def translate(request: Request) -> Response:
    """Transcribe audio into English text, as OpenAI's route of this name does.

    The response comes when the job has ended, as with ``/v1/audio/transcriptions``.
    """
    return await _answer(request, "translate")


@transcribe_call(parameters=OF_DEPLOYMENT)
async def transcribe_deployment(request: Request) -> Response:
    """Transcribe audio, as Azure's route of this name does.

    The deployment is the name of a model, as in the field ``model`` elsewhere. The version of the API is ignored: the
    fields and responses are those of ``/v1/audio/transcriptions``. The header ``api-key`` may contain the key.
    """
    return await _answer(request, "transcribe", request.path_params["deployment"])


@translate_call(parameters=OF_DEPLOYMENT)
async def translate_deployment(request: Request) -> Response:
    """Transcribe audio into English text, as Azure's route of this name does.

    The deployment is the name of a model; the fields and responses are those of ``/v1/audio/translations``.
    """
    return await _answer(request, "translate", request.path_params["deployment"])


@operation("The models", tag=TAG)
def models(request: Request) -> bodies.ModelList:
    """List the models on the server; the configured model is the first. Transcriptions may also name other models."""
    return bodies.ModelList(data=models_here(state_of(request)))


@operation(
    "The model",
    tag=TAG,
    refusals=(UnknownModel,),
    parameters=(Parameter("id", str, "Name of the model", location="path", required=True),),
)
def model(request: Request) -> bodies.Model:
    """Look up the model that a transcription uses when its request has this name."""
    return model_named(request.path_params["id"], state_of(request))


async def _answer(request: Request, task: Task, deployment: str | None = None) -> Response:
    state = state_of(request)

    def read(upload: IncomingForm) -> OpenAIRequest:
        fields = upload.fields
        if deployment is not None:
            fields = [*(field for field in fields if field[0] != "model"), ("model", deployment)]
        return read_fields(fields, state, task)

    # The same upload is the same request on each path of this operation, but not for another deployment.
    purpose = PURPOSES[task] if deployment is None else f"{PURPOSES[task]} {deployment}"
    with contextlib.ExitStack() as waiting:
        job, openai_request = await accept_waited(request, read, UploadRules(purpose, json=True), waiting)
        if openai_request.stream:
            response = await stream_response(request, job.job_id, openai_request, waiting.pop_all())
            add_warnings(response, openai_request.warnings)
        else:
            response = await _when_ended(request, job.job_id, openai_request)
    response.headers[JOB_HEADER] = job.job_id
    return response


async def _when_ended(request: Request, job_id: str, openai_request: OpenAIRequest) -> Response:
    service = state_of(request).service
    # Without a time limit, because a client that gives up and retries joins the same job.
    await wait_for_end(request, job_id, None)
    try:
        body, warnings = await in_turn(request, _body, service, job_id, viewer_of(request), openai_request)
    except JobFailed as error:
        raise job_problem(error) from error
    response = delivered(request, job_id, body.content, {"Content-Type": body.content_type})
    add_warnings(response, (*openai_request.warnings, *warnings))
    return response


def _body(
    service: JobService, job_id: str, viewer: str | None, openai_request: OpenAIRequest
) -> tuple[Body, tuple[str, ...]]:
    """The body of a response, and the warnings of its transcript. Blocks on the database."""
    _, transcript = service.result(job_id, viewer)
    body = rendered_body(transcript, openai_request)
    return body, (*transcript.warnings, *body.warnings)
