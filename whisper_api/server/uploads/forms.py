"""The fields of a form as values: the one place where a request's options are checked and defaults are filled in."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from whisper_api.coercion import convert
from whisper_api.config import Config
from whisper_api.errors import InvalidOption
from whisper_api.formats import FORMATS
from whisper_api.schema import RenderOptions, TranscriptionOptions
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.incoming import URL_FIELD
from whisper_api.server.uploads.known_speakers import (
    NAMES_FIELD,
    REFERENCES_FIELD,
    KnownSpeaker,
    read_known_speakers,
)
from whisper_api.server.uploads.part_headers import shown
from whisper_api.store.metadata import metadata_of

__all__ = [
    "MAX_WORD_CHARACTERS",
    "OPTION_FIELDS",
    "RENDER_FIELDS",
    "UploadForm",
    "check_text",
    "converted",
    "field_warnings",
    "read_form",
    "render_options",
    "transcription_options",
]

MAX_TEXT_CHARACTERS = 10_000
MAX_WORD_CHARACTERS = 255
NAMES_IN_WARNING = 10
LINE_BREAKS = frozenset("\t\r\n")

OPTION_TYPES = {field.name: field.type for field in msgspec.structs.fields(TranscriptionOptions)}
RENDER_TYPES = {field.name: field.type for field in msgspec.structs.fields(RenderOptions)}
OPTION_FIELDS = tuple(OPTION_TYPES)
RENDER_FIELDS = tuple(RENDER_TYPES)
FORMAT_FIELDS = ("output_format", "response_format")
TEXT_FIELDS = ("prompt", "hotwords")
WORD_FIELDS = ("model", "language")
AUTO_MODEL = ("model", "auto")
OTHER_FIELDS = ("sync", "keep_result", "hf_token", "metadata", "device", "device_index", URL_FIELD)
KNOWN = frozenset((*OPTION_FIELDS, *RENDER_FIELDS, *FORMAT_FIELDS, *OTHER_FIELDS))
Index = Annotated[int, Meta(ge=0)]


class UploadForm(msgspec.Struct, frozen=True, kw_only=True):
    """The values of a form.

    Attributes:
        options: of the transcription; language and model are those of the configuration where the form names none.
        output_format: a name in :data:`whisper_api.formats.FORMATS`.
        render_options: the layout of subtitles.
        sync: whether to answer with the result.
        keep_result: whether the result stays after it was delivered.
        hf_token: the caller's Hugging Face token.
        warnings: fields that were ignored or not understood, one sentence each.
        metadata: the client's own, returned with the job.
        known_speakers: with their recordings.
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

    def __repr__(self) -> str:
        # The token, the prompt, the hotwords and the speakers' names must not get into a log.
        return f"{type(self).__name__}(output_format={self.output_format!r}, ...)"


def read_form(
    fields: Sequence[tuple[str, str]], config: Config, *, device: str, known_speakers: bool = False
) -> UploadForm:
    """Read a form's text fields. A field that is empty or only white space counts as absent.

    The first language that is named loads the list of Whisper's languages, which may take a second.

    Args:
        fields: name and value of each, in order. Of a field that comes twice, the last counts.
        config: its model, language, format and mode are the defaults.
        device: that the server runs its models on: ``cpu``, ``cuda:0`` ...
        known_speakers: whether the form may name speakers.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
        Problem: 422, another device is asked for.
    """
    lists: dict[str, list[str]] = {NAMES_FIELD: [], REFERENCES_FIELD: []} if known_speakers else {}
    given, warnings = _given(fields, lists)
    _check_device(given, device)
    # A model of "auto" is the configured one.
    texts = {name: text for name, text in given.items() if name in OPTION_TYPES and (name, text.lower()) != AUTO_MODEL}
    return UploadForm(
        options=transcription_options({"model": config.model, "language": config.language} | texts),
        output_format=_output_format(given, config.output_format),
        render_options=render_options(given),
        sync=_value("sync", given, bool, config.default_sync),
        keep_result=_value("keep_result", given, bool, False),
        hf_token=_token(given.get("hf_token")),
        warnings=warnings,
        metadata=metadata_of(given["metadata"]) if "metadata" in given else None,
        known_speakers=read_known_speakers(*lists.values()) if known_speakers else (),
    )


def transcription_options(values: Mapping[str, Any]) -> TranscriptionOptions:
    """The options of a transcription, checked. Every form of the server gets its options here.

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
    model = typed.get("model")
    # "auto" is the engine's own choice.
    typed["model"] = None if model is None or model.lower() == "auto" else model
    typed["language"] = language_or_auto(typed.get("language") or "auto")
    return TranscriptionOptions(**typed)


def render_options(given: Mapping[str, str]) -> RenderOptions:
    """The layout of subtitles that a form asks for.

    Args:
        given: name to text; other fields than those of the layout may be among them.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
    """
    return RenderOptions(
        **{name: converted(name, given[name], RENDER_TYPES[name]) for name in RENDER_FIELDS if name in given}
    )


def converted(name: str, text: str, annotation: Any) -> Any:
    """A field's text as a value.

    Args:
        name: of the field.
        text: its value.
        annotation: the type of the result.

    Raises:
        InvalidOption: the text is no value of this type; says what is expected.
    """
    try:
        return convert(text, annotation)
    except ValueError as error:
        raise InvalidOption(name, str(error)) from None


def check_text(name: str, text: str, max_characters: int, allowed: frozenset[str] = frozenset()) -> None:
    """Refuse text that is too long or has control characters.

    Args:
        name: of the field.
        text: its value.
        max_characters: that the text may have.
        allowed: control characters that the text may have.

    Raises:
        InvalidOption: says what is expected.
    """
    if len(text) > max_characters:
        raise InvalidOption(name, f"expected at most {max_characters} characters")
    if any(unicodedata.category(character) == "Cc" and character not in allowed for character in text):
        raise InvalidOption(name, "expected text without control characters")


def field_warnings(unknown: Iterable[str], repeated: Iterable[str]) -> tuple[str, ...]:
    """The warnings about a form's fields, one sentence each.

    Args:
        unknown: names that mean nothing.
        repeated: names that came more than once, and may not.
    """
    told = (
        ("unknown fields were ignored", list(unknown)),
        ("of fields that were given more than once, the last counts", list(repeated)),
    )
    return tuple(f"{what}: {_listed(names)}" for what, names in told if names)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_IN_WARNING
    return ", ".join(map(shown, names[:NAMES_IN_WARNING])) + (f" and {more} more" if more > 0 else "")


def _given(fields: Sequence[tuple[str, str]], lists: Mapping[str, list[str]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The fields with a value, and the warnings about all; values of repeatable fields are added to the lists."""
    given: dict[str, str] = {}
    # Dictionaries, since they keep the order.
    unknown: dict[str, None] = {}
    repeated: dict[str, None] = {}
    for name, value in fields:
        listed = lists.get(name.removesuffix("[]"))
        if listed is not None:
            listed += filter(None, [value.strip()])
            continue
        if name not in KNOWN:
            unknown[name] = None
            continue
        if name in given:
            repeated[name] = None
        given[name] = value.strip()
    warnings = field_warnings(unknown, repeated)
    return {name: value for name, value in given.items() if value}, warnings


def _token(text: str | None) -> str | None:
    if text is not None and not (len(text) <= MAX_WORD_CHARACTERS and text.isascii() and text.isprintable()):
        # The token becomes part of an HTTP header.
        raise InvalidOption("hf_token", f"expected at most {MAX_WORD_CHARACTERS} printable ASCII characters")
    return text


def _output_format(given: Mapping[str, str], default: str) -> str:
    named = {name: given[name].lower() for name in FORMAT_FIELDS if name in given}
    for name, value in named.items():
        if value not in FORMATS:
            raise InvalidOption(name, f"unknown format {shown(value)}; valid are {', '.join(FORMATS)}")
    if len(set(named.values())) > 1:
        raise InvalidOption(FORMAT_FIELDS[0], f"{FORMAT_FIELDS[1]} names another format; give one of the two")
    return next(iter(named.values()), default)


def _check_device(given: Mapping[str, str], served: str) -> None:
    kind, _, index = served.partition(":")
    asked_kind, colon, asked_index = given.get("device", "auto").lower().partition(":")
    number = _value("device_index", given, Index, int(index or 0))
    fits = asked_kind in ("auto", kind) and (not colon or asked_index == (index or "0")) and number == int(index or 0)
    if not fits:
        raise Problem(
            422, "device_not_served", f"This server runs its models on {served}: leave out device and device_index"
        )


def _value(name: str, given: Mapping[str, str], annotation: Any, default: Any) -> Any:
    return converted(name, given[name], annotation) if name in given else default
