"""``POST /detect-language``: detects the spoken language without making a transcript."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.job_values import SpokenLanguage
from whisper_api.records import made_of
from whisper_api.schema import Transcript
from whisper_api.server.operations import Answer, FormBody, operation
from whisper_api.server.responses.results import accepted_response, delivered, in_turn, when_ended
from whisper_api.server.routes.transcription import ACCEPTED, IN_SYNC, REFUSALS
from whisper_api.server.state import state_of, viewer_of
from whisper_api.server.uploads.forms import (
    AUDIO_FILE,
    ENCODE,
    FILE,
    IDEMPOTENCY_KEY,
    JOB_FIELDS,
    SYNC,
    URL,
    UploadForm,
    read_form,
)
from whisper_api.server.uploads.incoming import IncomingForm
from whisper_api.server.uploads.submitter import UploadRules
from whisper_api.server.uploads.submitting import accept, accept_waited

PURPOSE = "detect-language"
# This server's name of the field, and the name that whisper-asr-webservice gives the field.
FILE_FIELDS = (FILE.name, AUDIO_FILE.name)
# The options that have an effect without a transcription.
FIELD_NAMES = ("model", "language", "audio_track", "vad", "vad_onset", "vad_offset", "vad_min_silence", "vad_padding")
OTHER_NAMES = ("keep_result", "metadata", "hf_token", "device", "device_index")


@operation(
    Answer(200, "The language", {"application/json": SpokenLanguage}),
    ACCEPTED,
    tag="Transcription",
    refusals=(*REFUSALS, *IN_SYNC),
    parameters=(ENCODE, IDEMPOTENCY_KEY),
    body=FormBody(
        (FILE, AUDIO_FILE, URL, *(field for field in JOB_FIELDS if field.name in (*FIELD_NAMES, *OTHER_NAMES)), SYNC),
        raw=True,
    ),
    audit="job.submit",
    scope="transcribe",
)
async def detect(request: Request) -> Response:
    """Detect the language of a recording without making a transcript.

    The response comes when the job has ended. With ``sync=false``, or when the job takes too long, it is a 202 with the
    job's id, and the job's result contains the languages too. With ``encode`` in the query, as clients of
    whisper-asr-webservice send it, the response has no time limit, and a client that goes away cancels the job. The
    key may be the password in the URL: ``http://name:key@host``.
    """
    service = state_of(request).service
    config = msgspec.structs.replace(state_of(request).config, default_sync=True)

    async def respond() -> Response:
        ended, transcript = await in_turn(request, service.result, job.job_id, viewer_of(request))
        body = spoken_language(transcript, ended.warnings, ended.metadata)
        return delivered(request, job.job_id, msgspec.json.encode(body), {"Content-Type": "application/json"})

    def read(upload: IncomingForm) -> UploadForm:
        form = read_form(upload.fields, config, device=service.facts().device)
        options = msgspec.structs.replace(form.options, task="detect_language", align=False, diarize=False)
        return msgspec.structs.replace(form, options=options)

    if ENCODE.name in request.query_params:
        encode: bool = ENCODE.of(request)
        rules = UploadRules(f"{PURPOSE}?encode={encode}", file_fields=FILE_FIELDS, headerless=not encode)
        with contextlib.ExitStack() as waiting:
            job, _ = await accept_waited(request, read, rules, waiting)
            return await when_ended(request, job.job_id, respond, None)
    job, form = await accept(request, read, UploadRules(PURPOSE, file_fields=FILE_FIELDS, raw=True))
    if not form.sync:
        return accepted_response(request, job.job_id)
    return await when_ended(request, job.job_id, respond, config.sync_timeout_seconds or None)


def spoken_language(
    transcript: Transcript, warnings: tuple[str, ...] = (), metadata: dict[str, Any] | None = None
) -> SpokenLanguage:
    """The language in the transcript of a language detection.

    Args:
        transcript: result of a job with the task ``detect_language``; it has no text.
        warnings: warnings of the submission; they precede the transcript's own.
        metadata: the client's metadata of the job.
    """
    from whisper_api.engine.languages import ENGLISH_NAMES

    return made_of(
        transcript,
        SpokenLanguage,
        language_probabilities=transcript.language_probabilities or {},
        warnings=tuple(dict.fromkeys((*warnings, *transcript.warnings))),
        metadata=msgspec.UNSET if metadata is None else metadata,
        detected_language=ENGLISH_NAMES.get(transcript.language, transcript.language),
        language_code=transcript.language,
        confidence=transcript.language_probability or 0.0,
    )
