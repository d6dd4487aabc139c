"""The fields of a form as OpenAI's clients send them, as values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from whisper_api.errors import InvalidOption
from whisper_api.schema import RenderOptions, Task, TranscriptionOptions
from whisper_api.server.openai.chunking import CHUNKING_FIELD, chunking_options
from whisper_api.server.openai.form_fields import FormFields
from whisper_api.server.openai.models import chosen_model
from whisper_api.server.state import ServerState
from whisper_api.server.uploads.form_values import (
    LINE_BREAKS,
    MAX_TEXT_CHARACTERS,
    MAX_WORD_CHARACTERS,
    OPTION_TYPES,
    RENDER_FIELDS,
    check_text,
    converted,
    render_options_of,
)
from whisper_api.server.uploads.known_speakers import write_known_speakers
from whisper_api.subtitles import layout_warnings

__all__ = [
    "FORMATS",
    "STREAMABLE",
    "TRANSLATION_FORMATS",
    "Granularity",
    "OpenAIRequest",
    "ResponseFormat",
    "read_fields",
]

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]
Granularity = Literal["word", "segment"]

# In which of ours a job of each is shown by the other routes.
FORMATS: dict[str, str] = {
    "json": "json",
    "text": "txt",
    "srt": "srt",
    "verbose_json": "json",
    "vtt": "vtt",
    "diarized_json": "json",
}
TRANSLATION_FORMATS = tuple(name for name in FORMATS if name != "diarized_json")
# Sentences with their times need those of the words.
ALIGNED = frozenset(("srt", "verbose_json", "vtt", "diarized_json"))
STREAMED = ("json", "text", "diarized_json")
STREAMABLE = ", ".join(STREAMED)


class OpenAIRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a form asks for.

    Attributes:
        options: of the transcription.
        response_format: of the answer, in OpenAI's words.
        output_format: in which the other routes show the job's result.
        render_options: the layout of subtitles.
        granularities: of the times in a ``verbose_json``; mean nothing to the other formats.
        stream: whether the answer comes as events.
        known_speakers: names; their recordings are beside the upload.
        warnings: what was not understood or means nothing here, one sentence each.
        keep_result, hf_token, metadata: as of any submission; not asked for here.
    """

    options: TranscriptionOptions
    response_format: ResponseFormat = "json"
    output_format: str = "json"
    render_options: RenderOptions = RenderOptions()
    granularities: frozenset[Granularity] = frozenset(("segment",))
    stream: bool = False
    known_speakers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    keep_result: bool = False
    hf_token: str | None = None
    metadata: dict[str, Any] | None = None

    def __repr__(self) -> str:
        # The prompt, the hotwords and the speakers' names are nobody else's business.
        return f"OpenAIRequest(response_format={self.response_format!r}, stream={self.stream}, ...)"


def read_fields(fields: Sequence[tuple[str, str]], directory: Path, state: ServerState, task: Task) -> OpenAIRequest:
    """Read a form's text fields. A field that is empty or only white space was not given.

    Args:
        fields: name and value of each, in order. Of a field that is no list and comes twice, the last counts.
        directory: of the upload, which recordings of known speakers are written to.
        state: the server's, which knows the models.
        task: ``transcribe`` or ``translate``.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
        UnknownModel: no model has this name.
    """
    given = FormFields(fields, task)
    name = given.text("model", MAX_WORD_CHARACTERS)
    response_format: ResponseFormat = given.value("response_format", ResponseFormat, _default_format(name, task))
    if task == "translate" and response_format not in TRANSLATION_FORMATS:
        raise InvalidOption("response_format", f"expected one of {', '.join(TRANSLATION_FORMATS)}")
    stream: bool = given.value("stream", bool, False)
    if stream and response_format not in STREAMED:
        given.note(f"stream was ignored: {response_format} is answered as a whole; {STREAMABLE} can be streamed")
        stream = False
    speakers = _known_speakers(given, name, response_format, directory)
    options = TranscriptionOptions(
        task=task,
        model=chosen_model(name, state),
        language=_language(given),
        audio_track=given.value("audio_track", OPTION_TYPES["audio_track"], None),
        align=response_format in ALIGNED,
        diarize=response_format == "diarized_json",
        prompt=given.text("prompt"),
        hotwords=_hotwords(given),
        temperature=given.value("temperature", Annotated[float, Meta(ge=0.0, le=1.0)], 0.0),
        logprobs=_logprobs(given, response_format),
        **chunking_options(given.last(CHUNKING_FIELD), given.inside(CHUNKING_FIELD)),
    )
    render_options = render_options_of(given.single(RENDER_FIELDS))
    return OpenAIRequest(
        options=options,
        response_format=response_format,
        output_format=FORMATS[response_format],
        render_options=render_options,
        granularities=_granularities(given, response_format),
        stream=stream,
        known_speakers=speakers,
        warnings=(*given.warnings(), *layout_warnings((), render_options, response_format)),
    )


def _default_format(model: str | None, task: Task) -> ResponseFormat:
    from whisper_api.engine.models.names import asks_for_speakers

    return "diarized_json" if task == "transcribe" and asks_for_speakers(model) else "json"


def _known_speakers(given: FormFields, model: str | None, response_format: str, directory: Path) -> tuple[str, ...]:
    from whisper_api.engine.models.names import asks_for_speakers

    names, references = given.every("known_speaker_names"), given.every("known_speaker_references")
    if (names or references) and response_format != "diarized_json":
        if asks_for_speakers(model):
            given.note(f"known_speaker_names were ignored: {response_format} does not tell who speaks")
            return ()
        raise InvalidOption("known_speaker_names", "only a response_format of diarized_json tells speakers apart")
    return write_known_speakers(names, references, directory)


def _language(given: FormFields) -> str:
    """The language that is spoken; several that may be are for the model to choose from all."""
    from whisper_api.engine.languages import language_or_auto

    language = given.text("language", MAX_WORD_CHARACTERS)
    if language is None:
        codes = {language_or_auto(each) for each in given.every("languages")}
        return codes.pop() if len(codes) == 1 else "auto"
    return language_or_auto(language)


def _hotwords(given: FormFields) -> str | None:
    words = [word for word in (given.last("hotwords"), *given.every("keywords")) if word]
    text = ", ".join(words)
    check_text("hotwords", text, MAX_TEXT_CHARACTERS, LINE_BREAKS)
    return text or None


def _logprobs(given: FormFields, response_format: str) -> bool:
    wanted = [converted("include", each, Literal["logprobs"]) for each in given.words("include")]
    if wanted and response_format != "json":
        given.note(f"include was ignored: {response_format} has no logprobs; json has")
    return bool(wanted) and response_format == "json"


def _granularities(given: FormFields, response_format: str) -> frozenset[Granularity]:
    wanted = [
        converted("timestamp_granularities", each, Granularity) for each in given.words("timestamp_granularities")
    ]
    if "word" in wanted and response_format != "verbose_json":
        given.note(f"timestamp_granularities was ignored: {response_format} has no words; verbose_json has")
    return frozenset(wanted or ("segment",))
