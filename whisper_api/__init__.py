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

# For type checkers, which take a name for public that is imported as itself. At run time, __getattr__ finds the names.
if TYPE_CHECKING:
    from whisper_api.audit_records import AuditRecord as AuditRecord
    from whisper_api.client import DEFAULT_URL as DEFAULT_URL
    from whisper_api.client import AsyncClient as AsyncClient
    from whisper_api.client import Client as Client
    from whisper_api.config import Config as Config
    from whisper_api.engine.engine import Engine as Engine
    from whisper_api.errors import *  # noqa: F403
    from whisper_api.formats import document as document
    from whisper_api.formats import render as render
    from whisper_api.formats import rendered as rendered
    from whisper_api.job_values import JobResult as JobResult
    from whisper_api.job_values import JobStatus as JobStatus
    from whisper_api.job_values import Vocabulary as Vocabulary
    from whisper_api.key_values import AccessKey as AccessKey
    from whisper_api.key_values import KeyChange as KeyChange
    from whisper_api.key_values import KeyWithSecret as KeyWithSecret
    from whisper_api.key_values import NewKey as NewKey
    from whisper_api.options import RenderOptions as RenderOptions
    from whisper_api.options import TranscriptionOptions as TranscriptionOptions
    from whisper_api.schema import PartialSegments as PartialSegments
    from whisper_api.schema import Progress as Progress
    from whisper_api.schema import Redaction as Redaction
    from whisper_api.schema import Segment as Segment
    from whisper_api.schema import Transcript as Transcript
    from whisper_api.schema import Turn as Turn
    from whisper_api.schema import Word as Word
    from whisper_api.server.app import create_app as create_app
    from whisper_api.server.run import Server as Server
    from whisper_api.usage_records import Usage as Usage
    from whisper_api.voices import Speaker as Speaker
    from whisper_api.voices import VoiceEmbedding as VoiceEmbedding
    from whisper_api.webhooks import WebhookDelivery as WebhookDelivery
    from whisper_api.webhooks import WebhookEndpoint as WebhookEndpoint
    from whisper_api.webhooks import WebhookEvent as WebhookEvent
    from whisper_api.webhooks import WebhookSecret as WebhookSecret
    from whisper_api.webhooks import verify_webhook as verify_webhook

    __all__: list[str]
    __version__: str

# Modules to their names that are no errors.
_NAMES = {
    "audit_records": ("AuditRecord",),
    "client": ("AsyncClient", "Client", "DEFAULT_URL"),
    "config": ("Config",),
    "engine.engine": ("Engine",),
    "formats": ("RenderOptions", "document", "render", "rendered"),
    "job_values": ("JobResult", "JobStatus", "Vocabulary"),
    "key_values": ("AccessKey", "KeyChange", "KeyWithSecret", "NewKey"),
    "options": ("TranscriptionOptions",),
    "schema": ("PartialSegments", "Progress", "Redaction", "Segment", "Transcript", "Turn", "Word"),
    "server.app": ("create_app",),
    "server.run": ("Server",),
    "usage_records": ("Usage",),
    "voices": ("Speaker", "VoiceEmbedding"),
    "webhooks": ("WebhookDelivery", "WebhookEndpoint", "WebhookEvent", "WebhookSecret", "verify_webhook"),
}
_HOMES = {name: f"whisper_api.{home}" for home, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    value: Any
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("whisper-api")
        except PackageNotFoundError:
            value = "0+source"
    elif name == "__all__":
        value = sorted(["__version__", *_HOMES, *import_module("whisper_api.errors").__all__])
    elif name in _HOMES or name in import_module("whisper_api.errors").__all__:
        value = getattr(import_module(_HOMES.get(name, "whisper_api.errors")), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
