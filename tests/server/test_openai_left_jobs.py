"""Jobs under ``/v1`` that all clients have left: until when one that comes again finds them, over restarts too."""

from __future__ import annotations

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import holding

from server.file_server import file_server
from server.inside import AUDIO, RawRequest, inside, on_a_loop
from server.openai_inside import PATH, all_canceled, error, headers, running, sent, states, upload
from whisper_api.server.realtime import waiters, waiting
from whisper_api.testing import FakeExecutor

FOREVER = 3600.0


@on_a_loop
async def test_an_upload_that_begins_later_does_not_keep_an_abandoned_job(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = 0.0
        first, later = upload(whole=False), upload(whole=False)
        async with sent(app, first):
            await app.until(lambda: app.state.waiters.uploads)
            async with sent(app, upload()):
                await running(app)
            await app.until(lambda: app.state.waiters.given_up)
            answering = asyncio.create_task(later.to(app.app))
            await app.until(lambda: len(app.state.waiters.uploads[""]) == 2)
            assert states(app) == ["Processing"]
        # The later upload is still under way.
        await app.until(functools.partial(all_canceled, app))
        assert len(app.state.waiters.uploads[""]) == 1
        later.gone.set()
        await answering
        assert not app.state.waiters.uploads
        await app.until(lambda: not app.state.waiters.given_up)


@on_a_loop
async def test_an_upload_under_way_joins_an_abandoned_job(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = 0.0
        with app.state.waiters.uploading("") as given_up:
            assert given_up == frozenset()
            async with sent(app, upload()):
                await running(app)
            await app.until(lambda: app.state.waiters.given_up)
            joined = app.state.waiters.waiting(app.executor.started[0], "")
            joined.__enter__()
        await app.until(lambda: not app.state.waiters.given_up)
        async with sent(app, upload(prompt="another")):
            await app.until(lambda: len(states(app)) == 2)
        await app.until(lambda: states(app) == ["Processing", "Canceled"])
        joined.__exit__(None, None, None)


@on_a_loop
async def test_no_upload_joins_a_job_that_is_being_canceled(tmp_path: Path) -> None:
    go_on = threading.Event()
    async with inside(tmp_path, FakeExecutor(behave=holding(go_on))) as app:
        app.state.waiters.grace_seconds = 0.0
        async with sent(app, upload()):
            await running(app)
        # The job has not stopped yet.
        await app.until(lambda: app.state.waiters.canceling)
        again = upload()
        async with sent(app, again) as [answered]:
            await app.until(lambda: len(states(app)) == 2)
            go_on.set()
            await answered
        assert again.status == 200
        assert states(app) == ["Canceled", "Completed"]


@on_a_loop
async def test_after_a_restart_a_job_whose_client_does_not_come_is_canceled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, sent(app, upload(prompt="1"), upload(prompt="2")):
        await app.until(lambda: app.state.waiters.requests.total() == 2)
    monkeypatch.setattr(waiters, "RESTART_GRACE_SECONDS", FOREVER)
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        assert app.state.waiters.abandoned("") == 2
        again = upload(prompt="1")
        async with sent(app, again) as [answered]:
            await app.until(lambda: app.state.waiters.requests)
            assert app.state.waiters.abandoned("") == 1
            await running(app)
            app.executor.release()
            await answered
        assert again.status == 200
        assert headers(again)["x-job-id"] in app.executor.started
        await app.until(lambda: states(app) == ["Completed"] * 2)


@on_a_loop
async def test_after_a_restart_no_other_job_is_canceled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, sent(app, upload(headers={"idempotency-key": "1"})):
        await running(app)
        async with app.client() as client:
            await app.submit(client)
        async with sent(app, upload()):
            await app.until(lambda: app.state.waiters.requests.total() == 2)
    monkeypatch.setattr(waiters, "RESTART_GRACE_SECONDS", 0.0)
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        await app.until(lambda: states(app) == ["Processing", "Queued", "Canceled"])


@on_a_loop
async def test_a_job_with_a_key_is_not_the_one_of_clients_without(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = 0.0
        keyed = {"idempotency-key": "1"}
        async with sent(app, upload()):
            await running(app)
            async with sent(app, upload(headers=keyed)):
                await app.until(lambda: app.state.waiters.requests.total() == 2)
            other = upload(headers=keyed, prompt="other")
            await other.to(app.app)
            assert (other.status, error(other)["code"]) == (422, "idempotency_conflict")
        await app.until(lambda: states(app) == ["Canceled", "Processing"])
        async with sent(app, upload()):
            await app.until(lambda: len(states(app)) == 3)
        await app.until(lambda: states(app) == ["Canceled", "Processing", "Canceled"])


@pytest.mark.parametrize("bound", [{"max_queued_jobs": 2}, {"max_jobs_per_key": 2, "enable_authorization": True}])
@on_a_loop
async def test_clients_that_always_leave_do_not_exceed_every_bound(tmp_path: Path, bound: dict[str, Any]) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), **bound) as app:
        app.state.waiters.grace_seconds = FOREVER
        ann = {"authorization": f"Bearer {app.token('ann')}"}

        async def refused(request: RawRequest) -> bool:
            async with sent(app, request):
                await app.until(lambda: app.state.waiters.requests or request.sent)
            return bool(request.sent)

        requests = [upload(headers=ann, prompt=str(number)) for number in range(6)]
        answers = [await refused(request) for request in requests]
        assert answers == sorted(answers)
        assert (requests[-1].status, error(requests[-1])["code"]) in ((503, "queue_full"), (429, "caller_limit"))


@on_a_loop
async def test_jobs_whose_key_is_revoked_are_canceled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds between two checks of the key.
    monkeypatch.setattr(waiting, "READ_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(waiting.watch_events, "__kwdefaults__", {"after": 0, "heartbeat": 0.01})
    async with inside(tmp_path, FakeExecutor(held=True), enable_authorization=True) as app:
        app.state.waiters.grace_seconds = 0.0
        ann = {"authorization": f"Bearer {app.token('ann')}"}
        whole, stream = upload(headers=ann), upload(headers=ann, stream="true")
        async with sent(app, whole, stream) as answered:
            await app.until(lambda: app.state.waiters.requests.total() == 2)
            await asyncio.to_thread(app.state.keys.revoke, "ann")
            await asyncio.gather(*answered)
        assert (whole.status, error(whole)["code"]) == (401, "invalid_api_key")
        assert b'"code":"invalid_api_key"' in stream.answer
        await app.until(functools.partial(all_canceled, app))


@on_a_loop
async def test_joining_a_job_does_not_fetch_its_url_again(tmp_path: Path) -> None:
    with file_server() as files:
        files.answers["/a.wav"] = AUDIO
        allowed: dict[str, Any] = {"enable_url_uploads": True, "url_private_hosts": files.host}
        async with inside(tmp_path, FakeExecutor(held=True), **allowed) as app:
            app.state.waiters.grace_seconds = FOREVER
            async with sent(app, named(files.url("/a.wav"))):
                await running(app)
            # The URL works only once.
            del files.answers["/a.wav"]
            again = named(files.url("/a.wav"))
            async with sent(app, again) as [answered]:
                await app.until(lambda: app.state.waiters.requests or again.sent)
                app.executor.release()
                await answered
            assert again.status == 200, again.answer
            assert headers(again)["x-job-id"] == app.executor.started[0]
            assert len(files.asked) == 1


def named(url: str) -> RawRequest:
    """A request with a URL in place of a file."""
    request = httpx.Request("POST", "http://a", data={"url": url})
    body = request.read()
    given = {"content-type": request.headers["content-type"], "content-length": str(len(body))}
    return RawRequest("POST", PATH, given, (body,))
