"""A job's events, read as they come, over as many connections as it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_args

import msgspec

from whisper_api.client.transport import NotNow, Transport, pause_before
from whisper_api.errors import RequestError, WhisperApiError
from whisper_api.schema import JobCanceledEvent, JobCompletedEvent, JobEvent, JobFailedEvent

__all__ = ["follow"]

MEDIA_TYPE = "text/event-stream"
TERMINAL = (JobCompletedEvent, JobFailedEvent, JobCanceledEvent)
NAMES = frozenset(str(kind.__struct_config__.tag) for kind in get_args(JobEvent))
# The server sends a comment every 15 seconds. Who hears nothing for so long has lost it.
SILENCE_SECONDS = 45.0


class _Frame(NamedTuple):
    """What stands between two empty lines of a stream; a comment is one without anything."""

    id: str = ""
    name: str = ""
    data: bytes = b""


def follow(transport: Transport, path: str, job_id: str, patience_seconds: float) -> Iterator[JobEvent]:
    """The events of a job, until it has ended.

    Args:
        transport: to the server.
        path: where its events are.
        job_id: which job.
        patience_seconds: how long a server is waited for that has gone.

    Raises:
        WhisperApiError: what the server said, by its name, or that it cannot be reached.
    """
    last = ""
    heard = time.monotonic()
    attempt = 0
    while True:
        retry_after = 0.0
        # A server that stops ends its streams in good order: it will be back.
        reason: WhisperApiError = RequestError(f"the events of job {job_id} end before it does, whenever they are read")
        headers = {"Last-Event-ID": last} if last else {}
        try:
            with transport.stream(
                path, job_id=job_id, media_type=MEDIA_TYPE, headers=headers, silence_seconds=SILENCE_SECONDS
            ) as pieces:
                for frame in _frames(pieces):
                    attempt = 0
                    last = frame.id or last
                    if frame.name in NAMES:
                        event = _event(frame.data)
                        yield event
                        if isinstance(event, TERMINAL):
                            return
                    # Only now: what the caller does with an event may take long.
                    heard = time.monotonic()
        except NotNow as error:
            reason, retry_after = error.reason, error.retry_after
        if time.monotonic() - heard >= patience_seconds:
            raise reason from reason.__cause__
        time.sleep(pause_before(attempt, retry_after))
        attempt += 1


def _frames(pieces: Iterable[bytes]) -> Iterator[_Frame]:
    """The frames of a stream (the HTML standard, section 9.2.6), but for those that its end cuts short."""
    rest = b""
    fields: dict[str, list[bytes]] = {}
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line:
                name, _, value = line.partition(b":")
                fields.setdefault(name.decode("utf-8", "replace"), []).append(value.removeprefix(b" "))
            else:
                id, event = (fields.get(name, [b""])[-1].decode("utf-8", "replace") for name in ("id", "event"))
                yield _Frame(id, event, b"\n".join(fields.get("data", ())))
                fields = {}


def _event(data: bytes) -> JobEvent:
    try:
        event: JobEvent = msgspec.json.decode(data, type=JobEvent)
    except msgspec.MsgspecError as error:
        raise RequestError(f"the events are not those of a Whisper API server: {error}") from error
    return event
