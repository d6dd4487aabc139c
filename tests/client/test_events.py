"""The events of a job, read from a server that fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import SimpleNamespace

import msgspec
import pytest
from rest_server import Lose, Refuse, Rest

from whisper_api import Client, errors
from whisper_api.client import api, async_api, jobs
from whisper_api.client import events as client_events
from whisper_api.job_values import (
    JobCompletedEvent,
    JobEvent,
    JobFailedEvent,
    JobProgressEvent,
    JobQueuedEvent,
    JobSegmentEvent,
    ResultSegment,
)

QUEUED = JobQueuedEvent(job_id="a", queue_position=2)
PROGRESS = JobProgressEvent(job_id="a", progress=0.5, stage="asr", eta_seconds=3.5)
SEGMENT = JobSegmentEvent(
    job_id="a", index=0, aligned=True, segments=(ResultSegment(id=0, start=0.0, end=1.0, text="Ünïcodé 日本"),)
)
COMPLETED = JobCompletedEvent(job_id="a")
RETRY = "retry: 2000\n\n"


def frame(number: int, event: JobEvent) -> str:
    name = event.__struct_config__.tag
    return f"id: {number}\nevent: {name}\ndata: {msgspec.json.encode(event).decode()}\n\n"


def streams(client: Client, rest: Rest, *bodies: str) -> str:
    """Submit a job whose event streams have these bodies, one after the other."""
    job_id = client.submit(b"RIFF")
    rest.streams[job_id] = list(bodies)
    return job_id


def asked(rest: Rest) -> list[str | None]:
    """The ``Last-Event-ID`` of each request for events."""
    return [each.headers.get("last-event-id") for each in rest.of("GET") if each.path.endswith("/events")]


def test_events_are_read_to_the_end(client: Client, rest: Rest) -> None:
    whole: list[JobEvent] = [QUEUED, PROGRESS, SEGMENT, COMPLETED]
    body = "".join(frame(number, event) for number, event in enumerate(whole, 1))
    job_id = streams(client, rest, RETRY + body + "data: never read\n\n")
    assert list(client.events(job_id)) == whole
    assert asked(rest) == [None]


def test_comments_line_ends_and_events_of_a_later_version_are_no_trouble(client: Client, rest: Rest) -> None:
    body = ": still here\n\n" + frame(1, PROGRESS) + 'id: 2\nevent: news\ndata: {"of": "tomorrow"}\n\nretry: 1\n\n'
    body += frame(3, COMPLETED).replace("\n", "\r\n")
    assert list(client.events(streams(client, rest, body))) == [PROGRESS, COMPLETED]


def test_a_broken_stream_goes_on_where_it_broke(client: Client, rest: Rest) -> None:
    begin = RETRY + frame(7, PROGRESS)
    rest.faults["GET"] = [
        # The stream breaks within an event, after events, before any event, and while the server is away.
        Lose(len(begin) + 20),
        Lose(len(begin)),
        Lose(),
        Refuse(503, "draining", "it stops", retry_after="0"),
        Refuse(502),
    ]
    failed = JobFailedEvent(job_id="a", error="no speech")
    job_id = streams(
        client, rest, begin + frame(8, SEGMENT), begin.replace("7", "9"), "", frame(10, SEGMENT) + frame(11, failed)
    )
    assert list(client.events(job_id)) == [PROGRESS, PROGRESS, SEGMENT, failed]
    assert asked(rest) == [None, "7", "9", "9", "9", "9"]


def test_a_stream_that_ends_in_good_order_before_the_job_does_is_asked_for_again(client: Client, rest: Rest) -> None:
    job_id = streams(client, rest, RETRY + frame(1, PROGRESS), RETRY, frame(2, QUEUED) + frame(3, COMPLETED))
    assert list(client.events(job_id)) == [PROGRESS, QUEUED, COMPLETED]
    assert asked(rest) == [None, "1", "1"]


def test_errors_of_the_server_are_raised(client: Client, rest: Rest) -> None:
    with pytest.raises(errors.JobNotFound, match="nothing-here"):
        next(client.events("nothing-here"))
    rest.faults["GET"] = [Refuse(401, "unauthorized", "This key is not known here")]
    with pytest.raises(errors.RequestError, match="not known here"):
        next(client.events(streams(client, rest)))
    with pytest.raises(errors.RequestError, match="not those of a Whisper API server"):
        next(client.events(streams(client, rest, "event: progress\ndata: <html>\n\n")))


def test_a_server_that_stays_away_is_not_waited_for_for_ever(
    client: Client, rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RESTART_SECONDS", 0.2)
    job_id = streams(client, rest, frame(1, PROGRESS))
    rest.faults["GET"] = [Lose(len(frame(1, PROGRESS))), *[Lose()] * 100]
    events = client.events(job_id)
    assert next(events) == PROGRESS
    with pytest.raises(errors.RequestError, match="cannot be reached"):
        next(events)


class Clock:
    """A clock that moves only by sleeps and by the steps of a test."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def pause(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(client_events, "time", clock)
    monkeypatch.setattr(api, "time", clock)
    monkeypatch.setattr(async_api, "asyncio", SimpleNamespace(sleep=clock.pause, to_thread=asyncio.to_thread))
    return clock


def test_time_that_the_caller_takes_does_not_count_as_absence_of_the_server(
    client: Client, rest: Rest, clock: Clock
) -> None:
    job_id = streams(client, rest, frame(1, PROGRESS), frame(2, COMPLETED))
    rest.faults["GET"] = [Lose(len(frame(1, PROGRESS))), Refuse(503, "draining", "it stops", retry_after="0")]
    events = client.events(job_id)
    assert next(events) == PROGRESS
    clock.now += 10 * jobs.RESTART_SECONDS
    assert list(events) == [COMPLETED]


def test_streams_without_an_event_are_not_asked_for_for_ever(client: Client, rest: Rest, clock: Clock) -> None:
    job_id = streams(client, rest, frame(1, PROGRESS), *["retry: 1\n"] * 1_000_000)
    with pytest.raises(errors.RequestError, match="ends again and again"):
        list(client.events(job_id))
    assert clock.now >= jobs.RESTART_SECONDS


def test_another_server_is_not_asked_again(client: Client, rest: Rest) -> None:
    rest.faults["GET"] = [Refuse(200, body=b"<html>\n\n<title>Sign in</title>")]
    with pytest.raises(errors.RequestError, match="not that of a Whisper API server"):
        next(client.events(streams(client, rest)))


def test_closing_the_iterator_closes_the_connection(client: Client, rest: Rest) -> None:
    job_id = streams(client, rest, frame(1, PROGRESS) + frame(2, COMPLETED))
    events = client.events(job_id)
    assert next(events) == PROGRESS
    assert isinstance(events, Generator)
    events.close()
    assert client.status(job_id).status == "Completed"
