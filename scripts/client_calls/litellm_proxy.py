"""OpenAI's SDK through LiteLLM's proxy: a single response, and a stream.

The proxy's own route does not stream transcriptions with any server: it puts the events into the field ``text``. Only
its pass-through route (``/openai``) streams.
"""

from __future__ import annotations

import openai
from calls import AUDIO, PROXY_KEY, PROXY_URL, told

with (
    openai.OpenAI(base_url=f"{PROXY_URL}/v1", api_key=PROXY_KEY) as client,
    AUDIO.open("rb") as audio,
):
    told("transcriptions", client.audio.transcriptions.create(model="whisper-1", file=audio).text)
with (
    openai.OpenAI(base_url=f"{PROXY_URL}/openai/v1", api_key=PROXY_KEY, _strict_response_validation=True) as client,
    AUDIO.open("rb") as audio,
):
    events = list(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=audio, stream=True))
    told("stream, passed through", getattr(events[-1], "text", ""))
