"""Parses server-sent events (HTML standard, section 9.2) into a job's events, and resumes after lost connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple, get_args

import msgspec

from whisper_api.client import jobs
from whisper_api.client.calls import Request, path_of
from whisper_api.client.responses import EVENT_STREAM, RetryLater, pause_before
from whisper_api.errors import RequestError
from whisper_api.job_values import JobCanceledEvent, JobCompletedEvent, JobEvent, JobFailedEvent

TERMINAL = (JobCompletedEvent, JobFailedEvent, JobCanceledEvent)
NAMES = frozenset(str(kind.__struct_config__.tag) for kind in get_args(JobEvent))
# The server sends a comment every 15 seconds. The connection counts as lost after three missing comments.
SILENCE_SECONDS = 45.0


class _Frame(NamedTuple):
    """The fields between two empty lines of a stream; a comment has no field."""

    id: str = ""
    name: str = ""
    data: bytes = b""


class EventReader:
    """Turns the pieces of event streams into events, over several connections when they are lost. Does no I/O.

    Args:
        job_id: id of the job.

    Attributes:
        ended: whether the last event of the job was read.
    """

    def __init__(self, job_id: str) -> None:
        self.ended = False
        self._job_id = job_id
        self._last_id = ""
        self._last_read = time.monotonic()
        self._attempt = 0
        self._frames = _Frames()

    def connect(self) -> Request:
        """Begin a new connection, and return its request, which resumes after the last event."""
        self._frames = _Frames()
        headers = {"Accept": EVENT_STREAM, "Accept-Encoding": "identity"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        path = path_of("transcription", self._job_id, "events")
        return Request("GET", path, self._job_id, headers=headers, held_seconds=SILENCE_SECONDS)

    def events(self, piece: bytes) -> Iterator[JobEvent]:
        """The events that a piece of the stream completes.

        Raises:
            RequestError: an event cannot be parsed.
        """
        for frame in self._frames.feed(piece):
            self._attempt = 0
            self._last_id = frame.id or self._last_id
            if frame.name in NAMES:
                event = _event(frame.data)
                self.ended = isinstance(event, TERMINAL)
                yield event
                if self.ended:
                    return
            # Set once the caller has handled the event, which may take long.
            self._last_read = time.monotonic()

    def pause(self, lost: RetryLater | None) -> float:
        """Seconds to wait before the next connection.

        Args:
            lost: why the connection ended; None when the server closed it properly, for example because it stops.

        Raises:
            WhisperApiError: the server is away for too long.
        """
        if time.monotonic() - self._last_read >= jobs.RESTART_SECONDS:
            if lost is None:
                raise RequestError(f"the stream of events ends again and again before job {self._job_id} has ended")
            raise lost.reason from lost.reason.__cause__
        seconds = pause_before(self._attempt, lost.retry_after if lost else 0.0)
        self._attempt += 1
        return seconds


class _Frames:
    """Cuts a stream into frames (HTML standard, section 9.2.6). An incomplete frame at the end is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, list[bytes]] = {}

    def feed(self, piece: bytes) -> Iterator[_Frame]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line:
                name, _, value = line.partition(b":")
                self._fields.setdefault(name.decode("utf-8", "replace"), []).append(value.removeprefix(b" "))
            else:
                fields, self._fields = self._fields, {}
                id, event = (fields.get(name, [b""])[-1].decode("utf-8", "replace") for name in ("id", "event"))
                yield _Frame(id, event, b"\n".join(fields.get("data", ())))


def _event(data: bytes) -> JobEvent:
    try:
        event: JobEvent = msgspec.json.decode(data, type=JobEvent)
    except msgspec.MsgspecError as error:
        raise RequestError(f"the events are not those of a Whisper API server: {error}") from error
    return event
