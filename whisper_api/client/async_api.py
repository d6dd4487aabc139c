"""The asynchronous client: jobs of a server as coroutines of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from whisper_api.audit_records import AuditRecord
from whisper_api.client.api import DEFAULT_URL
from whisper_api.client.async_keys import AsyncKeyMethods
from whisper_api.client.async_transport import AsyncTransport
from whisper_api.client.async_webhooks import AsyncWebhookMethods
from whisper_api.client.calls import Calls, audit_search, checked, form_fields, search
from whisper_api.client.events import EventReader
from whisper_api.client.responses import RetryLater
from whisper_api.client.upload import MultipartForm, Source, opened, whole
from whisper_api.errors import WhisperApiError
from whisper_api.job_values import Corrections, JobEvent, JobResult, JobState, JobStatus, Vocabulary
from whisper_api.schema import RenderOptions, TranscriptionOptions
from whisper_api.usage_records import Usage
from whisper_api.voices import Speaker

if TYPE_CHECKING:
    import httpx

__all__ = ["AsyncClient"]

# A canceled coroutine waits this long for the server to cancel its job.
CLEANUP_SECONDS = 10.0


class AsyncClient(AsyncKeyMethods, AsyncWebhookMethods):
    """Talks to one server, with the methods, retries and errors of :class:`~whisper_api.Client`.

    ::

        async with AsyncClient("https://speech.example.org", api_key=key) as client:
            result = await client.transcribe("call.wav", TranscriptionOptions(language="en"))

    Calls may run at the same time within one event loop. Threads read files, piece by piece. Callbacks
    (``on_upload``, ``on_progress``) are ordinary functions that the event loop runs, so they must not block.

    Args:
        url: URL of the server, with the path of its mount, if any.
        api_key: as ``whisper-api keys create`` printed it; None for a server without keys.
        timeout: seconds to connect, and seconds without a byte until an attempt counts as failed.
        retries: how often a request is repeated after a failed connection or a response of 429, 502, 503 or 504.
        session: httpx client that sends the requests, with your own proxies or certificates; it is not closed.

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
        session: httpx.AsyncClient | None = None,
    ) -> None:
        self.url, api_key = checked(url, api_key)
        self._calls = Calls(retries)
        self._transport = AsyncTransport(self.url, api_key, timeout=timeout, session=session)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *ignored: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        await self._transport.close()

    async def submit(
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
        """Send audio for transcription, as :meth:`Client.submit <whisper_api.Client.submit>` does.

        Args:
            source: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            options: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            output_format: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            render_options: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            keep_result: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            metadata: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            hf_token: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            webhook_url: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            webhook_include_result: as in :meth:`Client.submit <whisper_api.Client.submit>`.
            on_upload: as in :meth:`Client.submit <whisper_api.Client.submit>`.

        Returns:
            The job's id.

        Raises:
            OSError: the file cannot be read.
            WhisperApiError: as in :meth:`Client.submit <whisper_api.Client.submit>`.
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
        with contextlib.ExitStack() as stack:
            file, name = await asyncio.to_thread(stack.enter_context, opened(source))
            return await self._transport.run(self._calls.submit(MultipartForm(fields, file, name, on_upload), key))

    async def status(self, job_id: str, wait: float = 0) -> JobStatus:
        """The status of a job.

        Args:
            job_id: as in :meth:`Client.status <whisper_api.Client.status>`.
            wait: as in :meth:`Client.status <whisper_api.Client.status>`.

        Raises:
            WhisperApiError: as in :meth:`Client.status <whisper_api.Client.status>`.
        """
        return await self._transport.run(self._calls.status(job_id, wait))

    async def wait(
        self,
        job_id: str,
        *,
        on_progress: Callable[[JobStatus], None] | None = None,
        timeout: float | None = None,
    ) -> JobStatus:
        """Wait until a job has ended, and return the last status. The wait outlasts a restart of the server.

        Args:
            job_id: as in :meth:`Client.wait <whisper_api.Client.wait>`.
            on_progress: as in :meth:`Client.wait <whisper_api.Client.wait>`.
            timeout: as in :meth:`Client.wait <whisper_api.Client.wait>`.

        Raises:
            WhisperApiError: as in :meth:`Client.wait <whisper_api.Client.wait>`.
        """
        return await self._transport.run(self._calls.wait(job_id, on_progress, timeout))

    async def events(self, job_id: str) -> AsyncGenerator[JobEvent, None]:
        """The events of a job, as they happen, until the job has ended. The stream outlasts a restart of the server.

        ``contextlib.aclosing`` closes the connection at once when the caller stops early.

        Args:
            job_id: as in :meth:`Client.events <whisper_api.Client.events>`.

        Raises:
            WhisperApiError: as in :meth:`Client.events <whisper_api.Client.events>`.
        """
        reader = EventReader(job_id)
        while True:
            lost: RetryLater | None = None
            try:
                async with self._transport.stream(reader.connect()) as pieces:
                    async for piece in pieces:
                        for event in reader.events(piece):
                            yield event
                        if reader.ended:
                            return
            except RetryLater as error:
                lost = error
            await asyncio.sleep(reader.pause(lost))

    async def result(self, job_id: str) -> JobResult:
        """The result of a job that has ended. The server removes a result some minutes after its delivery.

        Raises:
            WhisperApiError: as in :meth:`Client.result <whisper_api.Client.result>`.
        """
        return await self._transport.run(self._calls.result(job_id))

    async def result_as(self, job_id: str, format: str, render_options: RenderOptions | None = None) -> str:
        """The result of a job that has ended, as the text of a file.

        Args:
            job_id: as in :meth:`Client.result_as <whisper_api.Client.result_as>`.
            format: as in :meth:`Client.result_as <whisper_api.Client.result_as>`.
            render_options: as in :meth:`Client.result_as <whisper_api.Client.result_as>`.

        Raises:
            WhisperApiError: as in :meth:`Client.result_as <whisper_api.Client.result_as>`.
        """
        return await self._transport.run(self._calls.result_as(job_id, format, render_options))

    async def result_file(
        self, job_id: str, format: str = "docx", render_options: RenderOptions | None = None
    ) -> bytes:
        """The result of a job that has ended, as the bytes of a file.

        Args:
            job_id: as in :meth:`Client.result_file <whisper_api.Client.result_file>`.
            format: as in :meth:`Client.result_file <whisper_api.Client.result_file>`.
            render_options: as in :meth:`Client.result_file <whisper_api.Client.result_file>`.

        Raises:
            WhisperApiError: as in :meth:`Client.result_file <whisper_api.Client.result_file>`.
        """
        return await self._transport.run(self._calls.result_file(job_id, format, render_options))

    async def corrections(self, job_id: str) -> Corrections:
        """The corrections of a job's result. The result contains them already.

        Raises:
            WhisperApiError: as in :meth:`Client.corrections <whisper_api.Client.corrections>`.
        """
        return await self._transport.run(self._calls.corrections(job_id))

    async def correct(self, job_id: str, corrections: Corrections) -> Corrections:
        """Replace all corrections of a job's result, and return those that the server keeps.

        Args:
            job_id: as in :meth:`Client.correct <whisper_api.Client.correct>`.
            corrections: as in :meth:`Client.correct <whisper_api.Client.correct>`.

        Raises:
            WhisperApiError: as in :meth:`Client.correct <whisper_api.Client.correct>`.
        """
        return await self._transport.run(self._calls.correct(job_id, corrections))

    async def put_vocabulary(self, name: str, terms: Sequence[str]) -> Vocabulary:
        """Store names and terms, and return them as the server keeps them.

        Args:
            name: as in :meth:`Client.put_vocabulary <whisper_api.Client.put_vocabulary>`.
            terms: as in :meth:`Client.put_vocabulary <whisper_api.Client.put_vocabulary>`.

        Raises:
            WhisperApiError: as in :meth:`Client.put_vocabulary <whisper_api.Client.put_vocabulary>`.
        """
        return await self._transport.run(self._calls.put_vocabulary(name, terms))

    async def vocabulary(self, name: str) -> Vocabulary:
        """A stored vocabulary of the caller's key.

        Args:
            name: as in :meth:`Client.vocabulary <whisper_api.Client.vocabulary>`.

        Raises:
            WhisperApiError: as in :meth:`Client.vocabulary <whisper_api.Client.vocabulary>`.
        """
        return await self._transport.run(self._calls.vocabulary(name))

    async def vocabularies(self) -> tuple[Vocabulary, ...]:
        """All stored vocabularies of the caller's key, in the order of their names.

        Raises:
            WhisperApiError: as in :meth:`Client.vocabularies <whisper_api.Client.vocabularies>`.
        """
        return await self._transport.run(self._calls.vocabularies())

    async def delete_vocabulary(self, name: str) -> None:
        """Delete a stored vocabulary.

        Args:
            name: as in :meth:`Client.delete_vocabulary <whisper_api.Client.delete_vocabulary>`.

        Raises:
            WhisperApiError: as in :meth:`Client.delete_vocabulary <whisper_api.Client.delete_vocabulary>`.
        """
        await self._transport.run(self._calls.delete_vocabulary(name))

    async def usage(self, since: date | None = None, until: date | None = None) -> Usage:
        """What the caller's key has used.

        Args:
            since: as in :meth:`Client.usage <whisper_api.Client.usage>`.
            until: as in :meth:`Client.usage <whisper_api.Client.usage>`.

        Raises:
            WhisperApiError: as in :meth:`Client.usage <whisper_api.Client.usage>`.
        """
        return await self._transport.run(self._calls.usage("/usage", since, until))

    async def all_usage(
        self, since: date | None = None, until: date | None = None, *, key_id: str | None = None
    ) -> Usage:
        """What all keys have used; only for administrators.

        Args:
            since: as in :meth:`Client.all_usage <whisper_api.Client.all_usage>`.
            until: as in :meth:`Client.all_usage <whisper_api.Client.all_usage>`.
            key_id: as in :meth:`Client.all_usage <whisper_api.Client.all_usage>`.

        Raises:
            WhisperApiError: as in :meth:`Client.all_usage <whisper_api.Client.all_usage>`.
        """
        return await self._transport.run(self._calls.usage("/admin/usage", since, until, key_id))

    async def cancel(self, job_id: str, *, force: bool = False) -> None:
        """Cancel a waiting job, remove the result of a job that has ended, or remove a Failed job altogether.

        Args:
            job_id: as in :meth:`Client.cancel <whisper_api.Client.cancel>`.
            force: as in :meth:`Client.cancel <whisper_api.Client.cancel>`.

        Raises:
            WhisperApiError: as in :meth:`Client.cancel <whisper_api.Client.cancel>`.
        """
        await self._transport.run(self._calls.cancel(job_id, force))

    async def enroll(self, name: str, samples: Sequence[Source]) -> Speaker:
        """Add a person whose voice jobs with ``identify`` recognise. The person must have agreed to that.

        Args:
            name: as in :meth:`Client.enroll <whisper_api.Client.enroll>`.
            samples: as in :meth:`Client.enroll <whisper_api.Client.enroll>`.

        Raises:
            WhisperApiError: as in :meth:`Client.enroll <whisper_api.Client.enroll>`.
        """
        return await self._transport.run(self._calls.enroll(name, await asyncio.to_thread(whole, samples)))

    async def add_samples(self, speaker_id: str, samples: Sequence[Source]) -> Speaker:
        """Add recordings to a known speaker; they replace those that another model has embedded.

        Args:
            speaker_id: as in :meth:`Client.add_samples <whisper_api.Client.add_samples>`.
            samples: as in :meth:`Client.add_samples <whisper_api.Client.add_samples>`.

        Raises:
            WhisperApiError: as in :meth:`Client.add_samples <whisper_api.Client.add_samples>`.
        """
        return await self._transport.run(self._calls.add_samples(speaker_id, await asyncio.to_thread(whole, samples)))

    async def speakers(self) -> tuple[Speaker, ...]:
        """The caller's known speakers, the oldest first.

        Raises:
            WhisperApiError: as in :meth:`Client.speakers <whisper_api.Client.speakers>`.
        """
        return await self._transport.run(self._calls.speakers())

    async def rename_speaker(self, speaker_id: str, name: str) -> Speaker:
        """Rename a known speaker. Earlier transcripts keep the old name.

        Args:
            speaker_id: as in :meth:`Client.rename_speaker <whisper_api.Client.rename_speaker>`.
            name: as in :meth:`Client.rename_speaker <whisper_api.Client.rename_speaker>`.

        Raises:
            WhisperApiError: as in :meth:`Client.rename_speaker <whisper_api.Client.rename_speaker>`.
        """
        return await self._transport.run(self._calls.rename_speaker(speaker_id, name))

    async def delete_speaker(self, speaker_id: str) -> None:
        """Delete a known speaker: the name and the voice.

        Args:
            speaker_id: as in :meth:`Client.delete_speaker <whisper_api.Client.delete_speaker>`.

        Raises:
            WhisperApiError: as in :meth:`Client.delete_speaker <whisper_api.Client.delete_speaker>`.
        """
        await self._transport.run(self._calls.delete_speaker(speaker_id))

    async def jobs(
        self,
        status: JobState | None = None,
        *,
        metadata_key: str | None = None,
        metadata_value: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> AsyncGenerator[JobStatus, None]:
        """The caller's jobs, newest first.

        Args:
            status: as in :meth:`Client.jobs <whisper_api.Client.jobs>`.
            metadata_key: as in :meth:`Client.jobs <whisper_api.Client.jobs>`.
            metadata_value: as in :meth:`Client.jobs <whisper_api.Client.jobs>`.
            created_after: as in :meth:`Client.jobs <whisper_api.Client.jobs>`.
            created_before: as in :meth:`Client.jobs <whisper_api.Client.jobs>`.

        Raises:
            WhisperApiError: as in :meth:`Client.jobs <whisper_api.Client.jobs>`.
        """
        params = search(status, metadata_key, metadata_value, created_after, created_before)
        while True:
            page = await self._transport.run(self._calls.page(params))
            for job in page.jobs:
                yield job
            if page.next is None:
                return
            params["after"] = page.next

    async def audit(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        key: str | None = None,
        action: str | None = None,
    ) -> AsyncGenerator[AuditRecord, None]:
        """The server's audit trail, newest first. Only for administrators.

        Args:
            since: as in :meth:`Client.audit <whisper_api.Client.audit>`.
            until: as in :meth:`Client.audit <whisper_api.Client.audit>`.
            key: as in :meth:`Client.audit <whisper_api.Client.audit>`.
            action: as in :meth:`Client.audit <whisper_api.Client.audit>`.

        Raises:
            RequestError: as in :meth:`Client.audit <whisper_api.Client.audit>`.
        """
        params = audit_search(since, until, key, action)
        while True:
            page = await self._transport.run(self._calls.audit_page(params))
            for record in page.records:
                yield record
            if page.next is None:
                return
            params["after"] = page.next

    async def transcribe(
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
        """Submit, wait, and return the result. Canceling the coroutine cancels the job.

        Args:
            source: as in :meth:`submit`.
            options: as in :meth:`submit`.
            output_format: as in :meth:`submit`.
            render_options: as in :meth:`submit`.
            metadata: as in :meth:`submit`.
            hf_token: as in :meth:`submit`.
            on_upload: as in :meth:`submit`.
            on_progress: as in :meth:`wait`.
            timeout: as in :meth:`wait`.

        Raises:
            WhisperApiError: as in :meth:`Client.transcribe <whisper_api.Client.transcribe>`.
        """
        job_id = await self.submit(
            source,
            options,
            output_format=output_format,
            render_options=render_options,
            metadata=metadata,
            hf_token=hf_token,
            on_upload=on_upload,
        )
        try:
            return await self._transport.run(self._calls.awaited_result(job_id, on_progress, timeout))
        except WhisperApiError:
            raise
        except BaseException:
            # A task of its own is not canceled by a second cancellation of this coroutine.
            await asyncio.shield(asyncio.create_task(self._abandon(job_id)))
            raise

    async def _abandon(self, job_id: str) -> None:
        with contextlib.suppress(WhisperApiError, asyncio.TimeoutError):
            await asyncio.wait_for(self.cancel(job_id, force=True), CLEANUP_SECONDS)
