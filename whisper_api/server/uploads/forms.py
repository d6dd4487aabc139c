"""The fields of a form as values: all options of requests are checked here, and get their defaults here."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from whisper_api.config import Config
from whisper_api.errors import InvalidOption
from whisper_api.formats import DOCUMENTS, FORMATS
from whisper_api.jobs.vocabularies import checked_terms
from whisper_api.jobs.webhooks import checked_url
from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.outbound.connecting import hosts_in
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.form_fields import FormFields, converted
from whisper_api.server.uploads.known_speakers import (
    NAMES_FIELD,
    REFERENCES_FIELD,
    KnownSpeaker,
    read_known_speakers,
)
from whisper_api.server.uploads.part_headers import shown
from whisper_api.server.uploads.upload_fields import (
    INCLUDE_RESULT_FIELD,
    JOB_FIELDS,
    SYNC,
    URL,
    WEBHOOK_URL_FIELD,
    check_webhooks_enabled,
)
from whisper_api.store.metadata import metadata_of

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
