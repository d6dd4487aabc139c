"""The ``openai`` package as it is used: its errors, its retries, its models, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.conftest import MakeConfig
from server.cutting_proxy import cutting_proxy
from server.harness import RunningServer, until
from server.in_thread import connect
from server.openai_client import MODEL, PATIENCE_SECONDS, jobs, named, sdk
from whisper_api import Server
from whisper_api.server.realtime import waiters


@pytest.fixture
def ai(server: RunningServer) -> Iterator[openai.OpenAI]:
    with sdk(server) as client:
        yield client


# --- errors ---


def test_errors(server: RunningServer, hello: bytes) -> None:
    asked: list[str] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [lambda request: asked.append(request.url.path)]})
    # A client does not retry a permanent error, however many retries it allows.
    with sdk(server, http_client=http, max_retries=2) as ai:

        def ask(**fields: Any) -> Any:
            return ai.audio.transcriptions.create(**{"file": named(hello), "model": MODEL, **fields})

        with pytest.raises(openai.NotFoundError) as unknown:
            ask(model="gpt-4o")
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        assert unknown.value.type == "invalid_request_error"
        assert "did you mean gpt-4o-transcribe" in unknown.value.message
        with pytest.raises(openai.BadRequestError) as not_audio:
            ask(file=named(b"not audio at all", "notes.txt"))
        assert (not_audio.value.code, not_audio.value.param) == ("invalid_audio", "file")
        for fields, param in (
            ({"response_format": "xml"}, "response_format"),
            ({"temperature": 2}, "temperature"),
            ({"language": "klingon"}, "language"),
            ({"timestamp_granularities": ["letter"]}, "timestamp_granularities"),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                ask(**fields)
            assert refused.value.param == param
        with pytest.raises(openai.UnprocessableEntityError) as missing:
            ask(model="medium")
        assert missing.value.code == "model_unavailable"
        with pytest.raises(openai.NotFoundError):
            ai.models.retrieve("gpt-4o")
        assert len(asked) == 8
    with sdk(server, key="wa-nobody") as ai, pytest.raises(openai.AuthenticationError) as stranger:
        ai.audio.transcriptions.create(file=named(hello), model=MODEL)
    assert stranger.value.code == "invalid_api_key"


def test_a_file_that_is_too_large(strict: RunningServer) -> None:
    with sdk(strict) as ai, pytest.raises(openai.APIStatusError) as caught:
        ai.audio.transcriptions.create(file=named(b"RIFF" + bytes(4_000_000)), model=MODEL)
    assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_speakers_are_never_left_out_in_silence(strict: RunningServer, hello: bytes) -> None:
    with sdk(strict) as ai, pytest.raises(openai.UnprocessableEntityError) as caught:
        ai.audio.transcriptions.create(file=named(hello), model=MODEL, response_format="diarized_json")
    assert caught.value.code == "model_unavailable"


# --- clients that come again, and clients that go ---


def test_a_retry_joins_the_job_that_is_there(server: RunningServer, client: httpx.Client, sample_call: Path) -> None:
    before = len(jobs(client))
    with (
        cutting_proxy(server.port, lambda: until(lambda: len(jobs(client)) > before)) as port,
        sdk(server, port=port, max_retries=2) as ai,
    ):
        answer = ai.audio.transcriptions.with_raw_response.create(file=named(sample_call.read_bytes()), model=MODEL)
    assert "New Jersey" in answer.parse().text
    assert answer.retries_taken == 1
    assert len(jobs(client)) == before + 1
    assert answer.headers["X-Job-ID"] == jobs(client)[0]["job_id"]


def test_clients_that_give_up_leave_one_job_and_it_is_canceled(
    make_config: MakeConfig, base_model_dir: Path, hours: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "GRACE_SECONDS", 2.0)
    with (
        (server := Server(make_config())) as url,
        connect(url, server.api_key) as client,
        openai.OpenAI(base_url=f"{url}/v1", api_key=server.api_key, max_retries=0, timeout=PATIENCE_SECONDS) as ai,
    ):
        impatient = ai.with_options(timeout=1.0, max_retries=1)
        with pytest.raises(openai.APITimeoutError):
            impatient.audio.transcriptions.create(file=named(hours, "long.mp3"), model=MODEL, language="en")
        # The server may still check an upload whose client has left.
        until(lambda: len(jobs(client)) > 0)
        stream = ai.audio.transcriptions.create(file=named(hours, "long.mp3"), model=MODEL, language="en", stream=True)
        assert len(jobs(client)) == 2
        stream.close()
        until(lambda: {job["status"] for job in jobs(client)} == {"Canceled"})


# --- the rest ---


def test_models(ai: openai.OpenAI) -> None:
    listed = list(ai.models.list())
    names = [model.id for model in listed]
    assert names[:2] == ["base", MODEL]
    assert {"gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-transcribe-diarize", "tiny.en"} <= set(names)
    assert len(names) == len(set(names))
    assert all(model.object == "model" and model.created > 0 and model.owned_by for model in listed)
    for name in (*names, "turbo", "auto", "large-v3", "gpt-4o-mini-transcribe-2025-12-15", "openai/whisper-base"):
        assert ai.models.retrieve(name).id == name


def test_another_model_and_no_other(ai: openai.OpenAI, client: httpx.Client, speech: bytes) -> None:
    for name in ("tiny.en", "base", "auto", "gpt-4o-transcribe", "Systran/faster-whisper-base"):
        answer = ai.audio.transcriptions.with_raw_response.create(file=named(speech), model=name, language="en")
        result = client.get(f"/transcription/{answer.headers['X-Job-ID']}/result").json()
        assert result["model"] == ("tiny.en" if name == "tiny.en" else "base")


def test_the_asynchronous_client(server: RunningServer, conversation: bytes) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=server.user_key, max_retries=0, timeout=PATIENCE_SECONDS
        ) as ai:
            answer = await ai.audio.transcriptions.create(file=named(conversation), model=MODEL)
            stream = await ai.audio.transcriptions.create(file=named(conversation), model=MODEL, stream=True)
            done = [event async for event in stream][-1]
            return answer.text, getattr(done, "text", "")

    text, streamed = asyncio.run(ask())
    assert "Chicago" in text
    assert streamed == text


def test_results_go_once_they_were_delivered(strict: RunningServer, hello: bytes) -> None:
    with sdk(strict) as ai, strict.client() as client:
        answer = ai.audio.transcriptions.with_raw_response.create(file=named(hello), model=MODEL)
        gone = f"/transcription/{answer.headers['X-Job-ID']}/result"
        until(lambda: client.get(gone).status_code == 410)
        stream = ai.audio.transcriptions.with_raw_response.create(file=named(hello), model=MODEL, stream=True)
        events = list(stream.parse())
        assert events[-1].type == "transcript.text.done"
        gone = f"/transcription/{stream.headers['X-Job-ID']}/result"
        until(lambda: client.get(gone).status_code == 410)
