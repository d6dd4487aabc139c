"""Every answer against the types that OpenAI publishes, strictly; and the other addresses that its clients know."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Model
from openai.types.audio import (
    Transcription,
    TranscriptionDiarized,
    TranscriptionStreamEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)
from pydantic import BaseModel, TypeAdapter

from server.harness import RunningServer
from server.inside import AUDIO, inside, on_a_loop
from server.openai_client import MODEL, PATIENCE_SECONDS, named, sdk
from server.openai_inside import PATH

TRANSLATIONS = "/v1/audio/translations"
# Fields of OpenAI's responses that its published types lack.
UNPUBLISHED = {"task"}
API_VERSION = "2024-10-21"


@pytest.fixture
def ai(server: RunningServer) -> Iterator[openai.OpenAI]:
    with sdk(server, _strict_response_validation=True) as client:
        yield client


def check(kind: Any, body: Any) -> None:
    """Check that a body has a published type: in strict mode, by the JSON schema, and without other members."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    # In the strict mode for JSON an integer counts as a number, and no other type is converted.
    value = adapter.validate_json(json.dumps(body), strict=True)
    assert set(unpublished(value)) <= UNPUBLISHED
    jsonschema = pytest.importorskip("jsonschema_rs", reason="comes with Schemathesis, for Python 3.11 and later")
    jsonschema.validator_for(adapter.json_schema()).validate(body)


def unpublished(value: object) -> Iterator[str]:
    """The members of a value that its type lacks."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or {}
        for name in type(value).model_fields:
            yield from unpublished(getattr(value, name))
    elif isinstance(value, list):
        for each in value:
            yield from unpublished(each)


@pytest.mark.parametrize(
    ("path", "fields", "kind"),
    [
        (PATH, {}, Transcription),
        (PATH, {"include[]": "logprobs"}, Transcription),
        (PATH, {"timestamp_granularities[]": "word"}, Transcription),
        (PATH, {"response_format": "verbose_json"}, TranscriptionVerbose),
        (PATH, {"response_format": "verbose_json", "timestamp_granularities[0]": "word"}, TranscriptionVerbose),
        (PATH, {"response_format": "verbose_json", "stream": "true", "include[]": "logprobs"}, TranscriptionVerbose),
        (PATH, {"response_format": "diarized_json"}, TranscriptionDiarized),
        (PATH, {"model": "gpt-4o-transcribe-diarize"}, TranscriptionDiarized),
        (TRANSLATIONS, {}, Translation),
        (TRANSLATIONS, {"response_format": "verbose_json"}, TranslationVerbose),
    ],
    ids=str,
)
@pytest.mark.parametrize("silent", [False, True])
def test_an_answer_is_of_the_published_type(
    client: httpx.Client, speech: bytes, path: str, fields: dict[str, str], kind: Any, silent: bool
) -> None:
    header, sound = speech[:44], speech[44:]
    audio = header + bytes(len(sound)) if silent else speech
    answer = client.post(path, data={"model": MODEL, **fields}, files={"file": ("a.wav", audio)})
    assert answer.status_code == 200, answer.text
    check(kind, answer.json())


@pytest.mark.parametrize("fields", [{}, {"response_format": "diarized_json"}, {"include[]": "logprobs"}], ids=str)
def test_every_event_is_of_a_published_type(client: httpx.Client, conversation: bytes, fields: dict[str, str]) -> None:
    answer = client.post(PATH, data={"model": MODEL, "stream": "true", **fields}, files={"file": conversation})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert len(events) > 1
    for event in map(json.loads, events):
        check(TranscriptionStreamEvent, event)


def test_models_are_of_the_published_type(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed.keys() == {"object", "data"}
    for model in [*listed["data"], client.get("/v1/models/whisper-1").json()]:
        check(Model, model)


def test_the_strict_client(ai: openai.OpenAI, conversation: bytes, hello: bytes) -> None:
    create = ai.audio.transcriptions.create
    assert "Chicago" in create(file=named(conversation), model=MODEL, include=["logprobs"]).text
    verbose = create(
        file=named(conversation), model=MODEL, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert verbose.words
    speakers = create(file=named(conversation), model="gpt-4o-transcribe-diarize", response_format="diarized_json")
    assert {segment.speaker for segment in speakers.segments} == {"A", "B"}
    for extra in ({}, {"response_format": "diarized_json", "chunking_strategy": "auto"}):
        stream: Any = create(file=named(conversation), model="gpt-4o-transcribe", stream=True, **extra)  # type: ignore[call-overload]
        *_, done = stream
        assert done.type == "transcript.text.done"
        assert "Chicago" in done.text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert ai.audio.translations.create(file=named(hello), model=MODEL).text
        assert ai.audio.translations.create(file=named(hello), model=MODEL, response_format="verbose_json").text
    assert [model.id for model in ai.models.list()]


def test_the_strict_asynchronous_client(server: RunningServer, conversation: bytes) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/openai/v1", api_key=server.user_key, _strict_response_validation=True
        ) as ai:
            answer = await ai.audio.transcriptions.create(file=named(conversation), model="gpt-transcribe")
            stream = await ai.audio.transcriptions.create(file=named(conversation), model=MODEL, stream=True)
            *_, done = [event async for event in stream]
            assert done.type == "transcript.text.done"
            assert done.text == answer.text

    asyncio.run(ask())


# --- other addresses ---


def azure(server: RunningServer, **options: Any) -> dict[str, Any]:
    return {
        "azure_endpoint": server.url,
        "api_key": server.user_key,
        "api_version": API_VERSION,
        "max_retries": 0,
        "timeout": PATIENCE_SECONDS,
        "_strict_response_validation": True,
        **options,
    }


def test_the_client_for_azure(server: RunningServer, hello: bytes) -> None:
    with openai.AzureOpenAI(**azure(server)) as ai:
        # The name of the deployment is in the path.
        for deployment in ("whisper", "whisper-1", "gpt-4o-transcribe", "base"):
            assert "Hello" in ai.audio.transcriptions.create(file=named(hello), model=deployment).text
        stream = ai.audio.transcriptions.create(file=named(hello), model="gpt-4o-transcribe", stream=True)
        assert list(stream)[-1].type == "transcript.text.done"
        assert "whisper-1" in [model.id for model in ai.models.list()]
        assert ai.models.retrieve("gpt-4o-transcribe").id == "gpt-4o-transcribe"
        with pytest.raises(openai.NotFoundError) as unknown:
            ai.audio.transcriptions.create(file=named(hello), model="nothing")
        assert unknown.value.code == "model_not_found"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            assert ai.audio.translations.create(file=named(hello), model="whisper").text
    with openai.AzureOpenAI(**azure(server, azure_deployment="whisper")) as ai:
        assert "Hello" in ai.audio.transcriptions.create(file=named(hello), model="nothing").text
    with (
        openai.AzureOpenAI(**azure(server, api_key="wk_nobody")) as ai,
        pytest.raises(openai.AuthenticationError) as stranger,
    ):
        ai.audio.transcriptions.create(file=named(hello), model="whisper")
    assert stranger.value.code == "invalid_api_key"


def test_the_asynchronous_client_for_azure(server: RunningServer, conversation: bytes) -> None:
    async def ask() -> str:
        async with openai.AsyncAzureOpenAI(**azure(server)) as ai:
            answer = await ai.audio.transcriptions.create(file=named(conversation), model="whisper")
            return answer.text

    assert "Chicago" in asyncio.run(ask())


@on_a_loop
async def test_the_deployment_in_the_address_is_the_model(tmp_path: Path) -> None:
    async with inside(tmp_path, model="base") as app, app.client() as client:
        for deployment, field, model in (("tiny.en", "small", "tiny.en"), ("whisper", "small", "base")):
            answer = await client.post(
                f"/openai/deployments/{deployment}/audio/transcriptions?api-version={API_VERSION}",
                files={"file": ("a.wav", AUDIO)},
                data={"model": field},
            )
            assert answer.status_code == 200, answer.text
            job = app.service.store.get(answer.headers["X-Job-ID"])
            assert job is not None
            assert job.options.model == model
        # An idempotency key means another request on another deployment.
        headers = {"Idempotency-Key": "one"}
        answers = [
            await client.post(
                f"/openai/deployments/{deployment}/audio/transcriptions",
                files={"file": ("a.wav", AUDIO)},
                headers=headers,
            )
            for deployment in ("base", "base", "tiny.en")
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 422]


@on_a_loop
async def test_a_key_may_come_as_azure_s_clients_send_it(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        key = app.token("ann")
        for headers, status in (
            ({"api-key": key}, 200),
            ({"Authorization": f"Bearer {key}"}, 200),
            # The usual header wins.
            ({"Authorization": f"Bearer {key}", "api-key": "wk_nobody"}, 200),
            ({"Authorization": "Bearer wk_nobody", "api-key": key}, 401),
            ({"Authorization": "Basic eDp5", "api-key": key}, 401),
            ({"api-key": ""}, 401),
            ({"api-key": "wk_nobody"}, 401),
            ({}, 401),
        ):
            for path in ("/openai/models", "/v1/models", "/transcriptions"):
                assert (await client.get(path, headers=headers)).status_code == status


@on_a_loop
async def test_warning_headers_name_ignored_fields(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:

        async def told(path: str, **fields: str) -> list[str]:
            answer = await client.post(path, files={"file": ("a.wav", AUDIO)}, data=fields)
            assert answer.status_code == 200, answer.text
            return answer.headers.get_list("Warning")

        assert await told(PATH) == []
        (language,) = await told(TRANSLATIONS, language="de")
        assert language.startswith('299 - "language was ignored')
        (stream,) = await told(PATH, stream="true", response_format="srt")
        assert "stream was ignored: srt" in stream
        assert "include" in (await told(PATH, stream="true", response_format="text", include="logprobs"))[0]
        # A header is one line of ASCII for any text of a client.
        for name in ('x"\\y', "é你", "a\r\nSet-Cookie: b=c", "a\0b", "x" * 5000):
            (unknown,) = await told(PATH, **{name: "1"})
            assert unknown.isascii()
            assert unknown.isprintable()
            assert len(unknown) < 1000
            assert unknown.startswith('299 - "unknown fields were ignored: ')
            assert unknown.endswith('"')
