"""Authorization: the callers that are let in, and the jobs that each may see."""

from __future__ import annotations

import uuid
from pathlib import Path

import httpx
import pytest
from fakes import config_in

from server.inside import ORIGIN, inside, on_a_loop
from whisper_api import create_app
from whisper_api.access.keys import KeyRing
from whisper_api.errors import ConfigError
from whisper_api.server.middleware.auth import OPEN_PATHS
from whisper_api.testing import FakeExecutor

SOMEWHERE = "https://somewhere.example"


def code_of(answer: httpx.Response) -> str:
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    return str(body["code"])


# --- keys ---


@on_a_loop
async def test_a_key_lets_in(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        token = app.token("one")
        for given in (f"Bearer {token}", f"bearer {token}", f"BEARER   {token} "):
            async with app.client(Authorization=given) as client:
                assert (await client.get("/status")).status_code == 200


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer  ", "Bearer wk_00000000_" + "A" * 43, "Bearer \u00e9", "Basic YTpi", "wk_1_2", "Token x y"],
)
@on_a_loop
async def test_any_other_authorization_header_is_refused(tmp_path: Path, given: str) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        app.token("one")
        answer = await client.get("/status", headers=httpx.Headers({"Authorization": given}, "latin-1"))
        assert (answer.status_code, code_of(answer)) == (401, "unauthorized")
        challenge = answer.headers["WWW-Authenticate"]
        assert challenge.startswith('Bearer realm="')
        has_token = given.lower().startswith("bearer ") and bool(given[7:].strip())
        assert ('error="invalid_token"' in challenge) is has_token


@on_a_loop
async def test_a_key_that_was_revoked_does_not(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("one")) as client:
        assert (await client.get("/status")).status_code == 200
        KeyRing(app.service.store).revoke("one")
        assert (await client.get("/status")).status_code == 401


@on_a_loop
async def test_unknown_routes_are_401_without_a_key(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        assert (await client.get("/nowhere")).status_code == 401
        assert (await client.put("/status")).status_code == 401


@on_a_loop
async def test_health_and_options_are_open(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        for path in OPEN_PATHS:
            assert (await client.get(path)).status_code != 401
        assert (await client.options("/transcription")).status_code == 204


@on_a_loop
async def test_users_see_their_own_jobs_and_admins_see_all(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        admin, one, two = app.token("root", "admin"), app.token("one"), app.token("two")
        async with app.client(admin) as root, app.client(one) as first, app.client(two) as second:
            job_id = await app.submit(first, keep_result="true")
            await app.finish(first, job_id)
            for path in (f"/transcription/{job_id}", f"/transcription/{job_id}/result"):
                assert (await first.get(path)).status_code == 200
                assert (await root.get(path)).status_code == 200
                theirs = await second.get(path)
                nobodys = await second.get(path.replace(job_id, unknown := str(uuid.uuid4())))
                assert theirs.status_code == 404
                body = {**theirs.json(), "request_id": ""}
                assert body == {
                    **nobodys.json(),
                    "request_id": "",
                    "detail": f"Job not found: {job_id}",
                    "error": f"Job not found: {job_id}",
                }
                assert unknown in nobodys.text
            assert (await second.delete(f"/transcription/{job_id}?force=true")).status_code == 404
            seen = [(await client.get("/transcriptions")).json()["jobs"] for client in (root, first, second)]
            assert [[job["job_id"] for job in jobs] for jobs in seen] == [[job_id], [job_id], []]


@on_a_loop
async def test_the_status_shows_a_user_only_its_own_numbers(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), enable_authorization=True) as app:
        tokens = app.token("root", "admin"), app.token("busy"), app.token("idle")
        async with app.client(tokens[0]) as root, app.client(tokens[1]) as busy, app.client(tokens[2]) as idle:
            before = (await idle.get("/status")).json()
            await app.running(busy)
            for _ in range(2):
                await app.submit(busy)
            told = [(await client.get("/status")).json() for client in (root, busy, idle)]
    queues = [tuple(status["queue_state"].values()) for status in told]
    assert [queue[:2] for queue in queues] == [(2, 1), (2, 1), (0, 0)]
    assert [queue[2] is None for queue in queues] == [False, False, True]
    assert [status["security"]["role"] for status in told] == ["admin", "user", "user"]
    # The status of a user does not depend on the jobs of others.
    for status in (before, told[2]):
        del status["server"]["uptime_seconds"]
    assert told[2] == before
    seen = ("memory_bytes", "uploads_disk_free_bytes", "data_disk_free_bytes")
    assert [[status["resources"][name] is None for name in seen] for status in told] == [
        [False] * 3,
        [True] * 3,
        [True] * 3,
    ]


@on_a_loop
async def test_the_status_needs_a_key_and_shows_all_numbers_when_authorization_is_off(tmp_path: Path) -> None:
    async with inside(tmp_path / "closed", enable_authorization=True) as app, app.client() as nobody:
        assert (await nobody.get("/status")).status_code == 401
    async with inside(tmp_path / "open", FakeExecutor(held=True)) as app, app.client() as anybody:
        await app.running(anybody)
        status = (await anybody.get("/status")).json()
        assert tuple(status["queue_state"].values()) == (0, 1, None)
        assert status["resources"]["data_disk_free_bytes"] > 0


# --- pages of other origins ---


@on_a_loop
async def test_with_keys_pages_of_any_origin_may_call(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        async with app.client(app.token("one"), Origin=SOMEWHERE) as client:
            answer = await client.get("/status", headers={"Host": "whisper.example"})
            assert answer.status_code == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
            assert "Access-Control-Allow-Methods" not in answer.headers
        async with app.client(Origin=SOMEWHERE) as nobody:
            refused = await nobody.get("/status")
            assert refused.status_code == 401
            assert refused.headers["Access-Control-Allow-Origin"] == "*"
            # OpenAI's client reads these headers before it retries, so they must be exposed.
            permanent = await nobody.get("/v1/models")
            exposed = permanent.headers["Access-Control-Expose-Headers"].lower().split(", ")
            assert {"retry-after", "warning", "x-should-retry"} <= set(exposed)
            assert permanent.headers["X-Should-Retry"] == "false"
            for path, methods in (("/transcribe", {"POST"}), ("/transcription/1", {"GET", "HEAD", "DELETE"})):
                answer = await nobody.options(path, headers={"Access-Control-Request-Method": "POST"})
                assert answer.headers["Access-Control-Allow-Origin"] == "*"
                allowed = set(answer.headers["Access-Control-Allow-Methods"].split(", "))
                assert allowed == methods | {"OPTIONS"}
                assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
                assert not answer.content


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8181"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "192.0.2.1"},
        {"Host": ""},
        {"Host": "["},
        {"Origin": SOMEWHERE},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "https://127.0.0.1:8181"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
@on_a_loop
async def test_requests_of_other_origins_are_refused_when_there_are_no_keys(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for answer in (
            await client.get("/status", headers=headers),
            await app.post(client, headers=headers),
            await client.delete(f"/transcription/{uuid.uuid4()}", headers=headers),
        ):
            assert (answer.status_code, code_of(answer)) == (403, "forbidden_origin")
            assert answer.headers.get("Access-Control-Allow-Origin") == ("*" if "Origin" in headers else None)
        assert (await client.get("/livez", headers=headers)).status_code == 200
        assert app.service.counts() == (0, 0)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": ORIGIN},
        {"Host": "localhost:8181", "Origin": "http://localhost:8181"},
        {"Host": "[::1]:8181", "Origin": "http://[::1]:8181"},
        {"Host": "LOCALHOST"},
        {"Host": "127.0.0.2"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
@on_a_loop
async def test_requests_of_this_machine_are_allowed_when_there_are_no_keys(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        assert (await client.get("/status", headers=headers)).status_code == 200


@on_a_loop
async def test_the_configured_host_counts_as_this_machine_when_there_are_no_keys(tmp_path: Path) -> None:
    async with inside(tmp_path, host="whisper.example") as app, app.client() as client:
        assert (await client.get("/status", headers={"Host": "Whisper.example:8181"})).status_code == 200
        assert (await client.get("/status", headers={"Host": "other.example"})).status_code == 403


@on_a_loop
async def test_an_insecure_server_has_any_name_and_is_not_for_pages_of_others(tmp_path: Path) -> None:
    async with inside(tmp_path, insecure=True, trusted_proxies="127.0.0.1") as app, app.client() as client:
        for headers in (
            {"Host": "box.example:8181"},
            {"Host": "box.example:8181", "Origin": "http://box.example:8181"},
            {"Host": "10.0.0.1", "Origin": "https://box.example", "Sec-Fetch-Site": "same-origin"},
            {"Origin": "https://box.example", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "box.example"},
        ):
            answer = await client.get("/status", headers=headers)
            assert answer.status_code == 200, headers
            assert "Access-Control-Allow-Origin" not in answer.headers
        assert (await client.get("/status", headers={"Origin": SOMEWHERE})).status_code == 403
        assert (await client.get("/status", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403


@on_a_loop
async def test_the_error_of_a_refused_origin_says_what_helps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preflight = {"Origin": SOMEWHERE, "Access-Control-Request-Method": "POST"}
    for insecure in (True, False):
        caplog.clear()
        async with inside(tmp_path / str(insecure), insecure=insecure) as app, app.client() as client:
            for method, path, headers in (
                ("OPTIONS", "/transcribe", preflight),
                ("OPTIONS", "/v1/audio/transcriptions", preflight),
                ("GET", "/status", {"Origin": SOMEWHERE}),
                ("GET", "/status", {"Origin": "null"}),
            ):
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == 403
                assert "forbidden_origin" in answer.text
                assert "ALLOWED_ORIGINS" in answer.text
                # The page may read this response, and may send nothing.
                assert answer.headers["Access-Control-Allow-Origin"] == "*"
                assert "Access-Control-Allow-Methods" not in answer.headers
            for number in range(100):
                await client.get("/status", headers={"Origin": f"{SOMEWHERE}:{number}"})
            told = [record for record in caplog.records if "ALLOWED_ORIGINS" in record.getMessage()]
            assert SOMEWHERE in told[0].getMessage()
            assert len(told) == 20
            assert app.service.counts() == (0, 0)


@on_a_loop
async def test_a_page_that_is_allowed_may_do_all(tmp_path: Path) -> None:
    for insecure, allowed, named in (
        (True, f"http://localhost:3000, {SOMEWHERE.upper()}/", SOMEWHERE),
        (False, SOMEWHERE, SOMEWHERE),
        (False, "*", "*"),
    ):
        directory = tmp_path / f"{insecure}{len(allowed)}"
        async with inside(directory, insecure=insecure, allowed_origins=allowed) as app, app.client() as client:
            preflight = {"Origin": SOMEWHERE, "Access-Control-Request-Method": "POST"}
            answer = await client.options("/transcribe", headers=preflight)
            assert answer.status_code == 204
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Origin"] == named
            headers = {"Origin": SOMEWHERE, "Sec-Fetch-Site": "cross-site"}
            answer = await app.post(client, headers)
            assert answer.status_code == 202
            assert answer.headers["Access-Control-Allow-Origin"] == named
            assert "Location" in answer.headers["Access-Control-Expose-Headers"]
            assert ("Origin" in answer.headers.get("Vary", "")) == (named != "*")
            other = await client.get("/status", headers={"Origin": "https://other.example"})
            assert other.status_code == (200 if named == "*" else 403)


def test_an_invalid_origin_is_refused(tmp_path: Path) -> None:
    for text in ("page.example", "https://page.example/path", "null", "https://*.example", "https://a b"):
        with pytest.raises(ConfigError, match="ALLOWED_ORIGINS"):
            create_app(config_in(tmp_path, enable_authorization=False, allowed_origins=text))


@on_a_loop
async def test_every_caller_sees_all_jobs_when_there_are_no_keys(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("one")) as client:
        job_id = await app.submit(client)
    async with inside(tmp_path) as app, app.client() as client:
        assert (await client.get(f"/transcription/{job_id}")).status_code == 200
