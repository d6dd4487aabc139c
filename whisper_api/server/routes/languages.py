"""``POST /detect-language``: which language is spoken, without a transcript."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import JobFailed
from whisper_api.schema import SpokenLanguage, Transcript
from whisper_api.server.operations import Answer, FormBody, Operation
from whisper_api.server.realtime.waiting import wait_for_end
from whisper_api.server.responses.delivery import DeliveredResponse
from whisper_api.server.responses.results import failed_in_sync, in_turn, note_delivery
from whisper_api.server.responses.sync_response import accepted_response, when_ended
from whisper_api.server.routes.transcription import ACCEPTED, IN_SYNC, REFUSALS
from whisper_api.server.state import state_of, viewer_of
from whisper_api.server.uploads.forms import UploadForm, read_form
from whisper_api.server.uploads.incoming import IncomingForm
from whisper_api.server.uploads.submitting import UploadRules, accept, accept_waited
from whisper_api.server.uploads.upload_fields import AUDIO_FILE, ENCODE, FILE, IDEMPOTENCY_KEY, JOB_FIELDS, SYNC, URL

__all__ = ["DETECT"]

PURPOSE = "detect-language"
# This server's name for the field, and that of whisper-asr-webservice.
FILE_FIELDS = (FILE.name, AUDIO_FILE.name)
# The options that have an effect where nothing is transcribed.
FIELD_NAMES = ("model", "language", "audio_track", "vad", "vad_onset", "vad_offset", "vad_min_silence", "vad_padding")
OTHER_NAMES = ("keep_result", "metadata", "hf_token", "device", "device_index")


async def detect(request: Request) -> Response:
    """Say which language is spoken in a recording, without a transcript.

    The answer comes when it is known; with ``sync=false``, or when it takes too long, 202 with the job's id, whose
    result has the languages too. With ``encode`` in the query, as clients of whisper-asr-webservice have it, the
    answer comes however long it takes, and a client that goes away cancels the job. A key may stand in the address, as
    a password: ``http://name:key@host``.
    """
    service = state_of(request).service
    config = msgspec.structs.replace(state_of(request).config, default_sync=True)

    def read(upload: IncomingForm) -> UploadForm:
        form = read_form(upload.fields, config, device=service.facts().device)
        options = msgspec.structs.replace(form.options, task="detect_language", align=False, diarize=False)
        return msgspec.structs.replace(form, options=options)

    if ENCODE.name in request.query_params:
        encode: bool = ENCODE.of(request)
        rules = UploadRules(f"{PURPOSE}?encode={encode}", file_fields=FILE_FIELDS, headerless=not encode)
        with contextlib.ExitStack() as waiting:
            job, _ = await accept_waited(request, read, rules, waiting)
            await wait_for_end(request, job.job_id, None)
            try:
                return await _language_response(request, job.job_id)
            except JobFailed as error:
                raise failed_in_sync(error) from error
    job, form = await accept(request, read, UploadRules(PURPOSE, file_fields=FILE_FIELDS, raw=True))
    if not form.sync:
        return accepted_response(request, job.job_id)
    return await when_ended(request, job.job_id, lambda: _language_response(request, job.job_id))


async def _language_response(request: Request, job_id: str) -> Response:
    state = state_of(request)
    job, transcript = await in_turn(request, state.service.result, job_id, viewer_of(request))
    body = spoken_language(transcript, job.warnings, job.metadata)
    return DeliveredResponse(
        msgspec.json.encode(body),
        headers={"Content-Type": "application/json"},
        on_delivered=functools.partial(note_delivery, state, job_id),
    )


def spoken_language(
    transcript: Transcript, warnings: tuple[str, ...] = (), metadata: dict[str, Any] | None = None
) -> SpokenLanguage:
    """What a transcript without text says of the language.

    Args:
        transcript: of a job with the task ``detect_language``.
        warnings: of the submission; they stand before the transcript's own.
        metadata: of the job.
    """
    from whisper_api.engine.languages import ENGLISH_NAMES

    return SpokenLanguage(
        language=transcript.language,
        language_probability=transcript.language_probability,
        language_probabilities=transcript.language_probabilities or {},
        duration=transcript.duration,
        model=transcript.model,
        warnings=tuple(dict.fromkeys((*warnings, *transcript.warnings))),
        metadata=msgspec.UNSET if metadata is None else metadata,
        detected_language=ENGLISH_NAMES.get(transcript.language, transcript.language),
        language_code=transcript.language,
        confidence=transcript.language_probability or 0.0,
    )


DETECT = Operation(
    detect,
    "Transcription",
    (Answer(200, "The language", {"application/json": SpokenLanguage}), ACCEPTED),
    refusals=(*REFUSALS, *IN_SYNC),
    parameters=(ENCODE, IDEMPOTENCY_KEY),
    body=FormBody(
        (FILE, AUDIO_FILE, URL, *(field for field in JOB_FIELDS if field.name in (*FIELD_NAMES, *OTHER_NAMES)), SYNC),
        raw=True,
    ),
)
