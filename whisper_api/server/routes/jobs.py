"""``/transcription/{job_id}``, its result and its corrections, and the list of the caller's jobs."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from whisper_api import errors
from whisper_api.formats import DOCUMENTS, FORMATS
from whisper_api.job_values import Corrections, JobPage, JobResult, JobState, JobStatus
from whisper_api.records import seconds_of
from whisper_api.server.auditing import note
from whisper_api.server.operations import MOMENT, Answer, JsonBody, Parameter, job_id_of, operation
from whisper_api.server.realtime.waiting import wait_for_change
from whisper_api.server.responses.problems import Problem
from whisper_api.server.responses.results import WARNING, result_response
from whisper_api.server.state import blocking, sees_texts, service_of, state_of, viewer_of, writes
from whisper_api.server.uploads.forms import RENDER_FIELDS
from whisper_api.server.uploads.receiving import MAX_JSON_BYTES, decoded, received_body
from whisper_api.store.job_search import JobFilter

JOB_ID = Parameter(
    "job_id",
    str,
    "Id of the job, from the response to its submission",
    location="path",
    required=True,
    refusals=(errors.JobNotFound,),
)
WAIT = Parameter("wait", Annotated[float, Meta(ge=0, le=60)], "Seconds to wait for the status to change", 0.0)
FORMAT = Parameter("format", Literal[(*FORMATS, *DOCUMENTS)], "Respond with this format alone")
LAYOUT = tuple(
    Parameter(field.name, field.type, f"{field.description}, instead of the job's own") for field in RENDER_FIELDS
)
FORCE = Parameter("force", bool, "Also stop a running job", False)
WITHOUT_RESULT = (errors.JobNotFinished, errors.JobFailed, errors.JobCanceled, errors.ResultGone)
TEXTS = {
    format.media_type: str
    for format in (*FORMATS.values(), *DOCUMENTS.values())
    if not format.media_type.endswith("json")
}
STATE = Parameter("status", JobState, "Only jobs in this state")
METADATA_KEY = Parameter("metadata_key", str, "Only jobs with this key at the top of their metadata")
METADATA_VALUE = Parameter(
    "metadata_value", str, "Only jobs with this value under metadata_key, as text or as JSON (5, true, null)"
)
CREATED_AFTER = Parameter("created_after", MOMENT, "Only jobs submitted at this time or later (RFC 3339)")
CREATED_BEFORE = Parameter("created_before", MOMENT, "Only jobs submitted before this time (RFC 3339)")
LIMIT = Parameter("limit", Annotated[int, Meta(ge=1, le=1000)], "Jobs on a page", 50)
HIDDEN = "The reason is shown to the key that submitted the job, and to administrators"
NO_SEARCH = Problem(
    403, "forbidden_role", "A key with the role operator may not search metadata: use a key with the role user or admin"
)
AFTER = Parameter("after", str, "The cursor `next` of the page before")


class WhisperxWord(msgspec.Struct, frozen=True, kw_only=True):
    """A word, as whisperx writes it.

    Attributes:
        word: the word with its punctuation.
        start, end: seconds.
        score: confidence from 0 to 1, when it is known.
        speaker: label of the speaker, when it is known.
        channel: number of the channel, counted from 0, when the channels were recognized separately.
    """

    word: str
    start: float
    end: float
    score: float | msgspec.UnsetType = msgspec.UNSET
    speaker: str | msgspec.UnsetType = msgspec.UNSET
    channel: int | msgspec.UnsetType = msgspec.UNSET


class WhisperxSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence, as whisperx writes it.

    Attributes:
        start, end: seconds.
        text: text of the sentence.
        words: words with times; absent without word times.
        avg_logprob: mean log probability per token, when it is known.
        speaker: label of the speaker, when it is known.
        channel: number of the channel, counted from 0, when the channels were recognized separately.
        flags: reasons to doubt the text; only with ``hallucinations=flag``, in segments with the flag
            ``hallucination``.
        language: code of the spoken language; absent unless the option ``language`` is ``multi``.
    """

    start: float
    end: float
    text: str
    words: tuple[WhisperxWord, ...] | msgspec.UnsetType = msgspec.UNSET
    avg_logprob: float | msgspec.UnsetType = msgspec.UNSET
    speaker: str | msgspec.UnsetType = msgspec.UNSET
    channel: int | msgspec.UnsetType = msgspec.UNSET
    flags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    language: str | msgspec.UnsetType = msgspec.UNSET


class WhisperxTranscript(msgspec.Struct, frozen=True, kw_only=True):
    """A transcript as whisperx writes it to a file: the format ``json``.

    Attributes:
        segments: in order of time.
        word_segments: the words of all segments; absent without word times.
        speaker_embeddings: label to vector, when the request asks for them.
        language: code of the language.
    """

    segments: tuple[WhisperxSegment, ...]
    word_segments: tuple[WhisperxWord, ...] | msgspec.UnsetType = msgspec.UNSET
    speaker_embeddings: dict[str, tuple[float, ...]] | msgspec.UnsetType = msgspec.UNSET
    language: str


class SubtitleWord(msgspec.Struct, frozen=True, kw_only=True):
    """A word of a line of a subtitle.

    Attributes:
        text: the word with its punctuation.
        space: whether a space precedes the word.
        start, end: seconds.
        segment: number of the segment in the transcript, counted from 0.
        word: number of the word in the segment, counted from 0; null for a segment without word times.
    """

    text: str
    space: bool
    start: float
    end: float
    segment: int
    word: int | None


class SubtitleLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a subtitle.

    Attributes:
        mark: the speaker's label or dash at the beginning of the line; empty without one.
        words: the words of the line.
    """

    mark: str
    words: tuple[SubtitleWord, ...]


class PlacedSubtitle(msgspec.Struct, frozen=True, kw_only=True):
    """A subtitle with its lines.

    Attributes:
        start, end: seconds.
        lines: at least one.
        speakers: those who speak, in order; null for an unknown speaker.
        broken: names of the rules that do not hold.
        channel: number of the channel, counted from 0, when the channels were recognized separately.
    """

    start: float
    end: float
    lines: tuple[SubtitleLine, ...]
    speakers: tuple[str | None, ...]
    broken: tuple[str, ...]
    channel: int | msgspec.UnsetType = msgspec.UNSET


class SubtitleList(msgspec.Struct, frozen=True, kw_only=True):
    """The subtitles for programs that show or edit them: the format ``cues``.

    Attributes:
        cues: in order of time.
    """

    cues: tuple[PlacedSubtitle, ...]


class CancelResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The job was canceled, its result was removed, or a Failed job was removed.

    Attributes:
        success: always true; a failure is an error response.
        message: the same in words.
    """

    success: bool = True
    message: str = "Job canceled successfully"


job_call = functools.partial(operation, tag="Jobs")


@job_call("The status", parameters=(JOB_ID, WAIT), roles=("user", "admin", "operator"), scope="read")
async def status(request: Request) -> JobStatus:
    """Get the status of a job; with ``?wait=N`` when the status has changed or N seconds have passed.

    An operator sees no file name, metadata, warnings and reason of a failure.
    """
    job_id = job_id_of(request)
    seconds = WAIT.of(request)
    if seconds:
        found = await wait_for_change(request, job_id, seconds)
    else:
        found = await blocking(state_of(request).reads, service_of(request).status, job_id, viewer_of(request))
    return found if sees_texts(request) else _without_texts(found)


@job_call(
    Answer(
        200,
        "The result",
        {"application/json": JobResult | WhisperxTranscript | SubtitleList, **TEXTS},
        headers={WARNING: "A layout option without effect, or a rule that cannot hold; may come repeatedly"},
    ),
    refusals=WITHOUT_RESULT,
    parameters=(JOB_ID, FORMAT, *LAYOUT),
    audit="job.read",
    scope="read",
)
async def result(request: Request) -> Response:
    """Get the result of a job as JSON; with ``?format=`` the text in that format alone.

    The query may replace the job's own layout of subtitles.
    """
    job_id = job_id_of(request)
    values = {parameter.name: parameter.of(request) for parameter in LAYOUT}
    layout = {name: value for name, value in values.items() if value is not None}
    return await result_response(request, job_id, FORMAT.of(request), layout)


@job_call(
    "The job is canceled, or its result is removed",
    refusals=(errors.JobIsProcessing,),
    parameters=(JOB_ID, FORCE),
    audit="job.cancel",
    scope="delete",
)
async def cancel(request: Request) -> CancelResponse:
    """Cancel a waiting job, or remove a job that has ended; with ``?force=true`` also stop a running job."""
    state = state_of(request)
    job_id = job_id_of(request)
    force = FORCE.of(request)
    # With force the call waits until the running work item has ended, which would occupy a thread of the pool.
    pool = None if force else state.uploads
    canceled = await blocking(pool, lambda: state.service.cancel(job_id, viewer_of(request), force=force))
    note(request, action="job.cancel" if canceled else "job.delete")
    return CancelResponse()


@job_call(
    "A page of jobs",
    parameters=(STATE, METADATA_KEY, METADATA_VALUE, CREATED_AFTER, CREATED_BEFORE, LIMIT, AFTER),
    roles=("user", "admin", "operator"),
    scope="read",
)
def jobs(request: Request) -> JobPage:
    """List the caller's jobs that meet all conditions, newest first and page by page.

    An admin sees all jobs. So does an operator, without their texts, and cannot search the metadata.
    """
    filter = JobFilter(
        state=STATE.of(request),
        metadata_key=METADATA_KEY.of(request),
        metadata_value=METADATA_VALUE.of(request),
        created_after=seconds_of(CREATED_AFTER.of(request)),
        created_before=seconds_of(CREATED_BEFORE.of(request)),
    )
    shows_texts = sees_texts(request)
    if not shows_texts and (filter.metadata_key, filter.metadata_value) != (None, None):
        raise NO_SEARCH
    limit, after = LIMIT.of(request), AFTER.of(request)
    page, cursor = service_of(request).list_jobs(viewer_of(request), filter, limit=limit, after=after)
    return JobPage(jobs=tuple(page if shows_texts else map(_without_texts, page)), next=cursor)


def _without_texts(status: JobStatus) -> JobStatus:
    """A status without what comes from the client or from the audio."""
    error = None if status.error is None else HIDDEN
    return msgspec.structs.replace(status, error=error, warnings=(), file_name=None, metadata=None)


class NewCorrections(Corrections, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Corrections as they are sent. An unknown field is an error, since they replace all earlier ones.

    Attributes:
        words: in any order; the last correction of a word applies.
        speakers: label to the name that replaces the label.
    """


corrections_call = functools.partial(job_call, "The stored corrections", refusals=WITHOUT_RESULT, parameters=(JOB_ID,))


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
