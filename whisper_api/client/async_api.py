"""The asynchronous client: jobs of a server as coroutines of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from whisper_api.client.api import DEFAULT_URL, ApiMethods
from whisper_api.client.async_transport import AsyncTransport
from whisper_api.client.calls import Asynchronous, Server
from whisper_api.client.events import EventReader
from whisper_api.client.responses import RetryLater
from whisper_api.job_values import JobEvent

if TYPE_CHECKING:
    import httpx


class AsyncClient(Asynchronous, ApiMethods):
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
        server = Server(url, api_key)
        super().__init__(server, retries)
        self._transport = AsyncTransport(server, timeout=timeout, session=session)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *ignored: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        await self._transport.close()

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
