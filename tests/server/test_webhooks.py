"""Webhooks over REST: endpoints and secrets of a key, receivers of a job, deliveries, both clients and the command."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from client.blocking import Blocking, MakeClient
from fakes import eventually, until, watched_jobs
from receiver import Receiver, receiver
from store.test_deletion import on_disk

from server.conftest import MakeConfig
from server.inside import AUDIO, inside, on_a_loop, problem
from whisper_api import Client, Server, TranscriptionOptions, errors, verify_webhook
from whisper_api.audit_records import AuditFilter
from whisper_api.cli.main import main
from whisper_api.jobs import revocations, webhook_requests, webhooks
from whisper_api.jobs.webhooks import MAX_ENDPOINTS
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

EVENTS = ["transcription.completed", "transcription.failed", "transcription.canceled"]


@pytest.fixture
def receiving() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture(autouse=True)
def _look_up_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "LOOKUP_SECONDS", 0.1)


def sending(receiving: Receiver, **settings: Any) -> dict[str, Any]:
    """Settings of a server that may send to the receiver."""
    return {"enable_webhooks": True, "webhook_private_hosts": receiving.host, **settings}


def behave(executor: FakeExecutor, job: Job) -> None:
    if job.options.prompt == "bad":
        raise ValueError("bad")


async def create(client: httpx.AsyncClient, url: str, **values: Any) -> dict[str, Any]:
    response = await client.post("/webhooks", json={"url": url, **values})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["Location"] == f"/webhooks/{made['endpoint_id']}"
    return made


async def secret_of(client: httpx.AsyncClient, endpoint_id: str = "") -> str:
    path = f"/webhooks/{endpoint_id}/secret" if endpoint_id else "/webhooks/secret"
    return str((await client.get(path)).json()["secret"])


async def came(receiving: Receiver, path: str, count: int = 1) -> None:
    await eventually(lambda: len(receiving.at(path)) == count, f"{count} requests to {path}")


# --- events ---


@on_a_loop
async def test_each_end_of_a_job_is_an_event(tmp_path: Path, receiving: Receiver) -> None:
    executor = FakeExecutor("Hello.", behave=behave)
    async with inside(tmp_path, executor, **sending(receiving)) as app, app.client() as client:
        every = await create(client, receiving.url("/every"))
        assert every["events"] == EVENTS
        some = await create(client, receiving.url("/some"), events=["transcription.failed"])
        executor.held = True
        canceled = await app.running(client, webhook_url=receiving.url("/own"))
        waiting = await app.submit(client, webhook_url=receiving.url("/own"))
        for job_id in (canceled, waiting):
            assert (await client.delete(f"/transcription/{job_id}?force=true")).is_success
        executor.held = False
        completed = await app.submit(client, webhook_url=receiving.url("/own"))
        failed = await app.submit(client, webhook_url=receiving.url("/own"), prompt="bad")
        for path, count in (("/every", 4), ("/own", 4), ("/some", 1)):
            await came(receiving, path, count)

        states = {canceled: "Canceled", waiting: "Canceled", completed: "Completed", failed: "Failed"}
        secrets = {
            "/every": await secret_of(client, every["endpoint_id"]),
            "/some": await secret_of(client, some["endpoint_id"]),
            "/own": await secret_of(client),
        }
        assert len({*secrets.values()}) == 3
        for told in receiving.told:
            event = told.event(secrets[told.path])
            job_id = event["data"]["job_id"]
            data = {"job_id": job_id, "status": states[job_id], "status_url": f"/transcription/{job_id}"}
            if job_id == completed:
                data["result_url"] = f"/transcription/{job_id}/result"
            assert event["data"] == data
            status = (await client.get(data["status_url"])).json()
            assert (event["type"], event["timestamp"]) == (
                f"transcription.{states[job_id].lower()}",
                status["finished_at"],
            )
            assert told.headers["content-type"] == "application/json"
            assert "authorization" not in told.headers
            assert len(told.body) < 500
        assert {told.event(secrets["/some"])["data"]["job_id"] for told in receiving.at("/some")} == {failed}


@on_a_loop
async def test_the_result_comes_along_on_request_unless_it_is_too_large_or_gone(
    tmp_path: Path, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, FakeExecutor("Hello."), **sending(receiving)) as app, app.client() as client:
        fields = {"webhook_url": receiving.url("/own"), "webhook_include_result": "true"}
        job_id = await app.submit(client, **fields, metadata='{"case": 7}')
        await came(receiving, "/own")
        secret = await secret_of(client)
        event = verify_webhook(secret, receiving.told[0].headers, receiving.told[0].body)
        assert event.data.job_id == job_id
        result = (await client.get(f"/transcription/{job_id}/result")).json()
        assert receiving.told[0].event(secret)["data"]["result"] == result
        assert result["text"].strip() == "Hello."
        assert result["metadata"] == {"case": 7}

        (delivery,) = (await client.get("/webhooks/deliveries")).json()["deliveries"]
        monkeypatch.setattr(webhook_requests, "MAX_RESULT_BYTES", 100)
        resend = f"/webhooks/deliveries/{delivery['delivery_id']}/resend"
        assert (await client.post(resend)).status_code == 202
        await came(receiving, "/own", 2)
        again = receiving.told[1]
        assert again.event(secret)["data"]["result_omitted"] == "too_large"
        assert "result" not in again.event(secret)["data"]
        assert again.id == receiving.told[0].id

        endpoint = await create(client, receiving.url("/gone"), include_result=True)
        receiving.answer = lambda path: (500, {})
        job_id = await app.submit(client)
        await came(receiving, "/gone")
        assert (await client.delete(f"/transcription/{job_id}")).is_success
        page = (await client.get("/webhooks/deliveries", params={"endpoint_id": endpoint["endpoint_id"]})).json()
        (delivery,) = page["deliveries"]
        await client.post(f"/webhooks/deliveries/{delivery['delivery_id']}/resend")
        await came(receiving, "/gone", 2)
        assert (
            receiving.at("/gone")[1].event(await secret_of(client, endpoint["endpoint_id"]))["data"]["result_omitted"]
            == "gone"
        )


@on_a_loop
async def test_openais_route_and_several_files_take_a_receiver_too(tmp_path: Path, receiving: Receiver) -> None:
    async with inside(tmp_path, FakeExecutor("Hello."), **sending(receiving)) as app, app.client() as client:
        fields = {"model": "whisper-1", "webhook_url": receiving.url("/openai")}
        ids = set()
        for kind in ("transcriptions", "translations"):
            response = await client.post(f"/v1/audio/{kind}", data=fields, files={"file": ("a.wav", AUDIO)})
            assert response.status_code == 200, response.text
            ids.add(response.headers["X-Job-ID"])
        await came(receiving, "/openai", 2)
        secret = await secret_of(client)
        assert {told.event(secret)["data"]["job_id"] for told in receiving.told} == ids
        files = [("file", (f"{name}.wav", AUDIO)) for name in "ab"]
        response = await client.post("/transcriptions", data={"webhook_url": receiving.url("/both")}, files=files)
        await came(receiving, "/both", 2)
        assert {told.event(secret)["data"]["job_id"] for told in receiving.at("/both")} == {
            job["job_id"] for job in response.json()["jobs"]
        }


@on_a_loop
async def test_the_same_upload_joins_its_job_only_with_the_same_receiver(tmp_path: Path, receiving: Receiver) -> None:
    executor = FakeExecutor("Hello.", held=True)
    async with inside(tmp_path, executor, **sending(receiving)) as app, app.client() as client:

        async def post(path: str) -> str:
            data = {"model": "whisper-1", "webhook_url": receiving.url(path)}
            response = await client.post("/v1/audio/transcriptions", data=data, files={"file": ("a.wav", AUDIO)})
            return str(response.headers["X-Job-ID"])

        posts = [asyncio.create_task(post(path)) for path in ("/one", "/one", "/two")]
        await eventually(lambda: len(tuple(app.service.events.watches)) == 3)
        assert len(watched_jobs(app.service)) == 2
        executor.release()
        first, again, other = await asyncio.gather(*posts)
        assert first == again != other
        await came(receiving, "/one")
        await came(receiving, "/two")


# --- endpoints ---


@on_a_loop
async def test_an_endpoint_is_changed_tested_disabled_and_deleted(tmp_path: Path, receiving: Receiver) -> None:
    async with inside(tmp_path, FakeExecutor("Hello."), **sending(receiving)) as app, app.client() as client:
        made = await create(client, receiving.url("/old"), description="a note", events=["transcription.failed"])
        path = f"/webhooks/{made['endpoint_id']}"
        changed = (await client.patch(path, json={"url": receiving.url("/new"), "events": EVENTS[:1]})).json()
        assert changed == {
            **made,
            "url": receiving.url("/new"),
            "events": EVENTS[:1],
            "updated_at": changed["updated_at"],
        }
        assert (await client.get(path)).json() == changed
        assert (await client.get("/webhooks")).json() == {"webhooks": [changed]}

        test = await client.post(f"{path}/test")
        assert (test.status_code, test.json()["type"], test.json()["state"]) == (202, "webhook.test", "Pending")
        await came(receiving, "/new")
        event = receiving.at("/new")[0].event(await secret_of(client, made["endpoint_id"]))
        assert event["data"] == {"endpoint_id": made["endpoint_id"]}
        delivery = f"/webhooks/deliveries/{test.json()['delivery_id']}"
        await eventually(lambda: not app.service.store.pending_deliveries())
        assert (await client.get(delivery)).json()["state"] == "Delivered"

        receiving.answer = lambda path: (500, {})
        assert (await client.post(f"{path}/test")).status_code == 202
        await eventually(lambda: not app.service.store.pending_deliveries())
        (failed, *_) = (await client.get("/webhooks/deliveries?state=Failed")).json()["deliveries"]
        assert (failed["attempts"], failed["last_status"]) == (1, 500)

        receiving.answer = lambda path: (204, {})
        assert (await client.patch(path, json={"enabled": False})).json()["enabled"] is False
        for refused in (await client.post(f"{path}/test"), await client.post(f"{delivery}/resend")):
            problem(refused, 400, "invalid_field")
        await app.finish(client, await app.submit(client))
        assert len(receiving.told) == 2
        assert (await client.delete(path)).status_code == 204
        for gone in (await client.get(path), await client.delete(path), await client.get(f"{path}/secret")):
            problem(gone, 404, "webhook_not_found")
        problem(await client.get(delivery), 404, "delivery_not_found")
        assert (await client.get("/webhooks/deliveries")).json() == {"deliveries": [], "next": None}


@on_a_loop
async def test_two_secrets_sign_while_one_is_rotated(
    tmp_path: Path, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, FakeExecutor("Hello."), **sending(receiving)) as app, app.client() as client:
        endpoint_id = (await create(client, receiving.url("/endpoint")))["endpoint_id"]
        paths = {"/own": "/webhooks/secret", "/endpoint": f"/webhooks/{endpoint_id}/secret"}
        old = {path: (await client.get(read)).json() for path, read in paths.items()}
        assert all(secret["previous_until"] is None for secret in old.values())
        new = {path: (await client.post(f"{read}/rotate")).json() for path, read in paths.items()}
        await app.submit(client, webhook_url=receiving.url("/own"))
        for path, read in paths.items():
            assert new[path]["previous_until"] is not None
            assert (await client.get(read)).json() == new[path] != old[path]
            await came(receiving, path)
            (told,) = receiving.at(path)
            assert told.event(new[path]["secret"], old[path]["secret"])
            assert len(told.headers["webhook-signature"].split(" ")) == 2
        # A secret before the last two signs no more, nor one whose time is over.
        monkeypatch.setattr(webhooks, "ROTATION_SECONDS", 0.0)
        last = {path: (await client.post(f"{read}/rotate")).json() for path, read in paths.items()}
        await app.submit(client, webhook_url=receiving.url("/own"))
        for path in paths:
            await came(receiving, path, 2)
            assert receiving.at(path)[1].event(last[path]["secret"])
            assert len(receiving.at(path)[1].headers["webhook-signature"].split(" ")) == 1
            assert last[path]["previous_until"] is None


# --- whose they are ---


@on_a_loop
async def test_webhooks_are_their_keys_own_and_go_with_it(tmp_path: Path, receiving: Receiver) -> None:
    async with inside(tmp_path, FakeExecutor("Hello."), **sending(receiving, enable_authorization=True)) as app:
        one, two, root = (
            app.client(app.token(name, "admin" if name == "root" else "user")) for name in ("one", "two", "root")
        )
        async with one, two, root:
            mine = await create(one, receiving.url("/plantedurl"), description="planteddescription")
            await app.finish(one, await app.submit(one, webhook_url=receiving.url("/own")))
            await app.finish(two, await app.submit(two))
            await came(receiving, "/plantedurl")
            await came(receiving, "/own")
            await eventually(lambda: not app.service.store.pending_deliveries())
            path = f"/webhooks/{mine['endpoint_id']}"
            deliveries = (await one.get("/webhooks/deliveries")).json()["deliveries"]
            for other in (two, root):
                assert (await other.get("/webhooks")).json() == {"webhooks": []}
                for answer in (
                    await other.get(path),
                    await other.patch(path, json={"enabled": False}),
                    await other.delete(path),
                    await other.get(f"{path}/secret"),
                    await other.post(f"{path}/secret/rotate"),
                    await other.post(f"{path}/test"),
                ):
                    problem(answer, 404, "webhook_not_found")
            for delivery in deliveries:
                for suffix, method in (("", "GET"), ("/resend", "POST")):
                    answer = await two.request(method, f"/webhooks/deliveries/{delivery['delivery_id']}{suffix}")
                    problem(answer, 404, "delivery_not_found")
            assert (await two.get("/webhooks/deliveries")).json()["deliveries"] == []
            assert (await root.get("/webhooks/deliveries")).json()["deliveries"] == deliveries
            assert {each["url"] for each in deliveries} == {None, receiving.url("/own")}
            assert len({await secret_of(client) for client in (one, two, root)}) == 3
            first = (await one.get("/webhooks/deliveries?limit=1")).json()
            rest = (await one.get(f"/webhooks/deliveries?after={first['next']}")).json()
            assert [*first["deliveries"], *rest["deliveries"]] == deliveries
            assert rest["next"] is None

            secrets = [await secret_of(one), await secret_of(one, mine["endpoint_id"])]
            app.service.keys.revoke("one")
            app.service.store.database.wipe()
            assert (await root.get("/webhooks/deliveries")).json()["deliveries"] == []
            assert on_disk(tmp_path / "data", ["plantedurl", "planteddescription", *secrets]) == set()


@on_a_loop
async def test_what_is_done_with_webhooks_is_in_the_audit_trail_without_addresses_and_secrets(
    tmp_path: Path, receiving: Receiver
) -> None:
    async with inside(tmp_path, FakeExecutor("Hello."), **sending(receiving, enable_authorization=True)) as app:
        async with app.client(app.token("one")) as client:
            endpoint_id = (await create(client, receiving.url("/audited")))["endpoint_id"]
            secret = await secret_of(client, endpoint_id)
            path = f"/webhooks/{endpoint_id}"
            await client.patch(path, json={"description": "a note"})
            delivery_id = (await client.post(f"{path}/test")).json()["delivery_id"]
            await client.post(f"/webhooks/deliveries/{delivery_id}/resend")
            await client.post(f"{path}/secret/rotate")
            await client.delete(path)
            await client.get("/webhooks/no-id")
        app.service.audit.page(AuditFilter(), limit=1)
        entries = [each for each in app.service.store.audit_records() if each.action.startswith("webhook.")]
        assert [(each.action, each.target) for each in entries] == [
            *((f"webhook.{verb}", endpoint_id) for verb in ("create", "read", "change", "send")),
            ("webhook.send", delivery_id),
            *((f"webhook.{verb}", endpoint_id) for verb in ("rotate", "delete")),
            ("webhook.read", None),
        ]
        assert "audited" not in repr(entries)
        assert secret not in repr(entries)


@on_a_loop
async def test_a_key_with_scopes_manages_webhooks_with_theirs_only_and_names_receivers_without(
    tmp_path: Path, receiving: Receiver
) -> None:
    async with inside(tmp_path, FakeExecutor("Hello."), **sending(receiving, enable_authorization=True)) as app:
        tokens = [app.service.keys.create(name, scopes=(name,))[1] for name in ("transcribe", "webhooks")]
        async with app.client(tokens[0]) as submitting, app.client(tokens[1]) as managing:
            problem(await submitting.get("/webhooks"), 403, "forbidden_scope")
            await app.submit(submitting, webhook_url=receiving.url())
            await came(receiving, "/hook")
            await create(managing, receiving.url())
            problem(await app.post(managing), 403, "forbidden_scope")


@on_a_loop
async def test_a_revoked_keys_jobs_send_nothing_more(
    tmp_path: Path, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "POLL_SECONDS", 0.05)
    executor = FakeExecutor(held=True)
    async with inside(tmp_path, executor, **sending(receiving, enable_authorization=True)) as app:
        async with app.client(app.token("one")) as client:
            job_id = await app.running(client, webhook_url=receiving.url())
        app.service.keys.revoke("one")
        await eventually(lambda: app.service.status(job_id, None).status == "Canceled")
        assert app.service.store.pending_deliveries() == 0
        assert receiving.told == []


@on_a_loop
async def test_the_address_of_a_job_goes_with_its_texts_when_its_event_was_sent(
    tmp_path: Path, receiving: Receiver
) -> None:
    held = threading.Event()
    receiving.answer = lambda path: (200, {}) if "done" in path or held.wait(60) else (500, {})
    executor = FakeExecutor("Hello.")
    try:
        async with inside(tmp_path, executor, **sending(receiving)) as app, app.client() as client:
            words = ["planteddone", "plantedpending"]
            done = await app.submit(client, webhook_url=receiving.url("/planteddone"))
            await came(receiving, "/planteddone")
            await eventually(lambda: not app.service.store.pending_deliveries())
            executor.held = True
            canceled = await app.running(client, webhook_url=receiving.url("/plantedpending"))
            for job_id in (done, canceled):
                assert (await client.delete(f"/transcription/{job_id}?force=true")).is_success
            await eventually(lambda: receiving.most_at_once["/plantedpending"] == 1)
            app.service.store.database.wipe()
            # The event of a canceled job is still sent there.
            assert on_disk(tmp_path / "data", words) == {"plantedpending"}
            held.set()
            await eventually(lambda: not app.service.store.pending_deliveries())
            app.service.store.database.wipe()
            assert on_disk(tmp_path / "data", words) == set()
            listed = (await client.get("/webhooks/deliveries")).json()["deliveries"]
            assert [(each["state"], each["url"]) for each in listed] == [("Delivered", None)] * 2
            problem(await client.post(f"/webhooks/deliveries/{listed[0]['delivery_id']}/resend"), 400, "invalid_field")
    finally:
        held.set()


# --- what is refused ---


@on_a_loop
async def test_as_shipped_nothing_is_sent_and_the_refusal_is_named(tmp_path: Path, receiving: Receiver) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for answer in (
            await app.post(client, webhook_url=receiving.url()),
            await client.post("/webhooks", json={"url": receiving.url()}),
            await client.post("/webhooks/x/test"),
            await client.post("/webhooks/deliveries/x/resend"),
        ):
            problem(answer, 400, "webhooks_not_enabled")
        assert (await client.get("/webhooks")).json() == {"webhooks": []}
        assert app.service.store.on_deliveries is None
        response = await app.post(client, webhook_include_result="true")
        status = await app.finish(client, response.json()["job_id"])
        assert "webhook_include_result was ignored" in " ".join(status["warnings"])


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1:1/",
            "http://[::1]/",
            "https://10.1.2.3/x",
            "http://169.254.169.254/latest",
            "http://[fd00::1]/",
        ),
        *(
            "ftp://example.com/",
            "example.com",
            "http://",
            "http://u:p@example.com/",
            "http://example.com/a b",
            "x" * 9000,
        ),
    ],
)
@on_a_loop
async def test_addresses_pass_the_rules_of_urls_that_are_fetched(tmp_path: Path, receiving: Receiver, url: str) -> None:
    async with inside(tmp_path, **sending(receiving)) as app, app.client() as client:
        for answer, field in (
            (await app.post(client, webhook_url=url), "webhook_url"),
            (await client.post("/webhooks", json={"url": url}), "url"),
        ):
            assert problem(answer, 400, "invalid_field")["detail"].startswith(f"{field}: ")


@on_a_loop
async def test_a_name_of_a_private_address_is_refused_like_one_that_does_not_exist(
    tmp_path: Path, receiving: Receiver
) -> None:
    async with inside(tmp_path, **sending(receiving)) as app, app.client() as client:
        made = await create(client, receiving.url())
        path, told = f"/webhooks/{made['endpoint_id']}", set()
        for url in ("http://localhost:1/", "http://no.such.name.invalid/"):
            for answer in (
                await client.post("/webhooks", json={"url": url}),
                await client.patch(path, json={"url": url}),
            ):
                told.add(problem(answer, 400, "invalid_field")["detail"])
        assert len(told) == 1
        assert (await client.get(path)).json() == made


@on_a_loop
async def test_limits_of_endpoints_are_named(tmp_path: Path, receiving: Receiver) -> None:
    async with inside(tmp_path, **sending(receiving)) as app, app.client() as client:
        for values, code in (
            ({"events": []}, "invalid_field"),
            ({"events": ["transcription.started"]}, "invalid_input"),
            ({"description": "x" * 256}, "invalid_input"),
            ({"include_result": "maybe"}, "invalid_input"),
        ):
            problem(await client.post("/webhooks", json={"url": receiving.url(), **values}), 400, code)
        made = [await create(client, receiving.url()) for _ in range(MAX_ENDPOINTS)]
        refused = await client.post("/webhooks", json={"url": receiving.url()})
        assert f"{MAX_ENDPOINTS} endpoints" in problem(refused, 400, "invalid_field")["detail"]
        problem(
            await client.patch(f"/webhooks/{made[0]['endpoint_id']}", json={"description": "x" * 256}),
            400,
            "invalid_field",
        )


@on_a_loop
async def test_the_metrics_count_attempts_and_pending_deliveries(tmp_path: Path, receiving: Receiver) -> None:
    receiving.answer = lambda path: (500 if path == "/bad" else 200, {})
    async with inside(tmp_path, FakeExecutor("Hello."), **sending(receiving)) as app, app.client() as client:
        for path in ("/bad", "/good"):
            await app.finish(client, await app.submit(client, webhook_url=receiving.url(path)))
            await came(receiving, path)
        bad = (await create(client, receiving.url("/bad")))["endpoint_id"]
        await client.post(f"/webhooks/{bad}/test")
        await came(receiving, "/bad", 2)

        async def metrics() -> dict[str, str]:
            lines = (await client.get("/metrics")).text.splitlines()
            return dict(line.rsplit(" ", 1) for line in lines if "webhook_deliver" in line and line[0] != "#")

        # The counter follows the store.
        await eventually(lambda: not app.service._webhook_sender._active)  # noqa: SLF001
        found = await metrics()
        assert found['whisper_api_webhook_deliveries_total{outcome="failed"}'] == "1.0"
        assert found['whisper_api_webhook_deliveries_total{outcome="delivered"}'] == "1.0"
        assert found['whisper_api_webhook_deliveries_total{outcome="retried"}'] == "1.0"
        assert found["whisper_api_pending_webhook_deliveries"] == "1.0"


# --- the clients and the command ---


@pytest.fixture(params=[Client, Blocking], ids=["Client", "AsyncClient"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    made: MakeClient = request.param
    return made


def test_both_clients_and_the_command_manage_webhooks(
    make_config: MakeConfig,
    make_client: MakeClient,
    receiving: Receiver,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config(**sending(receiving, enable_authorization=False))
    with Server(config) as url, make_client(url) as client:
        made = client.create_webhook(receiving.url("/a"), events=["transcription.failed"], description="a note")
        assert client.webhooks() == (made,)
        changed = client.change_webhook(made.endpoint_id, url=receiving.url("/b"), include_result=True)
        assert client.webhook(made.endpoint_id) == changed
        assert (changed.url, changed.events, changed.include_result) == (receiving.url("/b"), made.events, True)
        secret = client.webhook_secret(made.endpoint_id)
        assert client.rotate_webhook_secret(made.endpoint_id).secret != secret.secret
        assert client.rotate_webhook_secret().previous_until is None
        test = client.test_webhook(made.endpoint_id)
        until(lambda: client.webhook_delivery(test.delivery_id).state == "Delivered")
        told = receiving.at("/b")[0]
        event = verify_webhook(secret.secret, told.headers, told.body)
        assert (event.type, event.data.endpoint_id) == ("webhook.test", made.endpoint_id)

        # Samples without a sound: the job completes without a model.
        job_id = client.submit(AUDIO, TranscriptionOptions(language="en"), webhook_url=receiving.url("/job"))
        until(lambda: receiving.at("/job"), "the event of the job")
        found = [*client.webhook_deliveries(job_id=job_id)]
        assert {(each.job_id, each.type.partition(".")[0]) for each in found} == {(job_id, "transcription")}
        until(lambda: not [*client.webhook_deliveries("Pending")])
        assert client.resend_webhook(test.delivery_id).delivery_id == test.delivery_id
        until(lambda: len(receiving.at("/b")) >= 2)

        def command(*arguments: str) -> list[str]:
            assert main(["webhooks", *arguments, "--url", url]) == 0
            return capsys.readouterr().out.splitlines()

        (tmp_path / "a.wav").write_bytes(AUDIO)
        to = ("--detach", "--webhook-url", receiving.url("/submitted"), "--webhook-include-result", "--url", url)
        assert main(["submit", str(tmp_path / "a.wav"), "--language", "en", *to]) == 0
        submitted = capsys.readouterr().out.strip()
        until(lambda: receiving.at("/submitted"), "the event of the submitted file")
        assert receiving.at("/submitted")[0].event(client.webhook_secret().secret)["data"]["job_id"] == submitted
        endpoint_id, printed = command("create", receiving.url("/c"), "--event", "transcription.completed")
        assert printed == client.webhook_secret(endpoint_id).secret == command("secret", endpoint_id)[0]
        assert command("secret", "--rotate") == [client.webhook_secret().secret]
        assert receiving.url("/c") in command("list")[2]
        assert "webhook.test" in command("test", endpoint_id)[1]
        until(lambda: receiving.at("/c"), "the test of the command")
        assert len(command("deliveries", "--limit", "1")) == 2
        assert test.delivery_id in command("resend", test.delivery_id)[1]
        client.change_webhook(endpoint_id, enabled=False)
        assert "enabled" in command("enable", endpoint_id)[1]
        command("delete", endpoint_id)
        assert main(["webhooks", "delete", endpoint_id, "--url", url]) == 2
        assert main(["webhooks", "create", "http://10.0.0.1/", "--url", url]) == 2
        client.delete_webhook(made.endpoint_id)
        with pytest.raises(errors.WebhookNotFound):
            client.webhook(made.endpoint_id)
        with pytest.raises(errors.DeliveryNotFound):
            client.webhook_delivery(test.delivery_id)
        with pytest.raises(errors.InvalidOption, match="webhook_url: "):
            client.submit(AUDIO, webhook_url="http://10.0.0.1/")
