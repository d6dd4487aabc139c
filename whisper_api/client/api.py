"""The blocking client: jobs of a server as method calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from whisper_api.client.calls import Blocking, Calls, Server
from whisper_api.client.events import EventReader
from whisper_api.client.jobs import JobMethods
from whisper_api.client.keys import KeyMethods
from whisper_api.client.reports import ReportMethods
from whisper_api.client.responses import RetryLater
from whisper_api.client.speakers import SpeakerMethods
from whisper_api.client.transport import Transport
from whisper_api.client.vocabularies import VocabularyMethods
from whisper_api.client.webhooks import WebhookMethods
from whisper_api.job_values import JobEvent

if TYPE_CHECKING:
    import requests

DEFAULT_URL = "http://127.0.0.1:8181"


class ApiMethods(JobMethods, KeyMethods, ReportMethods, SpeakerMethods, VocabularyMethods, WebhookMethods):
    """The methods that both clients have.

    Args:
        server: the server.
        retries: how often a request is repeated.
    """

    def __init__(self, server: Server, retries: int) -> None:
        self.url = server.url
        self._calls = Calls(retries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


class Client(Blocking, ApiMethods):
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
        server = Server(url, api_key)
        super().__init__(server, retries)
        self._transport = Transport(server, timeout=timeout, session=session)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        self._transport.close()

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
