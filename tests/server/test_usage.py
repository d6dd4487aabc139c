"""Usage: what each key has used, seen by itself and by administrators only."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from datetime import date, timedelta
from pathlib import Path

import httpx
import pytest
from client.blocking import Blocking

from server.conftest import MakeConfig
from server.inside import inside, on_a_loop, problem
from whisper_api import Client, Config, Server, Usage, errors
from whisper_api.access.keys import KeyRing
from whisper_api.cli.main import main
from whisper_api.store.jobs import DATABASE_NAME, JobStore
from whisper_api.store.rows import Job, Key
from whisper_api.store.usage import day_of
from whisper_api.testing import FakeExecutor


async def usage_of(client: httpx.AsyncClient, path: str = "/usage") -> Usage:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return Usage.from_dict(answer.json())


def fails(executor: FakeExecutor, job: Job) -> None:
    if job.options.prompt == "fail":
        raise RuntimeError("a fault of the server")


@on_a_loop
async def test_a_key_sees_its_own_usage_and_an_administrator_all(tmp_path: Path) -> None:
    executor = FakeExecutor(behave=fails)
    executor.timings = {"load": 100.0, "decode": 0.5, "asr": 2.0}
    async with (
        inside(tmp_path, executor, enable_authorization=True) as app,
        app.client(app.token("alice")) as alice,
        app.client(app.token("bob")) as bob,
        app.client(app.token("boss", "admin")) as boss,
    ):
        job_id = await app.submit(alice, model="base")
        await app.finish(alice, job_id)
        await app.finish(alice, await app.submit(alice, prompt="fail"))
        found = await usage_of(alice)
        today = day_of(time.time())
        assert (found.since, found.until) == (f"{today[:8]}01", today)
        # Requests without a model, among them those of the failed job, which itself is given back, but not its work.
        rows = {row.model: row for row in found.rows}
        assert set(rows) == {"", "base", "other"}
        failed = rows["other"]
        assert (failed.jobs, failed.audio_seconds) == (0, 0.0)
        assert (rows[""].requests, rows[""].jobs, rows[""].key_name, rows[""].day) == (4, 0, "alice", today)
        base = rows["base"]
        assert (base.jobs, base.audio_seconds, base.compute_seconds, base.requests) == (1, 10.0, 2.5, 0)
        assert (found.requests, found.jobs, found.audio_seconds) == (4, 1, 10.0)
        assert found.compute_seconds == pytest.approx(2.5 + failed.compute_seconds)
        # Another key sees nothing of it, whatever it asks for.
        assert (await usage_of(bob)).jobs == 0
        assert {row.key_name for row in (await usage_of(bob, f"/usage?key={base.key_id}")).rows} == {"bob"}
        for client in (alice, bob):
            problem(await client.get("/admin/usage"), 403, "forbidden_role")
        everyone = await usage_of(boss, "/admin/usage")
        assert {row.key_name for row in everyone.rows} == {"alice", "bob"}
        assert (everyone.jobs, everyone.quotas) == (1, ())
        alone = await usage_of(boss, f"/admin/usage?key={base.key_id}")
        assert {row.key_name for row in alone.rows} == {"alice"}
        # It stays when the job is deleted.
        assert (await alice.delete(f"/transcription/{job_id}")).status_code == 200
        app.service.store.delete(job_id)
        assert (await usage_of(alice)).jobs == 1


@on_a_loop
async def test_csv_has_the_same_rows(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token('al"i,ce', "admin")) as client:
        await app.finish(client, await app.submit(client))
        answer = await client.get("/admin/usage?format=csv")
        assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        expected = [row.to_dict() for row in (await usage_of(client, "/admin/usage")).rows]
        # The request for CSV was counted meanwhile.
        expected[0]["requests"] -= 1
        assert rows == [{name: str(value) for name, value in row.items()} for row in expected]
        assert rows[0]["key_name"] == 'al"i,ce'


@on_a_loop
async def test_without_authorization_usage_is_everybodys(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        await app.finish(client, await app.submit(client))
        for path in ("/livez", "/readyz", "/metrics", "/", "/docs", "/nowhere", "/assets/app.js"):
            await client.get(path)
        found = await usage_of(client)
        assert (found.requests, found.jobs) == (2, 1)
        assert {row.key_id for row in found.rows} == {""}
        assert (await usage_of(client, "/admin/usage")).jobs == 1


@on_a_loop
async def test_days_are_checked(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        await app.finish(client, await app.submit(client))
        today = date.fromisoformat(day_of(time.time()))
        for days, jobs in ((0, 1), (365, 1)):
            assert (await usage_of(client, f"/usage?since={today - timedelta(days=days)}")).jobs == jobs
        yesterday = today - timedelta(days=1)
        assert (await usage_of(client, f"/usage?since={yesterday}&until={yesterday}")).jobs == 0
        for query in (
            f"since={today - timedelta(days=366)}",
            f"since={today}&until={yesterday}",
            "since=yesterday",
            "format=xml",
        ):
            problem(await client.get(f"/usage?{query}"), 400, "invalid_field")


@on_a_loop
async def test_refused_requests_are_no_usage(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True, rate_limit="2/hour") as app:
        token = app.token("alice")
        async with app.client(token) as client:
            assert [(await client.get("/status")).status_code for _ in range(4)] == [200, 200, 429, 429]
        async with app.client() as stranger:
            assert (await stranger.get("/status")).status_code == 401
        assert app.service.usage.report(None).requests == 2


def key_in(config: Config, name: str) -> tuple[Key, str]:
    """Make a key while a server runs."""
    store = JobStore(config.data_dir / DATABASE_NAME)
    try:
        return KeyRing(store).create(name)
    finally:
        store.close()


def test_clients_and_the_command_line_read_usage(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(quota="3 jobs/day; 90 minutes/month")
    with contextlib.ExitStack() as stack:
        server = Server(config)
        url = stack.enter_context(server)
        alice, token = key_in(config, "alice")
        own: Client = stack.enter_context(Client(url, token))
        other = stack.enter_context(Blocking(url, token))
        boss = stack.enter_context(Client(url, server.api_key))
        today = date.fromisoformat(day_of(time.time()))
        assert own.usage().requests == 0
        found = other.usage(today, today)
        assert [(row.key_id, row.requests, row.day) for row in found.rows] == [(alice.key_id, 1, today.isoformat())]
        assert [(quota.policy, quota.remaining) for quota in found.quotas] == [("jobs-day", 3), ("audio-month", 5400)]
        assert boss.all_usage(key_id=alice.key_id).requests == 2
        with pytest.raises(errors.RequestError, match="role user may not"):
            other.all_usage()
        with pytest.raises(errors.InvalidOption, match="since: expected a day"):
            own.usage(today, today - timedelta(days=1))

        monkeypatch.setenv("WHISPER_API_KEY", token)
        assert main(["usage", "--url", url]) == 0
        shown = capsys.readouterr().out
        assert "jobs-day: 3 of 3 jobs are left for the next" in shown
        assert "audio-month: 90.0 of 90 minutes of audio are left for the next" in shown
        assert main(["usage", "--url", url, "--since", str(today), "--csv"]) == 0
        assert [row["key_name"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == ["alice"]
        assert main(["usage", "--url", url, "--all"]) == 1
        assert "may not do this" in capsys.readouterr().err
        monkeypatch.setenv("WHISPER_API_KEY", str(server.api_key))
        assert main(["usage", "--url", url, "--key", alice.key_id]) == 0
        assert "alice" in capsys.readouterr().out
        assert main(["usage", "--url", url, "--since", "soon"]) == 2
        assert main(["usage", "--url", url, "--since", "1999-01-01"]) == 2
