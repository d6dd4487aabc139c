"""The context of a trace, as jobs keep it and as the clients send it.

Source: https://www.w3.org/TR/trace-context
"""

from __future__ import annotations

import sys

import msgspec


class JobTrace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The trace of a job, as its row keeps it while the job has not ended.

    Attributes:
        parent: ``traceparent`` of the request that submitted the job; empty for a job without a request.
        state: ``tracestate`` of this request.
        span: ``traceparent`` of the job's own span, to which the span in a later process has a link.
    """

    parent: str = ""
    state: str = ""
    span: str = ""


def active_trace_headers() -> dict[str, str]:
    """The headers that make a server's spans children of the caller's active span.

    Empty without such a span, and in a program that does not use OpenTelemetry, which is not imported for this.
    """
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers
