"""The fields of a form as OpenAI's clients send them, as values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from whisper_api.errors import InvalidOption
from whisper_api.schema import RenderOptions, Task, TranscriptionOptions
from whisper_api.server.intake.form_values import (
    LINE_BREAKS,
    MAX_TEXT_CHARACTERS,
    MAX_WORD_CHARACTERS,
    RENDER_FIELDS,
    check_text,
    converted,
    render_options_of,
)
from whisper_api.server.intake.known_speakers import write_known_speakers
from whisper_api.server.openai.chunking import CHUNKING_FIELD, chunking_options
from whisper_api.server.openai.given import Given
from whisper_api.server.openai.models import chosen_model
from whisper_api.server.state import ServerState
from whisper_api.subtitles import layout_warnings

__all__ = ["FORMATS", "TRANSLATION_FORMATS", "Granularity", "ResponseFormat", "Wish", "read_fields"]

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
STREAMED = frozenset(("json", "text", "diarized_json"))


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a form asks for.

    Attributes:
        options: of the transcription.
        response_format: of the answer, in OpenAI's words.
        output_format: in which the other routes show the job's result.
        render_options: the layout of subtitles.
        granularities: of the times in a ``verbose_json``.
        stream: whether the answer comes as events.
        known_speakers: names; their recordings are beside the upload.
        warnings: what was not understood, one sentence each.
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
        return f"Wish(response_format={self.response_format!r}, stream={self.stream}, ...)"


def read_fields(fields: Sequence[tuple[str, str]], directory: Path, state: ServerState, task: Task) -> Wish:
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
    given = Given(fields, task)
    response_format: ResponseFormat = given.value("response_format", ResponseFormat, "json")
    if task == "translate" and response_format not in TRANSLATION_FORMATS:
        raise InvalidOption("response_format", f"expected one of {', '.join(TRANSLATION_FORMATS)}")
    stream: bool = given.value("stream", bool, False)
    if stream and response_format not in STREAMED:
        raise InvalidOption(
            "stream", f"{response_format} cannot be streamed; response_format may be {', '.join(sorted(STREAMED))}"
        )
    speakers = _known_speakers(given, response_format, directory)
    options = TranscriptionOptions(
        task=task,
        model=chosen_model(given.text("model", MAX_WORD_CHARACTERS), state),
        language=_language(given),
        align=response_format in ALIGNED,
        diarize=response_format == "diarized_json",
        prompt=given.text("prompt"),
        hotwords=_hotwords(given),
        temperature=given.value("temperature", Annotated[float, Meta(ge=0.0, le=1.0)], 0.0),
        logprobs=_logprobs(given, response_format),
        **chunking_options(given.last(CHUNKING_FIELD), given.inside(CHUNKING_FIELD)),
    )
    render_options = render_options_of(given.single(RENDER_FIELDS))
    return Wish(
        options=options,
        response_format=response_format,
        output_format=FORMATS[response_format],
        render_options=render_options,
        granularities=_granularities(given, response_format),
        stream=stream,
        known_speakers=speakers,
        warnings=(*given.warnings(), *layout_warnings((), render_options, response_format)),
    )


def _known_speakers(given: Given, response_format: str, directory: Path) -> tuple[str, ...]:
    names, references = given.every("known_speaker_names"), given.every("known_speaker_references")
    if (names or references) and response_format != "diarized_json":
        raise InvalidOption("known_speaker_names", "only a response_format of diarized_json tells speakers apart")
    return write_known_speakers(names, references, directory)


def _language(given: Given) -> str:
    """The language that is spoken; several that may be are for the model to choose from all."""
    from whisper_api.engine.languages import language_or_auto

    language = given.text("language", MAX_WORD_CHARACTERS)
    if language is None:
        codes = {language_or_auto(each) for each in given.every("languages")}
        return codes.pop() if len(codes) == 1 else "auto"
    return language_or_auto(language)


def _hotwords(given: Given) -> str | None:
    words = [word for word in (given.last("hotwords"), *given.every("keywords")) if word]
    text = ", ".join(words)
    check_text("hotwords", text, MAX_TEXT_CHARACTERS, LINE_BREAKS)
    return text or None


def _logprobs(given: Given, response_format: str) -> bool:
    wanted = [converted("include", each, Literal["logprobs"]) for each in given.every("include")]
    if wanted and response_format != "json":
        raise InvalidOption("include", "only a response_format of json has logprobs")
    return bool(wanted)


def _granularities(given: Given, response_format: str) -> frozenset[Granularity]:
    wanted = [
        converted("timestamp_granularities", each, Granularity) for each in given.every("timestamp_granularities")
    ]
    if wanted and response_format != "verbose_json":
        raise InvalidOption("timestamp_granularities", "only a response_format of verbose_json has them")
    return frozenset(wanted or ("segment",))
