"""The methods of the clients for jobs."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from whisper_api.client.calls import (
    Cleanup,
    Methods,
    Pages,
    Pause,
    Request,
    Steps,
    Work,
    api_call,
    api_list,
    path_of,
)
from whisper_api.client.fields import form_fields, texts
from whisper_api.client.responses import decoded
from whisper_api.client.upload import MultipartForm, Source, opened
from whisper_api.errors import JobCanceled, JobFailed, JobNotFinished
from whisper_api.job_values import FINAL_STATES, Corrections, JobPage, JobResult, JobState, JobStatus
from whisper_api.options import RenderOptions, TranscriptionOptions

# A call that waits for a job goes on while the server is away for this long, for example during a restart.
RESTART_SECONDS = 120.0
# Seconds that the server may hold one request until the status changes; with a progress callback, the shorter time.
LONG_POLL = 30.0
WATCHED_POLL = 1.0
# Least seconds between two requests, because a server that stops does not hold them.
SHORTEST_POLL = 0.25


class _Accepted(msgspec.Struct):
    job_id: str


class JobMethods(Methods):
    """The methods of the clients for jobs."""

    @api_call
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
        webhook_url: str | None = None,
        webhook_include_result: bool = False,
        on_upload: Callable[[int, int], None] | None = None,
    ) -> Steps[str]:
        """Send audio for transcription.

        Args:
            source: a path, the file's bytes, or a binary file object, which is read from its beginning. An object that
                cannot seek is copied to a temporary file, so that it can be sent again.
            options: options of the transcription; the server's configuration gives the options that are not set.
            output_format: srt, vtt, txt, tsv, json, aud, ass, md or rttm; None for the server's default.
            render_options: the layout of subtitles.
            keep_result: keep the result after its delivery, until the job expires.
            metadata: values that JSON can express, in up to 16384 bytes; the job keeps and returns them.
            hf_token: token for models that need an account; the server forgets the token when the job ends.
            webhook_url: where the server sends the event of the job's end, signed with :meth:`webhook_secret`.
            webhook_include_result: let that event carry the result.
            on_upload: called with the number of bytes of audio that were sent, and the number of all. A second attempt
                begins at 0.

        Returns:
            The job's id.

        Raises:
            OSError: the file cannot be read.
            InvalidAudio, InvalidOption, UnknownModel, ModelUnavailable: the server cannot use what was sent.
            QueueFull, CallerLimit, Draining, StorageError: the server has accepted the job in no attempt.
            RequestError: the server refused for another reason (413: too large) or cannot be reached.
        """
        fields = form_fields(
            options,
            render_options,
            metadata,
            output_format=output_format,
            keep_result=keep_result,
            hf_token=hf_token,
            webhook_url=webhook_url,
            webhook_include_result=webhook_include_result,
        )
        return self._submitted(source, fields, on_upload)

    @api_call
    def status(self, job_id: str, wait: float = 0) -> Steps[JobStatus]:
        """The status of a job.

        Args:
            job_id: id of the job.
            wait: seconds, up to 60, that the server may wait for the status to change before it answers.

        Raises:
            JobNotFound: there is no such job, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return self._status(job_id, wait)

    @api_call
    def wait(
        self,
        job_id: str,
        *,
        on_progress: Callable[[JobStatus], None] | None = None,
        timeout: float | None = None,
    ) -> Steps[JobStatus]:
        """Wait until a job has ended. The wait outlasts a restart of the server.

        Args:
            job_id: id of the job.
            on_progress: called with each status that differs from the status before.
            timeout: seconds; None for no limit.

        Returns:
            The last status: Completed, Failed or Canceled; after the timeout any other.

        Raises:
            JobNotFound: there is no such job, or it belongs to another key.
            RequestError: the server refused, or has not answered for two minutes.
        """
        return self._ended(job_id, on_progress, timeout)

    @api_call
    def result(self, job_id: str) -> Steps[JobResult]:
        """The result of a job that has ended. The server removes a result some minutes after its delivery.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone: why there is no result.
            RequestError: the server refused, or cannot be reached.
        """
        return self._result(job_id)

    @api_call
    def result_as(self, job_id: str, format: str, render_options: RenderOptions | None = None) -> Steps[str]:
        """The result of a job that has ended, as the text of a file.

        Args:
            job_id: id of the job.
            format: srt, vtt, txt, tsv, json, aud, ass, md or rttm; it need not be the job's.
            render_options: the layout of subtitles; the job's own options replace those left at their default.

        Raises:
            InvalidOption: there is no such format.
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        return (yield from self._file(job_id, format, render_options)).decode("utf-8")

    @api_call
    def result_file(
        self, job_id: str, format: str = "docx", render_options: RenderOptions | None = None
    ) -> Steps[bytes]:
        """The result of a job that has ended, as the bytes of a file.

        Args:
            job_id: id of the job.
            format: docx, or a format of :meth:`result_as`.
            render_options: as in :meth:`result_as`.

        Raises:
            InvalidOption: there is no such format.
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        return self._file(job_id, format, render_options)

    @api_call
    def corrections(self, job_id: str) -> Steps[Corrections]:
        """The corrections of a job's result. The result contains them already.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        return self._calls.value("GET", path_of("transcription", job_id, "corrections"), Corrections, job_id=job_id)

    @api_call
    def correct(self, job_id: str, corrections: Corrections) -> Steps[Corrections]:
        """Correct words and name speakers in a job's result. Earlier corrections are replaced.

        Args:
            job_id: id of the job.
            corrections: segments and words have the numbers of the recognised text.

        Returns:
            The corrections that the server keeps: one for each word, and only those that change the transcript.

        Raises:
            InvalidOption: a segment, word or speaker does not exist.
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        path = path_of("transcription", job_id, "corrections")
        return self._calls.value("PUT", path, Corrections, corrections, job_id=job_id)

    @api_call
    def cancel(self, job_id: str, *, force: bool = False) -> Steps[None]:
        """Cancel a waiting job, remove the result of a job that has ended, or remove a Failed job altogether.

        Args:
            job_id: id of the job.
            force: also stop a job that runs.

        Raises:
            JobIsProcessing: the job runs, and ``force`` is not set.
            JobNotFound: there is no such job, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return self._canceled(job_id, force)

    @api_list
    def jobs(
        self,
        status: JobState | None = None,
        *,
        metadata_key: str | None = None,
        metadata_value: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Pages[JobStatus]:
        """The caller's jobs, newest first.

        Args:
            status: only jobs with this status; None for all.
            metadata_key: only jobs with this key at the top of their metadata.
            metadata_value: only jobs with this value under the key: text, or a number, true, false or null.
            created_after: only jobs submitted then or later; local time when it has no zone.
            created_before: only jobs submitted earlier.

        Raises:
            InvalidOption: there is a value without a key.
            RequestError: the server refused, or cannot be reached.
        """
        params = {"status": status, "metadata_key": metadata_key}
        if metadata_value is not None:
            # As JSON where the server would ignore an empty text or strip spaces.
            plain = metadata_value and metadata_value == metadata_value.strip()
            params["metadata_value"] = metadata_value if plain else msgspec.json.encode(metadata_value).decode()
        query = texts({**params, "created_after": created_after, "created_before": created_before})
        return self._calls.pages("/transcriptions", JobPage, query, lambda page: page.jobs)

    @api_call
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
    ) -> Steps[JobResult]:
        """Submit, wait, and return the result. Ctrl-C, or the cancellation of the coroutine, cancels the job.

        Args:
            source: as with :meth:`submit`.
            options: as with :meth:`submit`.
            output_format: as with :meth:`submit`.
            render_options: as with :meth:`submit`.
            metadata: as with :meth:`submit`.
            hf_token: as with :meth:`submit`.
            on_upload: as with :meth:`submit`.
            on_progress: as with :meth:`wait`.
            timeout: seconds to wait for the job; None for no limit.

        Raises:
            JobFailed: the job ended without a result; the message says why.
            JobCanceled: the job was canceled; the message says why when the server did it.
            JobNotFinished: the timeout is over. The job goes on; the error has its id.
            WhisperApiError: as with :meth:`submit`.
        """
        fields = form_fields(options, render_options, metadata, output_format=output_format, hf_token=hf_token)
        job_id = yield from self._submitted(source, fields, on_upload)
        yield Cleanup(lambda: self._canceled(job_id, force=True))
        status = yield from self._ended(job_id, on_progress, timeout)
        match status.status:
            case "Completed":
                return (yield from self._result(job_id))
            case "Failed":
                raise JobFailed(job_id, status.error or "the job failed")
            case "Canceled":
                raise JobCanceled(job_id, status.error or "the job was canceled")
        raise JobNotFinished(job_id, f"job {job_id} has not ended after {timeout:g} seconds; it goes on")

    def _submitted(
        self, source: Source, fields: Mapping[str, str], on_upload: Callable[[int, int], None] | None
    ) -> Steps[str]:
        # The key is the same for every attempt.
        key = str(uuid.uuid4())
        with contextlib.ExitStack() as stack:
            file, name = yield Work(lambda: stack.enter_context(opened(source)))
            form = MultipartForm(fields, file, name, on_upload)
            headers = {"Content-Type": form.content_type, "Idempotency-Key": key}
            response = yield from self._calls.response(Request("POST", "/transcribe", headers=headers, body=form))
            return decoded(response, _Accepted).job_id

    def _status(
        self, job_id: str, wait: float, *, deadline: float = math.inf, patience_seconds: float = 0.0
    ) -> Steps[JobStatus]:
        params = {"wait": f"{wait:.3g}"} if wait > 0 else {}
        request = Request("GET", path_of("transcription", job_id), job_id, params, held_seconds=wait)
        response = yield from self._calls.response(request, deadline=deadline, patience_seconds=patience_seconds)
        return decoded(response, JobStatus)

    def _ended(
        self, job_id: str, on_progress: Callable[[JobStatus], None] | None, timeout: float | None
    ) -> Steps[JobStatus]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        longest = LONG_POLL if on_progress is None else WATCHED_POLL
        last: JobStatus | None = None
        while True:
            asked = time.monotonic()
            # The first request returns at once; the server holds each later request until the status changes.
            wait = 0.0 if last is None else max(0.0, min(longest, deadline - asked))
            status = yield from self._status(job_id, wait, deadline=deadline, patience_seconds=RESTART_SECONDS)
            if status != last and on_progress is not None:
                on_progress(status)
            now = time.monotonic()
            if status.status in FINAL_STATES or now >= deadline:
                return status
            if last is not None:
                yield Pause(max(0.0, min(asked + SHORTEST_POLL, deadline) - now))
            last = status

    def _result(self, job_id: str) -> Steps[JobResult]:
        return self._calls.value("GET", path_of("transcription", job_id, "result"), JobResult, job_id=job_id)

    def _file(self, job_id: str, format: str, render_options: RenderOptions | None) -> Steps[bytes]:
        params = {"format": format, **texts(msgspec.to_builtins(render_options or RenderOptions()))}
        path = path_of("transcription", job_id, "result")
        return (yield from self._calls.response(Request("GET", path, job_id, params))).body

    def _canceled(self, job_id: str, force: bool) -> Steps[None]:
        params = {"force": "true"} if force else {}
        yield from self._calls.response(Request("DELETE", path_of("transcription", job_id), job_id, params))
