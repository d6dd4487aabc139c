"""OpenAI's ``chunking_strategy`` as options of the voice activity detection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from whisper_api.errors import InvalidOption
from whisper_api.server.uploads.form_fields import converted

__all__ = ["CHUNKING_FIELD", "ServerVad", "chunking_options"]

CHUNKING_FIELD = "chunking_strategy"
Milliseconds = Annotated[int, Meta(ge=0, le=10_000)]
# With the ends of OpenAI's range, everything or nothing would be speech.
LEAST_THRESHOLD, GREATEST_THRESHOLD = 0.01, 0.99
# The greatest value of the option ``vad_padding``.
MAX_PADDING_MS = 2000


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
