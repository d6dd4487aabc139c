"""Traces: the spans of requests, jobs and stages, and that nothing of them is there when they are off."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from spans import KeptSpans, attributes, context_of, span_id, trace_id

from server.conftest import Start
from server.harness import ROOT, finish, submit
from server.inside import AUDIO, RawRequest, inside, lines_of, on_a_loop
from whisper_api.jobs.executor import OnProgress
from whisper_api.schema import Progress
from whisper_api.store.rows import Job
from whisper_api.telemetry import exporters_wanted, start_tracing
from whisper_api.telemetry.spans import Spans
from whisper_api.testing import FakeExecutor

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"


class Staged(FakeExecutor):
    """Goes through the stages of a transcription."""

    def run(self, job: Job, audio: Path, *, on_progress: OnProgress, **more: object):  # type: ignore[no-untyped-def]
        for stage in ("decode", "load", "vad", "asr", "asr", "align"):
            on_progress(Progress(0.5, stage))
        return super().run(job, audio, on_progress=on_progress, **more)  # type: ignore[arg-type]


# --- the tree of a job ---


@on_a_loop
async def test_a_job_is_a_tree_of_spans_in_the_trace_of_its_caller(tmp_path: Path) -> None:
    kept = KeptSpans()
    async with inside(tmp_path, Staged(text="so it goes"), tracing=kept, enable_authorization=True) as app:
        token = app.token("alice")
        async with app.client(token, traceparent=PARENT, tracestate="vendor=x") as client:
            job_id = await app.submit(client, language="en", prompt="a secret prompt")
            await app.finish(client, job_id)
            job, request = kept.the("job"), kept.the("POST /transcribe")
            # A slow job takes several of them.
            status = kept.some("GET /transcription/{job_id}")[0]
    assert request.parent is not None
    assert (trace_id(request), f"{request.parent.span_id:016x}") == (TRACE, CALLER)
    assert job.parent is not None
    assert job.parent.span_id == context_of(request).span_id
    assert trace_id(job) == TRACE
    assert context_of(job).trace_state.to_header() == "vendor=x"
    # The executor of all tests ends with a report of the stage asr.
    assert kept.under(job) == ["queue", "decode", "load", "vad", "asr", "align", "asr"]
    parts = [span for span in kept.ended if span.parent and span.parent.span_id == context_of(job).span_id]
    for span in parts:
        assert (job.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0) <= (job.end_time or 0)
    assert kept.the("queue").start_time == job.start_time
    assert attributes(job) == {
        "whisper_api.job.id": job_id,
        "whisper_api.job.state": "Completed",
        "whisper_api.job.model": "other",
        "whisper_api.job.language": "en",
        "whisper_api.job.device": "cpu",
        "whisper_api.job.audio_seconds": pytest.approx(1.0, abs=60),
        "whisper_api.job.attempt": 1,
    }
    assert attributes(request)["whisper_api.key.id"] == token.split("_")[1]
    assert attributes(request)["whisper_api.job.id"] == attributes(status)["whisper_api.job.id"] == job_id
    assert attributes(request)["http.route"] == "/transcribe"
    assert attributes(request)["http.response.status_code"] == 202
    assert request.kind.name == "SERVER"
    assert request.resource.attributes["service.name"] == "whisper-api"
    everything = "".join(span.to_json() for span in kept.ended)
    for private in (token, token.split("_", 2)[2], "secret prompt", "so it goes", "a.wav"):
        assert private not in everything


@on_a_loop
async def test_jobs_of_openais_routes_and_streams_are_traced_alike(tmp_path: Path) -> None:
    kept = KeptSpans()
    async with inside(tmp_path, Staged(text="so it goes"), tracing=kept) as app, app.client() as client:
        files = {"file": ("a.wav", AUDIO)}
        answer = await client.post("/v1/audio/transcriptions", files=files, data={"model": "whisper-1"})
        assert answer.status_code == 200
        job, request = kept.the("job"), kept.the("POST /v1/audio/transcriptions")
        fields = {"model": "whisper-1", "stream": "true", "language": "en"}
        streamed = await client.post("/v1/audio/transcriptions", files=files, data=fields)
        assert streamed.headers["Content-Type"].startswith("text/event-stream")
        await app.until(lambda: len(kept.named("job")) == 2 and len(kept.named("POST /v1/audio/transcriptions")) == 2)
        answer = await client.get(f"/transcription/{attributes(job)['whisper_api.job.id']}/events")
        assert answer.status_code in (200, 204)
        kept.the("GET /transcription/{job_id}/events")
    for one, other in zip(kept.named("job"), kept.named("POST /v1/audio/transcriptions"), strict=True):
        assert trace_id(one) == trace_id(other)
        assert one.parent is not None
        assert one.parent.span_id == context_of(other).span_id
        assert "asr" in kept.under(one)
    assert request.parent is None


@pytest.mark.parametrize("running", [False, True])
@on_a_loop
async def test_a_canceled_job_ends_its_spans(tmp_path: Path, running: bool) -> None:
    kept, executor = KeptSpans(), FakeExecutor(held=True)
    async with inside(tmp_path, executor, tracing=kept) as app, app.client() as client:
        first = await app.running(client)
        job_id = first if running else await app.submit(client)
        assert (await client.delete(f"/transcription/{job_id}?force=true")).is_success
        job = kept.the("job")
        assert attributes(job)["whisper_api.job.id"] == job_id
        assert attributes(job)["whisper_api.job.state"] == "Canceled"
        assert job.status.is_unset
        assert kept.under(job) == (["queue", "asr"] if running else ["queue"])
        executor.release()


@on_a_loop
async def test_a_failed_job_ends_its_spans_and_says_which_error(tmp_path: Path) -> None:
    def fail(executor: FakeExecutor, job: Job) -> None:
        raise ValueError("nothing of my-diary.wav can be told")

    kept = KeptSpans()
    async with inside(tmp_path, FakeExecutor(behave=fail), tracing=kept) as app, app.client() as client:
        await app.finish(client, await app.submit(client))
        job = kept.the("job")
    assert attributes(job)["whisper_api.job.state"] == "Failed"
    assert attributes(job)["error.type"] == "ValueError"
    assert job.status.status_code.name == "ERROR"
    assert kept.under(job) == ["queue", "asr"]
    assert "diary" not in job.to_json()


@on_a_loop
async def test_a_request_that_gets_an_earlier_job_makes_no_second_span_of_it(tmp_path: Path) -> None:
    kept = KeptSpans()
    async with inside(tmp_path, FakeExecutor(held=True), tracing=kept) as app, app.client() as client:
        await app.running(client)
        for _ in range(2):
            await app.post(client, {"Idempotency-Key": "once"})
        app.executor.release()
        await app.until(lambda: app.service.counts() == (0, 0))
    _, first, again = kept.named("POST /transcribe")
    assert attributes(first)["whisper_api.job.id"] == attributes(again)["whisper_api.job.id"]
    assert len(kept.named("job")) == 2


@on_a_loop
async def test_requests_that_are_refused_or_break_off_have_spans_too(tmp_path: Path) -> None:
    kept = KeptSpans()
    async with inside(tmp_path, tracing=kept) as app, app.client() as client:
        await client.get("/nothing/of/this?query=private")
        await client.request("BREW", "/status")
        await client.get("/livez")
        await client.get("/metrics")
        gone = RawRequest("POST", "/transcribe", {"Content-Type": "multipart/form-data; boundary=x"}, (b"--x",), False)
        gone.gone.set()
        await gone.to(app.app)
    assert [span.name for span in kept.ended] == ["GET", "HTTP /status", "POST /transcribe"]
    assert [attributes(span).get("http.response.status_code") for span in kept.ended] == [404, 405, None]
    assert "private" not in "".join(span.to_json() for span in kept.ended)
    assert "nothing/of" not in "".join(span.to_json() for span in kept.ended)


# --- the caller's context ---


@pytest.mark.parametrize(
    "header",
    [
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}",
        f"00-{TRACE}-{CALLER}-01-more",
        f"00-{TRACE}-{CALLER}-01" + "x" * 5000,
        "",
        "nonsense",
    ],
)
@on_a_loop
async def test_a_malformed_parent_is_ignored_and_with_it_the_state(tmp_path: Path, header: str) -> None:
    kept = KeptSpans()
    async with inside(tmp_path, tracing=kept) as app, app.client(traceparent=header, tracestate="a=b") as client:
        assert (await client.get("/status")).status_code == 200
    (span,) = kept.ended
    assert span.parent is None
    assert trace_id(span) != TRACE
    assert not context_of(span).trace_state


@on_a_loop
async def test_two_parents_count_as_none_and_a_later_version_is_read(tmp_path: Path) -> None:
    kept = KeptSpans()
    async with inside(tmp_path, tracing=kept) as app, app.client() as client:
        await client.get("/status", headers=[("traceparent", PARENT), ("traceparent", PARENT)])
        await client.get("/status", headers={"traceparent": f"01-{TRACE}-{CALLER}-01-what-is-to-come"})
    first, second = kept.ended
    assert first.parent is None
    assert trace_id(second) == TRACE


@on_a_loop
async def test_a_caller_who_does_not_sample_gets_no_spans(tmp_path: Path) -> None:
    kept = KeptSpans()
    unsampled = PARENT.removesuffix("1") + "0"
    async with inside(tmp_path, tracing=kept) as app, app.client(traceparent=unsampled) as client:
        await app.finish(client, await app.submit(client))
    assert kept.ended == ()


@pytest.mark.parametrize(("sampler", "alone", "called"), [("always_off", 0, 0), ("parentbased_always_off", 0, 1)])
@on_a_loop
async def test_the_sampler_of_the_environment_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, alone: int, called: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    kept = KeptSpans()
    async with inside(tmp_path, tracing=kept) as app, app.client() as client:
        await client.get("/status")
        assert len(kept.ended) == alone
        await client.get("/status", headers={"traceparent": PARENT})
        assert len(kept.ended) == called


# --- the log ---


@on_a_loop
async def test_log_lines_have_the_ids_of_their_span(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whisper_api import logs

    lines: list[dict[str, object]] = []
    formatter = logs._JsonLines()  # noqa: SLF001
    monkeypatch.setattr(caplog.handler, "emit", lambda record: lines.append(json.loads(formatter.format(record))))
    caplog.set_level(logging.INFO, "whisper_api")
    kept = KeptSpans()
    async with inside(tmp_path, tracing=kept) as app, app.client() as client:
        await app.finish(client, await app.submit(client))
        job, request = kept.the("job"), kept.the("POST /transcribe")

    def ids(message: str, **wanted: object) -> tuple[object, object]:
        (line,) = (each for each in lines if each["message"] == message and wanted.items() <= each.items())
        return line.get("trace_id"), line.get("span_id")

    assert ids("job started") == ids("job completed") == (trace_id(job), span_id(job))
    assert ids("job submitted") == (trace_id(request), span_id(request))
    assert ids("request", route="/transcribe", status=202) == (trace_id(request), span_id(request))
    assert logs.current_trace.get() is None


@on_a_loop
async def test_the_access_log_has_routes_and_no_names_of_callers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "whisper_api")
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("alice")) as client:
        await client.put("/vocabularies/private-clients", json={"terms": ["x"]})
        await client.get("/transcription/00000000-0000-0000-0000-000000000000?a=private")
        await client.get("/nowhere")
    named, job, unknown = lines_of(caplog)
    assert (named["route"], named["path"]) == ("/vocabularies/{name}", "/vocabularies/{name}")
    assert (job["route"], job["path"]) == (
        "/transcription/{job_id}",
        "/transcription/00000000-0000-0000-0000-000000000000",
    )
    assert (unknown["route"], unknown["path"]) == (None, "/nowhere")
    assert all(line["key_id"] and line["client"] and line["ms"] >= 0 for line in (named, job, unknown))
    assert "private" not in " ".join(str(vars(record)) for record in caplog.records)


# --- on and off ---


OFF = """
import asyncio, logging, os, sys, httpx
from pathlib import Path
from typing import Any
from whisper_api.config import Config
from whisper_api.server.app import create_app
from whisper_api.testing import FakeExecutor

logging.basicConfig()

async def main():
    directory = Path(sys.argv[1])
    config = Config(data_dir=directory / "data", tmp_dir=directory / "tmp", enable_authorization=False)
    app = create_app(config, executor=FakeExecutor(text="x"))
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            files = {"file": ("a.wav", bytes.fromhex(sys.argv[2]))}
            answer = await client.post("/transcribe", files=files, data={"sync": "true"})
            assert answer.status_code == 200, answer.text

asyncio.run(main())
found = [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]
assert not found, found
"""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_when_traces_are_off_there_is_no_layer_and_nothing_is_imported(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", OFF, str(tmp_path), AUDIO.hex()]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        ({}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ("console", "otlp")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "false"}, ("otlp",)),
    ],
)
def test_the_environment_alone_switches_traces_on(
    environment: dict[str, str], exporters: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert exporters_wanted() == exporters


@pytest.mark.parametrize(
    ("module", "environment", "words"),
    [
        ("opentelemetry.sdk.trace", {"OTEL_TRACES_EXPORTER": "otlp"}, "pip install 'whisper-api[otel]'"),
        (None, {"OTEL_TRACES_EXPORTER": "zipkin"}, "pip install opentelemetry-exporter-zipkin"),
        (None, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "http/protobuf or grpc"),
    ],
)
def test_what_keeps_traces_from_being_sent_is_a_warning_and_the_server_starts(
    module: str | None,
    environment: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if module is not None:
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, "whisper_api.telemetry.spans", raising=False)
    assert not start_tracing().on
    (record,) = caplog.records
    assert words in record.getMessage()
    assert vars(record)["error"] in ("ExtraMissing", "ConfigError")


class Collector:
    """A receiver of OTLP over HTTP.

    Attributes:
        url: its address.
        spans: what has arrived.
        services: the names of the services that have sent.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    names = {each.key: each.value.string_value for each in resource.resource.attributes}
                    collector.services.add(names["service.name"])
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *ignored: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()


@pytest.mark.models
def test_a_collector_gets_the_stages_of_a_real_job_at_the_latest_when_the_server_stops(
    start_server: Start, collector: Collector, hello: bytes
) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_SERVICE_NAME": "speech",
        # The last spans come with the stop, then.
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    server = start_server({"ENABLE_AUTHORIZATION": False}, environment=environment)
    with server.client(headers={"traceparent": PARENT}) as client:
        job_id = submit(client, hello)
        finish(client, job_id)
    assert not collector.spans
    assert server.stop() == 0
    assert collector.services == {"speech"}
    (job,) = (span for span in collector.spans if span.name == "job")
    (request,) = (span for span in collector.spans if span.name == "POST /transcribe")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, CALLER)
    assert job.parent_span_id == request.span_id
    stages = [span for span in collector.spans if span.parent_span_id == job.span_id]
    stages.sort(key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in stages] == ["queue", "decode", "load", "vad", "asr"]
    for before, after in itertools.pairwise(stages):
        assert before.end_time_unix_nano <= after.start_time_unix_nano
    values = {each.key: each.value for each in job.attributes}
    assert values["whisper_api.job.model"].string_value == "base"
    assert values["whisper_api.job.language"].string_value == "en"
    assert values["whisper_api.job.device"].string_value == "cpu"
    assert values["whisper_api.job.id"].string_value == job_id


class Silent(SpanProcessor):
    """Sends to a collector that does not answer."""

    def __init__(self) -> None:
        self.until = threading.Event()

    def shutdown(self) -> None:
        self.until.wait(60)


def test_a_collector_that_does_not_answer_holds_up_the_stop_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("whisper_api.telemetry.spans.FLUSH_SECONDS", 0.05)
    silent = Silent()
    Spans(silent).close()
    assert not silent.until.is_set()
    silent.until.set()


def test_the_resource_of_spans_equals_the_one_that_the_sdk_makes() -> None:
    spans = Spans()
    made = spans._provider.resource  # noqa: SLF001
    plain = Resource(made.attributes, made.schema_url)
    assert made == plain
    assert hash(made) == hash(plain)
    spans.close()
