"""``/speakers``: people whose voices the caller has enrolled, for jobs with ``identify=true``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from whisper_api import errors
from whisper_api.jobs.speakers import NAME_FIELD, SAMPLES_FIELD
from whisper_api.server.auditing import note, noted_id
from whisper_api.server.middleware.auth import check_key
from whisper_api.server.operations import Answer, Cause, FormBody, FormField, JsonBody, Operation, Parameter
from whisper_api.server.realtime.waiting import unless_draining
from whisper_api.server.resource import JsonResponse
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import blocking, caller_of, owner_of, reads, service_of, state_of, viewer_of, writes
from whisper_api.server.uploads.receiving import BODY_REFUSALS, received_value, upload_turn
from whisper_api.server.uploads.voice_samples import VoiceForm, read_voice_form, received_voice_form
from whisper_api.voices import Speaker, SpeakerList

MAX_NAME_BYTES = 16 << 10
SPEAKER_ID = Parameter("speaker_id", str, "Id of the speaker", location="path", required=True)


class SpeakerName(msgspec.Struct, frozen=True, kw_only=True):
    """A new name.

    Attributes:
        name: the label of the person in later transcripts.
    """

    name: Annotated[str, Meta(min_length=1, max_length=255, examples=["Ada"])]


class DeletedSpeaker(msgspec.Struct, frozen=True, kw_only=True):
    """The speaker was deleted.

    Attributes:
        success: always true; a failure is an error response.
    """

    success: bool = True


async def enroll(request: Request) -> Response:
    """Add a person whose voice later jobs with `identify=true` recognise.

    The person must have agreed to that: a voice that identifies a person is biometric data. The server keeps the name
    and one vector for each recording, never the recordings.
    """
    owner, service = owner_of(request), state_of(request).service
    speaker = await _embedded(request, lambda form: service.speakers.enroll(owner, form.name, form.recordings()))
    note(request, speaker.speaker_id)
    root = request.scope.get("root_path", "")
    return JsonResponse(speaker, 201, {"Location": f"{root}/speakers/{speaker.speaker_id}"})


async def add_samples(request: Request) -> Response:
    """Add recordings to a speaker. They replace recordings that another model has embedded."""
    speaker_id, viewer, service = _speaker_id(request), viewer_of(request), state_of(request).service
    return JsonResponse(
        await _embedded(request, lambda form: service.speakers.add_samples(speaker_id, viewer, form.recordings()))
    )


async def speakers(request: Request) -> Response:
    """List the caller's known speakers; an admin sees those of all callers."""
    found = await reads(request, service_of(request).speakers.list, viewer_of(request))
    return JsonResponse(SpeakerList(speakers=found))


async def speaker(request: Request) -> Response:
    """Get a known speaker."""
    return JsonResponse(
        await reads(request, service_of(request).speakers.get, _speaker_id(request), viewer_of(request))
    )


async def rename(request: Request) -> Response:
    """Rename a known speaker. Earlier transcripts keep the old name."""
    speaker_id = _speaker_id(request)
    name = (await received_value(request, SpeakerName, max_bytes=MAX_NAME_BYTES)).name
    return JsonResponse(
        await writes(request, service_of(request).speakers.rename, speaker_id, viewer_of(request), name)
    )


async def delete(request: Request) -> Response:
    """Delete a known speaker: the name and the voice. Transcripts keep the name until they are deleted."""
    await writes(request, service_of(request).speakers.delete, _speaker_id(request), viewer_of(request))
    return JsonResponse(DeletedSpeaker())


async def _embedded(request: Request, work: Callable[[VoiceForm], Speaker]) -> Speaker:
    """Receive a form and compute voices: one request at a time, and one request of each caller waits for its turn."""
    state = state_of(request)

    def read_and_work(content_type: str, body: bytes) -> Speaker:
        form = read_voice_form(content_type, body)
        # Checked again, because the key may have been revoked while the request waited.
        check_key(request)
        return work(form)

    async with upload_turn(request):
        received = await unless_draining(state, received_voice_form(request))
        async with state.caller_enrolments.taken(caller_of(request), math.inf):
            return await blocking(state.enrolments, read_and_work, *received)


def _speaker_id(request: Request) -> str:
    return noted_id(request, "speaker_id", errors.SpeakerNotFound)


SAMPLES = FormField(f"{SAMPLES_FIELD}[]", bytes, "Recordings of 2 to 10 seconds of this person alone", True, True)
JSON_SAMPLES = FormField(SAMPLES_FIELD, str, "The recordings as data URLs", True, True)
NAME = FormField(NAME_FIELD, str, "The label of the person in transcripts", required=True)
BODY: tuple[Cause, ...] = (errors.InvalidOption, errors.StorageError, *BODY_REFUSALS)
FORM: tuple[Cause, ...] = (
    *BODY,
    Problem(400, "not_multipart", "The body is not a form"),
    Problem(400, "invalid_form", "The form cannot be read"),
    errors.ModelUnavailable,
    errors.Draining,
    errors.SpeakerLimit,
)
FOUND = Answer(200, "The speaker", {"application/json": Speaker})

speaker_call = functools.partial(Operation, tag="Speakers", scope="speakers")
SPEAKERS = speaker_call(
    speakers, (Answer(200, "The speakers", {"application/json": SpeakerList}),), audit="speaker.read"
)
ENROLL = speaker_call(
    enroll,
    (Answer(201, "The speaker", {"application/json": Speaker}, {"Location": "Path of the speaker"}),),
    refusals=(*FORM, errors.SpeakerExists),
    body=FormBody((NAME, SAMPLES), json_fields=(JSON_SAMPLES,)),
    audit="speaker.create",
)
SPEAKER = speaker_call(
    speaker, (FOUND,), refusals=(errors.SpeakerNotFound,), parameters=(SPEAKER_ID,), audit="speaker.read"
)
RENAME = speaker_call(
    rename,
    (FOUND,),
    refusals=(*BODY, errors.SpeakerNotFound, errors.SpeakerExists),
    parameters=(SPEAKER_ID,),
    body=JsonBody(SpeakerName),
    audit="speaker.change",
)
ADD_SAMPLES = speaker_call(
    add_samples,
    (FOUND,),
    refusals=(*FORM, errors.SpeakerNotFound),
    parameters=(SPEAKER_ID,),
    body=FormBody((SAMPLES,), json_fields=(JSON_SAMPLES,)),
    audit="speaker.change",
)
DELETE = speaker_call(
    delete,
    (Answer(200, "The speaker is deleted", {"application/json": DeletedSpeaker}),),
    refusals=(errors.SpeakerNotFound, errors.StorageError),
    parameters=(SPEAKER_ID,),
    audit="speaker.delete",
)
