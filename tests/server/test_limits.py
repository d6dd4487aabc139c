"""Rate limits and quotas over HTTP: how many requests pass, and how responses tell it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import config_in

from server.inside import AUDIO, RawRequest, inside, on_a_loop, problem
from whisper_api import create_app
from whisper_api.access.request_limits import MovingWindows, RequestLimits
from whisper_api.client.responses import Response, outcome
from whisper_api.errors import ConfigError, QueueFull, QuotaExceeded, RateLimited
from whisper_api.server.responses.problems import problem_of
from whisper_api.testing import FakeExecutor

CLIENTS = 200
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
# An item of a list of structured fields (RFC 9651): a string with integers and strings as parameters.
ITEM = re.compile(r'"([a-z0-9-]+)"((?:;[a-z]+=(?:\d+|"[a-z-]+"))*)')


def fields(response: httpx.Response, name: str) -> dict[str, dict[str, Any]]:
    """A response field as its items and their parameters; empty when it is absent."""
    found = {}
    for item in response.headers.get(name, "").split(", "):
        if item:
            match = ITEM.fullmatch(item)
            assert match is not None, item
            pairs = [pair.split("=") for pair in match[2].split(";")[1:]]
            found[match[1]] = {key: value.strip('"') if '"' in value else int(value) for key, value in pairs}
    return found


@on_a_loop
async def test_of_two_hundred_clients_with_one_key_as_many_requests_pass_as_its_limit_says(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True, rate_limit="300/hour") as app:
        alice, bob = app.token("alice"), app.token("bob")

        async def client() -> list[int]:
            async with app.client(alice) as client:
                return [(await client.get("/transcriptions?limit=1")).status_code for _ in range(2)]

        statuses = Counter(
            status for each in await asyncio.gather(*(client() for _ in range(CLIENTS))) for status in each
        )
        assert statuses == {200: 300, 429: 2 * CLIENTS - 300}
        async with app.client(bob) as other:
            assert fields(await other.get("/status"), "RateLimit")["hour"]["r"] == 299


@on_a_loop
async def test_of_two_hundred_uploads_as_many_become_jobs_as_the_quota_says(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_jobs_per_key": 0, "max_uploads_per_key": 0, "max_uploads_per_address": 0}
    async with inside(tmp_path, enable_authorization=True, quota="100 jobs/day", **settings) as app:
        token = app.token("alice")

        async def upload() -> int:
            async with app.client(token) as client:
                return int((await app.post(client)).status_code)

        statuses = Counter(await asyncio.gather(*(upload() for _ in range(CLIENTS))))
        assert statuses == {202: 100, 429: 100}
        async with app.client(token) as client:
            assert len((await client.get("/transcriptions?limit=1000")).json()["jobs"]) == 100


@on_a_loop
async def test_responses_tell_the_limits_and_what_is_left_of_them(tmp_path: Path) -> None:
    async with (
        inside(
            tmp_path,
            FakeExecutor(held=True),
            enable_authorization=True,
            rate_limit="3/minute; 9/15 minutes",
            quota="2 jobs/day; 10 minutes/month",
        ) as app,
        app.client(app.token("alice")) as client,
    ):
        answer = await client.get("/status")
        assert fields(answer, "RateLimit-Policy") == {"minute": {"q": 3, "w": 60}, "15-minutes": {"q": 9, "w": 900}}
        left = fields(answer, "RateLimit")
        assert left == {"minute": {"r": 2, "t": 60}, "15-minutes": {"r": 8, "t": 900}}
        # Uploads tell the quotas too, in units of the audio's seconds.
        answer = await app.post(client)
        assert answer.status_code == 202
        policies = fields(answer, "RateLimit-Policy")
        assert policies["jobs-day"] == {"q": 2, "w": 86400, "qu": "jobs"}
        assert policies["audio-month"]["q"] == 600
        assert policies["audio-month"]["qu"] == "audio-seconds"
        assert policies["audio-month"]["w"] in [days * 86400 for days in (28, 29, 30, 31)]
        left = fields(answer, "RateLimit")
        assert (left["minute"]["r"], left["jobs-day"]["r"], left["audio-month"]["r"]) == (1, 1, 599)
        assert 0 < left["jobs-day"]["t"] <= 86400
        # A refused request uses nothing, and errors tell the limits too.
        assert (await client.get("/transcription/x")).status_code == 404
        for _ in range(3):
            answer = await client.get("/status")
            body = problem(answer, 429, "rate_limit_exceeded")
            assert (body["type"], body["title"]) == (QUOTA_EXCEEDED, "Quota Exceeded")
            assert body["violated-policies"] == ["minute"]
            left = fields(answer, "RateLimit")
            assert (left["minute"]["r"], left["15-minutes"]["r"]) == (0, 6)
            # The time after which a request passes, and never earlier.
            assert 0 <= int(answer.headers["Retry-After"]) - left["minute"]["t"] <= 1
        with pytest.raises(RateLimited, match="3 requests in 60 seconds"):
            outcome(Response(429, {"Retry-After": "301"}, answer.content), "")


@on_a_loop
async def test_a_used_up_quota_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True, quota="1 job/day") as app:
        token = app.token("alice")
        async with app.client(token) as client:
            await app.submit(client)
            body = problem(answer := await app.post(client), 429, "quota_exceeded")
            assert (body["type"], body["violated-policies"]) == (QUOTA_EXCEEDED, ["jobs-day"])
            assert fields(answer, "RateLimit")["jobs-day"]["r"] == 0
            assert 0 < int(answer.headers["Retry-After"]) <= 86400
            with pytest.raises(QuotaExceeded, match="all 1 jobs of this day are used"):
                outcome(Response(429, answer.headers, answer.content), "")
            several = await client.post("/transcriptions", files=[("file", ("a.wav", AUDIO))] * 2)
            problem(several, 429, "quota_exceeded")
        unread = RawRequest(
            "POST", "/transcribe", {"Authorization": f"Bearer {token}", "Content-Type": "audio/wav"}, whole=False
        )
        await unread.to(app.app)
        assert unread.status == 429


@on_a_loop
async def test_a_retry_with_its_idempotency_key_costs_nothing(tmp_path: Path) -> None:
    async with (
        inside(tmp_path, enable_authorization=True, quota="1 job/day") as app,
        app.client(app.token("alice")) as client,
    ):
        key = {"Idempotency-Key": "one"}
        first, second = await app.post(client, key), await app.post(client, key)
        assert first.json()["job_id"] == second.json()["job_id"]


@on_a_loop
async def test_openais_routes_have_openais_errors(tmp_path: Path) -> None:
    async with (
        inside(tmp_path, enable_authorization=True, rate_limit="3/minute", quota="1 job/day") as app,
        app.client(app.token("alice")) as client,
    ):

        async def transcribe() -> httpx.Response:
            files = {"file": ("a.wav", AUDIO)}
            return await client.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files=files)

        assert (await transcribe()).status_code == 200
        answer = await transcribe()
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (
            429,
            "insufficient_quota",
            "insufficient_quota",
        )
        assert answer.headers["x-should-retry"] == "false"
        assert (await client.get("/v1/models")).status_code == 200
        answer = await client.get("/v1/models")
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
        )
        assert answer.headers["x-should-retry"] == "true"
        assert fields(answer, "RateLimit")["minute"]["r"] == 0


@on_a_loop
async def test_streams_count_and_health_the_page_and_metrics_do_not(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True, rate_limit="3/minute") as app:
        async with app.client(app.token("alice")) as client:
            job_id = await app.submit(client)
            await app.until(lambda: app.service.status(job_id, None).status == "Completed")
            events = await client.get(f"/transcription/{job_id}/events")
            assert fields(events, "RateLimit")["minute"]["r"] == 1
            for path in ("/livez", "/readyz", "/health", "/", "/assets/app.js", "/docs", "/openapi.json"):
                answer = await client.get(path)
                assert answer.status_code == 200
                assert "RateLimit" not in answer.headers
            assert (await client.options("/status")).status_code == 204
            assert fields(await client.get("/status"), "RateLimit")["minute"]["r"] == 0
        async with app.client(app.token("prometheus", "metrics")) as client:
            assert [(await client.get("/metrics")).status_code for _ in range(5)] == [200] * 5


@on_a_loop
async def test_wrong_keys_are_counted_for_each_address(tmp_path: Path) -> None:
    async with inside(
        tmp_path, enable_authorization=True, auth_failure_limit="5/minute", trusted_proxies="127.0.0.1"
    ) as app:
        good, late = app.token("alice"), app.token("bob")

        async def status(token: str | None, address: str) -> int:
            async with app.client(token, **{"X-Forwarded-For": address}) as client:
                return (await client.get("/status")).status_code

        near, far = "203.0.113.5", "203.0.113.6"
        assert await status(good, near) == 200
        wrong = f"wk_{'0' * 8}_{'x' * 43}"
        assert [await status(wrong, near) for _ in range(7)] == [401] * 5 + [429] * 2
        # A request without a key is no attempt.
        assert await status(None, near) == 401
        # A key that was valid before still works from this address. Another key works from another address only.
        assert await status(good, near) == 200
        assert await status(late, near) == 429
        assert await status(late, far) == 200
        assert await status(wrong, far) == 401
        # Another address of the same IPv6 network is the same client.
        assert [await status(wrong, f"2001:db8::{number}") for number in range(1, 7)] == [401] * 5 + [429]


@on_a_loop
async def test_with_everything_off_no_window_and_no_field_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("a limit was looked at")

    for name in ("hit", "wait", "left"):
        monkeypatch.setattr(MovingWindows, name, fail)
    monkeypatch.setattr(RequestLimits, "count", fail)
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("alice")) as client:
        await app.submit(client)
        answer = await client.get("/status")
        assert answer.status_code == 200
        assert not {"ratelimit", "ratelimit-policy", "retry-after"} & set(answer.headers)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("rate_limit", "WHISPER_RATE_LIMIT"),
        ("quota", "WHISPER_QUOTA"),
        ("auth_failure_limit", "WHISPER_AUTH_FAILURE_LIMIT"),
    ],
)
def test_a_limit_that_cannot_be_read_is_an_error_at_the_start(tmp_path: Path, setting: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: 'many' is not"):
        create_app(config_in(tmp_path, **{setting: "many"}))


def test_a_full_server_is_a_temporary_reduced_capacity() -> None:
    full = problem_of(QueueFull("full", 30.0))
    assert full.kind is not None
    assert (full.status, full.kind.uri, full.policies) == (503, REDUCED_CAPACITY, ())


@on_a_loop
async def test_a_running_server_takes_new_limits_and_forgets_no_request(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rate_limit": "2/hour", "quota": "1 job/day"}
    async with (
        inside(tmp_path, enable_authorization=True, **settings) as app,
        app.client(app.token("alice")) as client,
    ):
        await app.submit(client)
        assert [(await client.get("/status")).status_code for _ in range(2)] == [200, 429]
        new = config_in(tmp_path, rate_limit="5/hour", quota="2 jobs/day")
        app.state.limits.configure(new)
        app.service.usage.configure(new)
        answer = await app.post(client)
        assert answer.status_code == 202
        left = fields(answer, "RateLimit")
        assert (left["hour"]["r"], left["jobs-day"]["r"]) == (2, 0)


@on_a_loop
async def test_a_keys_own_limit_wins(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True, rate_limit="3/minute") as app:

        async def statuses(name: str, rate: str | None) -> list[int]:
            token = app.token(name)
            with app.service.store.database.write() as connection:
                connection.execute("UPDATE keys SET rate = ? WHERE name = ?", (rate, name))
            async with app.client(token) as client:
                return [(await client.get("/status")).status_code for _ in range(5)]

        assert await statuses("free", "none") == [200] * 5
        assert await statuses("more", "4/minute") == [200] * 4 + [429]
        assert await statuses("less", "1/hour") == [200] + [429] * 4
        assert await statuses("plain", None) == [200] * 3 + [429] * 2
