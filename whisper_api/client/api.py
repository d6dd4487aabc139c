"""The client: jobs of a server as calls of Python."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from whisper_api.client.events import follow
from whisper_api.client.transport import Transport, decoded
from whisper_api.client.upload import Form, Source, opened
from whisper_api.errors import InvalidOption, JobCanceled, JobFailed, JobNotFinished, WhisperApiError
from whisper_api.schema import (
    Corrections,
    JobEvent,
    JobResult,
    JobState,
    JobStatus,
    RenderOptions,
    TranscriptionOptions,
)

if TYPE_CHECKING:
    import requests

__all__ = ["Client"]

DEFAULT_URL = "http://127.0.0.1:8181"
ENDED: frozenset[JobState] = frozenset({"Completed", "Failed", "Canceled"})
# How long a server that is restarted may take to answer again, while a job is waited for.
RESTART_SECONDS = 120.0
# Seconds that one request waits for a change; with someone who watches, progress is asked for as often as this.
LONG_POLL = 30.0
WATCHED_POLL = 1.0
# A server that answers at once all the same, as one does that is stopping, is not asked more often than this.
SHORTEST_POLL = 0.25


class Client:
    """Talks to one server. Holds connections open; not to be shared between threads.

    Args:
        url: where the server is, with the path it is mounted under, if any.
        api_key: as ``whisper-api keys create`` printed it; None for a server that asks for none.
        timeout: seconds to connect, and seconds without a byte until an attempt counts as failed.
        retries: how often a request is tried again that failed on the way or was answered with 429, 502, 503 or 504.
        session: to send requests with, for proxies or certificates of one's own; it is not closed.

    Raises:
        InvalidOption: the URL is none, or the key cannot be one.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout: float = 60,
        retries: int = 5,
        session: requests.Session | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidOption("url", f"expected http://HOST:PORT or https://HOST, not {url!r}")
        api_key = (api_key or "").strip()
        if not (api_key.isascii() and api_key.isprintable()):
            raise InvalidOption("api_key", "expected the characters that the server printed")
        self.url = url.rstrip("/")
        self._transport = Transport(self.url, api_key, timeout=timeout, retries=retries, session=session)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        self._transport.close()

    def submit(
        self,
        source: Source,
        options: TranscriptionOptions | None = None,
        *,
        output_format: str | None = None,
        render_options: RenderOptions | None = None,
        keep_result: bool = False,
        metadata: Mapping[str, Any] | None = None,
        hf_token: str | None = None,
        on_upload: Callable[[int, int], None] | None = None,
    ) -> str:
        """Send audio to be transcribed.

        Args:
            source: a path, the file's bytes, or a binary file object, which is read from its beginning. One that
                cannot seek is copied to a temporary file first, so that it can be sent again.
            options: what is asked for; what is not set is as the server is configured.
            output_format: srt, vtt, txt, tsv, json or aud; None for the server's default.
            render_options: the layout of subtitles.
            keep_result: keep the result after it was delivered, until the job expires.
            metadata: what JSON can say, up to 16384 bytes of it; kept with the job and given back.
            hf_token: for models that need an account; the server forgets it when the job ends.
            on_upload: called with the bytes of audio that were sent and those in all. A second attempt begins at 0.

        Returns:
            The job's id.

        Raises:
            OSError: the file cannot be read.
            InvalidAudio, InvalidOption, UnknownModel, ModelUnavailable: the server cannot use what was sent.
            QueueFull, CallerLimit, Draining, StorageError: it takes no job now, and did not over all attempts.
            RequestError: it refused for another reason (413: too large) or cannot be reached.
        """
        fields = _fields(options, output_format, render_options, keep_result, hf_token)
        if metadata is not None:
            fields["metadata"] = msgspec.json.encode(metadata).decode()
        key = str(uuid.uuid4())
        with opened(source) as (file, name):
            form = Form(fields, file, name, on_upload)
            headers = {"Content-Type": form.content_type, "Idempotency-Key": key}
            answer = self._transport.request("POST", "/transcribe", headers=headers, form=form)
        return decoded(answer, _Accepted).job_id

    def status(self, job_id: str, wait: float = 0) -> JobStatus:
        """Where a job stands.

        Args:
            job_id: which.
            wait: seconds, up to 60, that the server may wait for the status to change before it answers.

        Raises:
            JobNotFound: there is no such job, or it is another's.
            RequestError: the server refused, or cannot be reached.
        """
        return self._status(job_id, wait)

    def wait(
        self,
        job_id: str,
        *,
        on_progress: Callable[[JobStatus], None] | None = None,
        timeout: float | None = None,
    ) -> JobStatus:
        """Wait until a job has ended. A server that is restarted meanwhile is waited for.

        Args:
            job_id: which.
            on_progress: called with each status that differs from the one before.
            timeout: seconds; None for as long as it takes.

        Returns:
            The last status: Completed, Failed or Canceled, and after the timeout any other.

        Raises:
            JobNotFound: there is no such job, or it is another's.
            RequestError: the server refused, or has not answered for two minutes.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        longest = LONG_POLL if on_progress is None else WATCHED_POLL
        last: JobStatus | None = None
        while True:
            asked = time.monotonic()
            # The first question is what to show at once; with the others the server waits for something new.
            wait = 0.0 if last is None else max(0.0, min(longest, deadline - asked))
            status = self._status(job_id, wait, deadline=deadline, patience=RESTART_SECONDS)
            if status != last and on_progress is not None:
                on_progress(status)
            now = time.monotonic()
            if status.status in ENDED or now >= deadline:
                return status
            if last is not None:
                time.sleep(max(0.0, min(asked + SHORTEST_POLL, deadline) - now))
            last = status

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """What happens to a job, as it happens, until it has ended. A server that is restarted meanwhile is waited for.

        Whoever comes late is told where the job stands and what is known of its text. A later
        :class:`~whisper_api.schema.JobSegmentEvent` with the same index takes the earlier one's place; a
        :class:`~whisper_api.schema.JobQueuedEvent` says that the job begins anew, and makes all text before it void.

        Args:
            job_id: which.

        Raises:
            JobNotFound: there is no such job, or it is another's.
            RequestError: the server refused, or has not answered for two minutes.
        """
        return follow(self._transport, _path(job_id, "/events"), job_id, RESTART_SECONDS)

    def result(self, job_id: str) -> JobResult:
        """The result of a job that has ended. It goes some minutes after it was delivered.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone: there is none, for this reason.
            RequestError: the server refused, or cannot be reached.
        """
        return decoded(self._transport.request("GET", _path(job_id, "/result"), job_id=job_id), JobResult)

    def result_as(self, job_id: str, format: str, render_options: RenderOptions | None = None) -> str:
        """The result of a job that has ended, as the text of a file.

        Args:
            job_id: which.
            format: srt, vtt, txt, tsv, json or aud, whatever the job asked for.
            render_options: the layout of subtitles; what it leaves at its default is as the job asked for.

        Raises:
            InvalidOption: there is no such format.
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        params = {"format": format, **_texts(msgspec.to_builtins(render_options or RenderOptions()))}
        answer = self._transport.request("GET", _path(job_id, "/result"), job_id=job_id, params=params)
        return answer.body.decode("utf-8")

    def corrections(self, job_id: str) -> Corrections:
        """What was corrected in a job's result, which has it already.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        return decoded(self._transport.request("GET", _path(job_id, "/corrections"), job_id=job_id), Corrections)

    def correct(self, job_id: str, corrections: Corrections) -> Corrections:
        """Correct words and name speakers in a job's result, in the place of all that was corrected before.

        Args:
            job_id: which.
            corrections: segments and words are counted as they were recognised.

        Returns:
            What is kept: each place once, and only what differs from what was recognised.

        Raises:
            InvalidOption: a segment, word or speaker that is not there.
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        body, headers = msgspec.json.encode(corrections), {"Content-Type": "application/json"}
        answer = self._transport.request(
            "PUT", _path(job_id, "/corrections"), job_id=job_id, headers=headers, form=body
        )
        return decoded(answer, Corrections)

    def cancel(self, job_id: str, *, force: bool = False) -> None:
        """Cancel a job that waits, remove the result of one that has ended, or one that Failed altogether.

        Args:
            job_id: which.
            force: stop it also when it runs.

        Raises:
            JobIsProcessing: it runs, and ``force`` is not set.
            JobNotFound: there is no such job, or it is another's.
            RequestError: the server refused, or cannot be reached.
        """
        params = {"force": "true"} if force else {}
        self._transport.request("DELETE", _path(job_id), job_id=job_id, params=params)

    def jobs(
        self,
        status: JobState | None = None,
        *,
        metadata_key: str | None = None,
        metadata_value: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[JobStatus]:
        """The caller's jobs, newest first.

        Args:
            status: only those; None for all.
            metadata_key: only those that have it at the top of their metadata.
            metadata_value: with the key, only those that have this there: text, or a number, true, false or null.
            created_after: only those submitted then or later; local time where it names no zone.
            created_before: only those submitted earlier.

        Raises:
            InvalidOption: a value without its key.
            RequestError: the server refused, or cannot be reached.
        """
        given = {
            "status": status,
            "metadata_key": metadata_key,
            "metadata_value": None if metadata_value is None else _as_sent(metadata_value),
            "created_after": None if created_after is None else created_after.astimezone().isoformat(),
            "created_before": None if created_before is None else created_before.astimezone().isoformat(),
        }
        params: dict[str, str] = {name: value for name, value in given.items() if value is not None}
        while True:
            page = decoded(self._transport.request("GET", "/transcriptions", params=params), _Page)
            yield from page.jobs
            if page.next is None:
                return
            params["after"] = page.next

    def transcribe(
        self,
        source: Source,
        options: TranscriptionOptions | None = None,
        *,
        output_format: str | None = None,
        render_options: RenderOptions | None = None,
        metadata: Mapping[str, Any] | None = None,
        hf_token: str | None = None,
        on_upload: Callable[[int, int], None] | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
        timeout: float | None = None,
    ) -> JobResult:
        """Submit, wait and fetch the result. What interrupts the wait, as Ctrl-C does, cancels the job.

        Args:
            source, options, output_format, render_options, metadata, hf_token, on_upload: as with :meth:`submit`.
            on_progress: as with :meth:`wait`.
            timeout: seconds to wait for the job; None for as long as it takes.

        Raises:
            JobFailed: it ended without a result; says why.
            JobCanceled: somebody canceled it.
            JobNotFinished: not within the timeout. The job goes on; the error has its id.
            WhisperApiError: as with :meth:`submit`.
        """
        job_id = self.submit(
            source,
            options,
            output_format=output_format,
            render_options=render_options,
            metadata=metadata,
            hf_token=hf_token,
            on_upload=on_upload,
        )
        try:
            status = self.wait(job_id, on_progress=on_progress, timeout=timeout)
            match status.status:
                case "Completed":
                    return self.result(job_id)
                case "Failed":
                    raise JobFailed(job_id, status.error or "the job failed")
                case "Canceled":
                    raise JobCanceled(job_id, "the job was canceled")
            raise JobNotFinished(job_id, f"job {job_id} has not ended after {timeout:g} seconds; it goes on")
        except WhisperApiError:
            raise
        except BaseException:
            with contextlib.suppress(WhisperApiError):
                self.cancel(job_id, force=True)
            raise

    def _status(self, job_id: str, wait: float, *, deadline: float = math.inf, patience: float = 0.0) -> JobStatus:
        params = {"wait": f"{wait:.3g}"} if wait > 0 else {}
        answer = self._transport.request(
            "GET",
            _path(job_id),
            job_id=job_id,
            params=params,
            held_seconds=wait,
            deadline=deadline,
            patience_seconds=patience,
        )
        return decoded(answer, JobStatus)


class _Accepted(msgspec.Struct):
    job_id: str


class _Page(msgspec.Struct):
    jobs: tuple[JobStatus, ...]
    next: str | None = None


def _fields(
    options: TranscriptionOptions | None,
    output_format: str | None,
    render_options: RenderOptions | None,
    keep_result: bool,
    hf_token: str | None,
) -> dict[str, str]:
    # A server may be configured to answer with the transcript: this client always waits by itself.
    fields: dict[str, object] = {"sync": False, **msgspec.to_builtins(options or TranscriptionOptions())}
    fields |= msgspec.to_builtins(render_options or RenderOptions())
    if output_format is not None:
        fields["output_format"] = output_format
    if keep_result:
        fields["keep_result"] = True
    if hf_token:
        fields["hf_token"] = hf_token
    return _texts(fields)


def _texts(fields: Mapping[str, object]) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in fields.items()
        if value is not None
    }


def _as_sent(value: str) -> str:
    # A server takes an empty parameter for none, and spaces around one for nothing; not so inside JSON.
    return value if value and value == value.strip() else msgspec.json.encode(value).decode()


def _path(job_id: str, rest: str = "") -> str:
    return f"/transcription/{quote(job_id, safe='')}{rest}"
