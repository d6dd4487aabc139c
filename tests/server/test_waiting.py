"""Requests that wait for a job: long polls, synchronous requests, and both when the server stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fakes import watched_jobs

from server.inside import AUDIO, Inside, RawRequest, inside, lines_of, on_a_loop, problem
from whisper_api import errors
from whisper_api.errors import InvalidAudio, ModelUnavailable, UnknownModel, WhisperApiError
from whisper_api.job_values import JobStatus
from whisper_api.server.state import thread_count
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

MESSAGE = "secret/path is broken"


# --- synchronous requests ---


@on_a_loop
async def test_sync_answers_with_the_result(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        answer = await app.post(client, sync="true", output_format="srt")
        assert answer.status_code == 200
        job_id = (await client.get("/transcriptions")).json()["jobs"][0]["job_id"]
        assert answer.json() == (await client.get(f"/transcription/{job_id}/result")).json()
        assert answer.json()["text"].startswith("1\n00:00:00,000 --> ")


@on_a_loop
async def test_sync_that_takes_too_long_is_answered_as_if_it_were_not(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), sync_timeout_seconds=0.2) as app, app.client() as client:
        answer = await app.post(client, sync="true")
        assert answer.status_code == 202
        job_id = answer.json()["job_id"]
        assert answer.headers["Location"] == answer.json()["status_url"] == f"/transcription/{job_id}"
        app.executor.release()
        assert (await app.finish(client, job_id))["status"] == "Completed"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidAudio("the file ends early"), 415, "invalid_audio"),
        (ModelUnavailable("no model"), 422, "model_unavailable"),
        (UnknownModel("no model"), 422, "model_unavailable"),
        (errors.OutOfMemory("too little memory"), 409, "job_failed"),
        (RuntimeError(MESSAGE), 409, "job_failed"),
    ],
)
@on_a_loop
async def test_a_synchronous_response_says_why_the_job_failed(
    tmp_path: Path, error: Exception, status: int, code: str
) -> None:
    def fail(executor: FakeExecutor, job: Job) -> None:
        raise error

    async with inside(tmp_path, FakeExecutor(behave=fail)) as app, app.client() as client:
        body = problem(await app.post(client, sync="true"), status, code)
        if isinstance(error, WhisperApiError):
            assert str(error) in body["detail"]


@on_a_loop
async def test_a_synchronous_response_says_that_the_job_was_canceled(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        waiting = asyncio.create_task(app.post(client, sync="true"))
        await app.until(lambda: app.executor.started)
        answer = await client.delete(f"/transcription/{app.executor.started[0]}?force=true")
        assert answer.json() == {"success": True, "message": "Job canceled successfully"}
        problem(await waiting, 409, "job_canceled")


# --- waiting ---


@on_a_loop
async def test_a_wait_ends_when_the_status_changes(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        first = await app.running(client)
        second = await app.submit(client)
        waits = [asyncio.create_task(client.get(f"/transcription/{each}?wait=5")) for each in (first, second)]
        await app.until(lambda: len(watched_jobs(app.service)) == 2)
        app.executor.release(first)
        answers = [(await wait).json() for wait in waits]
        assert [(each["job_id"], each["status"]) for each in answers] == [(first, "Completed"), (second, "Processing")]
        assert (await client.get(f"/transcription/{first}?wait=60")).json()["status"] == "Completed"
        await app.until(lambda: not watched_jobs(app.service))


@on_a_loop
async def test_progress_does_not_end_a_wait(tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    executor.beats = True
    async with inside(tmp_path, executor) as app, app.client() as client:
        job_id = await app.running(client)
        begun = time.monotonic()
        answer = await client.get(f"/transcription/{job_id}?wait=0.5")
        assert time.monotonic() - begun >= 0.5
        assert answer.json()["status"] == "Processing"


@on_a_loop
async def test_waiting_for_an_unknown_job_is_404(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        problem(await client.get(f"/transcription/{uuid.uuid4()}?wait=60"), 404, "job_not_found")


@on_a_loop
async def test_hundreds_wait_without_a_thread(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), http_workers=1) as app, app.client() as client:
        job_id = await app.running(client)
        before = threading.active_count()
        waits = [asyncio.create_task(client.get(f"/transcription/{job_id}?wait=60")) for _ in range(300)]
        await app.until(lambda: not any(wait.done() for wait in waits) and watched_jobs(app.service))
        assert (await client.get("/status")).json()["queue_state"]["processing_jobs"] == 1
        # The pool for the reads of the database starts its threads when they are needed.
        assert threading.active_count() <= before + thread_count(app.state.config.http_workers)
        app.executor.release()
        assert {(await wait).json()["status"] for wait in waits} == {"Completed"}


@on_a_loop
async def test_uploads_that_block_their_threads_do_not_delay_other_requests(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), http_workers=1, enable_authorization=True) as app:
        release = threading.Event()
        async with app.client(app.token("one")) as client:
            job_id = await app.running(client)
            blocked = app.state.uploads.submit(release.wait)
            upload = asyncio.create_task(app.post(client))
            try:
                for path in (f"/transcription/{job_id}", "/status", "/readyz", "/transcriptions"):
                    assert (await client.get(path)).status_code == 200
                assert (await client.delete(f"/transcription/{job_id}?force=true")).status_code == 200
                assert not upload.done()
            finally:
                release.set()
            assert (await upload).status_code == 202
            assert blocked.result()


@pytest.mark.parametrize("method", ["GET", "POST"])
@on_a_loop
async def test_a_client_that_leaves_while_waiting_is_forgotten_and_its_job_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    caplog.set_level(logging.INFO, "whisper_api")
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        if method == "GET":
            job_id = await app.running(client)
            request = RawRequest("GET", f"/transcription/{job_id}?wait=60")
        else:
            form = httpx.Request("POST", "http://x", data={"sync": "true"}, files={"file": AUDIO})
            headers = {"Content-Type": form.headers["Content-Type"]}
            request = RawRequest("POST", "/transcribe", {**headers, "Content-Length": "1"}, body=(form.read(),))
        task = asyncio.create_task(request.to(app.app))
        await app.until(lambda: watched_jobs(app.service))
        request.gone.set()
        await task
        assert request.sent == []
        assert [line["status"] for line in lines_of(caplog)][-1] == 499
        assert not watched_jobs(app.service)
        app.executor.release()
        await app.until(lambda: app.service.store.in_state("Completed"))
        (job,) = app.service.store.in_state("Completed")
        assert job.delivered_at is None


# --- stopping ---


@contextlib.asynccontextmanager
async def stopping(app: Inside) -> AsyncIterator[None]:
    """While open, the server drains and running jobs go on; at the end it stops them."""
    app.state.draining.set()
    await asyncio.to_thread(app.service.drain)
    yield
    await asyncio.to_thread(app.service.stop, 0.0)
    app.state.stopped.set()


@on_a_loop
async def test_waits_end_when_the_server_stops(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        job_id = await app.running(client)
        wait = asyncio.create_task(client.get(f"/transcription/{job_id}?wait=60"))
        await app.until(lambda: watched_jobs(app.service))
        async with stopping(app):
            assert (await wait).json()["status"] == "Processing"
            problem(await client.get("/readyz"), 503, "draining")
            begun = time.monotonic()
            assert (await client.get(f"/transcription/{job_id}?wait=60")).json()["status"] == "Processing"
            # A client that waits again and again gets no response without a pause.
            assert time.monotonic() - begun >= 0.5
        assert (await client.get(f"/transcription/{job_id}?wait=60")).json()["status"] == "Queued"


@on_a_loop
async def test_sync_gets_its_result_while_the_server_stops(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        wait = asyncio.create_task(app.post(client, sync="true"))
        await app.until(lambda: app.executor.started)
        async with stopping(app):
            app.executor.release()
            assert (await wait).status_code == 200


@on_a_loop
async def test_sync_of_a_job_that_began_before_the_server_stopped_gets_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        first = await app.running(client)
        look, looked, go_on = app.service.status, threading.Event(), threading.Event()

        def slowly(job_id: str, owner: str | None) -> JobStatus:
            status = look(job_id, owner)
            looked.set()
            go_on.wait()
            return status

        monkeypatch.setattr(app.service, "status", slowly)
        wait = asyncio.create_task(app.post(client, sync="true"))
        # That it is Queued is on its way to the one that waits,
        await app.until(looked.is_set)
        app.executor.release(first)
        # when it begins, and then the server to stop.
        await app.until(lambda: len(app.executor.started) == 2)
        async with stopping(app):
            go_on.set()
            await asyncio.sleep(0.05)
            app.executor.release()
            assert (await wait).status_code == 200


@pytest.mark.parametrize("running", [True, False])
@on_a_loop
async def test_a_synchronous_request_gets_the_url_of_its_job_when_the_server_stops(
    tmp_path: Path, running: bool
) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        if not running:
            await app.running(client)
        wait = asyncio.create_task(app.post(client, sync="true"))
        await app.until(lambda: sum(app.service.counts()) == (1 if running else 2) and watched_jobs(app.service))
        async with stopping(app):
            if not running:
                # It will not be begun any more, so there is nothing to wait for.
                await wait
        answer = await wait
        problem(answer, 503, "draining")
        assert int(answer.headers["Retry-After"]) >= 1
        status = (await client.get(answer.headers["Location"])).json()
        assert status["status"] == "Queued"


@on_a_loop
async def test_an_upload_under_way_is_refused_when_the_server_stops(tmp_path: Path) -> None:
    async with inside(tmp_path) as app:
        begin = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Transfer-Encoding": "chunked"}
        request = RawRequest("POST", "/transcribe", headers, body=(begin,), whole=False)
        task = asyncio.create_task(request.to(app.app))
        await app.until(lambda: list((tmp_path / "uploads").glob("*/*")))
        app.state.draining.set()
        await app.until(lambda: request.answer)
        assert request.status == 503
        assert json.loads(request.answer)["code"] == "draining"
        assert not list((tmp_path / "uploads").iterdir())
        request.gone.set()
        await task
