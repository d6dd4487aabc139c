"""OpenAI's SDK for Python: synchronous, asynchronous, for Azure, each with strict validation of the answers."""

from __future__ import annotations

import asyncio

import openai
from calls import AUDIO, BASE_URL, KEY, ROOT_URL, told


def plain() -> None:
    with (
        openai.OpenAI(base_url=BASE_URL, api_key=KEY, _strict_response_validation=True) as client,
        AUDIO.open("rb") as audio,
    ):
        told("transcriptions", client.audio.transcriptions.create(model="whisper-1", file=audio).text)
        audio.seek(0)
        verbose = client.audio.transcriptions.create(
            model="whisper-1", file=audio, response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
        told("verbose_json", " ".join(word.word for word in verbose.words or ()))
        audio.seek(0)
        diarized = client.audio.transcriptions.create(
            model="gpt-4o-transcribe-diarize", file=audio, response_format="diarized_json", chunking_strategy="auto"
        )
        told("diarized_json", " ".join(f"{segment.speaker}: {segment.text}" for segment in diarized.segments))
        audio.seek(0)
        events = list(client.audio.transcriptions.create(model="gpt-4o-mini-transcribe", file=audio, stream=True))
        told("stream", getattr(events[-1], "text", ""))
        assert "whisper-1" in [model.id for model in client.models.list()]


async def asynchronous() -> None:
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, _strict_response_validation=True) as client:
        with AUDIO.open("rb") as audio:
            answer = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=audio)
        told("asynchronous", answer.text)
        with AUDIO.open("rb") as audio:
            stream = await client.audio.transcriptions.create(model="gpt-transcribe", file=audio, stream=True)
            events = [event async for event in stream]
        told("asynchronous stream", getattr(events[-1], "text", ""))


def azure() -> None:
    with (
        openai.AzureOpenAI(
            azure_endpoint=ROOT_URL, api_key=KEY, api_version="2024-10-21", _strict_response_validation=True
        ) as client,
        AUDIO.open("rb") as audio,
    ):
        told("Azure", client.audio.transcriptions.create(model="whisper", file=audio).text)


plain()
asyncio.run(asynchronous())
azure()
