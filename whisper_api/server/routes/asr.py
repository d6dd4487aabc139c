"""``POST /asr``: the transcription route of whisper-asr-webservice, for Bazarr and other clients of that service."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any, Literal
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import InvalidOption, JobCanceled, JobFailed, JobNotFound, ResultGone
from whisper_api.schema import SpeakerCount
from whisper_api.server.operations import Answer, FormBody, Operation, Parameter
from whisper_api.server.realtime.waiting import wait_for_end
from whisper_api.server.responses.asr_texts import AsrOutput, asr_text
from whisper_api.server.responses.delivery import DeliveredResponse
from whisper_api.server.responses.results import failed_in_sync, in_turn, note_delivery
from whisper_api.server.state import ServerState, state_of, viewer_of
from whisper_api.server.uploads.forms import UploadForm, read_form
from whisper_api.server.uploads.incoming import IncomingForm
from whisper_api.server.uploads.submitting import UploadRules, accept_waited
from whisper_api.server.uploads.upload_fields import AUDIO_FILE, ENCODE, IDEMPOTENCY_KEY
from whisper_api.server.uploads.upload_fields import REFUSALS as OF_UPLOADS

__all__ = ["ASR"]

ENGINE_HEADER = "Asr-Engine"
ENGINE_NAME = "whisper_api"
JOB_HEADER = "X-Job-ID"
# The service sends every format, JSON too, with this type.
MEDIA_TYPE = "text/plain"

TASK = Parameter("task", Literal["transcribe", "translate"], "What to do", default="transcribe")
LANGUAGE = Parameter("language", str, "Code or name of the spoken language; detected when it is not given")
OUTPUT = Parameter("output", AsrOutput, "Format of the answer", default="txt")
PROMPT = Parameter("initial_prompt", str, "Text that precedes the audio: spelling, style, names")
WORDS = Parameter("word_timestamps", bool, "Give the words of a json with their times", default=False)
VAD = Parameter("vad_filter", bool, "Leave out silence and noise; unset: do so")
DIARIZE = Parameter("diarize", bool, "Tell the speakers apart", default=False)
MIN_SPEAKERS = Parameter("min_speakers", SpeakerCount, "At least so many speakers")
MAX_SPEAKERS = Parameter("max_speakers", SpeakerCount, "At most so many speakers")
PARAMETERS = (ENCODE, TASK, LANGUAGE, OUTPUT, PROMPT, WORDS, VAD, DIARIZE, MIN_SPEAKERS, MAX_SPEAKERS)


class AsrForm(UploadForm, frozen=True, kw_only=True):
    """The options of a request.

    Attributes:
        output: format of the answer.
        words: whether JSON has words.
        answer_name: file name of the answer for a browser.
    """

    output: AsrOutput
    words: bool
    answer_name: str


async def asr(request: Request) -> Response:
    """Transcribe audio, as the route of this name of whisper-asr-webservice does.

    The options are query parameters. The key may be the password of the address: ``http://name:key@host``.

    The answer comes when the job has ended, however long that takes. When the client disconnects, the job is canceled
    after ten seconds, unless the client sends the same upload again or has sent an ``Idempotency-Key``. ``X-Job-ID`` is
    the id of the job, whose status lists the warnings.
    """
    state = state_of(request)
    asked = {parameter.name: parameter.of(request) for parameter in PARAMETERS}

    def read(upload: IncomingForm) -> AsrForm:
        return _read(asked, upload, state)

    rules = UploadRules(f"/asr?{request.url.query}", file_fields=(AUDIO_FILE.name,), headerless=not asked["encode"])
    with contextlib.ExitStack() as waiting:
        job, form = await accept_waited(request, read, rules, waiting)
        # Without a time limit, because a client that gives up and retries joins the same job.
        await wait_for_end(request, job.job_id, None)
        try:
            text = await in_turn(request, _text, state, job.job_id, viewer_of(request), form)
        except JobFailed as error:
            raise failed_in_sync(error) from error
    headers = {
        "Content-Type": f"{MEDIA_TYPE}; charset=utf-8",
        "Content-Disposition": f'attachment; filename="{quote(form.answer_name)}"',
        ENGINE_HEADER: ENGINE_NAME,
        JOB_HEADER: job.job_id,
    }
    return DeliveredResponse(text, headers=headers, on_delivered=functools.partial(note_delivery, state, job.job_id))


def _read(asked: dict[str, Any], upload: IncomingForm, state: ServerState) -> AsrForm:
    """Translate the query to the fields of this server's own form.

    Args:
        asked: query parameters by name.
        upload: the recording.
        state: the server's state.

    Raises:
        InvalidOption: a value is not allowed.
    """
    output: AsrOutput = asked["output"]
    # Sentence times are computed from word times.
    align = output != "txt" or asked["word_timestamps"] or asked["diarize"]
    fields = {
        "task": asked["task"],
        "language": asked["language"] or "auto",
        "prompt": asked["initial_prompt"],
        "align": align,
        "diarize": asked["diarize"],
        "min_speakers": asked["min_speakers"],
        "max_speakers": asked["max_speakers"],
        "vad": "none" if asked["vad_filter"] is False else None,
        "output_format": output,
    }
    texts = [(name, str(value)) for name, value in fields.items() if value is not None]
    try:
        form = read_form(texts, state.config, device=state.service.facts().device)
    except InvalidOption as error:
        if error.field == "prompt":
            raise InvalidOption(PROMPT.name, str(error).partition(": ")[2]) from None
        raise
    given = {name: getattr(form, name) for name in UploadForm.__struct_fields__}
    answer_name = f"{upload.files[0].file_name or AUDIO_FILE.name}.{output}"
    return AsrForm(**given, output=output, words=asked["word_timestamps"], answer_name=answer_name)


def _text(state: ServerState, job_id: str, viewer: str | None, form: AsrForm) -> str:
    _, transcript = state.service.result(job_id, viewer)
    return asr_text(transcript, form.output, words=form.words)


ASR = Operation(
    asr,
    "whisper-asr-webservice",
    (
        Answer(
            200,
            "The transcript in the format that was asked for",
            {MEDIA_TYPE: str},
            {
                ENGINE_HEADER: "Always the same",
                "Content-Disposition": "Name of the recording, with the format as its extension",
                JOB_HEADER: "Id of the job",
            },
        ),
    ),
    refusals=(*OF_UPLOADS, JobFailed, JobCanceled, JobNotFound, ResultGone),
    parameters=(*PARAMETERS, IDEMPOTENCY_KEY),
    body=FormBody((dataclasses.replace(AUDIO_FILE, required=True),)),
)
