"""The fields of forms and queries of the REST API, as text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from whisper_api.options import RenderOptions, TranscriptionOptions


def form_fields(
    options: TranscriptionOptions | None,
    render_options: RenderOptions | None,
    metadata: Mapping[str, Any] | None,
    **others: object,
) -> dict[str, str]:
    """The fields of a form that submits a job.

    Args:
        options: options of the transcription.
        render_options: the layout of subtitles.
        metadata: values that the job keeps.
        others: further fields by name; those that are empty or false are left out.
    """
    # Overrides a server that is configured to answer with the transcript: the clients wait by themselves.
    fields: dict[str, object] = {"sync": False, **msgspec.to_builtins(options or TranscriptionOptions())}
    fields |= msgspec.to_builtins(render_options or RenderOptions())
    if isinstance(fields.get("vocabulary"), (list, tuple)):
        fields["vocabulary"] = msgspec.json.encode(fields["vocabulary"]).decode()
    fields |= {name: value or None for name, value in others.items()}
    fields["metadata"] = None if metadata is None else msgspec.json.encode(metadata).decode()
    return texts(fields)


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """The values of a form or a query as text, without those that are None. A time without a zone is local."""
    return {name: _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone().isoformat()
    return str(value).lower() if isinstance(value, bool) else str(value)
