"""The application: its life, its addresses and its layers."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import config_in
from starlette.applications import Starlette
from starlette.routing import Mount

from server.inside import AUDIO, ORIGIN, RawRequest, inside, lines_of, on_a_loop, problem
from whisper_api import Config, StorageLocked, create_app, errors
from whisper_api.errors import UnknownModel
from whisper_api.server.app import ROUTES
from whisper_api.server.middleware.access_log import USABLE_ID
from whisper_api.testing import FakeExecutor

MESSAGE = "secret/path is broken"


# --- its life ---


@on_a_loop
async def test_an_application_that_was_not_started_says_so(tmp_path: Path) -> None:
    app = create_app(config_in(tmp_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        body = problem(await client.get("/status", headers={"Authorization": "Bearer x"}), 503, "not_started")
        assert "lifespan_context" in body["detail"]
        problem(await client.get("/readyz"), 503, "not_started")
        assert (await client.get("/livez")).status_code == 200
    assert not (tmp_path / "data").exists()


@on_a_loop
async def test_the_application_works_when_it_is_mounted_under_a_prefix(tmp_path: Path) -> None:
    async with inside(tmp_path) as app:
        outer = Starlette(routes=[Mount("/speech/v1", app.app)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://127.0.0.1") as client:
            answer = await client.post("/speech/v1/transcribe", files={"file": AUDIO})
            assert answer.status_code == 202
            path = f"/transcription/{answer.json()['job_id']}"
            assert answer.json()["status_url"] == path
            assert answer.headers["Location"] == f"/speech/v1{path}"
            assert (await client.get(answer.headers["Location"])).status_code == 200
            assert (await client.get("/speech/v1/livez")).status_code == 200
            assert (await client.get("/status")).status_code == 404


def quiet(directory: Path) -> Config:
    return config_in(directory, enable_authorization=False, device="cpu", preload_models=False)


@on_a_loop
async def test_its_lifespan_opens_and_closes_a_service_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        app = create_app(quiet(tmp_path))
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                assert (await client.get("/status")).status_code == 200
            second = create_app(quiet(tmp_path))
            with pytest.raises(StorageLocked):
                async with second.router.lifespan_context(second):
                    pass
    assert (tmp_path / "data" / "jobs.db").is_file()


@on_a_loop
async def test_a_service_of_the_caller_is_left_open(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        job_id = await app.submit(client)
        again = create_app(config_in(tmp_path, enable_authorization=False), service=app.service)
        async with again.router.lifespan_context(again):
            pass
        assert (await client.get(f"/transcription/{job_id}")).status_code == 200


# --- addresses ---


@pytest.mark.parametrize("path", ROUTES)
@on_a_loop
async def test_each_route_names_its_methods(tmp_path: Path, path: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        path = path.replace("{job_id}", str(uuid.uuid4()))
        answer = await client.options(path)
        assert (answer.status_code, answer.content) == (204, b"")
        allowed = answer.headers["Allow"].split(", ")
        assert len(set(allowed)) == len(allowed)
        assert ("GET" in allowed) == ("HEAD" in allowed)
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "FROB"):
            got = await client.request(method, path)
            assert (got.status_code == 405) == (method not in allowed)
            if got.status_code == 405 and method != "HEAD":
                if path.startswith(("/v1/", "/openai/")):
                    assert got.json()["error"]["code"] == "method_not_allowed"
                else:
                    problem(got, 405, "method_not_allowed")
                assert got.headers["Allow"] == answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/assets/", "/transcription/", "/transcribe/", "/status/x", "/é", "/%00"])
@on_a_loop
async def test_other_paths_are_not_found(tmp_path: Path, path: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        # An absolute URL, since a path that begins with two slashes would be read as a host.
        address = f"{ORIGIN}{path}"
        answer = await client.post(address) if path == "/transcribe/" else await client.get(address)
        assert answer.status_code == 404
        assert answer.json()["code"] in ("not_found", "job_not_found")


@pytest.mark.parametrize("given", ["1", "x" * 300, "{0}x", "{{{0}}}", "urn:uuid:{0}", "{1}"])
@on_a_loop
async def test_a_job_is_found_only_by_its_canonical_id(tmp_path: Path, given: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        job_id = await app.submit(client)
        wrong = given.format(job_id, job_id.replace("-", ""))
        body = problem(await client.get(f"/transcription/{wrong}"), 404, "job_not_found")
        assert body["error"] == f"Job not found: {wrong}"
        assert (await client.get(f"/transcription/{job_id.upper()}")).json()["job_id"] == job_id


# --- layers ---


@on_a_loop
async def test_an_unexpected_error_is_logged_and_not_shown_to_the_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "whisper_api")
    async with inside(tmp_path) as app, app.client() as client:

        def fail(*ignored: object) -> None:
            raise RuntimeError(MESSAGE)

        monkeypatch.setattr(app.service, "status", fail)
        answer = await client.get(f"/transcription/{uuid.uuid4()}")
        body = problem(answer, 500, "internal_error")
        assert MESSAGE not in answer.text
        assert "Traceback" not in answer.text
        records = [record for record in caplog.records if record.exc_info]
        assert len(records) == 1
        assert records[0].exc_info
        assert str(records[0].exc_info[1]) == MESSAGE
        (line,) = lines_of(caplog)
        assert line["status"] == 500
        assert body["request_id"]
        monkeypatch.undo()
        assert (await client.get("/status")).status_code == 200


@on_a_loop
async def test_the_log_has_a_line_for_each_request_and_nothing_private(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "whisper_api")
    async with inside(tmp_path, enable_authorization=True) as app:
        token = app.token("one")
        _, key_id, secret = token.split("_", 2)  # the secret may have underscores of its own
        async with app.client(token) as client:
            files = {"file": ("unlogged-name.wav", AUDIO)}
            fields = {
                "prompt": "unlogged-prompt",
                "hotwords": "unlogged-words",
                "vocabulary": '["unlogged-term"]',
                "hf_token": "unlogged-token",
            }
            answer = await client.post("/transcribe", data=fields, files=files, headers={"X-Request-ID": "mine"})
            job_id = answer.json()["job_id"]
            await client.get(f"/transcription/{job_id}?note=unlogged-query")
            await app.until(lambda: app.service.store.in_state("Completed"))
            await client.get(f"/transcription/{job_id}/result")
            await client.get("/nowhere" + "x" * 500)
            await client.get("/livez")
            await client.get("/readyz")
        everything = " ".join(str(vars(record)) for record in caplog.records)
        assert "unlogged" not in everything
        assert token not in everything
        assert secret not in everything
        lines = lines_of(caplog)
        assert [(line["method"], line["status"]) for line in lines] == [
            ("POST", 202),
            ("GET", 200),
            ("GET", 200),
            ("GET", 404),
        ]
        assert [line["path"] for line in lines[:2]] == ["/transcribe", f"/transcription/{job_id}"]
        assert len(lines[3]["path"]) < 300
        assert all(line["key_id"] == key_id for line in lines)
        assert [line["job_id"] for line in lines] == [job_id, job_id, job_id, None]
        assert lines[0]["bytes_in"] > len(AUDIO)
        assert lines[0]["bytes_out"] == len(answer.content)
        assert all(line["ms"] >= 0 for line in lines)


@on_a_loop
async def test_log_lines_of_a_thread_have_the_id_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whisper_api.logs import current_request

    async with inside(tmp_path) as app, app.client() as client:
        seen: list[str] = []
        counts = app.service.counts

        def noted(owner: str | None = None) -> tuple[int, int]:
            seen.append(current_request.get())
            return counts(owner)

        monkeypatch.setattr(app.service, "counts", noted)
        for name in ("one", "two"):
            await client.get("/status", headers={"X-Request-ID": name})
        assert seen == ["one", "two"]
        assert current_request.get() == ""


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 128])
@on_a_loop
async def test_a_request_keeps_the_id_it_came_with(tmp_path: Path, given: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        assert (await client.get("/livez", headers={"X-Request-ID": given})).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "<script>", "\u00e9"])
@on_a_loop
async def test_an_id_that_is_not_usable_is_replaced(tmp_path: Path, given: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        headers = httpx.Headers({"X-Request-ID": given}, "latin-1")
        made = [(await client.get("/livez", headers=headers)).headers["X-Request-ID"] for _ in range(2)]
        assert made[0] != made[1]
        assert all(USABLE_ID.fullmatch(each) for each in made)


@on_a_loop
async def test_no_answer_is_kept_by_caches_or_guessed_at_by_browsers(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for path in ("/livez", "/nowhere", "/status"):
            headers = (await client.get(path)).headers
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"


# --- submitting ---


@pytest.mark.parametrize("key", ["", "x" * 256, "a\u00e9"])
@on_a_loop
async def test_an_idempotency_key_is_printable_and_not_too_long(tmp_path: Path, key: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        headers = httpx.Headers({"Idempotency-Key": key}, "latin-1")
        answer = await client.post("/transcribe", files={"file": AUDIO}, headers=headers)
        problem(answer, 400, "invalid_idempotency_key")


@on_a_loop
async def test_the_same_idempotency_key_makes_one_job(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        headers = {"Idempotency-Key": "once"}
        answers = [await app.post(client, headers, language="en") for _ in range(3)]
        assert len({answer.json()["job_id"] for answer in answers}) == 1
        problem(await app.post(client, headers, language="fr"), 422, "idempotency_conflict")
        assert len((await client.get("/transcriptions")).json()["jobs"]) == 1
        assert not app.service.store.by_idempotency_keys("", ["twice"]).get("twice")


@on_a_loop
async def test_a_refused_upload_leaves_no_files(tmp_path: Path) -> None:
    executor = FakeExecutor()
    async with inside(tmp_path, executor, max_file_size=1000) as app, app.client() as client:
        executor.refusal = UnknownModel("model: no such model")
        problem(await app.post(client), 422, "unknown_model")
        executor.refusal = None
        files: Any = {"file": ("a.wav", bytes(2000))}
        problem(await client.post("/transcribe", files=files), 413, "file_too_large")
        files = {"file": ("notes.txt", b"Dear all,\n")}
        body = problem(await client.post("/transcribe", files=files), 415, "invalid_audio")
        assert body["detail"].startswith("notes.txt is text")
        problem(await app.post(client, output_format="pdf"), 400, "invalid_field")
        problem(await client.post("/transcribe", data={"language": "en"}, files={"x": b""}), 400, "no_file")
        assert not list((tmp_path / "uploads").iterdir())
        assert (await client.get("/transcriptions")).json() == {"jobs": [], "next": None}
        # No place in the queue is lost.
        assert app.service.counts() == (0, 0)
        await app.submit(client)


@on_a_loop
async def test_a_full_queue_and_a_server_that_stops_refuse_before_they_read(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), max_queued_jobs=1) as app, app.client() as client:
        await app.running(client)
        await app.submit(client)
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "5"}
        request = RawRequest("POST", "/transcribe", headers, whole=False)
        task = asyncio.create_task(request.to(app.app))
        await app.until(lambda: request.answer)
        assert request.status == 503
        assert json.loads(request.answer)["code"] == "queue_full"
        request.gone.set()
        await task
        app.service.drain()
        answer = await app.post(client)
        problem(answer, 503, "draining")
        assert int(answer.headers["Retry-After"]) >= 1


# --- results ---


@on_a_loop
async def test_a_result_is_marked_delivered_when_all_of_it_was_taken(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        job_id = await app.submit(client)
        await app.finish(client, job_id)

        def delivered() -> float | None:
            job = app.service.store.get(job_id)
            assert job is not None
            return job.delivered_at

        broken = RawRequest("GET", f"/transcription/{job_id}/result")
        broken.gone.set()
        await broken.to(app.app)
        assert delivered() is None
        await client.head(f"/transcription/{job_id}/result")
        assert delivered() is None
        problem(await client.get(f"/transcription/{job_id}/result?format=pdf"), 400, "invalid_field")
        assert delivered() is None
        answer = await client.get(f"/transcription/{job_id}/result?format=SRT")
        assert answer.headers["Content-Type"] == "application/x-subrip; charset=utf-8"
        await app.until(delivered)


@on_a_loop
async def test_a_result_that_cannot_be_marked_was_still_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        job_id = await app.submit(client)
        await app.finish(client, job_id)

        def full(*ignored: object) -> None:
            raise errors.StorageFull("no space is left")

        monkeypatch.setattr(app.service, "mark_delivered", full)
        answer = await client.get(f"/transcription/{job_id}/result")
        assert answer.status_code == 200
        assert answer.json()["segments"]
        (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert warning.job_id == job_id  # type: ignore[attr-defined]
        assert not warning.exc_info


# --- the state of the server ---


@on_a_loop
async def test_the_state_of_the_server_has_the_old_objects_and_ours(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), http_workers=3, port=0) as app, app.client() as client:
        await app.running(client)
        await app.submit(client)
        body = (await client.get("/status")).json()
    assert list(body) == ["server", "processing", "resources", "security", "queue_state", "engines"]
    assert 0 <= body["queue_state"].pop("oldest_wait_seconds") < 60
    assert body["queue_state"] == {"queued_jobs": 1, "processing_jobs": 1}
    assert body["server"]["port"] == "8181"
    assert body["server"]["worker_number"] == 3
    assert body["processing"]["device"] == "cpu"
    assert body["processing"]["device_index"] == "0"
    assert body["server"]["state"] == "ready"
    assert body["resources"]["uploads_disk_free_bytes"] > 0
    assert body["resources"]["memory_bytes"] is None or body["resources"]["memory_bytes"] > 1_000_000


@on_a_loop
async def test_the_server_is_ready_once_its_models_are(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.preload_gate.clear()
    executor.warm_up_gate.clear()
    async with inside(tmp_path, executor) as app, app.client() as client:
        body = problem(await client.get("/readyz"), 503, "starting")
        assert body["detail"]
        assert (await client.get("/livez")).status_code == 200
        executor.preload_gate.set()
        await app.until(lambda: app.service.health().ready)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        assert "speakers" in answer.json()["loading"]
        assert (await client.get("/status")).json()["server"]["loading"] == answer.json()["loading"]
        executor.warm_up_gate.set()
        await app.until(lambda: not app.service.health().loading)
        for path in ("/readyz", "/health"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
