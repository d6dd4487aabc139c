"""Keys over REST: managing them, and what happens when they expire."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from fakes import watched_jobs

from server.harness import RunningServer
from server.inside import inside, on_a_loop, problem
from whisper_api import AsyncClient, Client
from whisper_api.access.keys import KeyRing
from whisper_api.errors import InvalidOption, KeyExpired, KeyNotFound, RequestError, ScopeMissing
from whisper_api.jobs import lifecycle, revocations
from whisper_api.jobs.revocations import EXPIRED, REASON
from whisper_api.key_values import KeyChange, NewKey
from whisper_api.testing import FakeExecutor

KEYS = "/admin/keys"


def soon(seconds: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the clock of the day, so that no test has to be faster than a key expires."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600.0)


@on_a_loop
async def test_a_misspelt_field_makes_no_key_without_limits(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("root", "admin")) as root:
        for wrong in ({"expires": "30d"}, {"scope": ["read"]}, {"rates": "1/minute"}, {"quotas": "1 jobs/day"}):
            refused = problem(await root.post(KEYS, json={"name": "app", **wrong}), 400, "invalid_input")
            assert next(iter(wrong)) in refused["detail"]
        assert [key["name"] for key in (await root.get(KEYS)).json()["keys"]] == ["root"]


@on_a_loop
async def test_a_key_is_managed_over_rest(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("root", "admin")) as root:
        values = {"name": "app", "expires_at": "2990-01-01T00:00:00.000Z", "scopes": ["read"], "rate": "1000/minute"}
        answer = await root.post(KEYS, json=values)
        assert answer.status_code == 201
        made = answer.json()
        path = answer.headers["Location"]
        assert path == f"{KEYS}/{made['key']['key_id']}"
        assert {name: made["key"][name] for name in values} == values
        assert (made["key"]["role"], made["key"]["state"]) == ("user", "active")
        async with app.client(made["token"]) as user:
            assert (await user.get("/transcriptions")).status_code == 200
            refused = problem(await user.post("/transcribe"), 403, "forbidden_scope")
            assert "transcribe" in refused["detail"]
            openai = await user.post("/v1/audio/transcriptions")
            assert (openai.status_code, openai.json()["error"]["code"]) == (403, "forbidden_scope")
            assert openai.json()["error"]["type"] == "invalid_request_error"
            changed = (await root.patch(path, json={"scopes": [], "expires_at": None})).json()
            assert changed == {**made["key"], "scopes": [], "expires_at": None} | {
                "last_used_at": changed["last_used_at"]
            }
            assert changed["last_used_at"] is not None
            await app.submit(user)
        rotated = (await root.post(f"{path}/rotate")).json()
        assert rotated["key"]["old_secret_until"] is not None
        for token in (made["token"], rotated["token"]):
            async with app.client(token) as user:
                assert (await user.get("/status")).status_code == 200
        assert (await root.post(f"{path}/rotate", json={"grace_seconds": 0})).status_code == 200
        async with app.client(rotated["token"]) as user:
            assert "replaced" in problem(await user.get("/status"), 401, "key_expired")["detail"]
        assert [each["name"] for each in (await root.get(KEYS)).json()["keys"]] == ["root", "app"]
        assert (await root.delete(path)).json()["state"] == "revoked"
        assert (await root.get(path)).json()["revoked_at"] is not None
        assert (await root.delete(path)).status_code == 200
        problem(await root.patch(path, json={"name": "x"}), 404, "key_not_found")
        problem(await root.get(f"{KEYS}/00000000"), 404, "key_not_found")
        bodies: list[Any] = [{}, {"name": "app", "role": "root"}, {"name": "app", "scopes": ["all"]}, []]
        for body in bodies:
            problem(await root.post(KEYS, json=body), 400, "invalid_input")
        for body in ({"name": " "}, {"name": "b", "rate": "fast"}, {"name": "b", "expires_at": "2001-01-01T00:00:00Z"}):
            problem(await root.post(KEYS, json=body), 400, "invalid_field")


@on_a_loop
async def test_no_secret_is_in_an_answer_but_that_of_its_creation(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("root", "admin")) as root:
        made = (await root.post(KEYS, json={"name": "app"})).json()
        secret = made["token"][12:]
        for path in (KEYS, f"{KEYS}/{made['key']['key_id']}"):
            assert secret not in (await root.get(path)).text


@on_a_loop
async def test_a_request_cannot_lose_the_last_key_that_manages_keys(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("root", "admin")) as root:
        [key] = (await root.get(KEYS)).json()["keys"]
        path = f"{KEYS}/{key['key_id']}"
        for change in ({"role": "user"}, {"scopes": ["read"]}, {"expires_at": "2990-01-01T00:00:00Z"}):
            problem(await root.patch(path, json=change), 409, "last_admin_key")
        problem(await root.post(f"{path}/rotate", json={"grace_seconds": 0}), 409, "last_admin_key")
        problem(await root.delete(path), 409, "last_admin_key")
        # Of two that end each other at the same moment, one stays.
        async with app.client(app.token("second", "admin")) as second:
            ids = [each["key_id"] for each in (await root.get(KEYS)).json()["keys"]]
            answers = await asyncio.gather(root.delete(f"{KEYS}/{ids[1]}"), second.delete(f"{KEYS}/{ids[0]}"))
        assert sorted(answer.status_code for answer in answers)[0] == 200
        assert [key.role for key in KeyRing(app.service.store).list() if key.revoked_at is None] == ["admin"]


@on_a_loop
async def test_an_administrator_with_scopes_hands_out_no_more_than_it_has(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        app.token("root", "admin")
        async with app.client(app.token("manager", "admin", scopes=("admin", "read"))) as manager:
            problem(await manager.post(KEYS, json={"name": "app", "role": "admin"}), 403, "forbidden_scope")
            root_id = (await manager.get(KEYS)).json()["keys"][0]["key_id"]
            problem(await manager.post(f"{KEYS}/{root_id}/rotate"), 403, "forbidden_scope")
            assert (await manager.post(KEYS, json={"name": "app", "scopes": ["read"]})).status_code == 201


@on_a_loop
async def test_a_key_that_is_revoked_over_rest_ends_its_jobs_at_once(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), enable_authorization=True) as app:
        ring = KeyRing(app.service.store)
        key, token = ring.create("ann")
        async with app.client(token) as ann, app.client(app.token("root", "admin")) as root:
            runs, waits = await app.running(ann), await app.submit(ann)
            assert (await ann.put("/vocabularies/names", json={"terms": ["Ada"]})).status_code == 200
            assert (await root.delete(f"{KEYS}/{key.key_id}")).status_code == 200
            for job_id in (runs, waits):
                status = await app.finish(root, job_id)
                assert (status["status"], status["error"]) == ("Canceled", REASON)
            assert app.service.vocabularies.list(key.key_id) == []


# --- expiry ---


@on_a_loop
async def test_an_expired_key_is_401_and_says_so_in_the_shape_of_the_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        client.headers["Authorization"] = f"Bearer {app.token('app', expires_at=soon(3600))}"
        assert (await client.get("/status")).status_code == 200
        an_hour_later(monkeypatch)
        answer = await client.get("/status")
        assert "expired" in problem(answer, 401, "key_expired")["detail"]
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
        openai = await client.get("/v1/models")
        assert openai.status_code == 401
        assert openai.json()["error"]["code"] == "invalid_api_key"
        assert "expired" in openai.json()["error"]["message"]


@on_a_loop
async def test_when_a_key_has_expired_its_jobs_and_waiting_requests_end_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That streams and waits end at the very moment is tested on a virtual clock, in test_events.py."""
    monkeypatch.setattr(revocations, "POLL_SECONDS", 0.05)
    async with (
        inside(tmp_path, FakeExecutor(held=True), enable_authorization=True) as app,
        app.client(app.token("ann", "admin", expires_at=soon(3600))) as ann,
        app.client(app.token("root", "admin")) as root,
    ):
        runs, waits = await app.running(ann), await app.submit(ann)
        theirs = await app.submit(root)
        sync = asyncio.create_task(app.post(ann, None, sync="true"))
        await app.until(lambda: watched_jobs(app.service))
        an_hour_later(monkeypatch)
        problem(await sync, 401, "key_expired")
        problem(await ann.get(f"/transcription/{theirs}/events"), 401, "key_expired")
        for job_id in (runs, waits):
            status = await app.finish(root, job_id)
            assert (status["status"], status["error"]) == ("Canceled", EXPIRED)
        assert (await root.get(f"/transcription/{theirs}")).json()["status"] != "Canceled"
        app.executor.release()


@on_a_loop
async def test_the_voices_and_terms_of_an_expired_key_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "POLL_SECONDS", 0.05)
    async with inside(tmp_path, enable_authorization=True) as app:
        key, token = KeyRing(app.service.store).create("ann", expires_at=soon(3600))
        async with app.client(token) as ann:
            assert (await ann.put("/vocabularies/names", json={"terms": ["Ada"]})).status_code == 200
            with app.service.store.database.write() as connection:
                row = (key.key_id, key.key_id, "Ada", b"")
                connection.execute("INSERT INTO speakers (speaker_id, owner, name, content) VALUES (?, ?, ?, ?)", row)

        def gone() -> bool:
            with app.service.store.database.read() as connection:
                return not connection.execute("SELECT 1 FROM speakers UNION SELECT 1 FROM vocabularies").fetchall()

        assert not gone()
        an_hour_later(monkeypatch)
        await app.until(gone)


@on_a_loop
async def test_the_last_use_is_written_by_a_thread_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "KEY_USES_SECONDS", 0.05)
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("app")) as client:
        ring = KeyRing(app.service.store)
        assert ring.list()[0].last_used_at is None
        assert (await client.get("/status")).status_code == 200
        await app.until(lambda: ring.list()[0].last_used_at is not None)
        monkeypatch.setattr(lifecycle, "KEY_USES_SECONDS", 3600.0)
        used = ring.list()[0].last_used_at
        await client.get("/status")
    async with inside(tmp_path, enable_authorization=True) as app:
        again = app.state.keys.list()[0].last_used_at
        assert used is not None
        assert again is not None
        assert again >= used


# --- the clients ---


def test_the_clients_manage_keys(server: RunningServer) -> None:
    with Client(server.url, server.admin_key) as client:
        made = client.create_key(NewKey(name="made", role="operator", expires_at=soon(3600), scopes=("read",)))
        assert made.token not in repr(made)
        assert client.key(made.key.key_id) == made.key
        assert client.change_key(made.key.key_id, KeyChange(name="renamed", expires_at=None)).expires_at is None
        rotated = client.rotate_key(made.key.key_id, 0)
        with Client(server.url, made.token, retries=0) as old, pytest.raises(KeyExpired, match="replaced"):
            list(old.jobs())
        with Client(server.url, rotated.token) as operator:
            assert all(status.file_name is None for status in operator.jobs())
            with pytest.raises(RequestError, match="role"):
                operator.keys()
        with pytest.raises(InvalidOption, match="already"):
            client.create_key(NewKey(name="renamed"))
        assert client.revoke_key(made.key.key_id).state == "revoked"
        with pytest.raises(KeyNotFound):
            client.key("00000000")

    async def manage() -> None:
        async with AsyncClient(server.url, server.admin_key) as client:
            made = await client.create_key(NewKey(name="async", scopes=("transcribe",)))
            async with AsyncClient(server.url, made.token, retries=0) as user:
                with pytest.raises(ScopeMissing, match="read"):
                    await user.status("00000000-0000-0000-0000-000000000000")
            assert (await client.key(made.key.key_id)).last_used_at is not None
            assert (await client.change_key(made.key.key_id, KeyChange(scopes=()))).scopes == ()
            assert (await client.rotate_key(made.key.key_id)).key.old_secret_until is not None
            assert (await client.revoke_key(made.key.key_id)).state == "revoked"
            assert {key.name for key in await client.keys()} >= {"renamed", "async"}

    asyncio.run(manage())
