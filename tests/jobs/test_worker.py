"""Workers and jobs that are canceled, that fail, that cannot be stored, or that crash the engine."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import FaultyStore, Services, ended, faulty, holding, idle, run_one, running, submit, text_of, until, uploads

from whisper_api.errors import (
    EngineClosed,
    JobCanceled,
    JobIsProcessing,
    ResultGone,
)
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

# --- cancelling -------------------------------------------------------------------------------------------------


def test_a_job_that_waits_is_canceled_at_once(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    first, second, third = (submit(service) for _ in range(3))
    running(service, first)
    service.cancel(second, "")
    assert service.status(second, "").status == "Canceled"
    assert service.status(third, "").queue_position == 1
    assert second not in uploads(tmp_path)
    with pytest.raises(JobCanceled):
        service.result(second, "")
    service.cancel(second, "")
    executor.release()
    ended(service, third)
    assert executor.started == [first, third]


def test_a_running_job_is_canceled_by_force_only_and_the_next_one_starts(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    first, second = submit(service), submit(service)
    running(service, first)
    with pytest.raises(JobIsProcessing, match="Cannot cancel a job that is currently processing"):
        service.cancel(first, "")
    service.cancel(first, "", force=True)
    assert service.status(first, "").status == "Canceled"
    assert first not in uploads(tmp_path)
    running(service, second)
    executor.release()
    assert ended(service, second).status == "Completed"
    assert executor.most_active == 1


def test_the_result_of_a_finished_job_goes_and_the_job_stays(serve: Services) -> None:
    service = serve()
    job_id = submit(service)
    ended(service, job_id)
    for _ in range(2):
        service.cancel(job_id, "")
        with pytest.raises(ResultGone):
            service.result(job_id, "")
        assert service.status(job_id, "").status == "Completed"


def test_a_delivered_result_is_noted(serve: Services) -> None:
    service = serve()
    job_id = submit(service)
    ended(service, job_id)
    service.mark_delivered(job_id)
    row = service.store.get(job_id)
    assert row is not None
    assert row.delivered_at is not None


def test_a_hung_job_is_canceled_though_it_does_not_stop(serve: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    import whisper_api.jobs.service as module

    monkeypatch.setattr(module, "STOP_SECONDS", 0.05)
    hang = threading.Event()
    service = serve(FakeExecutor(behave=holding(hang)))
    job_id = submit(service)
    running(service, job_id)
    service.cancel(job_id, None, force=True)
    assert service.status(job_id, None).status == "Canceled"
    hang.set()
    idle(service)
    assert service.status(job_id, None).status == "Canceled"
    with pytest.raises(JobCanceled):
        service.result(job_id, None)


@pytest.mark.parametrize("seed", range(3))
def test_cancelling_meets_claiming_and_completing(serve: Services, tmp_path: Path, seed: int) -> None:
    """A job that is canceled at any moment ends exactly once and leaves no files."""
    executor = FakeExecutor()
    service = serve(executor, enable_concurrency=True, max_concurrent_jobs=3)
    chance = random.Random(seed)
    delays = {submit(service, str(n)): chance.random() * 0.05 for n in range(40)}

    def cancel(job_id: str) -> None:
        threading.Event().wait(delays[job_id])
        service.cancel(job_id, None, force=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cancel, delays))
    idle(service)
    for job_id in delays:
        assert ended(service, job_id).status in ("Canceled", "Completed")
        with pytest.raises((JobCanceled, ResultGone)):
            service.result(job_id, None)
    assert len(set(executor.started)) == len(executor.started)
    assert uploads(tmp_path) == []
    assert run_one(service, "alive") == "alive"


# --- a database that cannot be written ----------------------------------------------------------------------------


def test_a_result_that_cannot_be_written_is_kept_until_it_can(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor()
    service = serve(executor, store=FaultyStore)
    faulty(service).broken.add("complete")
    first, second = submit(service, "first"), submit(service, "second")
    until(lambda: service.health().state == "failed")
    assert "No space is left" in service.health().reason
    assert service.status(first, None).status == "Processing"
    assert first in uploads(tmp_path)
    faulty(service).broken.clear()
    assert [text_of(service, each) for each in (first, second) if ended(service, each)] == ["first", "second"]
    until(lambda: service.health().ready)
    assert executor.started == [first, second]


def test_a_job_whose_result_cannot_be_written_can_be_canceled(serve: Services) -> None:
    service = serve(store=FaultyStore)
    faulty(service).broken.add("complete")
    job_id = submit(service)
    until(lambda: service.health().state == "failed")
    service.cancel(job_id, None, force=True)
    assert service.status(job_id, None).status == "Canceled"
    until(lambda: service.health().ready)


def test_a_job_whose_result_could_not_be_written_runs_again_after_a_restart(serve: Services) -> None:
    service = serve(store=FaultyStore)
    faulty(service).broken.add("complete")
    job_id = submit(service, "again")
    until(lambda: service.health().state == "failed")
    service.close()
    again = serve()
    assert ended(again, job_id).status == "Completed"
    assert text_of(again, job_id) == "again"


def test_a_job_waits_until_it_can_be_claimed(serve: Services) -> None:
    executor = FakeExecutor()
    service = serve(executor, store=FaultyStore)
    faulty(service).broken.add("claim")
    first, second = submit(service), submit(service)
    until(lambda: "claim" in faulty(service).tried)
    until(lambda: service.counts() == (2, 0))
    assert service.status(first, None).status == "Queued"
    assert service.status(first, None).queue_position == 1
    assert service.status(second, None).queue_position == 2
    faulty(service).broken.clear()
    ended(service, second)
    assert executor.started == [first, second]


@pytest.mark.parametrize("method", ["claim", "complete"])
def test_an_error_after_the_work_was_done_changes_nothing(serve: Services, tmp_path: Path, method: str) -> None:
    executor = FakeExecutor()
    service = serve(executor, store=FaultyStore)
    faulty(service).after.add(method)
    job_id = submit(service, "once")
    assert ended(service, job_id).status == "Completed"
    assert text_of(service, job_id) == "once"
    assert executor.started == [job_id]
    idle(service)
    assert uploads(tmp_path) == []
    assert run_one(service, "next") == "next"


def test_a_service_stops_though_a_job_cannot_be_claimed(serve: Services) -> None:
    service = serve(store=FaultyStore)
    faulty(service).broken.add("claim")
    job_id = submit(service)
    until(lambda: "claim" in faulty(service).tried)
    service.stop(0.0)
    assert service.status(job_id, None).status == "Queued"


# --- an executor that fails as a whole ----------------------------------------------------------------------------


def test_a_job_under_which_the_engine_failed_is_run_once_more(serve: Services) -> None:
    def behave(executor: FakeExecutor, job: Job) -> None:
        if not job.attempts:
            raise EngineClosed("its thread has failed")

    executor = FakeExecutor(behave=behave)
    service = serve(executor)
    job_id = submit(service, "second try")
    assert ended(service, job_id).status == "Completed"
    assert text_of(service, job_id) == "second try"
    assert executor.started == [job_id, job_id]


def test_a_job_under_which_the_engine_failed_too_often_is_not_tried_again(serve: Services) -> None:
    def behave(executor: FakeExecutor, job: Job) -> None:
        if job.options.prompt == "bad":
            raise EngineClosed("its thread has failed")

    executor = FakeExecutor(behave=behave)
    executor.preload_gate.clear()
    service = serve(executor, max_job_attempts=2)
    bad, good = submit(service, prompt="bad"), submit(service)
    executor.preload_gate.set()
    assert ended(service, good).status == "Completed"
    status = ended(service, bad)
    assert status.status == "Failed"
    assert "attempt 2" in (status.error or "")
    assert executor.started == [bad, good, bad]


def test_a_suspect_runs_alone(serve: Services) -> None:
    def behave(executor: FakeExecutor, job: Job) -> None:
        if job.options.prompt == "bad" and not job.attempts:
            raise EngineClosed("its thread has failed")

    executor = FakeExecutor(held=True, behave=behave)
    service = serve(executor, enable_concurrency=True, max_concurrent_jobs=3)
    others = [submit(service, str(number)) for number in range(2)]
    running(service, *others)
    bad = submit(service, prompt="bad")
    until(lambda: executor.started.count(bad) == 1 and service.counts() == (1, 2), "the suspect waits again")
    late = submit(service)
    threading.Event().wait(0.05)
    # The suspect waits for the running jobs, and later jobs wait for the suspect.
    assert service.status(bad, None).queue_position == 1
    assert service.status(late, None).status == "Queued"
    executor.release(*others)
    running(service, bad)
    threading.Event().wait(0.05)
    assert executor.active == 1
    assert service.status(late, None).status == "Queued"
    executor.release()
    for job_id in (*others, bad, late):
        assert ended(service, job_id).status == "Completed"
    assert executor.together[bad] == 1
    assert executor.started[-2:] == [bad, late]
