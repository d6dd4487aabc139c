"""``/transcription/{job_id}/corrections``: corrections that people make in a transcript."""

from __future__ import annotations

import functools

from starlette.requests import Request

from whisper_api import errors
from whisper_api.job_values import Corrections
from whisper_api.server.operations import JsonBody, operation
from whisper_api.server.query import job_id_of
from whisper_api.server.routes.jobs import JOB_ID
from whisper_api.server.state import service_of, viewer_of, writes
from whisper_api.server.uploads.receiving import MAX_JSON_BYTES, decoded, received_body


class NewCorrections(Corrections, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Corrections as they are sent. An unknown field is an error, since they replace all earlier ones.

    Attributes:
        words: in any order; the last correction of a word applies.
        speakers: label to the name that replaces the label.
    """


WITHOUT_RESULT = (errors.JobNotFinished, errors.JobFailed, errors.JobCanceled, errors.ResultGone)

corrections_call = functools.partial(
    operation, "The stored corrections", tag="Jobs", refusals=WITHOUT_RESULT, parameters=(JOB_ID,)
)


@corrections_call(scope="read", audit="job.read")
def corrections(request: Request) -> Corrections:
    """Get the corrections of a transcript. Results in all formats contain them."""
    return service_of(request).corrections(job_id_of(request), viewer_of(request))


@corrections_call(body=JsonBody(NewCorrections), scope="correct", audit="job.correct")
async def correct(request: Request) -> Corrections:
    """Correct words and name speakers. The new corrections replace all earlier ones.

    Segments and words keep their numbers of the recognised transcript when corrections remove some. The response
    contains the stored corrections: one for each word, and only those that change the transcript.
    """
    service, job_id, viewer = service_of(request), job_id_of(request), viewer_of(request)
    body = await received_body(request, max_bytes=MAX_JSON_BYTES)

    def corrected() -> Corrections:
        service.correct(job_id, viewer, decoded(body, NewCorrections))
        return service.corrections(job_id, viewer)

    return await writes(request, corrected)
