"""The audit trail records every operation that changes something or reads a text, and no text of a client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from client.blocking import Blocking, MakeClient

from server.conftest import MakeConfig
from server.inside import AUDIO, Inside, inside, on_a_loop, problem
from server.openai_inside import PATH as OPENAI
from server.openai_inside import upload
from whisper_api import AuditRecord, Client, RequestError, Server
from whisper_api.access import audit
from whisper_api.audit_records import DURABLE, AuditFilter
from whisper_api.key_values import Role
from whisper_api.server.app import ROUTES
from whisper_api.store.texts import digest
from whisper_api.testing import FakeExecutor

Cut = Callable[[float, float], bytes]

# Operations that only read, and answer no text that was said: states, lists, the server itself and its description.
NOT_RECORDED = {
    "/",
    "/assets/{name}",
    "/transcription/{job_id}",
    "/transcriptions",
    "/webhooks/deliveries",
    "/webhooks/deliveries/{delivery_id}",
    "/usage",
    "/admin/usage",
    "/admin/keys",
    "/admin/keys/{key_id}",
    "/status",
    "/events/check",
    "/metrics",
    "/livez",
    "/readyz",
    "/health",
    "/openapi.json",
    "/docs",
    *(f"{prefix}/models{rest}" for prefix in ("/v1", "/openai/v1", "/openai") for rest in ("", "/{id:path}")),
}


def test_every_operation_is_recorded_or_only_reads_what_is_no_text() -> None:
    reads = {path for path, resource in ROUTES.items() if (read := resource.operations.get("GET")) and not read.audit}
    assert reads == NOT_RECORDED
    changes = {
        f"{method} {path}": operation.audit
        for path, resource in ROUTES.items()
        for method, operation in resource.operations.items()
        if method != "GET"
    }
    assert [call for call, action in changes.items() if action is None] == []
    assert {action for call, action in changes.items() if call.startswith("DELETE")} <= DURABLE


class Trail:
    """The entries of a running application since the last look."""

    def __init__(self, app: Inside) -> None:
        self._app = app
        self._seen = 0

    def new(self) -> list[AuditRecord]:
        self._app.service.audit.page(AuditFilter(), limit=1)
        found = [each for each in self._app.service.store.audit_records() if each.seq > self._seen]
        self._seen = found[-1].seq if found else self._seen
        return found

    def one(self, action: str, target: str | None, status: int, error: str | None = None) -> AuditRecord:
        """The only new entry, which must be this one."""
        (found,) = self.new()
        assert (found.action, found.target, found.status, found.error) == (action, target, status, error)
        return found


@contextlib.asynccontextmanager
async def recorded(directory: Path, executor: FakeExecutor | None = None) -> AsyncIterator[tuple[Inside, Trail]]:
    async with inside(directory, executor, enable_authorization=True) as app:
        yield app, Trail(app)


@on_a_loop
async def test_the_life_of_a_job_is_recorded(tmp_path: Path) -> None:
    async with (
        recorded(tmp_path) as (app, trail),
        app.client(app.token("Ada"), **{"X-Request-ID": "mine"}) as ada,
        app.client(app.token("Bob")) as bob,
    ):
        job_id = await app.submit(ada, keep_result="true")
        found = trail.one("job.submit", job_id, 202)
        (key,) = (key for key in app.service.keys.list() if key.name == "Ada")
        assert (found.actor, found.key_id, found.name, found.role) == ("key", key.key_id, "Ada", "user")
        assert (found.address, found.request_id) == ("127.0.0.1", "mine")
        assert timedelta(0) <= datetime.now(timezone.utc) - found.time < timedelta(minutes=1)
        await app.finish(ada, job_id)
        result = f"/transcription/{job_id}/result"
        await ada.get("/transcriptions")
        await ada.head(result)
        assert trail.new() == []
        await ada.get(result)
        trail.one("job.read", job_id, 200)
        await ada.get(f"/transcription/{job_id}/events")
        trail.one("job.read", job_id, 200)
        await ada.put(f"/transcription/{job_id}/corrections", json={"speakers": {}})
        trail.one("job.correct", job_id, 200)
        await ada.get(f"/transcription/{job_id}/corrections")
        trail.one("job.read", job_id, 200)
        # What others try is recorded with its refusal, and nothing that is no id.
        await bob.get(result)
        assert trail.one("job.read", job_id, 404, "job_not_found").name == "Bob"
        await bob.delete("/transcription/a-secret-text")
        trail.one("job.cancel", None, 404, "job_not_found")
        await ada.get(f"/transcription/{job_id}/result?format=nonsense")
        trail.one("job.read", job_id, 400, "invalid_field")
        await ada.delete(f"/transcription/{job_id}")
        trail.one("job.delete", job_id, 200)
        await ada.get(result)
        trail.one("job.read", job_id, 410, "result_gone")
        assert (await app.post(ada, num_speakers="-1")).status_code == 400
        trail.one("job.submit", None, 400, "invalid_field")


@on_a_loop
async def test_canceling_differs_from_deleting_and_each_file_of_several_is_an_entry(tmp_path: Path) -> None:
    async with recorded(tmp_path, FakeExecutor(held=True)) as (app, trail), app.client(app.token("Ada")) as ada:
        sent = [("file", (f"{number}.wav", AUDIO)) for number in range(3)]
        several = (await ada.post("/transcriptions", files=sent)).json()["jobs"]
        running, waiting, _ = jobs = [each["job_id"] for each in several]
        assert [(each.action, each.target) for each in trail.new()] == [("job.submit", job_id) for job_id in jobs]
        await app.until(lambda: running in app.executor.started)
        await ada.delete(f"/transcription/{running}")
        trail.one("job.cancel", running, 409, "job_processing")
        await ada.delete(f"/transcription/{running}?force=true")
        trail.one("job.cancel", running, 200)
        await ada.delete(f"/transcription/{waiting}?force=true")
        trail.one("job.cancel", waiting, 200)
        await ada.delete(f"/transcription/{waiting}")
        trail.one("job.delete", waiting, 200)


@on_a_loop
async def test_other_doors_are_recorded_with_the_status_that_they_answer(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (app, trail), app.client(app.token("Ada")) as ada:
        answer = await ada.post(OPENAI, data={"model": "whisper-1"}, files={"file": ("a.wav", AUDIO)})
        assert answer.status_code == 200, answer.text
        assert trail.one("job.submit", answer.headers["X-Job-ID"], 200).target
        answer = await ada.post(OPENAI, data={"model": "whisper-1"}, files={"file": ("a.wav", b"text")})
        (found,) = trail.new()
        assert (found.action, found.status) == ("job.submit", answer.status_code)
        assert found.error is not None
        answer = await ada.post("/asr", files={"audio_file": ("a.wav", AUDIO)})
        trail.one("job.submit", answer.headers["X-Job-ID"], 200)


@on_a_loop
async def test_speakers_and_vocabularies_are_recorded(tmp_path: Path, cut: Cut) -> None:
    sample = [("samples", ("a.wav", cut(10.0, 3.0)))]
    async with recorded(tmp_path) as (app, trail), app.client(app.token("Ada")) as ada:
        speaker_id = (await ada.post("/speakers", data={"name": "Eve"}, files=sample)).json()["speaker_id"]
        trail.one("speaker.create", speaker_id, 201)
        path = f"/speakers/{speaker_id}"
        await ada.get(path)
        trail.one("speaker.read", speaker_id, 200)
        await ada.get("/speakers")
        trail.one("speaker.read", None, 200)
        await ada.patch(path, json={"name": "Eva"})
        trail.one("speaker.change", speaker_id, 200)
        await ada.post(f"{path}/samples", files=sample)
        trail.one("speaker.change", speaker_id, 200)
        await ada.delete(path)
        trail.one("speaker.delete", speaker_id, 200)
        await ada.delete(path)
        trail.one("speaker.delete", speaker_id, 404, "speaker_not_found")
        await ada.put("/vocabularies/clients", json={"terms": ["Xu"]})
        trail.one("vocabulary.write", digest("clients"), 200)
        await ada.get("/vocabularies/clients")
        trail.one("vocabulary.read", digest("clients"), 200)
        await ada.get("/vocabularies")
        trail.one("vocabulary.read", None, 200)
        await ada.delete("/vocabularies/clients")
        trail.one("vocabulary.delete", digest("clients"), 204)


@on_a_loop
async def test_changes_of_keys_are_recorded_without_their_secrets(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (app, trail), app.client(app.token("boss", "admin")) as boss:
        made = (await boss.post("/admin/keys", json={"name": "Ada"})).json()
        key_id = made["key"]["key_id"]
        entries = [trail.one("key.create", key_id, 201)]
        path = f"/admin/keys/{key_id}"
        await boss.get(path)
        assert trail.new() == []
        await boss.patch(path, json={"name": "Ada L."})
        entries.append(trail.one("key.change", key_id, 200))
        rotated = (await boss.post(f"{path}/rotate", json={})).json()
        entries.append(trail.one("key.rotate", key_id, 200))
        await boss.delete(path)
        entries.append(trail.one("key.revoke", key_id, 200))
        await boss.delete("/admin/keys/a-secret-text")
        trail.one("key.revoke", None, 404, "key_not_found")
        for token in (made["token"], rotated["token"]):
            assert token[12:] not in repr(entries)


@on_a_loop
async def test_no_text_of_a_client_and_no_secret_gets_into_the_trail(tmp_path: Path, cut: Cut) -> None:
    mark = "Markierung"
    executor = FakeExecutor(f"{mark} spoken")
    async with recorded(tmp_path, executor) as (app, trail):
        token = app.token("Ada")
        async with app.client(token, **{"User-Agent": mark, "Idempotency-Key": mark, "Referer": mark}) as ada:
            fields = {
                "prompt": mark,
                "hotwords": mark,
                "vocabulary": json.dumps([mark]),
                "metadata": json.dumps({mark: mark}),
                "hf_token": mark,
                "keep_result": "true",
            }
            file = {"file": (f"{mark}.wav", AUDIO)}
            job_id = (await ada.post(f"/transcribe?{mark}={mark}", data=fields, files=file)).json()["job_id"]
            await app.finish(ada, job_id)
            await ada.get(f"/transcription/{job_id}/result?{mark}={mark}")
            await ada.put(
                f"/transcription/{job_id}/corrections",
                json={"words": [{"segment": 0, "text": mark}], "speakers": {mark: mark}},
            )
            sample = [("samples", ("a.wav", cut(10.0, 3.0)))]
            await ada.post("/speakers", data={"name": mark}, files=sample)
            await ada.delete(f"/speakers/{mark}")
            await ada.put(f"/vocabularies/{mark}", json={"terms": [mark]})
            await ada.put(f"/vocabularies/{mark}", content=mark)
            await ada.delete(f"/vocabularies/{mark}")
            await ada.get(f"/transcription/{mark}/result")
            await ada.get(f"/transcription/{job_id}/events")
            await ada.get(f"/{mark}")
        async with app.client(f"wk_0badcafe_{mark}") as stranger:
            await stranger.get(f"/transcription/{mark}/result?key={mark}")
        app.service.audit.close()
        actions = [each.action for each in trail.new()]
        assert len(actions) == 11
        assert actions[-1] == "authentication.fail"
    # No column of the table has any of it, and the mark is in the database elsewhere.
    with sqlite3.connect(tmp_path / "data" / "jobs.db") as database:
        rows = repr(database.execute("SELECT * FROM audit").fetchall())
    database.close()
    assert mark not in rows
    assert mark.lower() not in rows.lower()
    assert token[12:] not in rows
    assert mark.encode() in (tmp_path / "data" / "jobs.db").read_bytes()


@on_a_loop
async def test_a_client_that_goes_away_is_recorded(tmp_path: Path) -> None:
    async with recorded(tmp_path, FakeExecutor(held=True)) as (app, trail):
        request = upload(path="/transcribe", headers={"Authorization": f"Bearer {app.token('Ada')}"}, sync="true")
        sending = asyncio.create_task(request.to(app.app))
        await app.until(lambda: app.executor.started)
        request.gone.set()
        await sending
        trail.one("job.submit", app.executor.started[0], 499)


@on_a_loop
async def test_failed_authentications_are_counted_by_address(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (app, trail), app.client() as nobody, app.client("wk_no_key") as wrong:
        for client in (nobody, nobody, wrong):
            problem(await client.get("/transcriptions"), 401, "unauthorized")
        await nobody.get("/livez")
        app.service.audit.close()
        found = trail.one("authentication.fail", None, 401, "unauthorized")
        assert (found.actor, found.address, found.count) == ("anyone", "127.0.0.1", 3)


@on_a_loop
async def test_attempts_that_the_limit_of_wrong_keys_refuses_are_counted(tmp_path: Path) -> None:
    async with (
        inside(tmp_path, enable_authorization=True, auth_failure_limit="2/hour", rate_limit="1/hour") as app,
        app.client("wk_00000000_" + "x" * 43) as wrong,
        app.client(app.token("alice")) as alice,
    ):
        statuses = [(await alice.get("/status")).status_code for _ in range(2)]
        statuses += [(await wrong.get("/status")).status_code for _ in range(5)]
        assert statuses == [200, 429, 401, 401, 429, 429, 429]
        app.service.audit.close()
        found = [each for each in app.service.store.audit_records() if each.action == "authentication.fail"]
        # The rate limit of a key is no failed authentication.
        assert [(each.status, each.error, each.count, each.address) for each in found] == [
            (401, "unauthorized", 2, "127.0.0.1"),
            (429, "rate_limit_exceeded", 3, "127.0.0.1"),
        ]


@on_a_loop
async def test_only_administrators_read_the_trail_and_reading_is_recorded(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (app, trail):
        roles: tuple[Role, ...] = ("user", "metrics")
        for role in roles:
            async with app.client(app.token(role, role)) as client:
                problem(await client.get("/admin/audit"), 403, "forbidden_role")
                trail.one("audit.read", None, 403, "forbidden_role")
        async with app.client(app.token("boss", "admin")) as boss:
            await boss.get("/admin/audit?limit=1")
            trail.one("audit.read", None, 200)
            problem(await boss.get("/admin/audit?limit=1001"), 400, "invalid_field")
            problem(await boss.get("/admin/audit?after=x"), 400, "invalid_field")
            problem(await boss.get("/admin/audit?since=yesterday"), 400, "invalid_field")


@on_a_loop
async def test_pages_can_be_followed_and_narrowed(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (app, _), app.client(app.token("boss", "admin")) as boss:
        jobs = [await app.submit(boss) for _ in range(5)]

        async def targets(**params: Any) -> list[str]:
            found, after = [], None
            while True:
                query = {"limit": 2, **params, **({} if after is None else {"after": after})}
                page = (await boss.get("/admin/audit", params=query)).json()
                found += [each["target"] for each in page["records"]]
                assert len(page["records"]) <= 2
                after = page["next"]
                if after is None:
                    return found

        assert await targets(action="job.submit") == jobs[::-1]
        assert await targets(action="job", key="boss") == jobs[::-1]
        assert await targets(action="job", key="somebody") == []
        now = datetime.now(timezone.utc)
        assert await targets(action="job", until=(now - timedelta(hours=1)).isoformat()) == []
        assert await targets(action="job", since=(now - timedelta(hours=1)).isoformat()) == jobs[::-1]


@on_a_loop
async def test_a_deletion_is_on_the_disk_before_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is written by the thread.
    monkeypatch.setattr(audit, "BATCH_SECONDS", 3600.0)
    async with recorded(tmp_path) as (app, _), app.client(app.token("Ada")) as ada:
        job_id = await app.submit(ada)
        assert list(app.service.store.audit_records()) == []
        await app.finish(ada, job_id)
        await ada.delete(f"/transcription/{job_id}")
        assert [each.action for each in app.service.store.audit_records()] == ["job.submit", "job.delete"]


@on_a_loop
async def test_without_a_retention_nothing_is_recorded(tmp_path: Path) -> None:
    async with inside(tmp_path, audit_retention_days=0) as app, app.client() as client:
        job_id = await app.submit(client)
        await client.delete(f"/transcription/{job_id}?force=true")
        assert (await client.get("/admin/audit")).json() == {"records": [], "next": None}


@on_a_loop
async def test_without_keys_the_address_is_recorded(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        await client.delete(f"/transcription/{uuid.uuid4()}")
        (found,) = (await client.get("/admin/audit?action=job")).json()["records"]
        assert (found["actor"], found["key_id"], found["address"]) == ("anyone", None, "127.0.0.1")


@pytest.fixture(params=[Client, Blocking], ids=["Client", "AsyncClient"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    made: MakeClient = request.param
    return made


def test_both_clients_read_the_trail(
    make_config: MakeConfig, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_api.client.reports.AUDIT_PAGE", 3)
    server = Server(make_config())
    with server as url, make_client(url, server.api_key) as boss:
        job_ids = [str(uuid.uuid4()) for _ in range(7)]
        for job_id in job_ids:
            httpx.delete(f"{url}/transcription/{job_id}", headers={"Authorization": f"Bearer {server.api_key}"})
        found = list(boss.audit(action="job", key="admin"))
        assert [each.target for each in found] == job_ids[::-1]
        assert {(each.action, each.status, each.error) for each in found} == {("job.cancel", 404, "job_not_found")}
        assert list(boss.audit(until=datetime.now() - timedelta(hours=1))) == []
        # The server has made the first key itself.
        (made,) = boss.audit(action="key.create", since=datetime.now() - timedelta(hours=1))
        assert (made.actor, made.target) == ("server", found[0].key_id)
        with make_client(url, "wk_no_key") as nobody, pytest.raises(RequestError):
            list(nobody.audit())
