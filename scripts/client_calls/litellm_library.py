"""LiteLLM as a library."""

from __future__ import annotations

import asyncio

import litellm
from calls import AUDIO, BASE_URL, KEY, told

with AUDIO.open("rb") as audio:
    answer = litellm.transcription(model="openai/whisper-1", file=audio, api_base=BASE_URL, api_key=KEY)
told("transcription", answer.text)
with AUDIO.open("rb") as audio:
    answer = asyncio.run(
        litellm.atranscription(model="openai/gpt-4o-transcribe", file=audio, api_base=BASE_URL, api_key=KEY)
    )
told("atranscription", answer.text)
