"""The fields of forms and queries of the REST API, as text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from whisper_api.job_values import JobState
from whisper_api.options import RenderOptions, TranscriptionOptions


def form_fields(
    options: TranscriptionOptions | None,
    output_format: str | None,
    render_options: RenderOptions | None,
    keep_result: bool,
    metadata: Mapping[str, Any] | None,
    hf_token: str | None,
    webhook_url: str | None = None,
    webhook_include_result: bool = False,
) -> dict[str, str]:
    """The fields of a form that submits a job.

    Args:
        options: options of the transcription.
        output_format: format of the result's text.
        render_options: the layout of subtitles.
        keep_result: keep the result after its delivery.
        metadata: values that the job keeps.
        hf_token: Hugging Face token.
        webhook_url: where the event of the job's end is sent.
        webhook_include_result: let that event carry the result.
    """
    # Overrides a server that is configured to answer with the transcript: the clients wait by themselves.
    fields: dict[str, object] = {"sync": False, **msgspec.to_builtins(options or TranscriptionOptions())}
    fields |= msgspec.to_builtins(render_options or RenderOptions())
    if isinstance(fields.get("vocabulary"), (list, tuple)):
        fields["vocabulary"] = msgspec.json.encode(fields["vocabulary"]).decode()
    fields["output_format"] = output_format
    fields["keep_result"] = keep_result or None
    fields["hf_token"] = hf_token or None
    fields["webhook_url"] = webhook_url
    fields["webhook_include_result"] = webhook_include_result or None
    fields["metadata"] = None if metadata is None else msgspec.json.encode(metadata).decode()
    return texts(fields)


def search(
    status: JobState | None,
    metadata_key: str | None,
    metadata_value: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
) -> dict[str, str]:
    """The query of a search for jobs.

    Args:
        status: only jobs with this status.
        metadata_key: only jobs with this key in their metadata.
        metadata_value: only jobs with this value under the key.
        created_after: only jobs submitted then or later.
        created_before: only jobs submitted earlier.
    """
    return texts(
        {
            "status": status,
            "metadata_key": metadata_key,
            "metadata_value": None if metadata_value is None else _as_sent(metadata_value),
            "created_after": created_after,
            "created_before": created_before,
        }
    )


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """The values of a form or a query as text, without those that are None. A time without a zone is local."""
    return {name: _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone().isoformat()
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_sent(value: str) -> str:
    # JSON, because the server ignores an empty parameter and strips spaces.
    return value if value and value == value.strip() else msgspec.json.encode(value).decode()
