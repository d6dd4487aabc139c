"""``/transcription/{job_id}/events``: the events of a watcher, and errors of streams."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Collection, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fakes import config_in, new_service, submit, until, watched_jobs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from server.inside import Inside, RawRequest, inside, on_a_loop, problem
from server.virtual_time import Inline, run_at_once
from whisper_api.access.keys import KeyRing
from whisper_api.errors import JobNotFound
from whisper_api.job_values import JobCanceledEvent
from whisper_api.jobs.events import LAST_ID
from whisper_api.jobs.executor import OnPartial
from whisper_api.key_values import KeyChange
from whisper_api.schema import PartialSegments, Segment, Transcript
from whisper_api.server.realtime.event_stream import HEARTBEAT, EventStream
from whisper_api.server.realtime.waiting import wait_for_change, wait_for_end, watch_events
from whisper_api.server.responses.delivery import background
from whisper_api.server.responses.problems import Problem
from whisper_api.server.routes.events import events
from whisper_api.server.state import ServerState, thread_count
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

SPOKEN = Segment(id=0, start=0.0, end=1.0, text="Hello.")


class Reader(FakeExecutor):
    """A fake whose jobs have told one stretch when they are held."""

    tell: OnPartial

    def __init__(self) -> None:
        first = PartialSegments(index=0, aligned=True, segments=(SPOKEN,))
        super().__init__(held=True, behave=lambda executor, job: self.tell(first))

    def run(self, job: Job, audio: Path, *, on_partial: OnPartial, **others: Any) -> Transcript:
        self.tell = on_partial
        return super().run(job, audio, on_partial=on_partial, **others)


class Watcher(RawRequest):
    """A request for the events of a job."""

    def __init__(self, job_id: str, query: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__("GET", f"/transcription/{job_id}/events{query}", named)

    @property
    def headers_sent(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def events(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Id, name and data of each event that was sent."""
        found = []
        for frame in self.answer.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in frame.split("\n") if line and not line.startswith(":"))
            if "data" in lines:
                found.append((int(lines["id"]), lines["event"], msgspec.json.decode(lines["data"])))
        return found

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.events]

    @contextlib.asynccontextmanager
    async def on(self, app: Inside) -> AsyncIterator[asyncio.Task[None]]:
        """While open, the watcher receives events; at the end its client leaves."""
        task = asyncio.create_task(self.to(app.app))
        try:
            yield task
        finally:
            self.gone.set()
            await task


def reader_of(app: Inside) -> Reader:
    assert isinstance(app.executor, Reader)
    return app.executor


async def reading(app: Inside, client: httpx.AsyncClient) -> str:
    """A job that runs, and whose first text is known."""
    job_id = await app.running(client)
    logs = app.service.events.logs
    await app.until(lambda: job_id in logs and logs[job_id].partials)
    return job_id


async def watched(app: Inside, job_id: str, query: str = "", **headers: str) -> Watcher:
    """A request for the events of a job that has ended, answered."""
    watcher = Watcher(job_id, query, **headers)
    await watcher.to(app.app)
    assert not watcher.sent[-1].get("more_body")
    return watcher


# --- what is sent ---


@on_a_loop
async def test_a_watcher_sees_its_job_from_the_queue_to_the_end(tmp_path: Path) -> None:
    async with inside(tmp_path, Reader()) as app, app.client() as client:
        first = await app.running(client)
        job_id = await app.submit(client)
        watcher = Watcher(job_id)
        async with watcher.on(app) as answer:
            await app.until(lambda: watcher.events)
            assert watcher.answer.startswith(b"retry: 2000\n\nid: ")
            app.executor.release(first)
            await app.until(lambda: "segment" in watcher.names)
            app.executor.release()
            await answer
        assert watcher.status == 200
        assert watcher.headers_sent["content-type"].startswith("text/event-stream")
        assert watcher.headers_sent["cache-control"] == "no-store"
        assert watcher.headers_sent["x-accel-buffering"] == "no"
        assert "content-length" not in watcher.headers_sent
        assert not watcher.sent[-1].get("more_body")
        ids = [number for number, _, _ in watcher.events]
        assert ids == sorted(set(ids))
        # A watcher may miss positions and stages that pass quickly.
        assert [*dict.fromkeys(watcher.names)] == ["queued", "progress", "segment", "completed"]
        for _, name, data in watcher.events:
            assert (data["event"], data["job_id"]) == (name, job_id)
        of = {name: data for _, name, data in reversed(watcher.events)}
        assert of["queued"]["queue_position"] == 1
        assert of["progress"].keys() == {"event", "job_id", "progress", "stage", "eta_seconds"}
        assert of["segment"]["index"] == 0
        assert of["segment"]["aligned"] is True
        assert [(each["id"], each["text"]) for each in of["segment"]["segments"]] == [(0, "Hello.")]


@on_a_loop
async def test_a_watcher_that_returns_gets_the_events_that_it_missed(tmp_path: Path) -> None:
    async with inside(tmp_path, Reader()) as app, app.client() as client:
        job_id = await reading(app, client)
        first = Watcher(job_id)
        async with first.on(app):
            await app.until(lambda: first.names == ["progress", "segment"])
        last = first.events[-1][0]
        reader_of(app).tell(PartialSegments(index=1, aligned=False, segments=(SPOKEN,)))
        by_header = Watcher(job_id, last_event_id=str(last))
        by_query = Watcher(job_id, f"?after={last}")
        other = Watcher(job_id, f"?after={last}", last_event_id="0")
        async with by_header.on(app), by_query.on(app), other.on(app):
            await app.until(lambda: by_header.events and by_query.events and other.events)
            assert [data["index"] for _, _, data in by_header.events] == [1]
            assert by_query.events == by_header.events
            # The header is newer than the address that a browser opened first.
            assert other.names == ["progress", "segment", "segment"]


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", "9" * 30, "²", ""])
@on_a_loop
async def test_an_id_that_is_none_counts_as_none(tmp_path: Path, bad: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        job_id = await app.submit(client)
        await app.finish(client, job_id)
        assert (await watched(app, job_id, last_event_id=bad)).names == ["completed"]


@on_a_loop
async def test_a_job_that_has_ended_ends_the_stream_at_once_and_then_there_is_nothing(tmp_path: Path) -> None:
    def fail(executor: FakeExecutor, job: Job) -> None:
        if job.options.prompt == "fail":
            raise RuntimeError("it is broken")

    async with inside(tmp_path, FakeExecutor(behave=fail)) as app, app.client() as client:
        good = await app.submit(client)
        await app.finish(client, good)
        bad = await app.submit(client, prompt="fail")
        await app.finish(client, bad)
        app.executor.held = True
        canceled = await app.running(client)
        await client.delete(f"/transcription/{canceled}?force=true")
        assert (await watched(app, good)).events == [(LAST_ID, "completed", {"event": "completed", "job_id": good})]
        assert (await watched(app, bad)).events == [
            (LAST_ID, "failed", {"event": "failed", "job_id": bad, "error": "it is broken"})
        ]
        assert (await watched(app, canceled, last_event_id="1700000000000000")).names == ["canceled"]
        for watcher in (
            await watched(app, good, last_event_id=str(LAST_ID)),
            await watched(app, good, f"?after={LAST_ID}"),
        ):
            assert watcher.status == 204
            assert watcher.answer == b""
        assert not app.service.events.logs
        assert not watched_jobs(app.service)


@on_a_loop
async def test_head_has_the_headers_and_no_body(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        answer = await client.head(f"/transcription/{await app.running(client)}/events")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.content == b""
        assert not watched_jobs(app.service)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@on_a_loop
async def test_no_task_listens_to_the_client_after_the_end_was_sent(method: str) -> None:
    # Over HTTP/2 the server then waits for the end of the request, which no other task may have received.
    order = []

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            yield b"second"
        finally:
            order.append("closed")

    async def send(message: Message) -> None:
        order.append(message.get("body", b"begin").decode() or "end")

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    rest = frames()
    await EventStream(await anext(rest), rest)({"type": "http", "method": method}, receive, send)
    assert order == ["begin", *(["first", "second"] if method == "GET" else []), "closed", "end"]


# --- who may see it ---


@on_a_loop
async def test_only_a_key_that_may_see_a_job_may_watch_it(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        mine, other, admin = app.token("mine"), app.token("other"), app.token("admin", "admin")
        async with app.client(mine) as client:
            job_id = await app.submit(client)
            await app.finish(client, job_id)
            problem(
                await client.get("/transcription/00000000-0000-0000-0000-000000000000/events"), 404, "job_not_found"
            )
            problem(await client.get(f"/transcription/{job_id}/events?after=x"), 400, "invalid_field")
            problem(await client.post(f"/transcription/{job_id}/events"), 405, "method_not_allowed")
        async with app.client(other) as client:
            problem(await client.get(f"/transcription/{job_id}/events"), 404, "job_not_found")
        async with app.client() as client:
            problem(await client.get(f"/transcription/{job_id}/events"), 401, "unauthorized")
        for token in (mine, admin):
            async with app.client(token) as client:
                assert "event: completed" in (await client.get(f"/transcription/{job_id}/events")).text


# --- who leaves, and what stops ---


@on_a_loop
async def test_a_watcher_that_leaves_is_forgotten_and_the_job_goes_on(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        job_id = await app.running(client)
        watcher = Watcher(job_id)
        async with watcher.on(app):
            await app.until(lambda: watcher.events)
            assert watched_jobs(app.service) == {job_id}
        assert not watched_jobs(app.service)
        # The stream has no end marker, which only complete streams have.
        assert watcher.sent[-1]["more_body"]
        app.executor.release()
        assert (await app.finish(client, job_id))["status"] == "Completed"


@on_a_loop
async def test_a_job_that_is_canceled_while_it_waits_ends_its_stream(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        await app.running(client)
        jobs = [await app.submit(client) for _ in range(2)]
        watchers = [Watcher(job_id) for job_id in jobs]
        async with watchers[0].on(app) as first, watchers[1].on(app):
            await app.until(lambda: all(watcher.events for watcher in watchers))
            await client.delete(f"/transcription/{jobs[0]}")
            await first
            await app.until(lambda: len(watchers[1].events) == 2)
        assert watchers[0].names == ["queued", "canceled"]
        assert not watchers[0].sent[-1]["more_body"]
        assert [data["queue_position"] for _, _, data in watchers[1].events] == [2, 1]


@on_a_loop
async def test_a_stream_ends_with_a_queued_event_when_the_server_stops(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        running = await app.running(client)
        waiting = await app.submit(client)
        watchers = [Watcher(running), Watcher(waiting)]
        async with watchers[0].on(app) as first, watchers[1].on(app) as second:
            await app.until(lambda: all(watcher.events for watcher in watchers))
            app.state.draining.set()
            await asyncio.to_thread(app.service.drain)
            # The running job may still end.
            assert not first.done()
            await asyncio.to_thread(app.service.stop, 0.0)
            app.state.stopped.set()
            await asyncio.gather(first, second)
        assert watchers[0].names[-1] == "queued"
        assert set(watchers[1].names) == {"queued"}
        assert not any(watcher.sent[-1].get("more_body") for watcher in watchers)
        # A client that comes now is not refused.
        late = await watched(app, running)
        assert (late.status, late.names) == (200, ["queued"])


@on_a_loop
async def test_a_hundred_watchers_hold_no_thread(tmp_path: Path) -> None:
    async with inside(tmp_path, Reader()) as app, app.client() as client:
        job_id = await reading(app, client)
        before = threading.active_count()
        watchers = [Watcher(job_id) for _ in range(100)]
        async with contextlib.AsyncExitStack() as stack:
            answers = [await stack.enter_async_context(watcher.on(app)) for watcher in watchers]
            await app.until(lambda: all(watcher.names == ["progress", "segment"] for watcher in watchers))
            # Not more than the pool for the reads of the database, which starts its threads when they are needed.
            assert threading.active_count() <= before + thread_count(app.state.config.http_workers)
            app.executor.release()
            await asyncio.gather(*answers)
        assert {watcher.answer for watcher in watchers} == {watchers[0].answer}


@on_a_loop
async def test_a_watcher_that_does_not_read_delays_no_other_and_skips_outdated_events(tmp_path: Path) -> None:
    async with inside(tmp_path, Reader()) as app, app.client() as client:
        job_id = await reading(app, client)
        taking = asyncio.Event()

        async def slowly(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_slowly(message: Message) -> None:
                await send(message)
                if len(slow.sent) > 1:
                    await taking.wait()

            await app.app(scope, receive, send_slowly)

        slow, quick = Watcher(job_id), Watcher(job_id)
        stuck = asyncio.create_task(slow.to(slowly))
        async with quick.on(app) as answer:
            await app.until(lambda: len(slow.sent) > 1 and "segment" in quick.names)
            for number in range(10):
                reader_of(app).tell(PartialSegments(index=1, aligned=False, segments=(SPOKEN,) * (number + 1)))
                await app.until(functools.partial(has_segments, quick, 2 + number))
            app.executor.release()
            await answer
        before = len(slow.events)
        taking.set()
        await stuck
        news = [(name, len(data.get("segments", ()))) for _, name, data in slow.events[before:]]
        assert news == [("segment", 10), ("completed", 0)]


@on_a_loop
async def test_a_long_text_is_sent_in_pieces_that_a_slow_client_can_take_in_time(tmp_path: Path) -> None:
    async with inside(tmp_path, Reader()) as app, app.client() as client:
        job_id = await reading(app, client)
        for index in range(1, 200):
            reader_of(app).tell(PartialSegments(index=index, aligned=True, segments=(SPOKEN,) * 100))
        late = Watcher(job_id)
        async with late.on(app):
            await app.until(lambda: len(late.names) == 201)
        assert len(late.answer) > 1_000_000
        assert max(len(message.get("body", b"")) for message in late.sent) < 100_000
        # The events are not sent one by one either, since each send costs time.
        assert len(late.sent) < 40


# --- time ---


def has_segments(watcher: Watcher, number: int) -> bool:
    return watcher.names.count("segment") >= number


class Waiting:
    """A service with one running job that has reported text, and requests for it on a virtual clock.

    Args:
        directory: of the service.
    """

    def __init__(self, directory: Path) -> None:
        self.executor = Reader()
        self.service = new_service(directory, self.executor)
        self.service.start()
        self.keys = KeyRing(self.service.store)
        self.key, _ = self.keys.create("mine")
        self.job_id = submit(self.service, owner=self.key.key_id)
        logs = self.service.events.logs
        until(lambda: self.job_id in logs and logs[self.job_id].partials, "it has told something")
        self.config = config_in(directory)

    def request(self) -> Request:
        """A request whose client does not leave. Call this on the loop."""
        inline: Any = Inline()
        app = Starlette()
        app.state.server = state = ServerState(self.config, self.service)
        state.uploads = state.reads = state.renders = state.fetches = inline
        path = {"job_id": self.job_id}
        scope = {"type": "http", "method": "GET", "app": app, "state": {"key": self.key}, "path_params": path}
        gone = asyncio.Event()

        async def receive() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        return Request({**scope, "query_string": b"", "headers": []}, receive)

    def tell(self, index: int) -> None:
        self.executor.tell(PartialSegments(index=index, aligned=True, segments=(SPOKEN,)))


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    waiting = Waiting(tmp_path)
    with contextlib.closing(waiting.service):
        yield waiting


def test_a_silent_stream_has_heartbeats_and_still_gets_the_end(waiting: Waiting) -> None:
    async def watch() -> list[tuple[float, list[str]]]:
        told: list[tuple[float, list[str]]] = []
        async with contextlib.aclosing(watch_events(waiting.request(), waiting.job_id)) as batches:
            async for batch in batches:
                told.append((asyncio.get_running_loop().time(), [each.name for each in batch]))
                if len(told) == 3:
                    waiting.tell(1)
                if len(told) == 5:
                    # The event is lost.
                    assert waiting.service.store.cancel(waiting.job_id, 1.0, states=("Processing",))
        return told

    assert run_at_once(watch()) == [
        (0.0, ["progress", "segment"]),
        (15.0, []),
        (30.0, []),
        (30.0, ["segment"]),
        (45.0, []),
        (45.0, ["canceled"]),
    ]


@pytest.mark.parametrize("times", [(), (10,), range(1, 1000)], ids=["silent", "once", "busy"])
def test_a_stream_ends_soon_after_its_key_was_revoked(waiting: Waiting, times: Collection[int]) -> None:
    async def talk() -> None:
        for when in times:
            await asyncio.sleep(when - asyncio.get_running_loop().time())
            waiting.tell(when)

    async def watch() -> tuple[float, list[Message]]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async with background(talk()):
            request = waiting.request()
            response = await events.handler(request)
            waiting.keys.revoke("mine")
            await response(request.scope, request.receive, send)
            with pytest.raises(Problem) as refused:
                await events.handler(waiting.request())
        assert refused.value.status == 401
        return asyncio.get_running_loop().time(), sent

    ended, sent = run_at_once(watch())
    assert ended == 15.0
    # The stream ends normally, so the client connects again and is refused.
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    told = [when for when in range(1, 15) if any(b'"index":%d,' % when in each.get("body", b"") for each in sent)]
    assert told == [when for when in times if when < 15]
    assert not watched_jobs(waiting.service)


def test_a_stream_whose_job_has_gone_ends(waiting: Waiting) -> None:
    async def watch() -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        request = waiting.request()
        response = await events.handler(request)
        waiting.service.store.delete(waiting.job_id)
        await response(request.scope, request.receive, send)
        with pytest.raises(JobNotFound):
            await events.handler(waiting.request())
        return sent

    assert run_at_once(watch())[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_poll_ends_soon_after_its_key_was_revoked(waiting: Waiting) -> None:
    async def poll() -> tuple[int, float]:
        asyncio.get_running_loop().call_later(1.0, waiting.keys.revoke, "mine")
        with pytest.raises(Problem) as refused:
            await wait_for_change(waiting.request(), waiting.job_id, 60.0)
        return refused.value.status, asyncio.get_running_loop().time()

    assert run_at_once(poll()) == (401, 15.0)


def test_streams_and_waits_end_at_the_moment_their_key_expires(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 40 seconds, and not when the status is read again, 5 seconds later."""
    begun = time.time()
    waiting.keys.change(waiting.key.key_id, KeyChange(expires_at=datetime.fromtimestamp(begun + 40.0, timezone.utc)))

    async def run() -> tuple[tuple[str, float], ...]:
        clock = asyncio.get_running_loop().time
        monkeypatch.setattr(time, "time", lambda: begun + clock())

        async def refused(work: Awaitable[object]) -> tuple[str, float]:
            with pytest.raises(Problem) as refused:
                await work
            return refused.value.code, clock()

        async def stream() -> None:
            async with contextlib.aclosing(watch_events(waiting.request(), waiting.job_id)) as batches:
                async for _ in batches:
                    pass

        poll = wait_for_change(waiting.request(), waiting.job_id, 60.0)
        end = wait_for_end(waiting.request(), waiting.job_id, None)
        return await asyncio.gather(refused(poll), refused(end), refused(stream()))

    for code, ended in run_at_once(run()):
        assert code == "key_expired"
        assert ended == pytest.approx(40.0, abs=0.2)
    assert not watched_jobs(waiting.service)


def test_a_client_whose_key_was_revoked_while_it_waited_gets_no_result(waiting: Waiting) -> None:
    def end() -> None:
        waiting.keys.revoke("mine")
        assert waiting.service.store.cancel(waiting.job_id, 1.0, states=("Processing",))
        waiting.service.events.publish(JobCanceledEvent(job_id=waiting.job_id))

    async def wait() -> tuple[int, float]:
        asyncio.get_running_loop().call_later(1.0, end)
        with pytest.raises(Problem) as refused:
            await wait_for_end(waiting.request(), waiting.job_id, None)
        return refused.value.status, asyncio.get_running_loop().time()

    assert run_at_once(wait()) == (401, 1.0)


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    async def work() -> tuple[float, int]:
        closed = 0

        async def frames() -> Any:
            nonlocal closed
            try:
                while True:
                    yield HEARTBEAT
            finally:
                closed += 1

        async def send(message: Any) -> None:
            if message.get("body") == HEARTBEAT:
                await asyncio.Event().wait()

        async def receive() -> Any:
            raise AssertionError("nothing is read")

        begun = asyncio.get_running_loop().time()
        stream = EventStream(b"retry: 1\n\n", frames(), take_seconds=60)
        await stream({"type": "http", "method": "GET"}, receive, send)
        return asyncio.get_running_loop().time() - begun, closed

    assert run_at_once(work()) == (60.0, 1)
