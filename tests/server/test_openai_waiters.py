"""Requests that wait for jobs under ``/v1``: who joins which, and what becomes of a job that nobody waits for."""

from __future__ import annotations

import asyncio
import functools
import json
from pathlib import Path

from server.inside import inside, on_a_loop
from server.openai_inside import all_canceled, error, headers, running, sent, states, upload
from whisper_api.testing import FakeExecutor

FOREVER = 3600.0


@on_a_loop
async def test_a_client_that_goes_away_cancels_its_job(tmp_path: Path) -> None:
    for stream in ("false", "true"):
        async with inside(tmp_path / stream, FakeExecutor(held=True)) as app:
            app.state.waiters.grace_seconds = 0.01
            request = upload(stream=stream)
            async with sent(app, request):
                await running(app)
                assert states(app) == ["Processing"]
            await app.until(functools.partial(all_canceled, app))


@on_a_loop
async def test_within_the_grace_the_same_upload_joins_the_job(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = FOREVER
        async with sent(app, upload(language="en")):
            await running(app)
        again = upload(language="en")
        async with sent(app, again) as [answered]:
            await app.until(lambda: app.state.waiters.requests)
            app.executor.release()
            await answered
        assert again.status == 200
        assert headers(again)["x-job-id"] == app.executor.started[0]
        assert states(app) == ["Completed"]


@on_a_loop
async def test_a_retrying_client_needs_no_place_of_its_own(tmp_path: Path) -> None:
    async with inside(
        tmp_path, FakeExecutor(held=True), max_queued_jobs=1, max_jobs_per_key=1, enable_authorization=True
    ) as app:
        app.state.waiters.grace_seconds = FOREVER
        ann, bob = ({"authorization": f"Bearer {app.token(name)}"} for name in ("ann", "bob"))
        async with sent(app, upload(headers=bob)):
            await running(app)
            async with sent(app, upload(headers=ann)) as _:
                await app.until(lambda: len(states(app)) == 2)
            again, other = upload(headers=ann), upload(headers=bob, prompt="other")
            await other.to(app.app)
            assert other.status in (429, 503)
            async with sent(app, again) as [answered]:
                await app.until(lambda: app.state.waiters.requests.total() == 2)
                app.executor.release()
                await answered
        assert again.status == 200
        assert len(states(app)) == 2


@on_a_loop
async def test_a_job_goes_on_while_another_request_waits_for_it(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = 0.0
        stays, leaves = upload(), upload()
        async with sent(app, stays) as [answered]:
            async with sent(app, leaves):
                await app.until(lambda: app.state.waiters.requests.total() == 2)
            # Another job was canceled meanwhile, so there was time to cancel this one.
            async with sent(app, upload(prompt="another")):
                await app.until(lambda: len(states(app)) == 2)
            await app.until(lambda: states(app) == ["Processing", "Canceled"])
            app.executor.release()
            await answered
        assert stays.status == 200
        assert json.loads(stays.answer)["usage"] == {"type": "duration", "seconds": 10}


@on_a_loop
async def test_uploads_with_other_fields_or_another_route_are_not_joined(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        requests = [
            upload(),
            upload(),
            upload(temperature="0.2"),
            upload(response_format="text"),
            upload(path="/v1/audio/translations"),
        ]
        async with sent(app, *requests) as answered:
            await app.until(lambda: app.state.waiters.requests.total() == len(requests))
            assert len(states(app)) == 4
            app.executor.release()
            await asyncio.gather(*answered)
        assert [request.status for request in requests] == [200] * 5


@on_a_loop
async def test_a_job_of_another_owner_is_not_joined(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), enable_authorization=True) as app:
        requests = [upload(headers={"authorization": f"Bearer {app.token(name)}"}) for name in ("ann", "bob")]
        async with sent(app, *requests) as answered:
            await app.until(lambda: app.state.waiters.requests.total() == 2)
            assert len(states(app)) == 2
            app.executor.release()
            await asyncio.gather(*answered)


@on_a_loop
async def test_no_job_is_canceled_while_its_owner_uploads(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), enable_authorization=True) as app:
        app.state.waiters.grace_seconds = 0.0
        ann, bob = ({"authorization": f"Bearer {app.token(name)}"} for name in ("ann", "bob"))
        # The upload under way may be the same again, and may take longer than the grace.
        async with sent(app, upload(whole=False, headers=ann)):
            await app.until(lambda: app.state.waiters.uploads)
            async with sent(app, upload(headers=ann), upload(headers=bob)):
                await app.until(lambda: app.state.waiters.requests.total() == 2)
            await app.until(lambda: "Canceled" in states(app))
            assert sorted(states(app)) in (["Canceled", "Processing"], ["Canceled", "Queued"])
        await app.until(lambda: states(app) == ["Canceled", "Canceled"])


@on_a_loop
async def test_a_job_that_has_ended_keeps_its_result_for_the_client_that_comes_again(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = FOREVER
        async with sent(app, upload()):
            await running(app)
        app.executor.release()
        await app.until(lambda: states(app) == ["Completed"])
        again = upload()
        await again.to(app.app)
        assert again.status == 200
        assert headers(again)["x-job-id"] == app.executor.started[0]
        # The result was delivered, so the next request makes a new job.
        once_more = upload()
        await once_more.to(app.app)
        assert states(app) == ["Completed", "Completed"]


@on_a_loop
async def test_a_key_for_coming_back_keeps_the_job(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = 0.0
        async with sent(app, upload(headers={"idempotency-key": "1"})):
            await running(app)
        async with sent(app, upload(prompt="another")):
            await app.until(lambda: len(states(app)) == 2)
        await app.until(lambda: states(app) == ["Processing", "Canceled"])
        app.executor.release()
        again = upload(headers={"idempotency-key": "1"})
        await again.to(app.app)
        assert again.status == 200
        other = upload(headers={"idempotency-key": "1"}, prompt="other")
        await other.to(app.app)
        assert (other.status, error(other)["code"]) == (422, "idempotency_conflict")
        assert headers(other)["x-should-retry"] == "false"


@on_a_loop
async def test_a_server_that_stops_keeps_the_jobs_and_asks_to_try_again(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = 0.0
        runs, waits, stream = upload(), upload(prompt="next"), upload(stream="true")
        async with sent(app, runs, waits, stream) as answered:
            await app.until(lambda: app.state.waiters.requests.total() == 3)
            app.state.draining.set()
            await app.state.waiters.close()
            app.service.drain()
            await app.until(lambda: len(waits.sent) + len(runs.sent) > 0)
            app.state.stopped.set()
            await asyncio.gather(*answered)
        for request in (runs, waits):
            assert (request.status, error(request)["type"]) == (503, "server_error")
            assert headers(request)["x-should-retry"] == "true"
            assert int(headers(request)["retry-after"]) <= 60
        assert b'"code":"draining"' in stream.answer
        assert "Canceled" not in states(app)
