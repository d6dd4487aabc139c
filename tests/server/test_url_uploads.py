"""``url=`` in place of a file: on every address that takes files, where the configuration allows it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.file_server import FileServer, Handler, file_server
from server.inside import AUDIO, Inside, inside, lines_of, on_a_loop, problem
from whisper_api.server.state import FETCHES, FETCHES_PER_CALLER
from whisper_api.server.uploads import fetching as fetch_module
from whisper_api.server.uploads.fetching import Fetch
from whisper_api.server.uploads.incoming import MAX_FILES
from whisper_api.testing import FakeExecutor

PATHS = ("/transcribe", "/transcription", "/transcriptions", "/detect-language")


@pytest.fixture(scope="module")
def files() -> Iterator[FileServer]:
    with file_server() as server:
        server.answers |= {
            "/a.wav": AUDIO,
            "/b.wav": AUDIO + b"\x7f",
            "/notes.txt": b"Dear all,\n",
            "/big": bytes(5000),
        }
        yield server


@contextlib.asynccontextmanager
async def fetching(
    directory: Path, files: FileServer, executor: FakeExecutor | None = None, **settings: Any
) -> AsyncIterator[tuple[Inside, httpx.AsyncClient]]:
    given: dict[str, Any] = {"enable_url_uploads": True, "url_private_hosts": f" x:1, {files.host} ", **settings}
    async with inside(directory, executor, **given) as app, app.client() as client:
        yield app, client


def nothing_left(directory: Path, app: Inside) -> bool:
    uploads = directory / "uploads"
    return app.service.counts() == (0, 0) and not (uploads.exists() and list(uploads.iterdir()))


# --- what works ---


@on_a_loop
async def test_a_fetched_file_becomes_a_job(tmp_path: Path, files: FileServer) -> None:
    async with fetching(tmp_path, files) as (app, client):
        fields = {"url": files.url("/a.wav?token=secret"), "language": "en", "metadata": '{"a": 1}'}
        answer = await client.post("/transcribe", data=fields)
        assert answer.status_code == 202, answer.text
        status = await app.finish(client, answer.json()["job_id"])
        assert (status["status"], status["file_name"], status["metadata"]) == ("Completed", "a.wav", {"a": 1})
        assert status["warnings"] == []
        text = (await client.get(f"{answer.json()['status_url']}/result")).json()["text"]
        assert text.rstrip("\n").encode().startswith(b"RIFF")
        await app.until(lambda: nothing_left(tmp_path, app))


@on_a_loop
async def test_a_form_with_parts_may_name_an_address_too(tmp_path: Path, files: FileServer) -> None:
    async with fetching(tmp_path, files) as (_, client):
        url = files.url("/a.wav")
        for parts in (
            {"url": (None, url)},
            {"url": (None, f" {url} "), "language": (None, "en")},
            {"file_url": (None, url)},
        ):
            answer = await client.post("/transcribe", files=parts)
            assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("path", PATHS)
@on_a_loop
async def test_file_url_is_another_name_of_url(tmp_path: Path, files: FileServer, path: str) -> None:
    async with fetching(tmp_path, files) as (_, client):
        sent: Any
        url = files.url("/a.wav")
        for sent in ({"data": {"file_url": url}}, {"files": {"file_url": (None, url)}}):
            answer = await client.post(path, **sent)
            assert answer.status_code < 300, answer.text
            assert "file_url" not in answer.text
        if path != "/transcriptions":
            both = [("url", (None, url)), ("file_url", (None, url))]
            assert "expected one" in problem(await client.post(path, files=both), 400, "invalid_field")["detail"]
    async with fetching(tmp_path / "off", files, enable_url_uploads=False) as (_, client):
        problem(await client.post(path, data={"file_url": url}), 400, "url_not_enabled")


@on_a_loop
async def test_the_result_comes_at_once_with_sync(tmp_path: Path, files: FileServer) -> None:
    async with fetching(tmp_path, files) as (_, client):
        answer = await client.post("/transcribe", data={"url": files.url("/a.wav"), "sync": "true"})
        assert answer.status_code == 200
        assert "text" in answer.json()


@on_a_loop
async def test_several_addresses_and_files_keep_their_order(tmp_path: Path, files: FileServer) -> None:
    async with fetching(tmp_path, files) as (app, client):
        parts: list[Any] = [
            ("url", (None, files.url("/notes.txt"))),
            ("file", ("here.wav", AUDIO)),
            ("url", (None, files.url("/nothing"))),
            ("url", (None, "http://169.254.169.254/latest/meta-data/x")),
            ("url", (None, files.url("/b.wav"))),
        ]
        answer = await client.post("/transcriptions", files=parts)
        assert answer.status_code == 202, answer.text
        jobs = answer.json()["jobs"]
        assert [(job["file_name"], job.get("error", {}).get("code")) for job in jobs] == [
            ("notes.txt", "invalid_audio"),
            ("here.wav", None),
            ("nothing", "url_unreachable"),
            ("x", "url_unreachable"),
            ("b.wav", None),
        ]
        for job in jobs:
            if "job_id" in job:
                assert (await app.finish(client, job["job_id"]))["status"] == "Completed"
        await app.until(lambda: nothing_left(tmp_path, app))


@on_a_loop
async def test_several_addresses_need_no_parts(tmp_path: Path, files: FileServer) -> None:
    async with fetching(tmp_path, files) as (_, client):
        urls = [files.url("/a.wav"), files.url("/b.wav")]
        answer = await client.post("/transcriptions", data={"url": urls, "language": "en"})
        assert [job["file_name"] for job in answer.json()["jobs"]] == ["a.wav", "b.wav"]


@on_a_loop
async def test_a_request_may_name_as_many_urls_as_files(tmp_path: Path, files: FileServer) -> None:
    async with fetching(tmp_path, files, FakeExecutor(held=True)) as (app, client):
        fields = {"url": [files.url("/a.wav")] * MAX_FILES, "language": "en"}
        answer = await client.post("/transcriptions", data=fields)
        assert answer.status_code == 202, answer.text
        assert ["job_id" in job for job in answer.json()["jobs"]] == [True] * MAX_FILES
        for parts in ({"data": {"url": ["x"] * (MAX_FILES + 1)}}, {"files": [("url", (None, "x"))] * (MAX_FILES + 1)}):
            sent: dict[str, Any] = parts
            body = problem(await client.post("/transcriptions", **sent), 400, "invalid_form")
            assert f"more than {MAX_FILES} files" in body["detail"]
        assert sum(app.service.counts()) == MAX_FILES


# --- what is refused ---


@pytest.mark.parametrize("path", PATHS)
@on_a_loop
async def test_fetching_urls_is_off_by_default(tmp_path: Path, files: FileServer, path: str) -> None:
    async with fetching(tmp_path, files, enable_url_uploads=False) as (app, client):
        count = len(files.asked)
        sent: Any
        for sent in ({"data": {"url": files.url("/a.wav")}}, {"files": {"url": (None, files.url("/a.wav"))}}):
            body = problem(await client.post(path, **sent), 400, "url_not_enabled")
            assert "ENABLE_URL_UPLOADS" in body["detail"]
        assert len(files.asked) == count
        assert nothing_left(tmp_path, app)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "2130706433", "0x7f.1"])
@on_a_loop
async def test_this_network_is_not_fetched_from(
    tmp_path: Path, files: FileServer, monkeypatch: pytest.MonkeyPatch, path: str, host: str
) -> None:
    monkeypatch.setattr(fetch_module, "LOOKUP_SECONDS", 0.1)
    async with fetching(tmp_path, files, url_private_hosts="") as (app, client):
        count = len(files.asked)
        answer = await client.post(path, data={"url": f"http://{host}:{files.port}/a.wav"})
        if path == "/transcriptions":
            body = problem(answer, 400, "no_file_accepted")
            assert [job["error"]["code"] for job in body["jobs"]] == ["url_unreachable"]
        else:
            problem(answer, 422, "url_unreachable")
        assert len(files.asked) == count
        assert nothing_left(tmp_path, app)


@on_a_loop
async def test_a_name_of_this_network_is_not_fetched_from(
    tmp_path: Path, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []

    def getaddrinfo(host: str, port: int, *more: Any, **named: Any) -> list[Any]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("8.8.8.8", "127.0.0.1")]

    # The refusal comes after this time.
    monkeypatch.setattr(fetch_module, "LOOKUP_SECONDS", 0.2)
    async with fetching(tmp_path, files, url_private_hosts="") as (_, client):
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        url = f"http://files.example:{files.port}/a.wav"
        problem(await client.post("/transcribe", data={"url": url}), 422, "url_unreachable")
        assert looked_up == ["files.example"]


@on_a_loop
async def test_errors_of_fetches_are_named(tmp_path: Path, files: FileServer) -> None:
    async with fetching(tmp_path, files, max_file_size=1000) as (app, client):

        async def post(**fields: Any) -> httpx.Response:
            return await client.post("/transcribe", data=fields)

        problem(await post(url=files.url("/big")), 413, "url_too_large")
        problem(await post(url=files.url("/nothing")), 422, "url_unreachable")
        assert problem(await post(url=files.url("/notes.txt")), 415, "invalid_audio")["detail"].startswith("notes.txt")
        problem(await post(url="ftp://example.com/a"), 400, "url_refused")
        for urls in ([files.url("/a.wav")] * 2, [files.url("/a.wav"), "x"]):
            assert "/transcriptions" in problem(await post(url=urls), 400, "invalid_field")["detail"]
        both: Any = {"url": (None, files.url("/a.wav")), "file": ("a.wav", AUDIO)}
        assert "not both" in problem(await client.post("/transcribe", files=both), 400, "invalid_field")["detail"]
        problem(await post(url=""), 400, "not_multipart")
        problem(await post(language="en"), 400, "not_multipart")
        assert nothing_left(tmp_path, app)


@on_a_loop
async def test_fields_are_looked_at_before_anything_is_fetched(tmp_path: Path, files: FileServer) -> None:
    async with fetching(tmp_path, files) as (_, client):
        count = len(files.asked)
        fields = {"url": files.url("/a.wav"), "beam_size": "0"}
        problem(await client.post("/transcribe", data=fields), 400, "invalid_field")
        problem(await client.post("/transcriptions", data=fields), 400, "invalid_field")
        assert len(files.asked) == count


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"url=%ff%fe", 400, "invalid_form"),
        (b"\xff\xfe", 400, "invalid_form"),
        (b"&".join([b"a=b"] * 101), 400, "invalid_form"),
        (b"url=" + b"a" * (17 << 20), 413, "form_too_large"),
        (b"", 400, "not_multipart"),
        (b"file=x", 400, "not_multipart"),
    ],
    ids=["not UTF-8", "not text", "too many", "too much", "empty", "no url"],
)
@pytest.mark.parametrize("path", ["/transcribe", "/transcriptions"])
@on_a_loop
async def test_forms_without_parts_are_bounded(
    tmp_path: Path, files: FileServer, path: str, body: bytes, status: int, code: str
) -> None:
    async with fetching(tmp_path, files) as (app, client):
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        problem(await client.post(path, content=body, headers=headers), status, code)
        assert nothing_left(tmp_path, app)


@on_a_loop
async def test_a_fetch_takes_no_longer_than_configured(tmp_path: Path, files: FileServer) -> None:
    def silent(handler: Handler) -> None:
        files.over.wait(30)

    files.answers["/silent"] = silent
    async with fetching(tmp_path, files, url_fetch_timeout_seconds=0.2) as (app, client):
        body = problem(await client.post("/transcribe", data={"url": files.url("/silent")}), 422, "url_unreachable")
        assert "0.2 seconds" in body["detail"]
        assert nothing_left(tmp_path, app)


@on_a_loop
async def test_a_name_that_is_looked_up_for_ever_does_not_hold_the_answer(
    tmp_path: Path, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asyncio.Event()
    loop = asyncio.get_running_loop()

    def getaddrinfo(*given: Any, **named: Any) -> list[Any]:
        asyncio.run_coroutine_threadsafe(answers.wait(), loop).result(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", files.port))]

    async with fetching(tmp_path, files, url_fetch_timeout_seconds=0.1) as (app, client):
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        count = len(files.asked)
        url = files.url("/a.wav", "slow.example")
        problem(await client.post("/transcribe", data={"url": url}), 422, "url_unreachable")
        assert nothing_left(tmp_path, app)
        # The result that comes later is dropped.
        answers.set()
        await asyncio.to_thread(app.state.fetches.shutdown)
        assert len(files.asked) == count
        assert nothing_left(tmp_path, app)


@on_a_loop
async def test_a_fetch_that_waits_for_other_fetches_is_not_called_unreachable(
    tmp_path: Path, files: FileServer
) -> None:
    over = threading.Event()
    async with fetching(tmp_path, files, url_fetch_timeout_seconds=0.2) as (app, client):
        for _ in range(FETCHES):
            app.state.fetches.submit(over.wait)
        try:
            answer = await client.post("/transcribe", data={"url": files.url("/a.wav")})
        finally:
            over.set()
        problem(answer, 503, "queue_full")
        assert int(answer.headers["Retry-After"]) > 0
        assert nothing_left(tmp_path, app)


@on_a_loop
async def test_slow_origins_of_a_caller_leave_room_for_others(tmp_path: Path, files: FileServer) -> None:
    """A caller cannot use all fetch threads."""
    asked = threading.Semaphore(0)

    def silent(handler: Handler) -> None:
        asked.release()
        files.over.wait(30)

    files.answers["/hold"] = silent
    async with fetching(tmp_path, files, enable_authorization=True) as (app, _):
        async with app.client(app.token("one")) as one, app.client(app.token("two")) as two:
            hold = {"url": files.url("/hold")}
            held = [asyncio.create_task(one.post("/transcribe", data=hold)) for _ in range(FETCHES)]
            try:
                for _ in range(FETCHES_PER_CALLER):
                    await asyncio.to_thread(asked.acquire, timeout=60)
                answer = await two.post("/transcribe", data={"url": files.url("/a.wav")})
                assert answer.status_code == 202, answer.text
                assert not asked.acquire(blocking=False)
            finally:
                app.state.draining.set()
                await asyncio.gather(*held)
        assert len(app.state.caller_fetches) == 0


@on_a_loop
async def test_a_slow_disk_does_not_delay_other_requests_when_a_fetch_is_aborted(
    tmp_path: Path, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, ending, written = threading.Event(), threading.Event(), threading.Event()
    told: list[bool] = []
    abort, fsync = Fetch.abort, os.fsync

    def slow(descriptor: int) -> None:
        writing.set()
        told.append(written.wait(60))
        fsync(descriptor)

    def end(fetch: Fetch) -> None:
        ending.set()
        abort(fetch)

    async with fetching(tmp_path, files) as (app, client):
        monkeypatch.setattr(Fetch, "abort", end)
        monkeypatch.setattr(os, "fsync", slow)
        sending = asyncio.create_task(client.post("/transcribe", data={"url": files.url("/a.wav")}))
        await app.until(writing.is_set)
        app.state.draining.set()
        await app.until(ending.is_set)
        # Nothing gets here while the loop waits for the disk.
        written.set()
        problem(await sending, 503, "draining")
        assert told[0]
        assert nothing_left(tmp_path, app)


@on_a_loop
async def test_a_server_that_stops_waits_for_no_other(tmp_path: Path, files: FileServer) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def silent(handler: Handler) -> None:
        loop.call_soon_threadsafe(asked.set)
        files.over.wait(30)

    files.answers["/stopping"] = silent
    async with fetching(tmp_path, files, url_fetch_timeout_seconds=600) as (app, client):
        sending = asyncio.create_task(client.post("/transcribe", data={"url": files.url("/stopping")}))
        await asked.wait()
        app.state.draining.set()
        problem(await sending, 503, "draining")
        assert nothing_left(tmp_path, app)


# --- again ---


@pytest.mark.parametrize("path", ["/transcribe", "/transcriptions"])
@on_a_loop
async def test_a_known_idempotency_key_is_answered_without_a_fetch(
    tmp_path: Path, files: FileServer, path: str
) -> None:
    async with fetching(tmp_path, files) as (_, client):
        headers = {"Idempotency-Key": "once"}
        fields = {"url": files.url("/a.wav?once")}
        count = len(files.asked)
        answers = [await client.post(path, data=fields, headers=headers) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.text for answer in answers}) == 1
        assert len(files.asked) == count + 1
        for other in ({"url": files.url("/b.wav")}, {**fields, "language": "de"}):
            problem(await client.post(path, data=other, headers=headers), 422, "idempotency_conflict")
        assert len(files.asked) == count + 1


# --- the log ---


@on_a_loop
async def test_no_address_gets_into_the_log(
    tmp_path: Path, files: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with fetching(tmp_path, files) as (_, client):
        for path in ("/a.wav", "/nothing"):
            await client.post("/transcribe", data={"url": files.url(f"{path}?token=private-token")})
    assert len(lines_of(caplog)) == 2
    said = " ".join(f"{vars(record)} {record.getMessage()}" for record in caplog.records if record.name != "httpx")
    assert "private-token" not in said
    assert "a.wav" not in said
