"""Traces whose spans stay in this process, to look at."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from whisper_api.telemetry.spans import Spans

__all__ = ["KeptSpans", "attributes", "context_of", "span_id", "trace_id"]


class KeptSpans(Spans):
    """Keeps the spans that have ended."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        super().__init__(SimpleSpanProcessor(self._kept))

    @property
    def ended(self) -> tuple[ReadableSpan, ...]:
        return self._kept.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    def some(self, name: str) -> list[ReadableSpan]:
        """The spans of a name; waits for the first one, since a job's span ends after the job."""
        deadline = time.monotonic() + 30
        while not (found := self.named(name)) and time.monotonic() < deadline:
            time.sleep(0.005)
        return found

    def the(self, name: str) -> ReadableSpan:
        """The only span of a name; waits for it."""
        (span,) = self.some(name)
        return span

    def under(self, span: ReadableSpan) -> list[str]:
        """The names of the children of a span, in the order of their beginnings."""
        parent = context_of(span).span_id
        children = [each for each in self.ended if each.parent is not None and each.parent.span_id == parent]
        return [each.name for each in sorted(children, key=lambda each: each.start_time or 0)]


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def trace_id(span: ReadableSpan) -> str:
    return f"{context_of(span).trace_id:032x}"


def span_id(span: ReadableSpan) -> str:
    return f"{context_of(span).span_id:016x}"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
