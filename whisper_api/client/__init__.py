"""A client of the REST API.

::

    from whisper_api import DEFAULT_URL, Client, TranscriptionOptions

    with Client("https://speech.example.org", api_key=key) as client:
        result = client.transcribe("call.wav", TranscriptionOptions(language="en"), on_progress=print)
        print(result.text)

What fails on the way is tried again, after a pause that grows and is never quite the same, so that many clients do not
come back at once. An upload carries an idempotency key that stays the same over its attempts (the HTTP field
Idempotency-Key, IETF draft-ietf-httpapi-idempotency-key-header), so a job is never made twice.
"""

from __future__ import annotations

from whisper_api.client.api import DEFAULT_URL, Client

__all__ = ["DEFAULT_URL", "Client"]
