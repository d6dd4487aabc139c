"""Whisper API: speech to text with word times and speakers.

::

    from whisper_api import Engine, TranscriptionOptions, render

    with Engine(device="auto") as engine:
        transcript = engine.transcribe("call.wav", TranscriptionOptions(model="base", diarize=True), on_progress=print)
        print(render(transcript, "srt"))

Names are imported when they are first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whisper_api.audit_records import AuditRecord
    from whisper_api.client import DEFAULT_URL, AsyncClient, Client
    from whisper_api.config import Config
    from whisper_api.engine.engine import Engine
    from whisper_api.errors import (
        AccessError,
        AudioTooLong,
        Busy,
        CallerLimit,
        Canceled,
        ConfigError,
        DeliveryNotFound,
        DeviceError,
        DeviceLost,
        DeviceUnavailable,
        Draining,
        EngineClosed,
        ExtraMissing,
        ForkedProcess,
        IdempotencyConflict,
        InvalidAudio,
        InvalidInput,
        InvalidOption,
        InvalidWebhook,
        JobCanceled,
        JobError,
        JobFailed,
        JobIsProcessing,
        JobNotFinished,
        JobNotFound,
        KeyExpired,
        KeyNotFound,
        LastAdminKey,
        ModelCorrupt,
        ModelError,
        ModelUnavailable,
        OutOfMemory,
        QueueFull,
        QuotaExceeded,
        RateLimited,
        RequestError,
        ResultGone,
        ScopeMissing,
        SpeakerError,
        SpeakerExists,
        SpeakerLimit,
        SpeakerNotFound,
        StorageError,
        StorageFull,
        StorageLocked,
        UnknownModel,
        UploadMissing,
        VocabularyNotFound,
        WebhookError,
        WebhookNotFound,
        WhisperApiError,
    )
    from whisper_api.formats import RenderOptions, document, render, rendered
    from whisper_api.job_values import JobResult, JobStatus, Vocabulary
    from whisper_api.key_values import AccessKey, KeyChange, KeyWithSecret, NewKey
    from whisper_api.schema import (
        PartialSegments,
        Progress,
        Redaction,
        Segment,
        Transcript,
        TranscriptionOptions,
        Turn,
        Word,
    )
    from whisper_api.server.app import create_app
    from whisper_api.server.run import Server
    from whisper_api.usage_records import Usage
    from whisper_api.voices import Speaker, VoiceEmbedding
    from whisper_api.webhooks import WebhookDelivery, WebhookEndpoint, WebhookEvent, WebhookSecret, verify_webhook

    __version__: str

__all__ = [
    "DEFAULT_URL",
    "AccessError",
    "AccessKey",
    "AsyncClient",
    "AudioTooLong",
    "AuditRecord",
    "Busy",
    "CallerLimit",
    "Canceled",
    "Client",
    "Config",
    "ConfigError",
    "DeliveryNotFound",
    "DeviceError",
    "DeviceLost",
    "DeviceUnavailable",
    "Draining",
    "Engine",
    "EngineClosed",
    "ExtraMissing",
    "ForkedProcess",
    "IdempotencyConflict",
    "InvalidAudio",
    "InvalidInput",
    "InvalidOption",
    "InvalidWebhook",
    "JobCanceled",
    "JobError",
    "JobFailed",
    "JobIsProcessing",
    "JobNotFinished",
    "JobNotFound",
    "JobResult",
    "JobStatus",
    "KeyChange",
    "KeyExpired",
    "KeyNotFound",
    "KeyWithSecret",
    "LastAdminKey",
    "ModelCorrupt",
    "ModelError",
    "ModelUnavailable",
    "NewKey",
    "OutOfMemory",
    "PartialSegments",
    "Progress",
    "QueueFull",
    "QuotaExceeded",
    "RateLimited",
    "Redaction",
    "RenderOptions",
    "RequestError",
    "ResultGone",
    "ScopeMissing",
    "Segment",
    "Server",
    "Speaker",
    "SpeakerError",
    "SpeakerExists",
    "SpeakerLimit",
    "SpeakerNotFound",
    "StorageError",
    "StorageFull",
    "StorageLocked",
    "Transcript",
    "TranscriptionOptions",
    "Turn",
    "UnknownModel",
    "UploadMissing",
    "Usage",
    "Vocabulary",
    "VocabularyNotFound",
    "VoiceEmbedding",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookError",
    "WebhookEvent",
    "WebhookNotFound",
    "WebhookSecret",
    "WhisperApiError",
    "Word",
    "__version__",
    "create_app",
    "document",
    "render",
    "rendered",
    "verify_webhook",
]

_HOMES = {
    "NewKey": "whisper_api.key_values",
    "KeyWithSecret": "whisper_api.key_values",
    "KeyChange": "whisper_api.key_values",
    "AccessKey": "whisper_api.key_values",
    "DEFAULT_URL": "whisper_api.client",
    "AsyncClient": "whisper_api.client",
    "AuditRecord": "whisper_api.audit_records",
    "Client": "whisper_api.client",
    "Config": "whisper_api.config",
    "Engine": "whisper_api.engine.engine",
    "JobResult": "whisper_api.job_values",
    "JobStatus": "whisper_api.job_values",
    "Progress": "whisper_api.schema",
    "Redaction": "whisper_api.schema",
    "RenderOptions": "whisper_api.formats",
    "Segment": "whisper_api.schema",
    "Server": "whisper_api.server.run",
    "Speaker": "whisper_api.voices",
    "PartialSegments": "whisper_api.schema",
    "Transcript": "whisper_api.schema",
    "TranscriptionOptions": "whisper_api.schema",
    "Turn": "whisper_api.schema",
    "Usage": "whisper_api.usage_records",
    "Vocabulary": "whisper_api.job_values",
    "VoiceEmbedding": "whisper_api.voices",
    "WebhookDelivery": "whisper_api.webhooks",
    "WebhookEndpoint": "whisper_api.webhooks",
    "WebhookEvent": "whisper_api.webhooks",
    "WebhookSecret": "whisper_api.webhooks",
    "Word": "whisper_api.schema",
    "create_app": "whisper_api.server.app",
    "document": "whisper_api.formats",
    "render": "whisper_api.formats",
    "rendered": "whisper_api.formats",
    "verify_webhook": "whisper_api.webhooks",
}


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("whisper-api")
        except PackageNotFoundError:
            value = "0+source"
    elif name in __all__:
        from importlib import import_module

        value = getattr(import_module(_HOMES.get(name, "whisper_api.errors")), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
