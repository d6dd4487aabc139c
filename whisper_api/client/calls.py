"""The calls of the REST API without their I/O: which requests they send, when they pause and what they return.

A call is a generator. It yields a :class:`Request` and is resumed with the response, or with :class:`RetryLater` when
there is none. It yields a :class:`Pause` and is resumed after that time. The blocking and the asynchronous client run
the same generators.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from whisper_api.client.fields import texts
from whisper_api.client.responses import Response, RetryLater, decoded, pause_before
from whisper_api.client.upload import MultipartForm
from whisper_api.errors import InvalidOption, JobCanceled, JobFailed, JobNotFinished
from whisper_api.job_values import FINAL_STATES, Corrections, JobResult, JobStatus
from whisper_api.schema import RenderOptions

__all__ = ["Calls", "JobPage", "Page", "Pause", "Request", "Steps", "checked", "path_of"]

# A call that waits for a job goes on while the server is away for this long, for example during a restart.
RESTART_SECONDS = 120.0
# Seconds that the server may hold one request until the status changes; with a progress callback, the shorter time.
LONG_POLL = 30.0
WATCHED_POLL = 1.0
# Least seconds between two requests, because a server that stops does not hold them.
SHORTEST_POLL = 0.25

T = TypeVar("T")


class Request(NamedTuple):
    """A request of the REST API.

    Attributes:
        method, path, params, headers: parts of the request.
        body: a form with audio, bytes, or None.
        job_id: the job that errors name.
        held_seconds: how long the server may hold the request, or be silent in a stream.
    """

    method: str
    path: str
    job_id: str = ""
    params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: MultipartForm | bytes | None = None
    held_seconds: float = 0.0


class Pause(NamedTuple):
    """Seconds to wait."""

    seconds: float


# Resumed with a Response after a Request, with None after a Pause.
Steps = Generator["Request | Pause", Any, T]


class Page(msgspec.Struct, kw_only=True):
    """A page of a list, and the cursor of the next page; a list has its own subclass, with its entries."""

    next: str | None = None


class JobPage(Page):
    """A page of the caller's jobs."""

    jobs: tuple[JobStatus, ...]


class _Accepted(msgspec.Struct):
    job_id: str


class Calls:
    """The calls of one client.

    Args:
        retries: how often a request is tried again.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries

    def submit(self, form: MultipartForm, key: str) -> Steps[str]:
        """Send audio, and return the job's id.

        Args:
            form: the audio and the options.
            key: the idempotency key, the same for every attempt.
        """
        headers = {"Content-Type": form.content_type, "Idempotency-Key": key}
        response = yield from self.response(Request("POST", "/transcribe", headers=headers, body=form))
        return decoded(response, _Accepted).job_id

    def status(
        self, job_id: str, wait: float = 0.0, *, deadline: float = math.inf, patience_seconds: float = 0.0
    ) -> Steps[JobStatus]:
        """The status of a job.

        Args:
            job_id: id of the job.
            wait: seconds that the server may hold the request.
            deadline: as in :meth:`response`.
            patience_seconds: as in :meth:`response`.
        """
        params = {"wait": f"{wait:.3g}"} if wait > 0 else {}
        request = Request("GET", path_of("transcription", job_id), job_id, params, held_seconds=wait)
        response = yield from self.response(request, deadline=deadline, patience_seconds=patience_seconds)
        return decoded(response, JobStatus)

    def wait(
        self, job_id: str, on_progress: Callable[[JobStatus], None] | None, timeout: float | None
    ) -> Steps[JobStatus]:
        """Ask for the status until the job has ended, and return the last status.

        Args:
            job_id: id of the job.
            on_progress: called with each status that differs from the status before.
            timeout: seconds; None for no limit.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        longest = LONG_POLL if on_progress is None else WATCHED_POLL
        last: JobStatus | None = None
        while True:
            asked = time.monotonic()
            # The first request returns at once; the server holds each later request until the status changes.
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
        """Wait for a job, and return its result.

        Args:
            job_id: as in :meth:`wait`.
            on_progress: as in :meth:`wait`.
            timeout: as in :meth:`wait`.

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
                raise JobCanceled(job_id, status.error or "the job was canceled")
        raise JobNotFinished(job_id, f"job {job_id} has not ended after {timeout:g} seconds; it goes on")

    def result(self, job_id: str) -> Steps[JobResult]:
        """The result of a job that has ended."""
        return self.value("GET", path_of("transcription", job_id, "result"), JobResult, job_id=job_id)

    def result_as(self, job_id: str, format: str, render_options: RenderOptions | None) -> Steps[str]:
        """The result as the text of a file.

        Args:
            job_id: id of the job.
            format: srt, vtt, txt, tsv, json, aud, ass, md or rttm.
            render_options: the layout of subtitles.
        """
        body = yield from self.result_file(job_id, format, render_options)
        return body.decode("utf-8")

    def result_file(self, job_id: str, format: str, render_options: RenderOptions | None) -> Steps[bytes]:
        """The result as the bytes of a file.

        Args:
            job_id: id of the job.
            format: as in :meth:`result_as`, or docx.
            render_options: the layout of subtitles.
        """
        params = {"format": format, **texts(msgspec.to_builtins(render_options or RenderOptions()))}
        response = yield from self.response(Request("GET", path_of("transcription", job_id, "result"), job_id, params))
        return response.body

    def corrections(self, job_id: str) -> Steps[Corrections]:
        """The corrections of a job's result."""
        return self.value("GET", path_of("transcription", job_id, "corrections"), Corrections, job_id=job_id)

    def correct(self, job_id: str, corrections: Corrections) -> Steps[Corrections]:
        """Replace the corrections of a job's result, and return those that the server keeps.

        Args:
            job_id: id of the job.
            corrections: all corrections.
        """
        path = path_of("transcription", job_id, "corrections")
        return self.value("PUT", path, Corrections, corrections, job_id=job_id)

    def cancel(self, job_id: str, force: bool) -> Steps[None]:
        """Cancel a job or remove its result.

        Args:
            job_id: id of the job.
            force: also cancel a running job.
        """
        params = {"force": "true"} if force else {}
        yield from self.response(Request("DELETE", path_of("transcription", job_id), job_id, params))

    def value(
        self,
        method: str,
        path: str,
        kind: type[T],
        value: object = None,
        *,
        job_id: str = "",
        params: Mapping[str, str] | None = None,
        held_seconds: float = 0.0,
    ) -> Steps[T]:
        """Send a request with JSON, and return the value of the response.

        Args:
            method: method of the request.
            path: path of the request.
            kind: type of the response's value.
            value: the body; None for none.
            job_id: as in :class:`Request`.
            params: as in :class:`Request`.
            held_seconds: as in :class:`Request`.
        """
        headers = {} if value is None else {"Content-Type": "application/json"}
        body = None if value is None else msgspec.json.encode(value)
        request = Request(method, path, job_id, params or {}, headers, body, held_seconds)
        return decoded((yield from self.response(request)), kind)

    def delete(self, path: str) -> Steps[None]:
        """Delete the resource of a path."""
        yield from self.response(Request("DELETE", path))

    def response(
        self, request: Request, *, deadline: float = math.inf, patience_seconds: float = 0.0
    ) -> Steps[Response]:
        """Send a request, again as long as the server asks to retry later or cannot be reached.

        Args:
            request: the request.
            deadline: monotonic time after which no attempt begins.
            patience_seconds: attempts go on for at least this time, whatever their number.

        Raises:
            WhisperApiError: the server's error by its name, or RequestError when the server cannot be reached.
        """
        patient_until = time.monotonic() + patience_seconds
        attempt = 0
        while True:
            try:
                response: Response = yield request
            except RetryLater as error:
                not_now = error
            else:
                return response
            now = time.monotonic()
            if now >= deadline or (attempt >= self._retries and now >= patient_until):
                raise not_now.reason
            yield Pause(min(pause_before(attempt, not_now.retry_after), max(0.0, deadline - now)))
            attempt += 1


def checked(url: str, api_key: str | None) -> tuple[str, str]:
    """Check the address and the key of a server, and return them in the form that requests need.

    Args:
        url: http or https, with the path that the server is mounted under, if any.
        api_key: None for a server without keys.

    Raises:
        InvalidOption: the URL or the key is malformed.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidOption("url", f"expected http://HOST:PORT or https://HOST, not {url!r}")
    api_key = (api_key or "").strip()
    if not (api_key.isascii() and api_key.isprintable()):
        raise InvalidOption("api_key", "expected the characters that the server printed")
    return url.rstrip("/"), api_key


def path_of(*names: str) -> str:
    """The path of a resource.

    Args:
        names: the parts of the path, which may have any characters.
    """
    return "".join(f"/{quote(name, safe='')}" for name in names)
