"""What traces say of jobs that outlive a process."""

from __future__ import annotations

from pathlib import Path

from fakes import ended, new_service, running, submit
from opentelemetry.sdk.trace import ReadableSpan
from spans import KeptSpans, attributes, context_of

from whisper_api.jobs.service import JobService
from whisper_api.store.jobs import DATABASE_NAME
from whisper_api.testing import FakeExecutor


def linked(span: ReadableSpan) -> list[int]:
    """The ids of the spans to which a span has links."""
    return [link.context.span_id for link in span.links]


def in_a_request(service: JobService, kept: KeptSpans) -> tuple[str, ReadableSpan]:
    """Submit a job within the span of a request."""
    with kept.request(lambda name: []) as span:
        job_id = submit(service)
        assert span is not None
        span.end("a request", 202, {})
    return job_id, kept.the("a request")


def test_a_job_that_runs_again_after_a_crash_has_a_link_to_the_lost_span(tmp_path: Path) -> None:
    before, after = KeptSpans(), KeptSpans()
    service = new_service(tmp_path, tracing=before)
    job_id, request = in_a_request(service, before)
    # As it is when the process is killed while the job runs.
    service.store.claim(job_id, 1.0)
    service.close()
    lost = before.the("job")
    service = new_service(tmp_path, tracing=after)
    service.start()
    ended(service, job_id)
    again = after.the("job")
    service.close()
    assert linked(again) == [context_of(lost).span_id]
    assert context_of(again).trace_id == context_of(request).trace_id
    assert again.parent is not None
    assert again.parent.span_id == context_of(request).span_id
    assert attributes(again)["whisper_api.job.attempt"] == 2
    assert after.under(again) == ["queue", "asr"]


def test_each_process_has_a_link_to_the_one_before(tmp_path: Path) -> None:
    spans: list[ReadableSpan] = []
    job_id = ""
    for held in (True, True, False):
        kept = KeptSpans()
        service = new_service(tmp_path, FakeExecutor(held=held), tracing=kept)
        service.start()
        job_id = job_id or in_a_request(service, kept)[0]
        if held:
            running(service, job_id)
        else:
            ended(service, job_id)
        service.close()
        spans.append(kept.the("job"))
        assert attributes(spans[-1])["whisper_api.job.state"] == ("Queued" if held else "Completed")
    ids = [context_of(span).span_id for span in spans]
    assert [linked(span) for span in spans] == [[], [ids[0]], [ids[1]]]
    assert len({context_of(span).trace_id for span in spans}) == 1


def test_a_job_that_is_not_tried_again_says_so(tmp_path: Path) -> None:
    before, after = KeptSpans(), KeptSpans()
    service = new_service(tmp_path, tracing=before)
    job_id, _ = in_a_request(service, before)
    service.store.claim(job_id, 1.0)
    service.close()
    service = new_service(tmp_path, tracing=after, max_job_attempts=1)
    service.start()
    service.close()
    failed = after.the("job")
    assert attributes(failed)["whisper_api.job.state"] == "Failed"
    assert linked(failed) == [context_of(before.the("job")).span_id]


def test_traces_may_be_switched_on_and_off_while_jobs_wait(tmp_path: Path) -> None:
    service = new_service(tmp_path)
    early = submit(service)
    service.close()
    kept = KeptSpans()
    service = new_service(tmp_path, FakeExecutor(held=True), tracing=kept)
    service.start()
    running(service, early)
    late = submit(service)
    service.close()
    assert [linked(span) for span in kept.named("job")] == [[], []]
    service = new_service(tmp_path)
    service.start()
    assert {ended(service, job_id).status for job_id in (early, late)} == {"Completed"}
    service.close()


def test_the_trace_leaves_the_database_with_the_end_of_the_job(tmp_path: Path) -> None:
    kept = KeptSpans()
    headers = {"traceparent": [f"00-{'ab' * 16}-{'cd' * 8}-01"], "tracestate": ["vendor=unforgettable"]}
    executor = FakeExecutor(held=True)
    service = new_service(tmp_path, executor, tracing=kept)
    service.start()
    with kept.request(lambda name: headers.get(name, [])):
        job_id = submit(service)
    job = service.store.get(job_id)
    assert job is not None
    assert job.trace is not None
    assert job.trace.state == "vendor=unforgettable"
    executor.release()
    ended(service, job_id)
    job = service.store.get(job_id)
    assert job is not None
    assert job.trace is None
    service.close()
    files = (tmp_path / "data").glob(f"{DATABASE_NAME}*")
    assert not any(b"unforgettable" in path.read_bytes() for path in files)


def test_a_job_that_goes_back_to_the_queue_waits_a_second_time_in_the_same_span(tmp_path: Path) -> None:
    kept, executor = KeptSpans(), FakeExecutor()
    executor.missing.add("xx")
    service = new_service(tmp_path, executor, tracing=kept)
    service.start()
    job_id = submit(service, language="xx")
    ended(service, job_id)
    job = kept.the("job")
    service.close()
    assert kept.under(job) == ["queue", "asr", "queue", "asr"]
    assert [event.name for event in job.events] == ["requeued"]
