"""Clients of the REST API.

::

    from whisper_api import DEFAULT_URL, Client, TranscriptionOptions

    with Client(DEFAULT_URL, api_key=key) as client:
        result = client.transcribe("call.wav", TranscriptionOptions(language="en"), on_progress=print)
        print(result.text)

:class:`AsyncClient` has the same methods as coroutines. A request that fails on the way is tried again after a pause
that grows and varies, so that many clients do not return at the same moment. An upload carries an idempotency key that
stays the same over its attempts (the HTTP field Idempotency-Key, IETF draft-ietf-httpapi-idempotency-key-header), so no
job is made twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whisper_api.client.api import DEFAULT_URL, Client
from whisper_api.webhooks import verify_webhook

if TYPE_CHECKING:
    from whisper_api.client.async_api import AsyncClient

__all__ = ["DEFAULT_URL", "AsyncClient", "Client", "verify_webhook"]


def __getattr__(name: str) -> Any:
    # Only the asynchronous client imports httpx.
    if name == "AsyncClient":
        from whisper_api.client.async_api import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
