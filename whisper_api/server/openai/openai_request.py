"""The fields of a form as OpenAI's clients send them, as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from whisper_api.errors import InvalidOption
from whisper_api.formats import option_warnings
from whisper_api.schema import Task
from whisper_api.server.openai.chunking import CHUNKING_FIELD, chunking_options
from whisper_api.server.openai.form_fields import FormFields
from whisper_api.server.openai.models import chosen_model
from whisper_api.server.state import ServerState
from whisper_api.server.uploads.forms import (
    MAX_WORD_CHARACTERS,
    RENDER_FIELDS,
    UploadForm,
    check_text,
    converted,
    render_options,
    transcription_options,
)
from whisper_api.server.uploads.known_speakers import (
    NAMES_FIELD,
    REFERENCES_FIELD,
    KnownSpeaker,
    read_known_speakers,
)

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

# The other routes show a job in the format of this server that is most like OpenAI's.
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


class OpenAIRequest(UploadForm, frozen=True, kw_only=True):
    """The values of a form.

    Attributes:
        response_format: of the answer, in OpenAI's words.
        output_format: in which the other routes show the job's result.
        granularities: of the times in a ``verbose_json``; the other formats ignore them.
        stream: whether the answer comes as events.
    """

    response_format: ResponseFormat = "json"
    output_format: str = "json"
    granularities: frozenset[Granularity] = frozenset(("segment",))
    stream: bool = False


def read_fields(fields: Sequence[tuple[str, str]], state: ServerState, task: Task) -> OpenAIRequest:
    """Read a form's text fields. A field that is empty or only white space counts as absent.

    Args:
        fields: name and value of each, in order. Of a field that is no list and comes twice, the last counts.
        state: the server's, which knows the models.
        task: ``transcribe`` or ``translate``.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
        UnknownModel: no model has this name.
    """
    given = FormFields(fields, task)
    name = given.last("model")
    check_text("model", name or "", MAX_WORD_CHARACTERS)
    response_format: ResponseFormat = given.value("response_format", ResponseFormat, _default_format(name, task))
    if task == "translate" and response_format not in TRANSLATION_FORMATS:
        raise InvalidOption("response_format", f"expected one of {', '.join(TRANSLATION_FORMATS)}")
    stream: bool = given.value("stream", bool, False)
    if stream and response_format not in STREAMED:
        given.note(f"stream was ignored: {response_format} is answered as a whole; {STREAMABLE} can be streamed")
        stream = False
    speakers = _known_speakers(given, name, response_format)
    values: dict[str, Any] = {
        **given.single(("audio_track", "prompt", "temperature")),
        **chunking_options(given.last(CHUNKING_FIELD), given.inside(CHUNKING_FIELD)),
        "task": task,
        "model": chosen_model(name, state),
        "language": _language(given),
        "align": response_format in ALIGNED,
        "diarize": response_format == "diarized_json",
        "hotwords": ", ".join(word for word in (given.last("hotwords"), *given.every("keywords")) if word) or None,
        "logprobs": _logprobs(given, response_format),
    }
    layout = render_options(given.single(RENDER_FIELDS))
    return OpenAIRequest(
        options=transcription_options(values),
        response_format=response_format,
        output_format=FORMATS[response_format],
        render_options=layout,
        granularities=_granularities(given, response_format),
        stream=stream,
        known_speakers=speakers,
        warnings=(*given.warnings(), *option_warnings(layout, response_format)),
    )


def _default_format(model: str | None, task: Task) -> ResponseFormat:
    from whisper_api.engine.models.names import asks_for_speakers

    return "diarized_json" if task == "transcribe" and asks_for_speakers(model) else "json"


def _known_speakers(given: FormFields, model: str | None, response_format: str) -> tuple[KnownSpeaker, ...]:
    from whisper_api.engine.models.names import asks_for_speakers

    names, references = given.every(NAMES_FIELD), given.every(REFERENCES_FIELD)
    if (names or references) and response_format != "diarized_json":
        if asks_for_speakers(model):
            given.note(f"known_speaker_names were ignored: {response_format} does not tell who speaks")
            return ()
        raise InvalidOption(NAMES_FIELD, "only a response_format of diarized_json tells speakers apart")
    return read_known_speakers(names, references)


def _language(given: FormFields) -> str:
    """The language that is spoken; the model chooses from all languages when the form names several."""
    from whisper_api.engine.languages import language_or_auto

    language = given.last("language")
    if language is None:
        codes = {language_or_auto(each) for each in given.every("languages")}
        return codes.pop() if len(codes) == 1 else "auto"
    return language


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
