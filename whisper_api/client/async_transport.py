"""Requests of asyncio, over httpx."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

import httpx

from whisper_api.client.answers import Answer, NotNow, outcome, streamed, unreachable, untrusted
from whisper_api.client.calls import Pause, Send, Steps
from whisper_api.client.upload import Form, SourceFailed
from whisper_api.errors import ForkedProcess, RequestError

__all__ = ["AsyncTransport"]

T = TypeVar("T")


class AsyncTransport:
    """One server and the connections to it.

    Args:
        url: without a slash at the end.
        api_key: empty for none.
        timeout: seconds to connect, and seconds without a byte until an attempt counts as failed.
        session: the caller's own, which is not closed; None to make one.
    """

    def __init__(self, url: str, api_key: str, *, timeout: float, session: httpx.AsyncClient | None) -> None:
        self._url = url
        self._api_key = api_key
        self._timeout = timeout
        self._given = session
        self._own: httpx.AsyncClient | None = None
        # The process that has used the session.
        self._process: int | None = None

    async def close(self) -> None:
        """Close the connections."""
        own, self._own = self._own, None
        if own is not None:
            await own.aclose()

    async def run(self, steps: Steps[T]) -> T:
        """Do what a call asks for, and return its value.

        Raises:
            WhisperApiError: what the server said, by its name, or that it cannot be reached.
        """
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    answer = await self._attempt(step)
                except NotNow as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    async def _attempt(self, send: Send) -> Answer:
        async with self._opened(send, self._timeout + send.held_seconds) as response:
            body = await response.aread()
            return outcome(Answer(response.status_code, response.headers, body), send.job_id)

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, job_id: str, media_type: str, headers: Mapping[str, str], silence_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an answer that is read as it comes. Nothing is tried again.

        Args:
            path, headers: of the request.
            job_id: the job that errors are about.
            media_type: the answer's expected one.
            silence_seconds: seconds without a byte after which the connection counts as failed.

        Yields:
            The pieces of its body.

        Raises:
            NotNow: the connection failed, also while it was read, or the server is busy.
            WhisperApiError: the server refused, by the error's name, or is another one.
        """
        headers = {**headers, "Accept": media_type, "Accept-Encoding": "identity"}
        send = Send("GET", path, job_id, headers=headers)
        async with self._opened(send, max(self._timeout, silence_seconds)) as response:
            if not response.is_success:
                outcome(Answer(response.status_code, response.headers, await response.aread()), job_id)
            streamed(response.status_code, response.headers, media_type)
            yield response.aiter_bytes()

    @contextlib.asynccontextmanager
    async def _opened(self, send: Send, read_seconds: float) -> AsyncIterator[httpx.Response]:
        headers = dict(send.headers)
        body: AsyncIterator[bytes] | bytes | None
        if isinstance(send.body, Form):
            body = aiter(send.body)
            # Without a length, httpx would send the body in chunks.
            headers["Content-Length"] = str(len(send.body))
        else:
            body = send.body
        # A call that waits for a free connection is no failure, so the pool has no time limit.
        timeout = httpx.Timeout(self._timeout, read=read_seconds, pool=None)
        try:
            async with self._session.stream(
                send.method,
                f"{self._url}{send.path}",
                params=send.params or None,
                headers=headers,
                content=body,
                auth=self._authorize,
                timeout=timeout,
                follow_redirects=False,
            ) as response:
                yield response
        except SourceFailed as error:
            raise error.reason from None
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            if "CERTIFICATE" in str(error):
                raise untrusted(self._url) from error
            raise unreachable(self._url, error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestError(f"{self._url}: {error}") from error

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        # As an auth, not as a header: httpx would put a user name of the URL in the header's place.
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request

    @property
    def _session(self) -> httpx.AsyncClient:
        """The client for requests of this process.

        Raises:
            ForkedProcess: the caller's own client has sent requests in the process that this one was forked from.
        """
        if self._process not in (None, os.getpid()):
            # The parent's connections are open here too, and would give this process the parent's answers.
            if self._given is not None:
                raise ForkedProcess(
                    f"the httpx.AsyncClient given as session was used in process {self._process} before it forked into "
                    f"this one ({os.getpid()}): make an AsyncClient with a new one here"
                )
            self._own = None
        self._process = os.getpid()
        if self._given is not None:
            return self._given
        if self._own is None:
            self._own = httpx.AsyncClient(limits=httpx.Limits(max_connections=None))
        return self._own
