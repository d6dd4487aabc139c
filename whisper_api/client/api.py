"""The blocking client: jobs of a server as method calls."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from whisper_api.audit_records import AuditRecord
from whisper_api.client.calls import Calls, audit_search, checked, form_fields, search
from whisper_api.client.events import EventReader
from whisper_api.client.keys import KeyMethods
from whisper_api.client.responses import RetryLater
from whisper_api.client.transport import Transport
from whisper_api.client.upload import MultipartForm, Source, opened, whole
from whisper_api.client.webhooks import WebhookMethods
from whisper_api.errors import WhisperApiError
from whisper_api.job_values import Corrections, JobEvent, JobResult, JobState, JobStatus, Vocabulary
from whisper_api.schema import RenderOptions, TranscriptionOptions
from whisper_api.usage_records import Usage
from whisper_api.voices import Speaker

if TYPE_CHECKING:
    import requests

__all__ = ["DEFAULT_URL", "Client"]

DEFAULT_URL = "http://127.0.0.1:8181"


class Client(KeyMethods, WebhookMethods):
    """Talks to one server. Keeps connections open; threads must not share a client.

    Args:
        url: URL of the server, with the path of its mount, if any.
        api_key: as ``whisper-api keys create`` printed it; None for a server without keys.
        timeout: seconds to connect, and seconds without a byte until an attempt counts as failed.
        retries: how often a request is repeated after a failed connection or a response of 429, 502, 503 or 504.
        session: sends the requests, with your own proxies or certificates; the client does not close it.

    Raises:
        InvalidOption: the URL or the key is malformed.
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
        webhook_url: str | None = None,
        webhook_include_result: bool = False,
        on_upload: Callable[[int, int], None] | None = None,
    ) -> str:
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
            output_format,
            render_options,
            keep_result,
            metadata,
            hf_token,
            webhook_url,
            webhook_include_result,
        )
        key = str(uuid.uuid4())
        with opened(source) as (file, name):
            return self._transport.run(self._calls.submit(MultipartForm(fields, file, name, on_upload), key))

    def status(self, job_id: str, wait: float = 0) -> JobStatus:
        """The status of a job.

        Args:
            job_id: id of the job.
            wait: seconds, up to 60, that the server may wait for the status to change before it answers.

        Raises:
            JobNotFound: there is no such job, or it belongs to another key.
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
        return self._transport.run(self._calls.wait(job_id, on_progress, timeout))

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """The events of a job, as they happen, until the job has ended. The stream outlasts a restart of the server.

        The first events give the job's status and the text that is known by then. A later
        :class:`~whisper_api.job_values.JobSegmentEvent` replaces an earlier one with the same index. After a
        :class:`~whisper_api.job_values.JobQueuedEvent` the job begins anew, and all text before it is void.

        Args:
            job_id: id of the job.

        Raises:
            JobNotFound: there is no such job, or it belongs to another key.
            RequestError: the server refused, or has not answered for two minutes.
        """
        reader = EventReader(job_id)
        while True:
            lost: RetryLater | None = None
            try:
                with self._transport.stream(reader.connect()) as pieces:
                    for piece in pieces:
                        yield from reader.events(piece)
                        if reader.ended:
                            return
            except RetryLater as error:
                lost = error
            time.sleep(reader.pause(lost))

    def result(self, job_id: str) -> JobResult:
        """The result of a job that has ended. The server removes a result some minutes after its delivery.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone: why there is no result.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.result(job_id))

    def result_as(self, job_id: str, format: str, render_options: RenderOptions | None = None) -> str:
        """The result of a job that has ended, as the text of a file.

        Args:
            job_id: id of the job.
            format: srt, vtt, txt, tsv, json, aud, ass, md or rttm; it need not be the job's.
            render_options: the layout of subtitles; the job's own options replace those left at their default.

        Raises:
            InvalidOption: there is no such format.
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        return self._transport.run(self._calls.result_as(job_id, format, render_options))

    def result_file(self, job_id: str, format: str = "docx", render_options: RenderOptions | None = None) -> bytes:
        """The result of a job that has ended, as the bytes of a file.

        Args:
            job_id: id of the job.
            format: docx, or a format of :meth:`result_as`.
            render_options: as in :meth:`result_as`.

        Raises:
            InvalidOption: there is no such format.
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        return self._transport.run(self._calls.result_file(job_id, format, render_options))

    def corrections(self, job_id: str) -> Corrections:
        """The corrections of a job's result. The result contains them already.

        Raises:
            JobNotFound, JobNotFinished, JobFailed, JobCanceled, ResultGone, RequestError: as with :meth:`result`.
        """
        return self._transport.run(self._calls.corrections(job_id))

    def correct(self, job_id: str, corrections: Corrections) -> Corrections:
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
        return self._transport.run(self._calls.correct(job_id, corrections))

    def put_vocabulary(self, name: str, terms: Sequence[str]) -> Vocabulary:
        """Store names and terms, which jobs use with ``TranscriptionOptions(vocabulary=name)``.

        Args:
            name: 1 to 64 letters, digits, dots, hyphens and underscores. A vocabulary of this name is replaced.
            terms: names and terms as they are to be written.

        Returns:
            The vocabulary as the server keeps it: each term once.

        Raises:
            InvalidOption: the name or the terms cannot be used, or there are too many.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.put_vocabulary(name, terms))

    def vocabulary(self, name: str) -> Vocabulary:
        """A stored vocabulary of the caller's key.

        Args:
            name: name of the vocabulary.

        Raises:
            VocabularyNotFound: there is no such vocabulary, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.vocabulary(name))

    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """All stored vocabularies of the caller's key, in the order of their names.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.vocabularies())

    def delete_vocabulary(self, name: str) -> None:
        """Delete a stored vocabulary. Jobs that were submitted before keep its terms.

        Args:
            name: name of the vocabulary.

        Raises:
            VocabularyNotFound, RequestError: as with :meth:`vocabulary`.
        """
        self._transport.run(self._calls.delete_vocabulary(name))

    def usage(self, since: date | None = None, until: date | None = None) -> Usage:
        """What the caller's key has used, by day and model, and what is left of its quotas.

        Args:
            since: the first day in UTC, at most 365 days before the last; None for the first of this month.
            until: the last day; None for today.

        Raises:
            InvalidOption: the days are in the wrong order or too far apart.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.usage("/usage", since, until))

    def all_usage(self, since: date | None = None, until: date | None = None, *, key_id: str | None = None) -> Usage:
        """What all keys have used; only for administrators.

        Args:
            since: as with :meth:`usage`.
            until: as with :meth:`usage`.
            key_id: id of the only key that counts; None for all keys.

        Raises:
            InvalidOption, RequestError: as with :meth:`usage`.
        """
        return self._transport.run(self._calls.usage("/admin/usage", since, until, key_id))

    def cancel(self, job_id: str, *, force: bool = False) -> None:
        """Cancel a waiting job, remove the result of a job that has ended, or remove a Failed job altogether.

        Args:
            job_id: id of the job.
            force: also stop a job that runs.

        Raises:
            JobIsProcessing: the job runs, and ``force`` is not set.
            JobNotFound: there is no such job, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        self._transport.run(self._calls.cancel(job_id, force))

    def enroll(self, name: str, samples: Sequence[Source]) -> Speaker:
        """Add a person whose voice jobs with ``identify`` recognise. The person must have agreed to that.

        Args:
            name: the label of the person in transcripts.
            samples: recordings of 2 to 10 seconds each, in which only this person speaks; as ``source`` of
                :meth:`submit`. The server does not keep them.

        Raises:
            OSError: a file cannot be read.
            InvalidOption: the server cannot use the name or a recording.
            SpeakerExists, SpeakerLimit: the caller has a speaker of this name, or as many as one may have.
            ModelUnavailable: the server has no model for voices.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.enroll(name, whole(samples)))

    def add_samples(self, speaker_id: str, samples: Sequence[Source]) -> Speaker:
        """Add recordings to a known speaker; they replace those that another model has embedded.

        Args:
            speaker_id: id of the speaker.
            samples: as with :meth:`enroll`.

        Raises:
            SpeakerNotFound: there is no such speaker, or it belongs to another key.
            WhisperApiError: as with :meth:`enroll`.
        """
        return self._transport.run(self._calls.add_samples(speaker_id, whole(samples)))

    def speakers(self) -> tuple[Speaker, ...]:
        """The caller's known speakers, the oldest first.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.speakers())

    def rename_speaker(self, speaker_id: str, name: str) -> Speaker:
        """Rename a known speaker. Earlier transcripts keep the old name.

        Args:
            speaker_id: id of the speaker.
            name: the new name.

        Raises:
            InvalidOption: the server cannot use the name.
            SpeakerNotFound, SpeakerExists: there is no such speaker, or another one of this name.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.rename_speaker(speaker_id, name))

    def delete_speaker(self, speaker_id: str) -> None:
        """Delete a known speaker: the name and the voice.

        Args:
            speaker_id: id of the speaker.

        Raises:
            SpeakerNotFound: there is no such speaker, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        self._transport.run(self._calls.delete_speaker(speaker_id))

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
            status: only jobs with this status; None for all.
            metadata_key: only jobs with this key at the top of their metadata.
            metadata_value: only jobs with this value under the key: text, or a number, true, false or null.
            created_after: only jobs submitted then or later; local time when it has no zone.
            created_before: only jobs submitted earlier.

        Raises:
            InvalidOption: there is a value without a key.
            RequestError: the server refused, or cannot be reached.
        """
        params = search(status, metadata_key, metadata_value, created_after, created_before)
        while True:
            page = self._transport.run(self._calls.page(params))
            yield from page.jobs
            if page.next is None:
                return
            params["after"] = page.next

    def audit(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        key: str | None = None,
        action: str | None = None,
    ) -> Iterator[AuditRecord]:
        """The server's audit trail, newest first: who did what. Only for administrators.

        Args:
            since: only entries of this time or later; local time when it has no zone.
            until: only earlier entries.
            key: only entries of the key with this id or name.
            action: only this action, as in ``job.read``; or all of a kind, as in ``job``.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        params = audit_search(since, until, key, action)
        while True:
            page = self._transport.run(self._calls.audit_page(params))
            yield from page.records
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
        """Submit, wait, and return the result. An interruption of the wait, such as Ctrl-C, cancels the job.

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
