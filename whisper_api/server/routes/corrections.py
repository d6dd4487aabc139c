"""``/transcription/{job_id}/corrections``: corrections that people make in a transcript."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from whisper_api import errors
from whisper_api.job_values import Corrections
from whisper_api.server.operations import Answer, JsonBody, Operation
from whisper_api.server.query import job_id_of
from whisper_api.server.resource import JsonResponse
from whisper_api.server.routes.jobs import JOB_ID
from whisper_api.server.state import reads, service_of, state_of, viewer_of, writes
from whisper_api.server.uploads.receiving import BODY_REFUSALS, MAX_JSON_BYTES, decoded, received_body

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService


class NewCorrections(Corrections, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Corrections as they are sent. An unknown field is an error, since they replace all earlier ones.

    Attributes:
        words: in any order; the last correction of a word applies.
        speakers: label to the name that replaces the label.
    """


async def corrections(request: Request) -> Response:
    """Get the corrections of a transcript. Results in all formats contain them."""
    job_id = job_id_of(request)
    return JsonResponse(await reads(request, service_of(request).corrections, job_id, viewer_of(request)))


async def correct(request: Request) -> Response:
    """Correct words and name speakers. The new corrections replace all earlier ones.

    Segments and words keep their numbers of the recognised transcript when corrections remove some. The response
    contains the stored corrections: one for each word, and only those that change the transcript.
    """
    state, job_id = state_of(request), job_id_of(request)
    body = await received_body(request, max_bytes=MAX_JSON_BYTES, seconds=state.config.timeout_seconds)
    return JsonResponse(await writes(request, _correct, state.service, job_id, viewer_of(request), body))


def _correct(service: JobService, job_id: str, viewer: str | None, body: bytes) -> Corrections:
    service.correct(job_id, viewer, decoded(body, NewCorrections))
    return service.corrections(job_id, viewer)


WITHOUT_RESULT = (errors.JobNotFound, errors.JobNotFinished, errors.JobFailed, errors.JobCanceled, errors.ResultGone)
STORED = Answer(200, "The stored corrections", {"application/json": Corrections})

CORRECTIONS = Operation(
    corrections, (STORED,), tag="Jobs", refusals=WITHOUT_RESULT, parameters=(JOB_ID,), scope="read", audit="job.read"
)
CORRECT = Operation(
    correct,
    (STORED,),
    tag="Jobs",
    refusals=(errors.InvalidOption, *WITHOUT_RESULT, errors.StorageError, *BODY_REFUSALS),
    parameters=(JOB_ID,),
    audit="job.correct",
    body=JsonBody(NewCorrections),
    scope="correct",
)
