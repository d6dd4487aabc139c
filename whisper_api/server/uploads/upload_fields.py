"""The fields of uploads and their error responses, for the description of the API.

:mod:`whisper_api.server.uploads.forms` reads the fields.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from whisper_api import errors
from whisper_api.coercion import help_line
from whisper_api.config import Config, OutputFormat
from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.server.operations import Cause, Parameter
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.form_fields import FormField
from whisper_api.server.uploads.incoming import URL_FIELD
from whisper_api.server.uploads.known_speakers import NAMES_FIELD, REFERENCES_FIELD

KeyText = Annotated[str, Meta(min_length=1, max_length=255, pattern="^[ -~]+$")]

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    KeyText,
    "Identifies a retry of the same request, which gets the same job instead of a second one",
    location="header",
)
FILE = FormField("file", bytes, "The recording: audio, or video with sound, in any usual format")
URL = FormField(
    URL_FIELD,
    str,
    "The URL of a file (http, https) instead of the file, if ENABLE_URL_UPLOADS allows it; file_url is the same field",
)
AUDIO_FILE = FormField("audio_file", bytes, "The recording, in the field of whisper-asr-webservice")
ENCODE = Parameter(
    "encode", bool, "false: the file is 16-bit little-endian mono samples at 16 kHz, without a header", default=True
)
SYNC = FormField("sync", bool, "Respond with the result when the job has ended; DEFAULT_SYNC_MODE is the default")


WEBHOOK_URL_FIELD = "webhook_url"
INCLUDE_RESULT_FIELD = "webhook_include_result"
OFF = Problem(
    400, "webhooks_not_enabled", "This server sends no webhooks: set ENABLE_WEBHOOKS = true on the server, or poll"
)
DEFAULTS = TranscriptionOptions()


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


VOCABULARY = FormField(
    "vocabulary", str, "Names and terms that may be said: the name of a stored vocabulary, or a JSON array of terms"
)
# The configuration has a default of its own for the model and the language.
OPTION_FIELDS = tuple(
    VOCABULARY
    if field.name == VOCABULARY.name
    else FormField(field.name, field.type, _sentence(help_line(field.type)), default=getattr(DEFAULTS, field.name))
    for field in msgspec.structs.fields(TranscriptionOptions)
)
RENDER_FIELDS = tuple(
    FormField(field.name, field.type, _sentence(help_line(field.type)), default=field.default)
    for field in msgspec.structs.fields(RenderOptions)
)
WEBHOOK = (
    FormField(
        WEBHOOK_URL_FIELD, str, "Where the event of the job's end is sent (http, https), if ENABLE_WEBHOOKS allows it"
    ),
    FormField(INCLUDE_RESULT_FIELD, bool, "Let that event carry the result", default=False),
)
# The fields of a job besides its audio.
JOB_FIELDS = (
    *OPTION_FIELDS,
    FormField("output_format", OutputFormat, "Format of the result's text; by default the configuration's"),
    FormField("response_format", OutputFormat, "The same as output_format"),
    *RENDER_FIELDS,
    FormField("keep_result", bool, "Keep the result after its delivery, until the job expires", default=False),
    FormField("metadata", str, "A JSON object of at most 16384 bytes that the job keeps and returns"),
    *WEBHOOK,
    FormField(NAMES_FIELD, str, "Names of known speakers, up to four", repeated=True),
    FormField(
        REFERENCES_FIELD,
        str,
        "For each name, in the same order, 2 to 10 seconds of that speaker as a data URL",
        repeated=True,
    ),
    FormField("hf_token", str, "Hugging Face token, for models that need one"),
    FormField("device", str, "The device of this server, or auto; any other device is refused"),
    FormField("device_index", Annotated[int, Meta(ge=0)], "The index of this server's device; any other is refused"),
)
# Error responses of every upload.
REFUSALS: tuple[Cause, ...] = (
    errors.InvalidOption,
    Problem(400, "not_multipart", "The body is not a form"),
    Problem(400, "invalid_form", "The form cannot be read"),
    Problem(400, "invalid_query", "The query of an upload without a form has too many fields"),
    Problem(400, "no_file", "The form has no file"),
    Problem(400, "invalid_idempotency_key", "The Idempotency-Key is not 1 to 255 printable characters, once"),
    Problem(400, "url_not_enabled", "This server does not fetch files"),
    Problem(400, "url_refused", "The server does not fetch this url"),
    OFF,
    Problem(408, "slow_sender", "The body arrives too slowly"),
    Problem(413, "file_too_large", "The file is larger than MAX_FILE_SIZE"),
    Problem(413, "form_too_large", "A form without a file is too large"),
    Problem(413, "url_too_large", "The file at the url is larger than MAX_FILE_SIZE"),
    errors.InvalidAudio,
    errors.AudioTooLong,
    errors.UnknownModel,
    errors.ModelUnavailable,
    errors.ExtraMissing,
    errors.IdempotencyConflict,
    Problem(422, "url_unreachable", "The server could not fetch the file from the url"),
    errors.QueueFull,
    errors.CallerLimit,
    errors.QuotaExceeded,
    errors.Draining,
    errors.StorageError,
)


def check_webhooks_enabled(config: Config) -> None:
    """Check that the configuration allows webhooks.

    Raises:
        Problem: 400 ``webhooks_not_enabled``.
    """
    if not config.enable_webhooks:
        raise Problem(OFF.status, OFF.code, OFF.detail)
