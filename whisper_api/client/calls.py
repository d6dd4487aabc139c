"""The calls of the REST API without their I/O: which requests they send, when they pause and what they return.

A call is a generator. It yields a :class:`Send` and is resumed with the answer, or with :class:`NotNow` when there is
none; it yields a :class:`Pause` and is resumed after so many seconds. The blocking and the asynchronous client run the
same generators.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from whisper_api.client.answers import Answer, NotNow, decoded, pause_before
from whisper_api.client.upload import Form
from whisper_api.errors import InvalidOption, JobCanceled, JobFailed, JobNotFinished
from whisper_api.schema import (
    FINAL_STATES,
    Corrections,
    JobResult,
    JobState,
    JobStatus,
    RenderOptions,
    TranscriptionOptions,
)

__all__ = ["Calls", "Page", "Pause", "Send", "Steps", "checked", "events_path", "form_fields", "search"]

# How long a server that is restarted may take to answer again, while a job is waited for.
RESTART_SECONDS = 120.0
# Seconds that one request waits for a change; with a progress callback, progress is asked for as often as this.
LONG_POLL = 30.0
WATCHED_POLL = 1.0
# A server that is stopping answers at once instead of waiting; it is not asked more often than this.
SHORTEST_POLL = 0.25

T = TypeVar("T")


class Send(NamedTuple):
    """One request.

    Attributes:
        method, path, params, headers: of the request.
        body: a form with audio, bytes, or None.
        job_id: the job that errors are about.
        held_seconds: how long the server is asked to hold the request.
    """

    method: str
    path: str
    job_id: str = ""
    params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: Form | bytes | None = None
    held_seconds: float = 0.0


class Pause(NamedTuple):
    """Seconds to wait."""

    seconds: float


# Resumed with an Answer after a Send, with None after a Pause.
Steps = Generator["Send | Pause", Any, T]


class Page(msgspec.Struct):
    """Some of the caller's jobs, and where the next ones begin."""

    jobs: tuple[JobStatus, ...]
    next: str | None = None


class _Accepted(msgspec.Struct):
    job_id: str


class Calls:
    """The calls of one client.

    Args:
        retries: how often a request is tried again.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries

    def submit(self, form: Form, key: str) -> Steps[str]:
        """Send audio; returns the job's id.

        Args:
            form: the audio and the options.
            key: the idempotency key, the same for every attempt.
        """
        headers = {"Content-Type": form.content_type, "Idempotency-Key": key}
        answer = yield from self._answer(Send("POST", "/transcribe", headers=headers, body=form))
        return decoded(answer, _Accepted).job_id

    def status(
        self, job_id: str, wait: float = 0.0, *, deadline: float = math.inf, patience_seconds: float = 0.0
    ) -> Steps[JobStatus]:
        """Where a job stands.

        Args:
            job_id: of the job.
            wait: seconds that the server may hold the request.
            deadline, patience_seconds: as in :meth:`_answer`.
        """
        params = {"wait": f"{wait:.3g}"} if wait > 0 else {}
        send = Send("GET", _path(job_id), job_id, params, held_seconds=wait)
        answer = yield from self._answer(send, deadline=deadline, patience_seconds=patience_seconds)
        return decoded(answer, JobStatus)

    def wait(
        self, job_id: str, on_progress: Callable[[JobStatus], None] | None, timeout: float | None
    ) -> Steps[JobStatus]:
        """Ask until a job has ended; returns the last status.

        Args:
            job_id: of the job.
            on_progress: called with each status that differs from the one before.
            timeout: seconds; None for as long as it takes.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        longest = LONG_POLL if on_progress is None else WATCHED_POLL
        last: JobStatus | None = None
        while True:
            asked = time.monotonic()
            # The first answer is shown at once; for the others the server waits until the status changes.
            wait = 0.0 if last is None else max(0.0, min(longest, deadline - asked))
            status = yield from self.status(job_id, wait, deadline=deadline, patience_seconds=RESTART_SECONDS)
            if status != last and on_progress is not None:
                on_progress(status)
            now = time.monotonic()
            if status.status in FINAL_STATES or now >= deadline:
                return status
            if last is not None:
                yield Pause(max(0.0, min(asked + SHORTEST_POLL, deadline) - now))
            last = status

    def awaited_result(
        self, job_id: str, on_progress: Callable[[JobStatus], None] | None, timeout: float | None
    ) -> Steps[JobResult]:
        """Wait for a job and fetch its result.

        Args:
            job_id, on_progress, timeout: as in :meth:`wait`.

        Raises:
            JobFailed, JobCanceled, JobNotFinished: there is no result, for this reason.
        """
        status = yield from self.wait(job_id, on_progress, timeout)
        match status.status:
            case "Completed":
                return (yield from self.result(job_id))
            case "Failed":
                raise JobFailed(job_id, status.error or "the job failed")
            case "Canceled":
                raise JobCanceled(job_id, "the job was canceled")
        raise JobNotFinished(job_id, f"job {job_id} has not ended after {timeout:g} seconds; it goes on")

    def result(self, job_id: str) -> Steps[JobResult]:
        """The result of a job that has ended."""
        answer = yield from self._answer(Send("GET", _path(job_id, "/result"), job_id))
        return decoded(answer, JobResult)

    def result_as(self, job_id: str, format: str, render_options: RenderOptions | None) -> Steps[str]:
        """The result as the text of a file.

        Args:
            job_id: of the job.
            format: srt, vtt, txt, tsv, json or aud.
            render_options: the layout of subtitles.
        """
        params = {"format": format, **_texts(msgspec.to_builtins(render_options or RenderOptions()))}
        answer = yield from self._answer(Send("GET", _path(job_id, "/result"), job_id, params))
        return answer.body.decode("utf-8")

    def corrections(self, job_id: str) -> Steps[Corrections]:
        """What was corrected in a job's result."""
        answer = yield from self._answer(Send("GET", _path(job_id, "/corrections"), job_id))
        return decoded(answer, Corrections)

    def correct(self, job_id: str, corrections: Corrections) -> Steps[Corrections]:
        """Replace the corrections of a job's result; returns what the server keeps.

        Args:
            job_id: of the job.
            corrections: all of them.
        """
        headers = {"Content-Type": "application/json"}
        body = msgspec.json.encode(corrections)
        answer = yield from self._answer(Send("PUT", _path(job_id, "/corrections"), job_id, {}, headers, body))
        return decoded(answer, Corrections)

    def cancel(self, job_id: str, force: bool) -> Steps[None]:
        """Cancel a job or remove its result.

        Args:
            job_id: of the job.
            force: also when the job runs.
        """
        yield from self._answer(Send("DELETE", _path(job_id), job_id, {"force": "true"} if force else {}))

    def page(self, params: Mapping[str, str]) -> Steps[Page]:
        """One page of the caller's jobs, for the query of :func:`search`."""
        answer = yield from self._answer(Send("GET", "/transcriptions", params=params))
        return decoded(answer, Page)

    def _answer(self, send: Send, *, deadline: float = math.inf, patience_seconds: float = 0.0) -> Steps[Answer]:
        """Send a request until the answer is another one than "not now".

        Args:
            send: the request.
            deadline: on the monotonic clock; no attempt begins after it.
            patience_seconds: attempts go on for so long, however many they are.

        Raises:
            WhisperApiError: what the server said, by its name, or that it cannot be reached.
        """
        given_up = time.monotonic() + patience_seconds
        attempt = 0
        while True:
            try:
                answer: Answer = yield send
            except NotNow as error:
                not_now = error
            else:
                return answer
            now = time.monotonic()
            if now >= deadline or (attempt >= self._retries and now >= given_up):
                raise not_now.reason
            yield Pause(min(pause_before(attempt, not_now.retry_after), max(0.0, deadline - now)))
            attempt += 1


def checked(url: str, api_key: str | None) -> tuple[str, str]:
    """The address and the key of a server, as requests need them.

    Args:
        url: http or https, with a path where the server is mounted under one.
        api_key: None for a server that asks for none.

    Raises:
        InvalidOption: the URL is none, or the key cannot be one.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidOption("url", f"expected http://HOST:PORT or https://HOST, not {url!r}")
    api_key = (api_key or "").strip()
    if not (api_key.isascii() and api_key.isprintable()):
        raise InvalidOption("api_key", "expected the characters that the server printed")
    return url.rstrip("/"), api_key


def form_fields(
    options: TranscriptionOptions | None,
    output_format: str | None,
    render_options: RenderOptions | None,
    keep_result: bool,
    metadata: Mapping[str, Any] | None,
    hf_token: str | None,
) -> dict[str, str]:
    """The fields of a form that submits a job; its arguments are those of the clients' ``submit``."""
    # A server may be configured to answer with the transcript: the clients always wait by themselves.
    fields: dict[str, object] = {"sync": False, **msgspec.to_builtins(options or TranscriptionOptions())}
    fields |= msgspec.to_builtins(render_options or RenderOptions())
    fields["output_format"] = output_format
    fields["keep_result"] = keep_result or None
    fields["hf_token"] = hf_token or None
    fields["metadata"] = None if metadata is None else msgspec.json.encode(metadata).decode()
    return _texts(fields)


def search(
    status: JobState | None,
    metadata_key: str | None,
    metadata_value: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
) -> dict[str, str]:
    """The query of a search for jobs; its arguments are those of the clients' ``jobs``."""
    given = {
        "status": status,
        "metadata_key": metadata_key,
        "metadata_value": None if metadata_value is None else _as_sent(metadata_value),
        "created_after": None if created_after is None else created_after.astimezone().isoformat(),
        "created_before": None if created_before is None else created_before.astimezone().isoformat(),
    }
    return {name: value for name, value in given.items() if value is not None}


def events_path(job_id: str) -> str:
    """Where the events of a job are."""
    return _path(job_id, "/events")


def _texts(fields: Mapping[str, object]) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in fields.items()
        if value is not None
    }


def _as_sent(value: str) -> str:
    # A server ignores an empty parameter and surrounding spaces, but not inside JSON.
    return value if value and value == value.strip() else msgspec.json.encode(value).decode()


def _path(job_id: str, rest: str = "") -> str:
    return f"/transcription/{quote(job_id, safe='')}{rest}"
