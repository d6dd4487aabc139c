"""Traces of requests and jobs: what is reported. :mod:`~whisper_api.telemetry.spans` makes spans of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from whisper_api.trace_context import JobTrace

AttributeValue = str | int | float | bool


class RequestSpan(Protocol):
    """The span of a request that is being answered."""

    def end(self, name: str, status: int | None, attributes: Mapping[str, AttributeValue | None]) -> None:
        """Say what the request was; the span ends with the request.

        Args:
            name: name of the span: method and route.
            status: status of the response; None when there was none.
            attributes: by the conventions of OpenTelemetry; those that are None are left out.
        """


class Tracing:
    """Reports requests and jobs as spans. This base class reports nothing; the service uses it when traces are off.

    A job has a span from its submission to its end. When the process ends before the job, the next process begins
    another span with a link to the first.

    Args:
        problem: why nothing is reported, although the environment asks for traces.

    Attributes:
        on: whether traces are on.
        problem: as the argument; empty when nothing is wrong.
    """

    on = False

    def __init__(self, problem: str = "") -> None:
        self.problem = problem

    @contextmanager
    def request(self, headers: Callable[[str], list[str]]) -> Iterator[RequestSpan | None]:
        """Open the span of a request; it is the parent of all spans that begin while the context is open.

        Args:
            headers: returns the values of a header.

        Yields:
            The span; None when traces are off.
        """
        yield None

    def job_submitted(self, job_id: str, at: float) -> JobTrace | None:
        """Begin the span of a new job.

        Args:
            job_id: id of the job.
            at: when the job was accepted; seconds since 1970.

        Returns:
            The trace to keep in the job's row.
        """
        return None

    def job_not_added(self, job_id: str) -> None:
        """Drop the span of a job that was refused, or whose request got another job."""

    def job_resumed(self, job_id: str, kept: JobTrace | None) -> JobTrace | None:
        """Begin another span for a job of an earlier process.

        Args:
            job_id: id of the job.
            kept: the trace from the job's row; None when traces were off.

        Returns:
            The trace to keep in the job's row now; None when this process has the job's span already.
        """
        return None

    def job_started(self, job_id: str) -> None:
        """The job runs, in this thread: log lines of this thread get the ids of its span."""

    def job_stage(self, job_id: str, stage: str) -> None:
        """The job is in a stage. A stage that lasts is reported many times."""

    def job_left(self) -> None:
        """This thread runs no job any more."""

    def job_waits(self, job_id: str) -> None:
        """The job has run, and is in the queue again."""

    def job_ended(
        self, job_id: str, state: str, attributes: Mapping[str, AttributeValue | None], error: str | None = None
    ) -> None:
        """End the span of a job; nothing happens when this process has none.

        Args:
            job_id: id of the job.
            state: final state of the job.
            attributes: name to value, without the prefix of this program; those that are None are left out.
            error: class of the error of a job that Failed.
        """

    def close(self) -> None:
        """End the spans of all jobs, and send all spans, for a bounded time."""
