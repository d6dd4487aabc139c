"""The calls of the REST API without their I/O: which requests they send, when they pause and what they return.

A call is a generator. It yields a :class:`Request` and is resumed with the response, or with :class:`RetryLater` when
there is none. It yields a :class:`Pause` and is resumed after that time. The blocking and the asynchronous client run
the same generators.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from whisper_api.audit_records import AuditRecord
from whisper_api.client.responses import Response, RetryLater, decoded, pause_before
from whisper_api.client.upload import MultipartForm
from whisper_api.errors import InvalidOption, JobCanceled, JobFailed, JobNotFinished
from whisper_api.job_values import FINAL_STATES, Corrections, JobResult, JobState, JobStatus, Vocabulary
from whisper_api.schema import RenderOptions, TranscriptionOptions
from whisper_api.usage_records import Usage
from whisper_api.voices import Speaker

__all__ = ["Calls", "Page", "Pause", "Request", "Steps", "checked", "form_fields", "job_path", "search"]

# A call that waits for a job goes on while the server is away for this long, for example during a restart.
RESTART_SECONDS = 120.0
# Seconds that the server may hold one request until the status changes; with a progress callback, the shorter time.
LONG_POLL = 30.0
WATCHED_POLL = 1.0
# Least seconds between two requests, because a server that stops does not hold them.
SHORTEST_POLL = 0.25
# Entries of the audit trail that one request asks for.
AUDIT_PAGE = 1000
# Seconds that the server may take to compute a voice, which waits for other voices and for models.
EMBED_SECONDS = 300.0

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


class Page(msgspec.Struct):
    """A page of the caller's jobs, and the cursor of the next page."""

    jobs: tuple[JobStatus, ...]
    next: str | None = None


class AuditPage(msgspec.Struct):
    """A page of the audit trail, and the cursor of the next page."""

    records: tuple[AuditRecord, ...]
    next: str | None = None


class _Speakers(msgspec.Struct):
    speakers: tuple[Speaker, ...]


class _Accepted(msgspec.Struct):
    job_id: str


class _Vocabularies(msgspec.Struct):
    vocabularies: tuple[Vocabulary, ...]


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
        request = Request("GET", job_path(job_id), job_id, params, held_seconds=wait)
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
        response = yield from self.response(Request("GET", job_path(job_id, "/result"), job_id))
        return decoded(response, JobResult)

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
        params = {"format": format, **_texts(msgspec.to_builtins(render_options or RenderOptions()))}
        response = yield from self.response(Request("GET", job_path(job_id, "/result"), job_id, params))
        return response.body

    def corrections(self, job_id: str) -> Steps[Corrections]:
        """The corrections of a job's result."""
        response = yield from self.response(Request("GET", job_path(job_id, "/corrections"), job_id))
        return decoded(response, Corrections)

    def correct(self, job_id: str, corrections: Corrections) -> Steps[Corrections]:
        """Replace the corrections of a job's result, and return those that the server keeps.

        Args:
            job_id: id of the job.
            corrections: all corrections.
        """
        headers = {"Content-Type": "application/json"}
        body = msgspec.json.encode(corrections)
        response = yield from self.response(Request("PUT", job_path(job_id, "/corrections"), job_id, {}, headers, body))
        return decoded(response, Corrections)

    def put_vocabulary(self, name: str, terms: Sequence[str]) -> Steps[Vocabulary]:
        """Store a vocabulary, and return it as the server keeps it.

        Args:
            name: name of the vocabulary.
            terms: names and terms.
        """
        headers = {"Content-Type": "application/json"}
        body = msgspec.json.encode({"terms": list(terms)})
        response = yield from self.response(Request("PUT", _vocabulary_path(name), headers=headers, body=body))
        return decoded(response, Vocabulary)

    def vocabulary(self, name: str) -> Steps[Vocabulary]:
        """A stored vocabulary."""
        response = yield from self.response(Request("GET", _vocabulary_path(name)))
        return decoded(response, Vocabulary)

    def vocabularies(self) -> Steps[tuple[Vocabulary, ...]]:
        """All vocabularies of the caller."""
        response = yield from self.response(Request("GET", "/vocabularies"))
        return decoded(response, _Vocabularies).vocabularies

    def delete_vocabulary(self, name: str) -> Steps[None]:
        """Delete a vocabulary."""
        yield from self.response(Request("DELETE", _vocabulary_path(name)))

    def usage(self, path: str, since: date | None, until: date | None, key_id: str | None = None) -> Steps[Usage]:
        """What the caller's key, or all keys, have used.

        Args:
            path: ``/usage`` or ``/admin/usage``.
            since: the first day.
            until: the last day.
            key_id: id of the key among all keys.
        """
        days = {name: day.isoformat() for name, day in (("since", since), ("until", until)) if day is not None}
        params = {**days, **({} if key_id is None else {"key": key_id})}
        response = yield from self.response(Request("GET", path, params=params))
        return decoded(response, Usage)

    def cancel(self, job_id: str, force: bool) -> Steps[None]:
        """Cancel a job or remove its result.

        Args:
            job_id: id of the job.
            force: also cancel a running job.
        """
        yield from self.response(Request("DELETE", job_path(job_id), job_id, {"force": "true"} if force else {}))

    def page(self, params: Mapping[str, str]) -> Steps[Page]:
        """A page of the caller's jobs, for the query of :func:`search`."""
        response = yield from self.response(Request("GET", "/transcriptions", params=params))
        return decoded(response, Page)

    def audit_page(self, params: Mapping[str, str]) -> Steps[AuditPage]:
        """A page of the audit trail, for the query of :func:`audit_search`."""
        response = yield from self.response(Request("GET", "/admin/audit", params=params))
        return decoded(response, AuditPage)

    def value(self, method: str, path: str, kind: type[T], value: object = None) -> Steps[T]:
        """Send a request with JSON, and return the value of the response.

        Args:
            method: method of the request.
            path: path of the request.
            kind: type of the response's value.
            value: the body; None for none.
        """
        headers = {} if value is None else {"Content-Type": "application/json"}
        body = None if value is None else msgspec.json.encode(value)
        return decoded((yield from self.response(Request(method, path, headers=headers, body=body))), kind)

    def enroll(self, name: str, samples: Sequence[bytes]) -> Steps[Speaker]:
        """Add a known speaker.

        Args:
            name: label of the person.
            samples: recordings.
        """
        return (yield from self._speaker("POST", "/speakers", {"name": name, "samples": _data_urls(samples)}))

    def add_samples(self, speaker_id: str, samples: Sequence[bytes]) -> Steps[Speaker]:
        """Add recordings to a known speaker.

        Args:
            speaker_id: id of the speaker.
            samples: recordings.
        """
        path = _speaker_path(speaker_id, "/samples")
        return (yield from self._speaker("POST", path, {"samples": _data_urls(samples)}))

    def rename_speaker(self, speaker_id: str, name: str) -> Steps[Speaker]:
        """Rename a known speaker.

        Args:
            speaker_id: id of the speaker.
            name: the new name.
        """
        return (yield from self._speaker("PATCH", _speaker_path(speaker_id), {"name": name}))

    def speakers(self) -> Steps[tuple[Speaker, ...]]:
        """The caller's known speakers."""
        response = yield from self.response(Request("GET", "/speakers"))
        return decoded(response, _Speakers).speakers

    def delete_speaker(self, speaker_id: str) -> Steps[None]:
        """Delete a known speaker."""
        yield from self.response(Request("DELETE", _speaker_path(speaker_id)))

    def _speaker(self, method: str, path: str, value: object) -> Steps[Speaker]:
        headers = {"Content-Type": "application/json"}
        request = Request(method, path, headers=headers, body=msgspec.json.encode(value), held_seconds=EMBED_SECONDS)
        return decoded((yield from self.response(request)), Speaker)

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


def form_fields(
    options: TranscriptionOptions | None,
    output_format: str | None,
    render_options: RenderOptions | None,
    keep_result: bool,
    metadata: Mapping[str, Any] | None,
    hf_token: str | None,
    webhook_url: str | None = None,
    webhook_include_result: bool = False,
) -> dict[str, str]:
    """The fields of a form that submits a job.

    Args:
        options: options of the transcription.
        output_format: format of the result's text.
        render_options: the layout of subtitles.
        keep_result: keep the result after its delivery.
        metadata: values that the job keeps.
        hf_token: Hugging Face token.
        webhook_url: where the event of the job's end is sent.
        webhook_include_result: let that event carry the result.
    """
    # Overrides a server that is configured to answer with the transcript: the clients wait by themselves.
    fields: dict[str, object] = {"sync": False, **msgspec.to_builtins(options or TranscriptionOptions())}
    fields |= msgspec.to_builtins(render_options or RenderOptions())
    if isinstance(fields.get("vocabulary"), (list, tuple)):
        fields["vocabulary"] = msgspec.json.encode(fields["vocabulary"]).decode()
    fields["output_format"] = output_format
    fields["keep_result"] = keep_result or None
    fields["hf_token"] = hf_token or None
    fields["webhook_url"] = webhook_url
    fields["webhook_include_result"] = webhook_include_result or None
    fields["metadata"] = None if metadata is None else msgspec.json.encode(metadata).decode()
    return _texts(fields)


def search(
    status: JobState | None,
    metadata_key: str | None,
    metadata_value: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
) -> dict[str, str]:
    """The query of a search for jobs.

    Args:
        status: only jobs with this status.
        metadata_key: only jobs with this key in their metadata.
        metadata_value: only jobs with this value under the key.
        created_after: only jobs submitted then or later.
        created_before: only jobs submitted earlier.
    """
    query = {
        "status": status,
        "metadata_key": metadata_key,
        "metadata_value": None if metadata_value is None else _as_sent(metadata_value),
        "created_after": None if created_after is None else created_after.astimezone().isoformat(),
        "created_before": None if created_before is None else created_before.astimezone().isoformat(),
    }
    return {name: value for name, value in query.items() if value is not None}


def audit_search(since: datetime | None, until: datetime | None, key: str | None, action: str | None) -> dict[str, str]:
    """The query of a search in the audit trail.

    Args:
        since: only entries of this time or later.
        until: only earlier entries.
        key: only entries of the key with this id or name.
        action: only entries of this action or kind of action.
    """
    query = {
        "since": None if since is None else since.astimezone().isoformat(),
        "until": None if until is None else until.astimezone().isoformat(),
        "key": key,
        "action": action,
        "limit": str(AUDIT_PAGE),
    }
    return {name: value for name, value in query.items() if value is not None}


def job_path(job_id: str, rest: str = "") -> str:
    """The path of a job, or of a resource under it.

    Args:
        job_id: id of the job.
        rest: path of the resource under the job, with a slash.
    """
    return f"/transcription/{quote(job_id, safe='')}{rest}"


def _speaker_path(speaker_id: str, rest: str = "") -> str:
    return f"/speakers/{quote(speaker_id, safe='')}{rest}"


def _data_urls(samples: Sequence[bytes]) -> list[str]:
    return [f"data:;base64,{base64.b64encode(sample).decode()}" for sample in samples]


def _vocabulary_path(name: str) -> str:
    return f"/vocabularies/{quote(name, safe='')}"


def _texts(fields: Mapping[str, object]) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in fields.items()
        if value is not None
    }


def _as_sent(value: str) -> str:
    # JSON, because the server ignores an empty parameter and strips spaces.
    return value if value and value == value.strip() else msgspec.json.encode(value).decode()
