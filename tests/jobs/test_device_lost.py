"""A device that fails under jobs: they go back to the queue, and nothing runs until there is a new process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import DEADLINE, Services, ended, idle, queued_in, submit, text_of, until
from server.inside import inside, on_a_loop, problem

from whisper_api.errors import DeviceLost, Draining, EngineClosed
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor
from whisper_api.voices import VoiceEmbedding

LOST = DeviceLost("the device is lost (device-side assert triggered): only a new process can use it")


def on_prompt(executor: FakeExecutor, job: Job) -> None:
    if job.options.prompt == "bad":
        raise LOST


def test_the_jobs_of_a_lost_device_wait_for_the_next_process(serve: Services) -> None:
    told, together = threading.Event(), threading.Barrier(2)

    def behave(executor: FakeExecutor, job: Job) -> None:
        # Both jobs run when the device fails.
        together.wait(DEADLINE)
        raise LOST

    executor = FakeExecutor(behave=behave)
    executor.preload_gate.clear()
    service = serve(executor, enable_concurrency=True, max_concurrent_jobs=2)
    service.on_fault(told.set)
    jobs = [submit(service, str(number)) for number in range(2)]
    executor.preload_gate.set()
    assert told.wait(DEADLINE)
    with pytest.raises(Draining):
        submit(service, "later")
    until(lambda: len(queued_in(service.store)) >= 2, "the jobs are back in the queue")
    health = service.health()
    assert (health.ready, health.state) == (False, "device_lost")
    assert "device-side assert triggered" in health.reason
    # No job is started again in this process, so the attempts do not run out.
    threading.Event().wait(0.05)
    assert sorted(executor.started) == sorted(jobs)
    assert {service.store.get(each).attempts for each in jobs} == {1}  # type: ignore[union-attr]
    called = threading.Event()
    service.on_fault(called.set)
    assert called.is_set(), "who asks late is told at once"

    second = serve(FakeExecutor())
    for number, each in enumerate(jobs):
        assert ended(second, each).status == "Completed"
        assert text_of(second, each) == str(number)


def test_a_job_that_breaks_the_device_every_time_is_failed_in_the_end(serve: Services) -> None:
    bad = submit(serve(FakeExecutor(held=True)), prompt="bad")
    for attempt in (1, 2, 3):
        service = serve(FakeExecutor(behave=on_prompt), max_job_attempts=3)
        if attempt < 3:
            until(lambda: service.health().state == "device_lost")  # noqa: B023
            until(lambda: queued_in(service.store) == [bad])  # noqa: B023
    status = ended(service, bad)
    assert status.status == "Failed"
    assert "the device failed 3 times" in (status.error or "")
    assert "MAX_JOB_ATTEMPTS" in (status.error or "")


def test_a_job_that_broke_the_device_twice_waits_behind_the_others(serve: Services) -> None:
    bad = submit(serve(FakeExecutor(held=True)), prompt="bad")
    for others in ([], ["good"]):
        executor = FakeExecutor(behave=on_prompt)
        executor.preload_gate.clear()
        service = serve(executor)
        good = [submit(service, each) for each in others]
        executor.preload_gate.set()
        until(lambda: service.fault is not None and len(queued_in(service.store)) == 1 + len(good))  # noqa: B023
        assert executor.started == [bad]
    assert queued_in(service.store) == [*good, bad]


def test_a_device_that_fails_while_models_are_loaded_is_lost_too(serve: Services) -> None:
    for errors in ("preload_errors", "warm_up_errors"):
        executor = FakeExecutor()
        setattr(executor, errors, [LOST])
        service = serve(executor)
        until(lambda: service.health().state == "device_lost")  # noqa: B023
    service = serve()
    idle(service)
    until(lambda: service.health().ready)


def test_a_device_that_fails_under_an_enrolment_is_lost_too(serve: Services) -> None:
    class Enrolling(FakeExecutor):
        def enroll(self, recordings: Sequence[bytes]) -> VoiceEmbedding:
            raise LOST

    service = serve(Enrolling())
    # Nobody runs a job, from which the server would learn it.
    with pytest.raises(EngineClosed, match="try again"):
        service.speakers.enroll("", "Sheila", [b"a"])
    assert service.health().state == "device_lost"


@on_a_loop
async def test_readyz_names_a_lost_device(tmp_path: Path) -> None:
    async with inside(tmp_path) as there:
        there.executor.behave = on_prompt
        job_id = submit(there.service, prompt="bad")
        until(lambda: there.service.fault is not None)
        until(lambda: queued_in(there.service.store) == [job_id])
        async with there.client() as client:
            refused = problem(await client.get("/readyz"), 503, "device_lost")
            assert "device-side assert" in refused["detail"]
            assert (await client.get("/livez")).status_code == 200
