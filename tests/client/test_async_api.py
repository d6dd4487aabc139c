"""Properties of the asynchronous client alone; test_api.py and test_events.py test what both clients do."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import threading
from collections.abc import Awaitable

import httpx
import msgspec
import pytest
from fakes import eventually
from rest_server import TEXT, Hold, Rest

from whisper_api import AsyncClient, Client
from whisper_api.job_values import JobProgressEvent

AUDIO = bytes(range(256)) * 4096


def run(test: Awaitable[None]) -> None:
    # The limit bounds every wait of the test.
    async def bounded() -> None:
        await asyncio.wait_for(test, 120)

    asyncio.run(bounded())


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: [*inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(AsyncClient) == methods(Client)
    assert len(methods(Client)) > 30
    ours, theirs = (inspect.signature(kind).parameters for kind in (AsyncClient, Client))
    assert [*ours] == [*theirs]
    assert [each.default for each in ours.values()] == [each.default for each in theirs.values()]


def test_calls_run_at_the_same_time(rest: Rest) -> None:
    async def test() -> None:
        released = threading.Event()
        rest.faults["POST"] = [Hold(released)] * 120
        async with AsyncClient(rest.url) as client:
            # These are more requests than httpx opens connections by default.
            tasks = [asyncio.create_task(client.transcribe(AUDIO[:100])) for _ in range(120)]
            await eventually(lambda: len(rest.jobs) == 120)
            released.set()
            assert {result.text for result in await asyncio.gather(*tasks)} == {TEXT}

    run(test())


@pytest.mark.parametrize("times", [1, 2])
def test_a_canceled_coroutine_cancels_its_job(times: int, rest: Rest) -> None:
    async def test() -> None:
        rest.script = [{"status": "Processing"}]
        async with AsyncClient(rest.url) as client:
            task = asyncio.create_task(client.transcribe(AUDIO))
            await eventually(lambda: len(rest.of("GET")) >= 2)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually(lambda: rest.canceled)
        assert rest.canceled == [(next(iter(rest.jobs)), {"force": "true"})]

    run(test())


class Waiting(io.BytesIO):
    """A file that gives its first half, then waits until it is released."""

    def __init__(self) -> None:
        super().__init__(AUDIO)
        self.reached = threading.Event()
        self.released = threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > len(AUDIO) // 2:
            self.reached.set()
            assert self.released.wait(60)
        return super().read(size)


def test_a_slow_disk_does_not_hold_the_event_loop_and_a_canceled_upload_makes_no_job(rest: Rest) -> None:
    async def test() -> None:
        file = Waiting()
        async with AsyncClient(rest.url) as client:
            upload = asyncio.create_task(client.submit(file))
            await eventually(file.reached.is_set)
            assert [job async for job in client.jobs()] == []
            upload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upload
            file.released.set()
            assert await client.submit(AUDIO) in rest.jobs
        assert len(rest.jobs) == 1

    run(test())


def test_closing_leaves_no_connection_and_no_task_and_the_next_call_opens_a_new_one(rest: Rest) -> None:
    async def test() -> None:
        before = asyncio.all_tasks()
        client = AsyncClient(rest.url)
        job_id = await client.submit(AUDIO)
        event = JobProgressEvent(job_id="a", progress=0.5, stage="asr")
        rest.streams[job_id] = [f"event: progress\ndata: {msgspec.json.encode(event).decode()}\n\n"]
        async with contextlib.aclosing(client.events(job_id)) as events:
            assert await anext(events) == event
        await client.close()
        assert asyncio.all_tasks() == before
        assert (await client.status(job_id)).status == "Completed"
        await client.close()

    run(test())


def test_a_session_of_the_callers_own_is_used_and_left_open(rest: Rest) -> None:
    async def test() -> None:
        seen: list[httpx.Request] = []

        async def note(request: httpx.Request) -> None:
            seen.append(request)

        async with httpx.AsyncClient(event_hooks={"request": [note]}) as session:
            async with AsyncClient(rest.url, session=session) as client:
                await client.submit(AUDIO)
            assert len(seen) == 1
            assert not session.is_closed

    run(test())
