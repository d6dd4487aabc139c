"""An ``Idempotency-Key`` that comes again: when there is no place left, and many times at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.inside import AUDIO, inside, on_a_loop, problem
from whisper_api.testing import FakeExecutor

PATHS = ("/transcribe", "/transcriptions", "/detect-language")


async def post(client: httpx.AsyncClient, path: str, *audios: bytes, key: str = "once") -> httpx.Response:
    files = [("file", (f"{number}.wav", audio)) for number, audio in enumerate(audios)]
    fields = {} if path == "/transcriptions" else {"sync": "false"}
    return await client.post(path, files=files, data=fields, headers={"Idempotency-Key": key})


def audio(number: int) -> bytes:
    """A unique recording."""
    return AUDIO[:-1] + bytes([number])


@pytest.mark.parametrize("limit", ["max_queued_jobs", "max_jobs_per_key"])
@pytest.mark.parametrize("path", PATHS)
@on_a_loop
async def test_a_repeated_request_needs_no_place_of_its_own(tmp_path: Path, path: str, limit: str) -> None:
    settings: dict[str, Any] = {"enable_authorization": True, limit: 1}
    async with (
        inside(tmp_path, FakeExecutor(held=True), **settings) as app,
        app.client(app.token("ada")) as ada,
        app.client(app.token("bob")) as bob,
    ):
        if limit == "max_queued_jobs":
            await app.running(bob)
        first = await post(ada, path, AUDIO)
        assert first.status_code == 202, first.text
        refusal = {"max_queued_jobs": (503, "queue_full"), "max_jobs_per_key": (429, "caller_limit")}[limit]
        problem(await post(ada, path, AUDIO, key="another"), *refusal)
        for _ in range(2):
            assert (await post(ada, path, AUDIO)).json() == first.json()
        problem(await post(ada, path, audio(1)), 422, "idempotency_conflict")
        # No place was lost, and no other caller got an additional one.
        if limit == "max_queued_jobs":
            problem(await post(bob, path, AUDIO), *refusal)
        problem(await post(ada, path, AUDIO, key="another"), *refusal)
        app.executor.release()
        await app.until(lambda: app.service.counts() == (0, 0))
        assert (await post(ada, path, AUDIO, key="another")).status_code == 202


@on_a_loop
async def test_several_files_need_no_places_of_their_own(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), max_queued_jobs=3) as app, app.client() as client:
        await app.running(client)
        sent = [audio(number) for number in range(3)]
        first = await post(client, "/transcriptions", *sent)
        assert ["job_id" in job for job in first.json()["jobs"]] == [True] * 3
        assert (await post(client, "/transcriptions", *sent)).json() == first.json()
        assert app.service.counts() == (3, 1)


@pytest.mark.parametrize("path", PATHS)
@on_a_loop
async def test_many_times_at_once_it_makes_its_jobs_once(tmp_path: Path, path: str) -> None:
    sent = [audio(number) for number in range(3 if path == "/transcriptions" else 1)]
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        answers = await asyncio.gather(*(post(client, path, *sent) for _ in range(6)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.text for answer in answers}) == 1
        assert sum(app.service.counts()) == len(sent)
        uploads = tmp_path / "uploads"
        assert len(list(uploads.iterdir())) == len(sent)
