"""``POST /asr``: the transcription route of whisper-asr-webservice, for Bazarr and other clients of that service."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import InvalidOption, JobCanceled, JobFailed, JobNotFound, ResultGone
from whisper_api.formats import render
from whisper_api.options import SpeakerCount
from whisper_api.records import made_of
from whisper_api.schema import Transcript
from whisper_api.server.openai.answers import verbose_segments
from whisper_api.server.operations import Answer, FormBody, Parameter, operation
from whisper_api.server.responses.results import delivered, in_turn, when_ended
from whisper_api.server.state import ServerState, state_of, viewer_of
from whisper_api.server.uploads.forms import AUDIO_FILE, ENCODE, IDEMPOTENCY_KEY, UPLOAD_REFUSALS, UploadForm, read_form
from whisper_api.server.uploads.incoming import IncomingForm
from whisper_api.server.uploads.submitter import UploadRules
from whisper_api.server.uploads.submitting import accept_waited
from whisper_api.word_spacing import pieces

AsrOutput = Literal["txt", "vtt", "srt", "tsv", "json"]

ENGINE_HEADER = "Asr-Engine"
ENGINE_NAME = "whisper_api"
JOB_HEADER = "X-Job-ID"
# whisper-asr-webservice sends every format, also JSON, with this type.
MEDIA_TYPE = "text/plain"

TASK = Parameter("task", Literal["transcribe", "translate"], "Keep the language, or translate to English", "transcribe")
LANGUAGE = Parameter("language", str, "Code or name of the spoken language; detected by default")
OUTPUT = Parameter("output", AsrOutput, "Format of the response", default="txt")
PROMPT = Parameter("initial_prompt", str, "Text that precedes the audio: spelling, style, names")
WORDS = Parameter("word_timestamps", bool, "Add the words with their times to a json", default=False)
VAD = Parameter("vad_filter", bool, "Leave out silence and noise; true by default")
DIARIZE = Parameter("diarize", bool, "Tell the speakers apart", default=False)
MIN_SPEAKERS = Parameter("min_speakers", SpeakerCount, "Least number of speakers")
MAX_SPEAKERS = Parameter("max_speakers", SpeakerCount, "Greatest number of speakers")
PARAMETERS = (ENCODE, TASK, LANGUAGE, OUTPUT, PROMPT, WORDS, VAD, DIARIZE, MIN_SPEAKERS, MAX_SPEAKERS)


class AsrForm(UploadForm, frozen=True, kw_only=True):
    """The options of a request.

    Attributes:
        output: format of the response.
        words: whether JSON has words.
        answer_name: the file name under which a browser saves the response.
    """

    output: AsrOutput
    words: bool
    answer_name: str


@operation(
    Answer(
        200,
        "The transcript in the requested format",
        {MEDIA_TYPE: str},
        {
            ENGINE_HEADER: f"Always `{ENGINE_NAME}`",
            "Content-Disposition": "Name of the recording, with the format as its extension",
            JOB_HEADER: "Id of the job",
        },
    ),
    tag="whisper-asr-webservice",
    refusals=(*UPLOAD_REFUSALS, JobFailed, JobCanceled, JobNotFound, ResultGone),
    parameters=(*PARAMETERS, IDEMPOTENCY_KEY),
    body=FormBody((dataclasses.replace(AUDIO_FILE, required=True),)),
    audit="job.submit",
    scope="transcribe",
)
async def asr(request: Request) -> Response:
    """Transcribe audio, as the route of this name of whisper-asr-webservice does.

    The options are query parameters. The key may be the password in the URL: ``http://name:key@host``.

    The response comes when the job has ended, however long that takes. When the client disconnects, the job is
    canceled after ten seconds, unless the client sends the same upload again or has sent an ``Idempotency-Key``.
    ``X-Job-ID`` is the id of the job, whose status lists the warnings.
    """
    state = state_of(request)
    query = {parameter.name: parameter.of(request) for parameter in PARAMETERS}

    def read(upload: IncomingForm) -> AsrForm:
        return _read(query, upload, state)

    async def respond() -> Response:
        headers = {
            "Content-Type": f"{MEDIA_TYPE}; charset=utf-8",
            "Content-Disposition": f'attachment; filename="{quote(form.answer_name)}"',
            ENGINE_HEADER: ENGINE_NAME,
            JOB_HEADER: job.job_id,
        }
        text = await in_turn(request, _text, state, job.job_id, viewer_of(request), form)
        return delivered(request, job.job_id, text, headers)

    rules = UploadRules(f"/asr?{request.url.query}", file_fields=(AUDIO_FILE.name,), headerless=not query["encode"])
    with contextlib.ExitStack() as waiting:
        job, form = await accept_waited(request, read, rules, waiting)
        # Without a time limit, because a client that gives up and retries joins the same job.
        return await when_ended(request, job.job_id, respond, None)


def _read(query: dict[str, Any], upload: IncomingForm, state: ServerState) -> AsrForm:
    """Translate the query to the fields of this server's own form.

    Args:
        query: query parameters by name.
        upload: the recording.
        state: the server's state.

    Raises:
        InvalidOption: a value is not allowed.
    """
    output: AsrOutput = query["output"]
    # Sentence times are computed from word times.
    align = output != "txt" or query["word_timestamps"] or query["diarize"]
    fields = {
        "task": query["task"],
        "language": query["language"] or "auto",
        "prompt": query["initial_prompt"],
        "align": align,
        "diarize": query["diarize"],
        "min_speakers": query["min_speakers"],
        "max_speakers": query["max_speakers"],
        "vad": "none" if query["vad_filter"] is False else None,
        "output_format": output,
    }
    texts = [(name, str(value)) for name, value in fields.items() if value is not None]
    try:
        form = read_form(texts, state.config, device=state.service.facts().device)
    except InvalidOption as error:
        if error.field == "prompt":
            raise InvalidOption(PROMPT.name, str(error).partition(": ")[2]) from None
        raise
    answer_name = f"{upload.files[0].file_name or AUDIO_FILE.name}.{output}"
    return made_of(form, AsrForm, output=output, words=query["word_timestamps"], answer_name=answer_name)


def _text(state: ServerState, job_id: str, viewer: str | None, form: AsrForm) -> str:
    _, transcript = state.service.result(job_id, viewer)
    return _json(transcript, form.words) if form.output == "json" else render(transcript, form.output)


def _json(transcript: Transcript, words: bool) -> str:
    """The dictionary that OpenAI's ``whisper`` returns; with speakers, each segment also has a ``speaker``."""
    segments: list[dict[str, Any]] = []
    for segment, verbose in zip(transcript.segments, verbose_segments(transcript.segments), strict=True):
        # Leaves out the fields that this segment does not have.
        fields = msgspec.to_builtins(verbose)
        fields.pop("language", None)
        if segment.language is not None:
            fields["language"] = segment.language
        if words:
            # Whisper's words have the spaces of the text, also the space before the first word.
            space = verbose.text.removesuffix(segment.text.strip())
            texts = pieces(segment, transcript.written_language(segment))
            texts[:1] = [space + text for text in texts[:1]]
            fields["words"] = [
                {"word": text, "start": word.start, "end": word.end, "probability": word.score or 0.0}
                for text, word in zip(texts, segment.words, strict=True)
            ]
        if segment.speaker is not None:
            fields["speaker"] = segment.speaker
        segments.append(fields)
    text = "".join(segment["text"] for segment in segments)
    return json.dumps({"text": text, "segments": segments, "language": transcript.language})
