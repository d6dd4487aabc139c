"""The fields of the forms that OpenAI's clients send, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from whisper_api.errors import InvalidOption
from whisper_api.formats import option_warnings
from whisper_api.options import Task
from whisper_api.server.openai.bodies import InputAudio
from whisper_api.server.openai.models import chosen_model
from whisper_api.server.state import ServerState
from whisper_api.server.uploads import forms
from whisper_api.server.uploads.form_fields import FormField, FormFields, converted
from whisper_api.server.uploads.known_speakers import (
    MAX_KNOWN_SPEAKERS,
    NAMES_FIELD,
    REFERENCES_FIELD,
    KnownSpeaker,
    read_known_speakers,
)

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]
Granularity = Literal["word", "segment"]

CHUNKING_FIELD = "chunking_strategy"
Milliseconds = Annotated[int, Meta(ge=0, le=10_000)]
# With the ends of OpenAI's range, everything or nothing would be speech.
LEAST_THRESHOLD, GREATEST_THRESHOLD = 0.01, 0.99
# The greatest value of the option ``vad_padding``.
MAX_PADDING_MS = 2000
# OpenAI's format to the most similar format of this server, in which the other routes show the job.
FORMATS: dict[str, str] = {
    "json": "json",
    "text": "txt",
    "srt": "srt",
    "verbose_json": "json",
    "vtt": "vtt",
    "diarized_json": "json",
}
TRANSLATION_FORMATS = tuple(name for name in FORMATS if name != "diarized_json")
# Formats with the times of sentences, which are computed from the times of words.
ALIGNED = frozenset(("srt", "verbose_json", "vtt", "diarized_json"))
STREAMED = ("json", "text", "diarized_json")
STREAMABLE = ", ".join(STREAMED)
# The options of transcriptions that both kinds of forms take as they are.
OPTIONS = ("audio_track", "channels", "hallucinations", "prompt", "redact", "temperature", "vocabulary")
# Fields of this server's own form, for speakers whose voices are enrolled.
IDENTIFY_FIELDS = ("identify", "identify_threshold")
MODEL_FIELD = FormField(
    "model",
    str,
    "A name of OpenAI, such as `whisper-1` or `gpt-4o-transcribe`, for the configured model; or a Whisper model: its "
    "name (`base`), its repository (`openai/whisper-base`), or an alias from the configuration",
)
# The fields of transcriptions and translations: those before the language, and those after it.
FIRST_FIELDS = (forms.FILE, forms.URL, MODEL_FIELD)
COMMON_FIELDS = (
    *(field for field in forms.OPTION_FIELDS if field.name in (*OPTIONS, "hotwords")),
    FormField("keywords[]", str, "An expected word", repeated=True),
    *forms.WEBHOOK,
)

TRANSCRIPTION_FIELDS = (
    *FIRST_FIELDS,
    FormField("language", str, "Code or name of the spoken language; detected by default"),
    FormField(
        "languages[]",
        str,
        "A language that may be spoken; a single one is used as language, with several the language is detected",
        repeated=True,
    ),
    *COMMON_FIELDS,
    FormField(
        "response_format",
        ResponseFormat,
        "Format of the response; by default json, and diarized_json for `gpt-4o-transcribe-diarize`",
    ),
    *forms.RENDER_FIELDS,
    FormField("timestamp_granularities[]", Granularity, "Times of a verbose_json; segment by default", repeated=True),
    FormField("stream", bool, f"Send the text as it is decoded, if the format is one of {STREAMABLE}", default=False),
    FormField(
        CHUNKING_FIELD,
        str,
        'auto, or JSON: {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 200, "prefix_padding_ms": 300};'
        " or a field for each key: chunking_strategy[type] ...",
    ),
    FormField("include[]", Literal["logprobs"], "logprobs: add the log probabilities to a json", repeated=True),
    FormField(
        "known_speaker_names[]",
        str,
        f"The name of a known speaker, up to {MAX_KNOWN_SPEAKERS}; the other speakers have letters",
        repeated=True,
    ),
    FormField(
        "known_speaker_references[]",
        str,
        "For each name, in the same order, 2 to 10 seconds of the speaker, as a data URL",
        repeated=True,
    ),
    *(field for field in forms.OPTION_FIELDS if field.name in IDENTIFY_FIELDS),
)
TRANSLATION_FIELDS = (
    *FIRST_FIELDS,
    *COMMON_FIELDS,
    FormField("response_format", Literal[TRANSLATION_FORMATS], "Format of the response; json by default"),
    *forms.RENDER_FIELDS,
)
# Fields of a JSON body instead of the file.
JSON_FIELDS = (
    FormField("input_audio", InputAudio, "The recording in base64"),
    FormField(forms.FILE.name, str, "The recording in base64, or as a data URL"),
    FormField("file_url", str, "The same as url"),
)
# Clients send these fields for translations too, where OpenAI has no such fields. The warning gives the reason.
NOT_FOR_TRANSLATIONS = {
    "language": "a translation is in English, and the language that is spoken is detected",
    "stream": "a translation is not streamed",
}
# Values with which a client switches a field off.
OFF = ("", "false", "0", "null")


class OpenAIRequest(forms.UploadForm, frozen=True, kw_only=True):
    """The values of a form.

    Attributes:
        response_format: OpenAI's name of the response's format.
        output_format: the format in which the other routes show the job's result.
        granularities: the kinds of times in a ``verbose_json``; the other formats ignore them.
        stream: whether the response is a stream of events.
    """

    response_format: ResponseFormat = "json"
    output_format: str = "json"
    granularities: frozenset[Granularity] = frozenset(("segment",))
    stream: bool = False


def read_fields(fields: Sequence[tuple[str, str]], state: ServerState, task: Task) -> OpenAIRequest:
    """Read a form's text fields. A field that is empty or only white space counts as absent.

    Args:
        fields: name and value of each field, in order. The last value of a repeated field that is not a list counts.
        state: the server's state, for the names of models.
        task: ``transcribe`` or ``translate``.

    Raises:
        InvalidOption: a value cannot be used; says what is expected.
        UnknownModel: no model has this name.
        Problem: 400, the form names a webhook, and the configuration allows none.
    """
    form = _form_fields(fields, task)
    name = form.last("model")
    forms.check_text("model", name or "", forms.MAX_WORD_CHARACTERS)
    response_format: ResponseFormat = form.value("response_format", _default_format(name, task))
    stream: bool = task == "transcribe" and form.value("stream")
    if stream and response_format not in STREAMED:
        form.note(f"stream was ignored: {response_format} is answered as a whole; {STREAMABLE} can be streamed")
        stream = False
    speakers = _known_speakers(form, name, response_format)
    values: dict[str, Any] = {
        **form.texts(OPTIONS),
        **_identify(form, response_format),
        **chunking_options(form.last(CHUNKING_FIELD), form.inside(CHUNKING_FIELD)),
        "task": task,
        "model": chosen_model(name, state),
        "language": _language(form),
        "align": response_format in ALIGNED,
        "diarize": response_format == "diarized_json",
        "hotwords": ", ".join(word for word in (form.last("hotwords"), *form.every("keywords")) if word) or None,
        "logprobs": _logprobs(form, response_format),
    }
    layout = forms.render_options(form)
    webhook_url, webhook_include_result = forms.webhook_of(form, state.config)
    return OpenAIRequest(
        options=forms.transcription_options(values),
        response_format=response_format,
        output_format=FORMATS[response_format],
        render_options=layout,
        granularities=_granularities(form, response_format),
        stream=stream,
        known_speakers=speakers,
        webhook_url=webhook_url,
        webhook_include_result=webhook_include_result,
        warnings=(*form.warnings(), *option_warnings(layout, response_format)),
    )


def _form_fields(fields: Sequence[tuple[str, str]], task: Task) -> FormFields:
    unused = NOT_FOR_TRANSLATIONS if task == "translate" else {}
    used = [(name, value) for name, value in fields if name not in unused]
    form = FormFields(used, TRANSLATION_FIELDS) if unused else FormFields(used, TRANSCRIPTION_FIELDS, (CHUNKING_FIELD,))
    for name, value in fields:
        if name in unused and value.strip().lower() not in OFF:
            form.note(f"{name} was ignored: {unused[name]}")
    return form


def _default_format(model: str | None, task: Task) -> ResponseFormat:
    from whisper_api.engine.models.names import asks_for_speakers

    return "diarized_json" if task == "transcribe" and asks_for_speakers(model) else "json"


def _known_speakers(form: FormFields, model: str | None, response_format: str) -> tuple[KnownSpeaker, ...]:
    from whisper_api.engine.models.names import asks_for_speakers

    names, references = form.every(NAMES_FIELD), form.every(REFERENCES_FIELD)
    if (names or references) and response_format != "diarized_json":
        if asks_for_speakers(model):
            form.note(f"known_speaker_names were ignored: {response_format} does not tell who speaks")
            return ()
        raise InvalidOption(NAMES_FIELD, "only a response_format of diarized_json tells speakers apart")
    return read_known_speakers(names, references)


def _identify(form: FormFields, response_format: str) -> dict[str, str]:
    texts = form.texts(IDENTIFY_FIELDS)
    if texts and response_format != "diarized_json" and form.value("identify"):
        form.note(f"identify was ignored: {response_format} does not tell who speaks; diarized_json does")
    return texts if response_format == "diarized_json" else {}


def _language(form: FormFields) -> str:
    """The spoken language; when the form names several, the model chooses from all languages."""
    from whisper_api.engine.languages import language_or_auto

    language = form.last("language")
    if language is None:
        codes = {language_or_auto(each) for each in form.every("languages")}
        return codes.pop() if len(codes) == 1 else "auto"
    return language


def _logprobs(form: FormFields, response_format: str) -> bool:
    included = [converted("include", each, Literal["logprobs"]) for each in form.words("include")]
    if included and response_format != "json":
        form.note(f"include was ignored: {response_format} has no logprobs; json has")
    return bool(included) and response_format == "json"


def _granularities(form: FormFields, response_format: str) -> frozenset[Granularity]:
    name = "timestamp_granularities"
    granularities = [converted(name, each, Granularity) for each in form.words(name)]
    if "word" in granularities and response_format != "verbose_json":
        form.note(f"{name} was ignored: {response_format} has no words; verbose_json has")
    return frozenset(granularities or ("segment",))


class ServerVad(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the voice activity detection.

    Attributes:
        type: always ``server_vad``.
        threshold: speech begins above this probability, from 0 to 1.
        silence_duration_ms: milliseconds of silence that end a stretch of speech.
        prefix_padding_ms: milliseconds of audio kept around each stretch of speech.
    """

    type: Literal["server_vad"]
    threshold: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    silence_duration_ms: Milliseconds | None = None
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=MAX_PADDING_MS)] | None = None


TYPES = {field.name: field.type for field in msgspec.structs.fields(ServerVad)}


def chunking_options(whole: str | None, parts: Mapping[str, str]) -> dict[str, Any]:
    """The options of a transcription for a chunking strategy.

    Args:
        whole: the field ``chunking_strategy``: ``auto``, or an object as JSON.
        parts: key to text of the fields ``chunking_strategy[key]``; ignored when ``whole`` is present.

    Returns:
        Names and values of :class:`~whisper_api.schema.TranscriptionOptions`; empty for ``auto`` and without fields.

    Raises:
        InvalidOption: the fields do not describe a strategy.
    """
    if (whole is None and not parts) or (whole is not None and whole.lower() == "auto"):
        return {}
    vad = _from_parts(parts) if whole is None else _from_json(whole)
    options: dict[str, Any] = {}
    if vad.threshold is not None:
        options["vad_onset"] = min(max(vad.threshold, LEAST_THRESHOLD), GREATEST_THRESHOLD)
    if vad.silence_duration_ms is not None:
        options["vad_min_silence"] = vad.silence_duration_ms / 1000
    if vad.prefix_padding_ms is not None:
        options["vad_padding"] = vad.prefix_padding_ms / 1000
    return options


def _from_json(text: str) -> ServerVad:
    try:
        return msgspec.json.decode(text, type=ServerVad, strict=False)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidOption(CHUNKING_FIELD, f'expected auto, or {{"type": "server_vad", ...}}: {error}') from None


def _from_parts(parts: Mapping[str, str]) -> ServerVad:
    values: dict[str, Any] = {}
    for name, text in parts.items():
        if name in TYPES:
            values[name] = converted(f"{CHUNKING_FIELD}[{name}]", text, TYPES[name])
    if "type" not in values:
        raise InvalidOption(f"{CHUNKING_FIELD}[type]", "expected server_vad")
    return ServerVad(**values)
