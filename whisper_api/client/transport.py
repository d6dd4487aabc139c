"""Blocking requests, over the library requests."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from whisper_api.client.answers import Answer, NotNow, outcome, streamed, unreachable, untrusted
from whisper_api.client.calls import Pause, Send, Steps
from whisper_api.client.upload import SourceFailed
from whisper_api.errors import RequestError

if TYPE_CHECKING:
    import requests

__all__ = ["Transport"]

T = TypeVar("T")


class Transport:
    """One server and the connections to it.

    Args:
        url: without a slash at the end.
        api_key: empty for none.
        timeout: seconds to connect, and seconds without a byte until an attempt counts as failed.
        session: the caller's own, which is not closed; None to make one when it is needed.
    """

    def __init__(self, url: str, api_key: str, *, timeout: float, session: requests.Session | None) -> None:
        self._url = url
        self._api_key = api_key
        self._timeout = timeout
        self._session = session
        self._owns_session = session is None
        self._process = os.getpid()

    def close(self) -> None:
        """Close the connections."""
        if self._owns_session and self._session is not None:
            self._session.close()

    def run(self, steps: Steps[T]) -> T:
        """Do what a call asks for, and return its value.

        Raises:
            WhisperApiError: what the server said, by its name, or that it cannot be reached.
        """
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    answer = self._attempt(step)
                except NotNow as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    def _attempt(self, send: Send) -> Answer:
        with self._opened(send, self._timeout + send.held_seconds) as response:
            return outcome(Answer(response.status_code, response.headers, response.content), send.job_id)

    @contextlib.contextmanager
    def stream(
        self, path: str, job_id: str, media_type: str, headers: Mapping[str, str], silence_seconds: float
    ) -> Iterator[Iterator[bytes]]:
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
        with self._opened(send, max(self._timeout, silence_seconds)) as response:
            if not response.ok:
                outcome(Answer(response.status_code, response.headers, response.content), job_id)
            streamed(response.status_code, response.headers, media_type)
            # A body in chunks is read chunk by chunk; of any other, more than a byte would be waited for.
            chunked = getattr(response.raw, "chunked", False)
            yield response.iter_content(chunk_size=None if chunked else 1)

    @contextlib.contextmanager
    def _opened(self, send: Send, read_seconds: float) -> Iterator[requests.Response]:
        import requests

        if self._process != os.getpid():
            # Forked: the parent's connections are open here too, and would give this process the parent's answers.
            # A session that is closed makes new ones when it is used again.
            self._process = os.getpid()
            if self._session is not None:
                self._session.close()
        if self._session is None:
            self._session = requests.Session()
        try:
            with self._session.request(
                send.method,
                f"{self._url}{send.path}",
                params=send.params,
                headers=send.headers,
                data=send.body,
                auth=self._authorize,
                timeout=(self._timeout, read_seconds),
                allow_redirects=False,
                stream=True,
            ) as response:
                # Before urllib3 2, an answer that is cut short would be taken for a whole one.
                response.raw.enforce_content_length = True
                yield response
        except SourceFailed as error:
            raise error.reason from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error):
                raise untrusted(self._url) from error
            raise unreachable(self._url, error) from error
        except requests.RequestException as error:
            raise RequestError(f"{self._url}: {error}") from error

    def _authorize(self, request: Any) -> Any:
        # As an auth, not as a header: requests would put what a .netrc file says in the header's place.
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request
