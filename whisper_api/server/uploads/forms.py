"""The fields of a form as values, defaults of the configuration filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from whisper_api.config import Config
from whisper_api.errors import InvalidOption
from whisper_api.formats import FORMATS
from whisper_api.schema import RenderOptions, TranscriptionOptions
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.form_values import (
    LINE_BREAKS,
    MAX_TEXT_CHARACTERS,
    MAX_WORD_CHARACTERS,
    OPTION_TYPES,
    RENDER_FIELDS,
    check_text,
    converted,
    field_warnings,
    render_options_of,
)
from whisper_api.server.uploads.known_speakers import NAMES_FIELD, REFERENCES_FIELD, write_known_speakers
from whisper_api.server.uploads.multipart import URL_FIELD, shown
from whisper_api.store.metadata import metadata_of

__all__ = ["UploadForm", "read_form"]


FORMAT_FIELDS = ("output_format", "response_format")
DEVICE_FIELDS = ("device", "device_index")
TEXT_FIELDS = ("prompt", "hotwords")
OPTION_FIELDS = TranscriptionOptions.__struct_fields__
OTHER_FIELDS = ("sync", "keep_result", "hf_token", "metadata", URL_FIELD)
KNOWN = frozenset((*OPTION_FIELDS, *RENDER_FIELDS, *FORMAT_FIELDS, *DEVICE_FIELDS, *OTHER_FIELDS))
Index = Annotated[int, Meta(ge=0)]


class UploadForm(msgspec.Struct, frozen=True, kw_only=True):
    """What a form asks for.

    Attributes:
        options: of the transcription; language and model are those of the configuration where the form names none.
        output_format: a name in :data:`whisper_api.formats.FORMATS`.
        render_options: the layout of subtitles.
        sync: whether to answer with the result.
        keep_result: whether the result stays after it was delivered.
        hf_token: the caller's Hugging Face token.
        warnings: what was not understood, one sentence each.
        metadata: the client's own, to be given back.
        known_speakers: names, whose recordings are beside the upload.
    """

    options: TranscriptionOptions
    output_format: str
    render_options: RenderOptions = RenderOptions()
    sync: bool
    keep_result: bool = False
    hf_token: str | None = None
    warnings: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = None
    known_speakers: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # The token, the prompt and the hotwords are nobody else's business.
        return f"Form(output_format={self.output_format!r}, sync={self.sync}, keep_result={self.keep_result}, ...)"


def read_form(
    fields: Sequence[tuple[str, str]], config: Config, *, device: str, directory: Path | None = None
) -> UploadForm:
    """Read a form's text fields. A field that is empty or only white space was not given.

    The first language that is named loads the list of those that Whisper knows, which may take a second.

    Args:
        fields: name and value of each, in order. Of a field that comes twice, the last counts.
        config: its model, language, format and mode are the defaults.
        device: that the server runs its models on: ``cpu``, ``cuda:0`` ...
        directory: of the upload, where recordings of known speakers are written; None where none are taken.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
        Problem: 422, another device is asked for.
    """
    lists: dict[str, list[str]] = {} if directory is None else {NAMES_FIELD: [], REFERENCES_FIELD: []}
    given, warnings = _given(fields, lists)
    _check_device(given, device)
    return UploadForm(
        options=_options(given, config),
        output_format=_output_format(given, config.output_format),
        render_options=render_options_of(given),
        sync=_value("sync", given, bool, config.default_sync),
        keep_result=_value("keep_result", given, bool, False),
        hf_token=_token(given.get("hf_token")),
        warnings=warnings,
        metadata=metadata_of(given["metadata"]) if "metadata" in given else None,
        # Last, since it writes.
        known_speakers=()
        if directory is None
        else write_known_speakers(lists[NAMES_FIELD], lists[REFERENCES_FIELD], directory),
    )


def _given(fields: Sequence[tuple[str, str]], lists: Mapping[str, list[str]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The fields that say something, and what is to be said about all of them; those that may come again into lists."""
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


def _options(given: Mapping[str, str], config: Config) -> TranscriptionOptions:
    from whisper_api.engine.vad import settings_of

    values = {name: converted(name, given[name], OPTION_TYPES[name]) for name in OPTION_FIELDS if name in given}
    for name in TEXT_FIELDS:
        check_text(name, given.get(name, ""), MAX_TEXT_CHARACTERS, LINE_BREAKS)
    values["model"] = _model(given.get("model")) or _model(config.model)
    values["language"] = _language(given.get("language", config.language))
    options = TranscriptionOptions(**values)
    low, high = options.min_speakers, options.max_speakers
    if low is not None and high is not None and low > high:
        raise InvalidOption("min_speakers", f"{low} is more than max_speakers ({high})")
    settings_of(options)
    return options


def _model(name: str | None) -> str | None:
    """A model's name; None for the engine's own choice."""
    check_text("model", name or "", MAX_WORD_CHARACTERS)
    return None if name is None or name.lower() == "auto" else name


def _language(name: str) -> str:
    from whisper_api.engine.languages import language_or_auto

    check_text("language", name, MAX_WORD_CHARACTERS)
    return language_or_auto(name)


def _token(text: str | None) -> str | None:
    if text is not None and not (len(text) <= MAX_WORD_CHARACTERS and text.isascii() and text.isprintable()):
        # It becomes part of a header of HTTP.
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
