"""The asynchronous client, against the server that users run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.harness import RunningServer
from whisper_api import AsyncClient, TranscriptionOptions, errors
from whisper_api.job_values import JobCompletedEvent, JobSegmentEvent, JobStatus

PLAIN = TranscriptionOptions(language="en", align=False, diarize=False)


def test_jobs_are_sent_followed_searched_and_canceled(server: RunningServer, sample_call: Path) -> None:
    async def use() -> None:
        async with AsyncClient(server.url, server.user_key) as client:
            job_id = await client.submit(sample_call, PLAIN, metadata={"by": "asyncio"}, keep_result=True)
            events = [event async for event in client.events(job_id)]
            assert isinstance(events[-1], JobCompletedEvent)
            assert any(isinstance(event, JobSegmentEvent) for event in events)
            assert (await client.wait(job_id)).status == "Completed"
            result = await client.result(job_id)
            assert "I didn't know you were there" in result.text
            assert (await client.result_as(job_id, "srt")).startswith("1\n00:00:0")
            found = [job.job_id async for job in client.jobs(metadata_key="by", metadata_value="asyncio")]
            assert found == [job_id]
            await client.cancel(job_id)
            with pytest.raises((errors.JobNotFound, errors.ResultGone)):
                await client.result(job_id)
            with pytest.raises(errors.InvalidAudio):
                await client.transcribe(b"no audio at all", PLAIN)

    asyncio.run(use())


def test_a_canceled_task_leaves_no_job_that_runs(server: RunningServer, sample_call: Path) -> None:
    async def use() -> None:
        async with AsyncClient(server.url, server.user_key) as client:
            begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            def note(status: JobStatus) -> None:
                if not begun.done():
                    begun.set_result(status.job_id)

            call = client.transcribe(sample_call, PLAIN, on_progress=note)
            task = asyncio.create_task(call)
            job_id = await asyncio.wait_for(begun, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.wait(job_id, timeout=60)).status in ("Canceled", "Completed")

    asyncio.run(use())
