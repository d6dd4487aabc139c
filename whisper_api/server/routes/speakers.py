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
from whisper_api.server.operations import Answer, Cause, FormBody, JsonBody, Parameter, created, operation
from whisper_api.server.realtime.waiting import unless_draining
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import blocking, caller_of, owner_of, service_of, state_of, viewer_of, writes
from whisper_api.server.uploads.form_fields import FormField
from whisper_api.server.uploads.receiving import BODY_REFUSALS, received_value, upload_turn
from whisper_api.server.uploads.voice_samples import VoiceForm, read_voice_form, received_voice_form
from whisper_api.voices import Speaker, SpeakerList

MAX_NAME_BYTES = 16 << 10
SPEAKER_ID = Parameter(
    "speaker_id", str, "Id of the speaker", location="path", required=True, refusals=(errors.SpeakerNotFound,)
)


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


SAMPLES = FormField(f"{SAMPLES_FIELD}[]", bytes, "Recordings of 2 to 10 seconds of this person alone", True, True)
JSON_SAMPLES = FormField(SAMPLES_FIELD, str, "The recordings as data URLs", True, True)
NAME = FormField(NAME_FIELD, str, "The label of the person in transcripts", required=True)
FORM: tuple[Cause, ...] = (
    *BODY_REFUSALS,
    Problem(400, "not_multipart", "The body is not a form"),
    Problem(400, "invalid_form", "The form cannot be read"),
    errors.ModelUnavailable,
    errors.SpeakerLimit,
)

speaker_call = functools.partial(operation, tag="Speakers", scope="speakers")
of_speaker = functools.partial(speaker_call, parameters=(SPEAKER_ID,))


@speaker_call(
    Answer(201, "The speaker", {"application/json": Speaker}, {"Location": "Path of the speaker"}),
    refusals=(*FORM, errors.SpeakerExists),
    body=FormBody((NAME, SAMPLES), json_fields=(JSON_SAMPLES,)),
    audit="speaker.create",
)
async def enroll(request: Request) -> Response:
    """Add a person whose voice later jobs with `identify=true` recognise.

    The person must have agreed to that: a voice that identifies a person is biometric data. The server keeps the name
    and one vector for each recording, never the recordings.
    """
    owner, service = owner_of(request), service_of(request)
    made = await _embedded(request, lambda form: service.speakers.enroll(owner, form.name, form.recordings()))
    note(request, made.speaker_id)
    return created(request, made, f"/speakers/{made.speaker_id}")


@of_speaker(
    "The speaker",
    refusals=FORM,
    body=FormBody((SAMPLES,), json_fields=(JSON_SAMPLES,)),
    audit="speaker.change",
)
async def add_samples(request: Request) -> Speaker:
    """Add recordings to a speaker. They replace recordings that another model has embedded."""
    speaker_id, viewer, service = _speaker_id(request), viewer_of(request), service_of(request)
    return await _embedded(request, lambda form: service.speakers.add_samples(speaker_id, viewer, form.recordings()))


@speaker_call("The speakers", audit="speaker.read")
def speakers(request: Request) -> SpeakerList:
    """List the caller's known speakers; an admin sees those of all callers."""
    return SpeakerList(speakers=service_of(request).speakers.list(viewer_of(request)))


@of_speaker("The speaker", audit="speaker.read")
def speaker(request: Request) -> Speaker:
    """Get a known speaker."""
    return service_of(request).speakers.get(_speaker_id(request), viewer_of(request))


@of_speaker("The speaker", refusals=(errors.SpeakerExists,), body=JsonBody(SpeakerName), audit="speaker.change")
async def rename(request: Request) -> Speaker:
    """Rename a known speaker. Earlier transcripts keep the old name."""
    speaker_id = _speaker_id(request)
    name = (await received_value(request, SpeakerName, max_bytes=MAX_NAME_BYTES)).name
    return await writes(request, service_of(request).speakers.rename, speaker_id, viewer_of(request), name)


@of_speaker("The speaker is deleted", audit="speaker.delete")
def delete(request: Request) -> DeletedSpeaker:
    """Delete a known speaker: the name and the voice. Transcripts keep the name until they are deleted."""
    service_of(request).speakers.delete(_speaker_id(request), viewer_of(request))
    return DeletedSpeaker()


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
