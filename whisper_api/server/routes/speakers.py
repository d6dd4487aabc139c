"""``/speakers``: people whose voices the caller has enrolled, for jobs with ``identify=true``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from whisper_api import errors
from whisper_api.jobs.speakers import MAX_SAMPLES, NAME_FIELD, SAMPLES_FIELD
from whisper_api.server.auditing import note, noted_id
from whisper_api.server.middleware.auth import check_key
from whisper_api.server.operations import Answer, Cause, FormBody, JsonBody, Parameter, created, operation
from whisper_api.server.realtime.waiting import unless_draining
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import blocking, caller_of, owner_of, service_of, state_of, viewer_of, writes
from whisper_api.server.uploads.form_fields import FormField, plain_name
from whisper_api.server.uploads.incoming import Limits, invalid_form
from whisper_api.server.uploads.json_reader import JSON_TYPE
from whisper_api.server.uploads.known_speakers import checked_recordings
from whisper_api.server.uploads.multipart import MultipartReader, boundary_of
from whisper_api.server.uploads.pace import PaceRules
from whisper_api.server.uploads.part_headers import shown
from whisper_api.server.uploads.receiving import BODY_REFUSALS, decoded, received_body, received_value, upload_turn
from whisper_api.voices import Speaker, SpeakerList

MAX_NAME_BYTES = 16 << 10
MAX_BODY_BYTES = 16 << 20
HOW_TO_SEND = f"Send multipart/form-data with recordings in the field {SAMPLES_FIELD}, or JSON with data URLs"
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

    def read_and_work(body: bytes) -> Speaker:
        form = _read_form(request.headers.get("content-type", ""), body)
        # Checked again, because the key may have been revoked while the request waited.
        check_key(request)
        return work(form)

    async with upload_turn(request):
        seconds = state.config.upload_timeout_seconds
        body = await unless_draining(state, received_body(request, max_bytes=MAX_BODY_BYTES, seconds=seconds))
        async with state.caller_enrolments.taken(caller_of(request), math.inf):
            return await blocking(state.enrolments, read_and_work, body)


def _speaker_id(request: Request) -> str:
    return noted_id(request, "speaker_id", errors.SpeakerNotFound)


def _read_form(content_type: str, body: bytes) -> VoiceForm:
    if content_type.partition(";")[0].strip().lower() == JSON_TYPE:
        given = decoded(body, _JsonForm)
        return VoiceForm(given.name, given.samples)
    form = VoiceForm()
    reader = MultipartReader(boundary_of(content_type, HOW_TO_SEND), form)
    reader.feed(body)
    reader.finish()
    return form


class _JsonForm(msgspec.Struct):
    name: str = ""
    samples: tuple[str, ...] = ()


class VoiceForm:
    """A speaker's name and recordings. They stay in memory, so that no recording gets to the disk.

    Args:
        name: name of the speaker; empty when the form has none.
        samples: recordings as data URLs.
    """

    def __init__(self, name: str = "", samples: Sequence[str] = ()) -> None:
        self.limits = Limits(
            max_file_size=MAX_BODY_BYTES,
            pace=PaceRules(1.0),
            max_field_bytes=MAX_BODY_BYTES,
            file_fields=(),
            max_files=MAX_SAMPLES,
        )
        self.file_bytes = 0
        self.name = name
        self._samples = list(samples)
        self._files: list[bytearray] = []

    def recordings(self) -> tuple[bytes, ...]:
        """The recordings: those in data URLs, then the files. Decodes them.

        Raises:
            InvalidOption: there are none or too many, or one cannot be used.
        """
        if not 1 <= len(self._samples) + len(self._files) <= MAX_SAMPLES:
            raise errors.InvalidOption(SAMPLES_FIELD, f"expected 1 to {MAX_SAMPLES} recordings")
        return tuple(checked_recordings(SAMPLES_FIELD, self._samples, [bytes(file) for file in self._files]))

    def add_field(self, name: str, value: str) -> None:
        """Add a text field."""
        if plain_name(name) == SAMPLES_FIELD:
            self._check_count()
            self._samples.append(value)
        elif name == NAME_FIELD:
            self.name = value

    def begin_file(self, field: str, name: str, *, is_text: bool = False) -> None:
        """Begin a recording."""
        if plain_name(field) != SAMPLES_FIELD:
            raise invalid_form(f"the part {shown(field)} is a file, and only {SAMPLES_FIELD} may be files")
        self._check_count()
        self._files.append(bytearray())

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes to the recording."""
        self._files[-1] += data
        self.file_bytes += len(data)

    def end_file(self) -> None:
        """End the recording."""

    def _check_count(self) -> None:
        if len(self._files) + len(self._samples) >= MAX_SAMPLES:
            raise invalid_form(f"it has more than {MAX_SAMPLES} recordings")
