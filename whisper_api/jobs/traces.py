"""What the traces say of a job: how it starts again after a restart, and what it was when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msgspec.structs import replace

from whisper_api.errors import StorageError
from whisper_api.job_values import JobCanceledEvent, JobCompletedEvent, JobEvent, JobFailedEvent
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.outcomes import Completed, Outcome
from whisper_api.jobs.usage import model_label
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job
from whisper_api.telemetry import Tracing

# What OpenTelemetry's conventions write for an error without a name.
OTHER_ERROR = "_OTHER"


@contextlib.contextmanager
def traced(tracing: Tracing, job: Job) -> Iterator[Job]:
    """While open, a job is added to the store: yields the job with its trace.

    Args:
        tracing: the traces.
        job: the new job.
    """
    trace = tracing.job_submitted(job.job_id, job.created_at)
    try:
        yield job if trace is None else replace(job, trace=trace)
    except BaseException:
        tracing.job_not_added(job.job_id)
        raise


def start_trace(tracing: Tracing, store: JobStore, job: Job) -> None:
    """Report that a job runs in this thread. A job of an earlier process gets another span, which its row then keeps.

    Args:
        tracing: the traces; they are on.
        store: has the job.
        job: the job.
    """
    kept = tracing.job_resumed(job.job_id, job.trace)
    if kept is not None:
        # Without the row, a third process would have a link to the first and not to this one.
        with contextlib.suppress(StorageError):
            store.set_trace(job.job_id, kept)
    tracing.job_started(job.job_id)


def end_trace(tracing: Tracing, executor: Executor, job: Job, outcome: Outcome, event: JobEvent | None) -> None:
    """Report that a job runs no more in this thread, and how it has ended.

    Args:
        tracing: the traces; they are on.
        executor: has run the job.
        job: the job, as it was claimed.
        outcome: what came of this run.
        event: the end of the job; None when it is in the queue again.
    """
    tracing.job_left()
    match event:
        case JobCompletedEvent():
            state, error = "Completed", None
        case JobFailedEvent():
            state, error = "Failed", getattr(outcome, "error_name", "") or OTHER_ERROR
        case JobCanceledEvent():
            state, error = "Canceled", None
        case _:
            return
    language, model, seconds = None, executor.model_name(job.options), job.audio_seconds
    if isinstance(outcome, Completed):
        language, model, seconds = outcome.transcript.language, outcome.transcript.model, outcome.transcript.duration
    attributes = {
        "model": model_label(model) if model else None,
        "language": language or None,
        "device": executor.device,
        "audio_seconds": seconds,
        "attempt": job.attempts + 1,
    }
    tracing.job_ended(job.job_id, state, attributes, error)


def fail_trace(tracing: Tracing, job: Job) -> None:
    """Report that a job of an earlier process does not run again.

    Args:
        tracing: the traces.
        job: the job, as the earlier process has left it.
    """
    tracing.job_resumed(job.job_id, job.trace)
    tracing.job_ended(job.job_id, "Failed", {"attempt": job.attempts + 1}, OTHER_ERROR)
