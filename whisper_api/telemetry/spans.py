"""Spans of requests, jobs and stages, by OpenTelemetry's SDK. Imported only when traces are on.

The tracer is this program's own and not the global one, so a program that embeds the server keeps its own set-up.

Source: https://www.w3.org/TR/trace-context, and OpenTelemetry's conventions for HTTP servers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from whisper_api.logs import current_trace
from whisper_api.telemetry.tracing import AttributeValue, RequestSpan, Tracing
from whisper_api.trace_context import JobTrace

SERVICE = "whisper-api"
PREFIX = "whisper_api"
# How long the end of the process waits for a collector that does not answer.
FLUSH_SECONDS = 5.0
# Most characters of a caller's tracestate that a job's row keeps; W3C asks to pass on at least so many.
MAX_STATE_CHARACTERS = 512
W3C = TraceContextTextMapPropagator()


class Spans(Tracing):
    """Reports requests and jobs as spans.

    Args:
        *processors: get the spans that end.
    """

    on = True

    def __init__(self, *processors: SpanProcessor) -> None:
        super().__init__()
        own = {"service.name": SERVICE}
        # The package has no metadata when it runs from its source.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            own["service.version"] = importlib.metadata.version(SERVICE)
        named = OTELResourceDetector().detect().attributes
        resource = _Resource.of(Resource.create({name: value for name, value in own.items() if name not in named}))
        # The sampler and the limits come from the environment, too.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(PREFIX, own.get("service.version"))
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._jobs: dict[str, _JobSpans] = {}

    @contextlib.contextmanager
    def request(self, headers: Callable[[str], list[str]]) -> Iterator[RequestSpan | None]:
        parent = propagate.extract(headers, context.get_current(), _HeaderGetter())
        span = self._tracer.start_span("request", parent, SpanKind.SERVER)
        token = context.attach(trace.set_span_in_context(span, parent))
        ids = current_trace.set(_ids(span))
        try:
            yield _RequestSpan(span)
        finally:
            current_trace.reset(ids)
            context.detach(token)
            span.end()

    def job_submitted(self, job_id: str, at: float) -> JobTrace | None:
        request = trace.get_current_span().get_span_context()
        parent = _header(request) if request.is_valid else ""
        state = _shortened(request.trace_state.to_header()) if request.is_valid else ""
        return self._begin(job_id, JobTrace(parent=parent, state=state), at).kept

    def job_not_added(self, job_id: str) -> None:
        with self._lock:
            self._jobs.pop(job_id, None)

    def job_resumed(self, job_id: str, kept: JobTrace | None) -> JobTrace | None:
        with self._lock:
            if job_id in self._jobs:
                return None
        return self._begin(job_id, kept or JobTrace(), time.time()).kept

    def job_started(self, job_id: str) -> None:
        job = self._job(job_id)
        if job is not None:
            job.enter(None, self._tracer)
            current_trace.set(_ids(job.span))

    def job_stage(self, job_id: str, stage: str) -> None:
        job = self._job(job_id)
        if job is not None:
            job.enter(None if stage == "done" else stage, self._tracer)

    def job_left(self) -> None:
        current_trace.set(None)

    def job_waits(self, job_id: str) -> None:
        job = self._job(job_id)
        if job is not None:
            job.span.add_event("requeued")
            job.enter("queue", self._tracer)

    def job_ended(
        self, job_id: str, state: str, attributes: Mapping[str, AttributeValue | None], error: str | None = None
    ) -> None:
        with self._lock:
            job = self._jobs.pop(job_id, None)
        if job is None:
            return
        job.enter(None, self._tracer)
        _set(job.span, {f"{PREFIX}.job.{name}": value for name, value in {"state": state, **attributes}.items()})
        if error is not None:
            # Only the class of the error: its text may name the caller's file.
            job.span.set_attribute("error.type", error)
            job.span.set_status(StatusCode.ERROR)
        job.span.end()

    def close(self) -> None:
        with self._lock:
            left = list(self._jobs)
        for job_id in left:
            self.job_ended(job_id, "Queued", {})
        # In a thread, because the SDK would wait for up to 30 seconds.
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)

    def _begin(self, job_id: str, before: JobTrace, at: float) -> _JobSpans:
        """Begin the span of a job, and that of its wait.

        Args:
            job_id: id of the job.
            before: the request's context, and that of the job's span in an earlier process.
            at: the beginning; seconds since 1970.
        """
        parent = _extracted(before.parent, before.state)
        earlier = trace.get_current_span(_extracted(before.span, before.state)).get_span_context()
        links = [Link(earlier)] if earlier.is_valid else []
        about = {f"{PREFIX}.job.id": job_id}
        begun = int(at * 1e9)
        span = self._tracer.start_span("job", parent, attributes=about, links=links, start_time=begun)
        kept = JobTrace(parent=before.parent, state=before.state, span=_header(span.get_span_context()))
        job = _JobSpans(span, kept)
        job.enter("queue", self._tracer, begun)
        with self._lock:
            self._jobs[job_id] = job
        return job

    def _job(self, job_id: str) -> _JobSpans | None:
        with self._lock:
            return self._jobs.get(job_id)


class _JobSpans:
    """The spans of a job that has not ended.

    Attributes:
        span: the span of the job.
        kept: what the job's row keeps.
    """

    def __init__(self, span: Span, kept: JobTrace) -> None:
        self.span = span
        self.kept = kept
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._part: str | None = None
        self._part_span: Span | None = None

    def enter(self, part: str | None, tracer: trace.Tracer, at: int | None = None) -> None:
        """End the span of the part that the job was in, and begin that of the next.

        Args:
            part: ``queue`` or a stage; None for no part.
            tracer: makes the span.
            at: nanoseconds since 1970; None for now.
        """
        with self._lock:
            if part == self._part:
                return
            if self._part_span is not None:
                self._part_span.end()
            self._part, self._part_span = part, None
            if part is not None:
                self._part_span = tracer.start_span(part, trace.set_span_in_context(self.span), start_time=at)


@dataclass(frozen=True)
class _RequestSpan:
    span: Span

    def end(self, name: str, status: int | None, attributes: Mapping[str, AttributeValue | None]) -> None:
        self.span.update_name(name)
        _set(self.span, {**attributes, "http.response.status_code": status})
        if status is not None and status >= 500:
            self.span.set_attribute("error.type", str(status))
            self.span.set_status(StatusCode.ERROR)


class _Resource(Resource):
    """A resource whose hash is computed once. The encoder asks for it for each span, and the SDK computes it anew."""

    @classmethod
    def of(cls, resource: Resource) -> _Resource:
        made = cls(resource.attributes, resource.schema_url)
        made._hash = hash(resource)
        return made

    _hash: int

    def __hash__(self) -> int:
        return self._hash


class _HeaderGetter(Getter[Callable[[str], list[str]]]):
    """Reads a request's headers for a propagator."""

    def get(self, carrier: Callable[[str], list[str]], key: str) -> list[str] | None:
        values = carrier(key)
        # A request with two parents has none.
        return None if not values or (key == "traceparent" and len(values) > 1) else values

    def keys(self, carrier: Callable[[str], list[str]]) -> list[str]:
        return []


def _set(span: Span, attributes: Mapping[str, AttributeValue | None]) -> None:
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def _ids(span: Span) -> tuple[str, str]:
    found = span.get_span_context()
    return trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)


def _header(found: trace.SpanContext) -> str:
    """A context as ``traceparent`` (section 3.2)."""
    ids = f"{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(found.span_id)}"
    return f"00-{ids}-{found.trace_flags:02x}"


def _extracted(traceparent: str, tracestate: str) -> context.Context:
    """A context with the span that the headers name; without one for a malformed or empty header."""
    return W3C.extract({"traceparent": traceparent, "tracestate": tracestate}, context.Context())


def _shortened(state: str) -> str:
    """The members of a ``tracestate`` that a row keeps: the newest are on the left."""
    while len(state) > MAX_STATE_CHARACTERS:
        state = state.rpartition(",")[0]
    return state
