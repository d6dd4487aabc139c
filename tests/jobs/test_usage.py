"""The record of what keys use: kept over a restart, written later when the disk is full, removed when it is old."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fakes import Services, config_in, ended, submit, until

from whisper_api.errors import InvalidAudio, ModelError, StorageFull
from whisper_api.jobs.executor import OnProgress
from whisper_api.jobs.usage import FLUSH_SECONDS, UsageLog, model_label
from whisper_api.schema import Progress, Transcript
from whisper_api.store.rows import Job
from whisper_api.store.usage import day_of
from whisper_api.testing import FakeExecutor

DAY = 86400.0
WORK_SECONDS = 0.05


def test_usage_survives_a_restart_and_the_removal_of_the_job(serve: Services) -> None:
    service = serve(FakeExecutor())
    service.usage.count_request("alice")
    job_id = submit(service, owner="alice")
    ended(service, job_id)
    service = serve(FakeExecutor())
    service.store.delete(job_id)
    found = service.usage.report("alice")
    assert (found.requests, found.jobs, found.audio_seconds) == (1, 1, 10.0)


def test_a_process_that_is_killed_loses_few_requests_and_no_job(serve: Services) -> None:
    service = serve(FakeExecutor(held=True))
    for _ in range(3):
        service.usage.count_request("alice")
    service.usage.flush()
    service.usage.count_request("alice")
    submit(service, owner="alice")
    # The next process reads these rows from the database file.
    rows = service.store.usage("2000-01-01", "3000-01-01")
    assert sum(row.requests for row in rows) == 3
    assert sum(row.jobs for row in rows) == 1
    assert FLUSH_SECONDS <= 10


class Working(FakeExecutor):
    """Runs for a while, and then ends as the test says."""

    def __init__(self, error: Exception | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.error = error

    def run(self, job: Job, audio: Path, *, on_progress: OnProgress, **rest: Any) -> Transcript:
        # The loading does not count, however long it takes.
        on_progress(Progress(0.0, "load"))
        time.sleep(2 * WORK_SECONDS)
        on_progress(Progress(0.1, "decode"))
        time.sleep(WORK_SECONDS)
        on_progress(Progress(0.2, "asr"))
        if self.error is not None:
            raise self.error
        return super().run(job, audio, on_progress=on_progress, **rest)


@pytest.mark.parametrize(
    ("error", "jobs"), [(ModelError("the model is broken"), 0), (InvalidAudio("nothing to hear"), 1)]
)
def test_the_work_for_a_job_that_failed_counts_and_its_charge_is_given_back_as_before(
    serve: Services, error: Exception, jobs: int
) -> None:
    service = serve(Working(error))
    begun = time.monotonic()
    ended(service, submit(service, owner="alice"))
    took = time.monotonic() - begun
    found = service.usage.report("alice")
    assert (found.jobs, found.audio_seconds) == (jobs, 10.0 * jobs)
    # Rounded to milliseconds.
    assert WORK_SECONDS <= found.compute_seconds <= took - 2 * WORK_SECONDS + 0.001


@pytest.mark.parametrize("how", ["client", "revoked"])
def test_the_work_for_a_job_that_was_canceled_while_it_ran_counts(serve: Services, how: str) -> None:
    executor = Working(held=True)
    service = serve(executor)
    key, _ = service.keys.create("alice")
    job_id = submit(service, owner=key.key_id)
    until(lambda: bool(executor.started), "it runs")
    if how == "client":
        service.cancel(job_id, key.key_id, force=True)
    else:
        service.keys.revoke("alice")
        service.end_revoked()
    ended(service, job_id)
    found = service.usage.report(key.key_id)
    assert found.jobs == 1
    assert found.compute_seconds >= WORK_SECONDS


def test_a_job_that_never_ran_has_done_no_work(serve: Services) -> None:
    service = serve(FakeExecutor(held=True), enable_concurrency=False)
    submit(service, owner="bob")
    job_id = submit(service, owner="alice")
    service.cancel(job_id, "alice")
    assert service.usage.report("alice").compute_seconds == 0.0


def test_usage_goes_with_its_retention_but_quotas_keep_the_current_month(serve: Services, tmp_path: Path) -> None:
    service = serve(FakeExecutor())
    now = time.time()
    service.store.count_requests({("alice", day_of(now - days * DAY)): 1 for days in range(80)})

    def kept_after(days: int) -> list[str]:
        UsageLog(service.store, config_in(tmp_path, usage_retention_days=days), lambda: now).write()
        return [row.day for row in service.store.usage("2000-01-01", "3000-01-01")]

    assert len(kept_after(400)) == 80
    assert len(kept_after(60)) == 61
    today = time.strftime("%Y-%m-%d", time.gmtime(now))
    assert kept_after(0) == [f"{today[:8]}{day:02}" for day in range(1, int(today[8:]) + 1)]


def test_requests_that_cannot_be_written_are_written_later(serve: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve(FakeExecutor())
    service.usage.count_request("alice")

    def full(*arguments: object) -> None:
        raise StorageFull("No space is left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "count_requests", full)
        with pytest.raises(StorageFull):
            service.usage.flush()
    service.usage.count_request("alice")
    assert service.usage.report("alice").requests == 2


def test_models_are_named_as_in_the_catalogue() -> None:
    assert [model_label(name) for name in ("base", "/home/alice/my model", "fake")] == ["base", "other", "other"]
