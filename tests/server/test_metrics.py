"""The metrics: what they count, who may read them, and that alerts and dashboard name those that there are."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx
import msgspec
import pytest
from fakes import eventually
from prometheus_client.parser import text_string_to_metric_families

from server.conftest import Start
from server.harness import free_port
from server.inside import AUDIO, inside, on_a_loop, problem
from whisper_api.engine.worker.statistics import DeviceStatistics, WorkerCounts
from whisper_api.jobs.executor import EngineFacts, ExecutorFacts
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\b(?:whisper_api|http_server|process)_[a-z_]+")
ALERTS = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
DASHBOARD = (ROOT / "deploy/grafana/dashboard.json").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Name and labels to value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


@on_a_loop
async def test_jobs_are_counted_by_their_end(tmp_path: Path) -> None:
    def behave(executor: FakeExecutor, job: Job) -> None:
        executor.timings = {"asr": 0.2}
        if job.options.prompt == "bad":
            raise ValueError("bad")

    async with inside(tmp_path, FakeExecutor(behave=behave)) as app, app.client() as client:
        for _ in range(3):
            await app.finish(client, await app.submit(client))
        await app.finish(client, await app.submit(client, prompt="bad"))
        text = (await client.get("/metrics")).text
        assert value(text, "whisper_api_submitted_jobs_total") == 4
        assert value(text, "whisper_api_upload_bytes_total") == 4 * len(AUDIO)
        assert value(text, "whisper_api_jobs_total", status="completed") == 3
        assert value(text, "whisper_api_queue_wait_seconds_count") == 4
        assert value(text, "whisper_api_audio_seconds_total") > 0
        assert value(text, "whisper_api_stage_duration_seconds_sum", stage="asr", model="other") == pytest.approx(0.6)
        assert value(text, "whisper_api_queued_jobs") == 0


@on_a_loop
async def test_the_state_is_that_of_the_moment(tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    async with inside(tmp_path, executor) as app, app.client() as client:
        first = await app.running(client)
        second = await app.submit(client)
        text = (await client.get("/metrics")).text
        assert value(text, "whisper_api_ready") == 1
        assert value(text, "whisper_api_running_jobs") == 1
        assert value(text, "whisper_api_queued_jobs") == 1
        assert (await client.delete(f"/transcription/{second}")).is_success
        executor.release()
        await app.finish(client, first)
        # The job has its result a moment before its thread is done with it.
        await eventually(lambda: app.service.counts() == (0, 0))
        text = (await client.get("/metrics")).text
        assert value(text, "whisper_api_running_jobs") == 0
        assert value(text, "whisper_api_jobs_total", status="canceled") == 1


@on_a_loop
async def test_requests_are_counted_by_template(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        job_id = await app.submit(client)
        await app.finish(client, job_id)
        await client.get("/transcription/other")
        await client.get("/nothing/of/that/name")
        await client.request("BREW", "/status")
        await client.get("/openai/v1/models")
        text = (await client.get("/metrics")).text
        count = "http_server_request_duration_seconds_count"
        assert value(text, count, method="POST", route="/transcribe", status="202") == 1
        assert value(text, count, method="GET", route="/transcription/{job_id}", status="404") == 1
        assert value(text, count, method="GET", route="other", status="404") == 1
        assert value(text, count, method="other", route="/status", status="405") == 1
        assert value(text, count, method="GET", route="/v1/models", status="200") == 1
        assert job_id not in text


class FakeWithDevice(FakeExecutor):
    def facts(self) -> ExecutorFacts:
        counts = WorkerCounts(busy_seconds=1.5, batches=3, items=5, room=8, out_of_memory=1)
        device = DeviceStatistics(device="cuda:0", lanes=2, counts=counts, model_loads=2, model_unloads=1, free_bytes=7)
        return msgspec.structs.replace(
            super().facts(), devices=(device,), engines=(EngineFacts(name="a-0", node="a", state="ready"),)
        )


@on_a_loop
async def test_devices_have_their_own_series(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeWithDevice()) as app, app.client() as client:
        text = (await client.get("/metrics")).text
    assert value(text, "whisper_api_device_busy_seconds_total", device="cuda:0") == 1.5
    assert value(text, "whisper_api_batch_items_total", device="cuda:0") == 5
    assert value(text, "whisper_api_batch_room_total", device="cuda:0") == 8
    assert value(text, "whisper_api_device_free_bytes", device="cuda:0") == 7
    assert value(text, "whisper_api_lost_decoders_total") >= 0


@on_a_loop
async def test_a_metrics_key_reads_metrics(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        async with app.client(app.token("prometheus", "metrics")) as client:
            answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
            assert answer.text.endswith("# EOF\n")
            problem(await client.get("/transcriptions"), 403, "forbidden_role")
        async with app.client(app.token("user")) as client:
            problem(await client.get("/metrics"), 403, "forbidden_role")
        async with app.client() as client:
            problem(await client.get("/metrics"), 401, "unauthorized")


def test_a_port_for_monitoring_has_the_metrics_and_nothing_else(start_server: Start) -> None:
    port = free_port()
    server = start_server({"WHISPER_METRICS_PORT": port, "PRELOAD_MODELS": False})
    with server.client() as client, httpx.Client(base_url=f"http://127.0.0.1:{port}") as monitoring:
        assert client.get("/metrics").status_code == 403
        answer = monitoring.get("/metrics")
        assert answer.status_code == 200
        assert value(answer.text, "whisper_api_queued_jobs") == 0
        for path in ("/transcriptions", "/status", "/", "/v1/models"):
            assert monitoring.get(path).status_code == 404
        page = monitoring.get("/metrics", headers={"Host": "pages.example"})
        assert page.status_code == 403


@on_a_loop
async def test_alerts_dashboard_and_documents_name_metrics_that_there_are(tmp_path: Path) -> None:
    executor = FakeWithDevice()
    executor.timings = {"asr": 0.2}
    async with inside(tmp_path, executor) as app, app.client() as client:
        await app.finish(client, await app.submit(client))
        await client.get("/status")
        text = (await client.get("/metrics")).text
    there = {name for name, _ in samples(text)}
    assert set(NAME.findall(ALERTS)) <= there
    assert set(NAME.findall(DASHBOARD)) <= there
    assert len(json.loads(DASHBOARD)["panels"]) > 5
    table = OPERATIONS.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0]
    families = {family.name: family.documentation for family in text_string_to_metric_families(text)}
    ours = {name: text for name, text in families.items() if not name.startswith("process_")}
    ours = {name: text for name, text in ours.items() if not name.endswith("_created")}
    counters = {name.removesuffix("_total") for name in there if name.endswith("_total")}
    rows = dict(re.findall(r"^\| `([a-z_]+)`[^|]*\| (.+) \|$", table, re.M))
    assert rows == {f"{name}_total" if name in counters else name: text for name, text in ours.items()}


@on_a_loop
async def test_every_metric_is_a_bounded_number_of_series(tmp_path: Path) -> None:
    """What a client can invent (paths, methods, models) makes no new series."""
    async with inside(tmp_path) as app, app.client() as client:
        sizes = []
        for name in ("one", "two", "three"):
            await asyncio.gather(
                client.get(f"/{name}"), client.request(name.upper(), "/status"), client.get(f"/transcription/{name}")
            )
            sizes.append(len(samples((await client.get("/metrics")).text)))
        assert sizes[1] == sizes[2]
