"""The fields of forms: their table, and their values. All options are checked here, and get their defaults here."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from whisper_api import errors
from whisper_api.coercion import help_line
from whisper_api.config import Config, OutputFormat
from whisper_api.errors import InvalidOption
from whisper_api.formats import DOCUMENTS, FORMATS
from whisper_api.jobs.vocabularies import checked_terms
from whisper_api.jobs.webhooks import checked_url
from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.outbound.connecting import hosts_in
from whisper_api.server.operations import Cause, Parameter
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.form_fields import FormField, FormFields, converted
from whisper_api.server.uploads.incoming import URL_FIELD
from whisper_api.server.uploads.known_speakers import (
    NAMES_FIELD,
    REFERENCES_FIELD,
    KnownSpeaker,
    read_known_speakers,
)
from whisper_api.server.uploads.part_headers import shown
from whisper_api.store.metadata import metadata_of

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
UPLOAD_REFUSALS: tuple[Cause, ...] = (
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


MAX_TEXT_CHARACTERS = 10_000
MAX_WORD_CHARACTERS = 255
LINE_BREAKS = frozenset("\t\r\n")

OPTION_TYPES = {field.name: field.type for field in msgspec.structs.fields(TranscriptionOptions)}
FORMAT_FIELDS = ("output_format", "response_format")
TEXT_FIELDS = ("prompt", "hotwords")
WORD_FIELDS = ("model", "language")
AUTO_MODEL = ("model", "auto")
DECLARED = (*JOB_FIELDS, SYNC, URL)


class UploadForm(msgspec.Struct, frozen=True, kw_only=True):
    """The values of a form.

    Attributes:
        options: options of the transcription; the configuration gives the language and the model by default.
        output_format: a name in :data:`whisper_api.formats.FORMATS`.
        render_options: the layout of subtitles.
        sync: whether the response is the result.
        keep_result: whether the result stays after its delivery.
        hf_token: the caller's Hugging Face token.
        warnings: one sentence for each kind of ignored field.
        metadata: the client's metadata, which the job keeps and returns.
        known_speakers: the known speakers with their recordings.
        webhook_url: where the event of the job's end is sent.
        webhook_include_result: whether that event carries the result.
    """

    options: TranscriptionOptions
    output_format: str
    render_options: RenderOptions = RenderOptions()
    sync: bool = False
    keep_result: bool = False
    hf_token: str | None = None
    warnings: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = None
    known_speakers: tuple[KnownSpeaker, ...] = ()
    webhook_url: str | None = None
    webhook_include_result: bool = False

    def __repr__(self) -> str:
        # The token, the prompt, the terms, the address and the speakers' names must not appear in a log.
        return f"{type(self).__name__}(output_format={self.output_format!r}, ...)"


def read_form(
    fields: Sequence[tuple[str, str]], config: Config, *, device: str, known_speakers: bool = False
) -> UploadForm:
    """Read a form's text fields. A field that is empty or only white space counts as absent.

    The first named language loads the list of Whisper's languages, which may take a second.

    Args:
        fields: name and value of each field, in order. The last value of a repeated field counts.
        config: its model, language, format and mode are the defaults.
        device: the device that runs the models: ``cpu``, ``cuda:0`` ...
        known_speakers: whether the form may name speakers.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
        Problem: 422, the form names another device; 400, it names a webhook, and the configuration allows none.
    """
    form = FormFields(fields, [field for field in DECLARED if known_speakers or not field.repeated])
    _check_device(form, device)
    # The model "auto" means the configured model.
    options = {name: text for name, text in form.texts(OPTION_TYPES).items() if (name, text.lower()) != AUTO_MODEL}
    metadata = form.last("metadata")
    webhook_url, webhook_include_result = webhook_of(form, config)
    return UploadForm(
        options=transcription_options({"model": config.model, "language": config.language} | options),
        output_format=_output_format(form.texts(FORMAT_FIELDS), config.output_format),
        render_options=render_options(form),
        sync=form.value("sync", config.default_sync),
        keep_result=form.value("keep_result"),
        hf_token=_token(form.last("hf_token")),
        warnings=form.warnings(),
        metadata=None if metadata is None else metadata_of(metadata),
        known_speakers=read_known_speakers(form.every(NAMES_FIELD), form.every(REFERENCES_FIELD)),
        webhook_url=webhook_url,
        webhook_include_result=webhook_include_result,
    )


def transcription_options(values: Mapping[str, Any]) -> TranscriptionOptions:
    """The checked options of a transcription. Every form of the server gets its options here.

    Args:
        values: name to value; text is converted to the option's type.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
    """
    from whisper_api.engine.languages import language_or_auto

    for name in TEXT_FIELDS:
        check_text(name, values.get(name) or "", MAX_TEXT_CHARACTERS, LINE_BREAKS)
    for name in WORD_FIELDS:
        check_text(name, values.get(name) or "", MAX_WORD_CHARACTERS)
    typed = {
        name: converted(name, value, OPTION_TYPES[name]) if isinstance(value, str) else value
        for name, value in values.items()
    }
    if typed.get("vocabulary") is not None:
        typed["vocabulary"] = _vocabulary(typed["vocabulary"])
    model = typed.get("model")
    # The engine chooses the model for "auto".
    typed["model"] = None if model is None or model.lower() == "auto" else model
    typed["language"] = language_or_auto(typed.get("language") or "auto")
    return TranscriptionOptions(**typed)


def _vocabulary(text: str) -> str | tuple[str, ...]:
    """The terms of a JSON array; any other text is the name of a stored vocabulary."""
    if not text.startswith("["):
        return text
    try:
        terms = msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError:
        raise InvalidOption("vocabulary", "expected the name of a vocabulary, or a JSON array of terms") from None
    return checked_terms("vocabulary", terms)


def render_options(form: FormFields) -> RenderOptions:
    """The layout of subtitles in a form.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
    """
    return RenderOptions(**{name: form.value(name) for name in form.texts(RenderOptions.__struct_fields__)})


def check_text(name: str, text: str, max_characters: int, allowed: frozenset[str] = frozenset()) -> None:
    """Refuse text that is too long or contains control characters.

    Args:
        name: name of the field.
        text: value of the field.
        max_characters: greatest length of the text.
        allowed: control characters that the text may contain.

    Raises:
        InvalidOption: says what is expected.
    """
    if len(text) > max_characters:
        raise InvalidOption(name, f"expected at most {max_characters} characters")
    if any(unicodedata.category(character) == "Cc" and character not in allowed for character in text):
        raise InvalidOption(name, "expected text without control characters")


def webhook_of(form: FormFields, config: Config) -> tuple[str | None, bool]:
    """The receiver that a form names, and whether it gets the result.

    Args:
        form: the form.
        config: says whether and where webhooks are sent.

    Raises:
        InvalidOption: nothing is sent to this address.
        Problem: 400 ``webhooks_not_enabled``.
    """
    url = form.last(WEBHOOK_URL_FIELD)
    include_result: bool = form.value(INCLUDE_RESULT_FIELD)
    if url is None:
        if include_result:
            form.note(f"{INCLUDE_RESULT_FIELD} was ignored: there is no {WEBHOOK_URL_FIELD}")
        return None, False
    check_webhooks_enabled(config)
    return checked_url(WEBHOOK_URL_FIELD, url, hosts_in(config.webhook_private_hosts)), include_result


def _token(text: str | None) -> str | None:
    if text is not None and not (len(text) <= MAX_WORD_CHARACTERS and text.isascii() and text.isprintable()):
        # The token becomes part of an HTTP header.
        raise InvalidOption("hf_token", f"expected at most {MAX_WORD_CHARACTERS} printable ASCII characters")
    return text


def _output_format(texts: Mapping[str, str], default: str) -> str:
    formats = {name: text.lower() for name, text in texts.items()}
    for name, value in formats.items():
        if value not in FORMATS:
            problem = (
                f"{value} is a file, for ?format={value}" if value in DOCUMENTS else f"unknown format {shown(value)}"
            )
            raise InvalidOption(name, f"{problem}; valid are {', '.join(FORMATS)}")
    if len(set(formats.values())) > 1:
        raise InvalidOption(FORMAT_FIELDS[0], f"{FORMAT_FIELDS[1]} names another format; give one of the two")
    return next(iter(formats.values()), default)


def _check_device(form: FormFields, served: str) -> None:
    kind, _, index = served.partition(":")
    asked_kind, colon, asked_index = (form.last("device") or "auto").lower().partition(":")
    number = form.value("device_index", int(index or 0))
    fits = asked_kind in ("auto", kind) and (not colon or asked_index == (index or "0")) and number == int(index or 0)
    if not fits:
        raise Problem(
            422, "device_not_served", f"This server runs its models on {served}: leave out device and device_index"
        )
