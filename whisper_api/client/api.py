"""The client: jobs of a server as calls of Python."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from whisper_api.client import calls
from whisper_api.client.answers import NotNow
from whisper_api.client.calls import Calls, checked, events_path, form_fields, search
from whisper_api.client.events import MEDIA_TYPE, SILENCE_SECONDS, EventReader
from whisper_api.client.transport import Transport
from whisper_api.client.upload import Form, Source, opened
from whisper_api.errors import WhisperApiError
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

__all__ = ["DEFAULT_URL", "Client"]

DEFAULT_URL = "http://127.0.0.1:8181"


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
        self.url, api_key = checked(url, api_key)
        self._calls = Calls(retries)
        self._transport = Transport(self.url, api_key, timeout=timeout, session=session)

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
        fields = form_fields(options, output_format, render_options, keep_result, metadata, hf_token)
        key = str(uuid.uuid4())
        with opened(source) as (file, name):
            return self._transport.run(self._calls.submit(Form(fields, file, name, on_upload), key))

    def status(self, job_id: str, wait: float = 0) -> JobStatus:
        """Where a job stands.

        Args:
            job_id: which.
            wait: seconds, up to 60, that the server may wait for the status to change before it answers.

        Raises:
            JobNotFound: there is no such job, or it is another's.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.status(job_id, wait))

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
        return self._transport.run(self._calls.wait(job_id, on_progress, timeout))

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
        reader = EventReader(job_id, calls.RESTART_SECONDS)
        path = events_path(job_id)
        while True:
            lost: NotNow | None = None
            try:
                with self._transport.stream(path, job_id, MEDIA_TYPE, reader.connect(), SILENCE_SECONDS) as pieces:
                    for piece in pieces:
                        yield from reader.events(piece)
                        if reader.ended:
                            return
            except NotNow as error:
                lost = error
            time.sleep(reader.pause(lost))

    def result(self, job_id: str) -> JobResult:
        """The result of a job that has ended. It goes some minutes after it was delivered.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone: there is none, for this reason.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.result(job_id))

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
        return self._transport.run(self._calls.result_as(job_id, format, render_options))

    def corrections(self, job_id: str) -> Corrections:
        """What was corrected in a job's result, which has it already.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        return self._transport.run(self._calls.corrections(job_id))

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
        return self._transport.run(self._calls.correct(job_id, corrections))

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
        self._transport.run(self._calls.cancel(job_id, force))

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
        params = search(status, metadata_key, metadata_value, created_after, created_before)
        while True:
            page = self._transport.run(self._calls.page(params))
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
            return self._transport.run(self._calls.awaited_result(job_id, on_progress, timeout))
        except WhisperApiError:
            raise
        except BaseException:
            with contextlib.suppress(WhisperApiError):
                self.cancel(job_id, force=True)
            raise
