"""Blocking requests, over the library requests."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from whisper_api.client.calls import Cleanup, Pause, Request, Server, Steps, Work
from whisper_api.client.responses import Response, RetryLater, check_stream, outcome, unreachable, untrusted
from whisper_api.client.upload import UploadFailed
from whisper_api.errors import RequestError, WhisperApiError
from whisper_api.trace_context import active_trace_headers

if TYPE_CHECKING:
    import requests

T = TypeVar("T")


class Transport:
    """The connections to a server.

    Args:
        server: the server.
        timeout: seconds to connect, and seconds without a byte until an attempt counts as failed.
        session: the caller's own session, which is not closed; None to make a session for the first request.
    """

    def __init__(self, server: Server, *, timeout: float, session: requests.Session | None) -> None:
        self._server = server
        self._url = server.url
        self._timeout = timeout
        self._session = session
        self._owns_session = session is None
        self._process = os.getpid()

    def close(self) -> None:
        """Close the connections."""
        if self._owns_session and self._session is not None:
            self._session.close()

    def run(self, steps: Steps[T]) -> T:
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
                        time.sleep(seconds)
                    case Work(function):
                        value = function()
                    case Cleanup():
                        cleanup = step
                    case Request():
                        try:
                            value = self._attempt(step)
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
                with contextlib.suppress(WhisperApiError):
                    self.run(cleanup.steps())
            raise
        finally:
            steps.close()

    def _attempt(self, request: Request) -> Response:
        with self._opened(request, self._timeout + request.held_seconds) as response:
            return outcome(Response(response.status_code, response.headers, response.content), request.job_id)

    @contextlib.contextmanager
    def stream(self, request: Request) -> Iterator[Iterator[bytes]]:
        """Open a stream of events, which is read as it arrives. There are no retries.

        Yields:
            The pieces of the body.

        Raises:
            RetryLater: the connection failed, also while the body was read, or the server is busy.
            WhisperApiError: the server refused, or is not a Whisper API server.
        """
        with self._opened(request, max(self._timeout, request.held_seconds)) as response:
            if not response.ok:
                outcome(Response(response.status_code, response.headers, response.content), request.job_id)
            check_stream(response.status_code, response.headers)
            # With a body that is not chunked, reading several bytes would wait for all of them.
            chunked = getattr(response.raw, "chunked", False)
            yield response.iter_content(chunk_size=None if chunked else 1)

    @contextlib.contextmanager
    def _opened(self, request: Request, read_seconds: float) -> Iterator[requests.Response]:
        import requests

        if self._process != os.getpid():
            # This process was forked and shares the parent's connections, where it would read the parent's responses.
            # A closed session makes new connections when it is used again.
            self._process = os.getpid()
            if self._session is not None:
                self._session.close()
        if self._session is None:
            self._session = requests.Session()
        try:
            with self._session.request(
                request.method,
                f"{self._url}{request.path}",
                params=request.params,
                headers={**request.headers, **active_trace_headers()},
                data=request.body,
                auth=self._server.authorize,
                timeout=(self._timeout, read_seconds),
                allow_redirects=False,
                stream=True,
            ) as response:
                # urllib3 before version 2 would take a truncated body for a whole one.
                response.raw.enforce_content_length = True
                yield response
        except UploadFailed as error:
            raise error.reason from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error):
                raise untrusted(self._url) from error
            raise unreachable(self._url, error) from error
        except requests.RequestException as error:
            raise RequestError(f"{self._url}: {error}") from error
