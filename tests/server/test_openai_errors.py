"""Errors under ``/v1``: in the shape that OpenAI's clients read, and with a word on whether to try again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from server.inside import AUDIO, inside, on_a_loop
from server.openai_inside import PATH, error, headers, running, sent, states, upload
from whisper_api.testing import FakeExecutor


@on_a_loop
async def test_a_job_that_somebody_cancels_is_an_error(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        request, stream = upload(), upload(stream="true")
        async with sent(app, request, stream) as answered:
            await app.until(lambda: app.state.waiters.requests.total() == 2)
            for status in app.service.list_jobs(None)[0]:
                await asyncio.to_thread(app.service.cancel, status.job_id, None, force=True)
            await asyncio.gather(*answered)
        assert (request.status, error(request)["code"]) == (409, "job_canceled")
        assert headers(request)["x-should-retry"] == "false"
        assert stream.status == 200
        *events, end = stream.answer.decode().split("\n\n")
        assert end == ""
        # A comment is no event, but with an empty line after it some clients take it for an event without data.
        assert all("data: " in event for event in events)
        assert events[0].startswith(": ")
        *_, name, data = events[-1].splitlines()
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == "job_canceled"


@on_a_loop
async def test_only_the_routes_of_openai_have_its_error_shape(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        async with app.client() as stranger:
            answer = await stranger.post(PATH)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert (await stranger.get("/v1/nothing")).json()["error"]["code"] == "invalid_api_key"
            assert "detail" in (await stranger.get("/v10")).json()
        async with app.client(app.token("ann")) as client:
            for method, path, status, code in (
                ("GET", "/v1/nothing", 404, "not_found"),
                ("GET", PATH, 405, "method_not_allowed"),
                ("DELETE", "/v1/models", 405, "method_not_allowed"),
                ("GET", "/v1/models/nothing", 404, "model_not_found"),
                ("POST", PATH, 400, "not_multipart"),
            ):
                answer = await client.request(method, path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
                assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
                assert answer.json()["error"]["type"] == "invalid_request_error"
                assert answer.headers["content-type"] == "application/json"
                assert answer.headers["x-should-retry"] == "false"
            assert (await client.get("/nothing")).headers["content-type"] == "application/problem+json"


@on_a_loop
async def test_temporary_errors_tell_the_client_to_retry(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), max_queued_jobs=1) as app:
        async with sent(app, upload(prompt="one")):
            await running(app)
            async with sent(app, upload(prompt="two")):
                await app.until(lambda: len(states(app)) == 2)
                refused = upload(prompt="three")
                await refused.to(app.app)
        assert (refused.status, error(refused)["code"]) == (503, "queue_full")
        assert headers(refused)["x-should-retry"] == "true"


@on_a_loop
async def test_a_job_that_fails_is_the_server_s_fault_unless_it_is_the_audio_s(tmp_path: Path) -> None:
    from whisper_api.errors import InvalidAudio, ModelUnavailable

    for raised, status, code in (
        (InvalidAudio("no sound"), 400, "invalid_audio"),
        (ModelUnavailable("not here"), 422, "model_unavailable"),
        (RuntimeError("broken"), 500, "job_failed"),
    ):

        def fail(executor: object, job: object, raised: Exception = raised) -> None:
            raise raised

        async with inside(tmp_path / code, FakeExecutor(behave=fail)) as app:
            request = upload()
            await request.to(app.app)
            assert (request.status, error(request)["code"]) == (status, code)
            assert str(raised) in error(request)["message"]
            assert headers(request)["x-should-retry"] == "false"


@on_a_loop
async def test_the_application_may_stand_under_a_prefix(tmp_path: Path) -> None:
    async with inside(tmp_path, insecure=True) as app:
        outer = Starlette(routes=[Mount("/speech", app.app)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://a/speech") as client:
            assert (await client.get("/v1/models/nothing")).json()["error"]["code"] == "model_not_found"
            assert (await client.get("/v1/nothing")).json()["error"]["code"] == "not_found"
            assert (await client.get("/v1/models/whisper-1")).json()["id"] == "whisper-1"
            answer = await client.post("/v1/audio/transcriptions", files={"file": ("a.wav", AUDIO)})
            assert answer.json()["usage"] == {"type": "duration", "seconds": 10}
