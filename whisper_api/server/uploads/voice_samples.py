"""Bodies with a speaker's name and recordings. They stay in memory, so that no recording gets to the disk."""

from __future__ import annotations

import msgspec
from starlette.requests import Request

from whisper_api.errors import InvalidOption
from whisper_api.jobs.speakers import MAX_SAMPLES, NAME_FIELD, SAMPLES_FIELD
from whisper_api.server.state import state_of
from whisper_api.server.uploads.form_fields import plain_name
from whisper_api.server.uploads.incoming import Limits, invalid_form
from whisper_api.server.uploads.json_reader import JSON_TYPE
from whisper_api.server.uploads.known_speakers import check_recording, recording_in
from whisper_api.server.uploads.multipart import MultipartReader, boundary_of
from whisper_api.server.uploads.pace import pace_rules
from whisper_api.server.uploads.part_headers import shown
from whisper_api.server.uploads.receiving import decoded, received_body

MAX_BODY_BYTES = 16 << 20
HOW_TO_SEND = f"Send multipart/form-data with recordings in the field {SAMPLES_FIELD}, or JSON with data URLs"


class VoiceForm(msgspec.Struct, frozen=True, kw_only=True):
    """The values of a form.

    Attributes:
        name: name of the speaker; empty when the form has none.
        samples: recordings as data URLs.
        files: recordings as files.
    """

    name: str = ""
    samples: tuple[str, ...] = ()
    files: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return "VoiceForm(...)"

    def recordings(self) -> tuple[bytes, ...]:
        """The recordings: those in data URLs, then the files. Decodes them.

        Raises:
            InvalidOption: there are none or too many, or one cannot be used.
        """
        if not 1 <= len(self.samples) + len(self.files) <= MAX_SAMPLES:
            raise InvalidOption(SAMPLES_FIELD, f"expected 1 to {MAX_SAMPLES} recordings")
        found = [recording_in(SAMPLES_FIELD, number, url) for number, url in enumerate(self.samples, start=1)]
        found += self.files
        for number, recording in enumerate(found, start=1):
            check_recording(SAMPLES_FIELD, number, recording)
        return tuple(found)


async def received_voice_form(request: Request) -> tuple[str, bytes]:
    """The media type and the body of a request, for :func:`read_voice_form`.

    Raises:
        Problem: 408 or 413; the code says what is wrong.
        CallerLimit: the caller has as many unfinished uploads as one may have.
        ClientDisconnect: the client has gone.
    """
    seconds = state_of(request).config.upload_timeout_seconds
    body = await received_body(request, max_bytes=MAX_BODY_BYTES, seconds=seconds)
    return request.headers.get("content-type", ""), body


def read_voice_form(content_type: str, body: bytes) -> VoiceForm:
    """Read a form or JSON.

    Args:
        content_type: header of the request.
        body: body of the request.

    Raises:
        Problem: 400; the code says what is wrong.
        InvalidInput: the JSON is malformed, or a member has a wrong value.
    """
    if content_type.partition(";")[0].strip().lower() == JSON_TYPE:
        given = decoded(body, _JsonForm)
        return VoiceForm(name=given.name, samples=given.samples)
    form = _Parts()
    reader = MultipartReader(boundary_of(content_type, HOW_TO_SEND), form)
    reader.feed(body)
    reader.finish()
    return VoiceForm(name=form.name, samples=tuple(form.samples), files=tuple(map(bytes, form.files)))


class _JsonForm(msgspec.Struct):
    name: str = ""
    samples: tuple[str, ...] = ()


class _Parts:
    """Collects the parts of a form in memory."""

    def __init__(self) -> None:
        self.limits = Limits(
            max_file_size=MAX_BODY_BYTES,
            pace=pace_rules(1.0, 0, 1.0),
            max_field_bytes=MAX_BODY_BYTES,
            file_fields=(),
            max_files=MAX_SAMPLES,
        )
        self.file_bytes = 0
        self.name = ""
        self.samples: list[str] = []
        self.files: list[bytearray] = []

    def add_field(self, name: str, value: str) -> None:
        if plain_name(name) == SAMPLES_FIELD:
            self._check_count()
            self.samples.append(value)
        elif name == NAME_FIELD:
            self.name = value

    def begin_file(self, field: str, name: str, *, is_text: bool = False) -> None:
        if plain_name(field) != SAMPLES_FIELD:
            raise invalid_form(f"the part {shown(field)} is a file, and only {SAMPLES_FIELD} may be files")
        self._check_count()
        self.files.append(bytearray())

    def write(self, data: bytes | memoryview) -> None:
        self.files[-1] += data
        self.file_bytes += len(data)

    def end_file(self) -> None:
        pass

    def _check_count(self) -> None:
        if len(self.files) + len(self.samples) >= MAX_SAMPLES:
            raise invalid_form(f"it has more than {MAX_SAMPLES} recordings")
