"""Requests of asyncio, over httpx."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import httpx

from whisper_api.client.calls import Cleanup, Pause, Request, Server, Steps, Work
from whisper_api.client.responses import Response, RetryLater, check_stream, outcome, unreachable, untrusted
from whisper_api.client.upload import MultipartForm, UploadFailed
from whisper_api.errors import ForkedProcess, RequestError, WhisperApiError
from whisper_api.trace_context import active_trace_headers

T = TypeVar("T")

# An interrupted call waits this long for its cleanup, such as the cancellation of its job.
CLEANUP_SECONDS = 10.0


class AsyncTransport:
    """The connections to a server.

    Args:
        server: the server.
        timeout: seconds to connect, and seconds without a byte until an attempt counts as failed.
        session: the caller's own session, which is not closed; None to make a session.
    """

    def __init__(self, server: Server, *, timeout: float, session: httpx.AsyncClient | None) -> None:
        self._server = server
        self._url = server.url
        self._timeout = timeout
        self._callers = session
        self._own: httpx.AsyncClient | None = None
        # The process that has used the session.
        self._process: int | None = None

    async def close(self) -> None:
        """Close the connections."""
        own, self._own = self._own, None
        if own is not None:
            await own.aclose()

    async def run(self, steps: Steps[T]) -> T:
        """Send the requests of a call, make its pauses, and return its value.

        Raises:
            WhisperApiError: the server's error by its name, or RequestError when the server cannot be reached.
        """
        cleanup: Cleanup | None = None
        try:
            step = next(steps)
            while True:
                value: Any = None
                match step:
                    case Pause(seconds):
                        await asyncio.sleep(seconds)
                    case Work(function):
                        value = await asyncio.to_thread(function)
                    case Cleanup():
                        cleanup = step
                    case Request():
                        try:
                            value = await self._attempt(step)
                        except RetryLater as error:
                            step = steps.throw(error)
                            continue
                step = steps.send(value)
        except StopIteration as done:
            result: T = done.value
            return result
        except WhisperApiError:
            raise
        except BaseException:
            if cleanup is not None:
                # A task of its own is not canceled by a second cancellation of this coroutine.
                await asyncio.shield(asyncio.create_task(self._clean_up(cleanup)))
            raise
        finally:
            steps.close()

    async def _clean_up(self, cleanup: Cleanup) -> None:
        with contextlib.suppress(WhisperApiError, asyncio.TimeoutError):
            await asyncio.wait_for(self.run(cleanup.steps()), CLEANUP_SECONDS)

    async def _attempt(self, request: Request) -> Response:
        async with self._opened(request, self._timeout + request.held_seconds) as response:
            body = await response.aread()
            return outcome(Response(response.status_code, response.headers, body), request.job_id)

    @contextlib.asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream of events, which is read as it arrives. There are no retries.

        Yields:
            The pieces of the body.

        Raises:
            RetryLater: the connection failed, also while the body was read, or the server is busy.
            WhisperApiError: the server refused, or is not a Whisper API server.
        """
        async with self._opened(request, max(self._timeout, request.held_seconds)) as response:
            if not response.is_success:
                outcome(Response(response.status_code, response.headers, await response.aread()), request.job_id)
            check_stream(response.status_code, response.headers)
            yield response.aiter_bytes()

    @contextlib.asynccontextmanager
    async def _opened(self, request: Request, read_seconds: float) -> AsyncIterator[httpx.Response]:
        headers = {**request.headers, **active_trace_headers()}
        body: AsyncIterator[bytes] | bytes | None
        if isinstance(request.body, MultipartForm):
            body = aiter(request.body)
            # httpx would send a body without a length in chunks.
            headers["Content-Length"] = str(len(request.body))
        else:
            body = request.body
        # A call that waits for a free connection has not failed, so the pool has no time limit.
        timeout = httpx.Timeout(self._timeout, read=read_seconds, pool=None)
        try:
            async with self._session.stream(
                request.method,
                f"{self._url}{request.path}",
                params=request.params or None,
                headers=headers,
                content=body,
                auth=self._server.authorize,
                timeout=timeout,
                follow_redirects=False,
            ) as response:
                yield response
        except UploadFailed as error:
            raise error.reason from None
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            if "CERTIFICATE" in str(error):
                raise untrusted(self._url) from error
            raise unreachable(self._url, error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestError(f"{self._url}: {error}") from error

    @property
    def _session(self) -> httpx.AsyncClient:
        """The client for requests of this process.

        Raises:
            ForkedProcess: the caller's own client has sent requests in the process that this one was forked from.
        """
        if self._process not in (None, os.getpid()):
            # This process was forked and shares the parent's connections, where it would read the parent's responses.
            if self._callers is not None:
                raise ForkedProcess(
                    f"the httpx.AsyncClient given as session was used in process {self._process} before it forked into "
                    f"this one ({os.getpid()}): make an AsyncClient with a new session in this process"
                )
            self._own = None
        self._process = os.getpid()
        if self._callers is not None:
            return self._callers
        if self._own is None:
            self._own = httpx.AsyncClient(limits=httpx.Limits(max_connections=None))
        return self._own
