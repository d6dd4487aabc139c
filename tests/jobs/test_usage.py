"""The record of what keys use: kept over a restart, written later when the disk is full, removed when it is old."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fakes import Services, config_in, ended, submit

from whisper_api.errors import StorageFull
from whisper_api.jobs.usage import FLUSH_SECONDS, UsageLog, model_label
from whisper_api.store.usage import day_of
from whisper_api.testing import FakeExecutor

DAY = 86400.0


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


def test_usage_goes_with_its_retention_but_quotas_keep_the_current_month(serve: Services, tmp_path: Path) -> None:
    service = serve(FakeExecutor())
    now = time.time()
    service.store.count_requests({("alice", day_of(now - days * DAY)): 1 for days in range(80)})

    def kept_after(days: int) -> list[str]:
        UsageLog(service.store, config_in(tmp_path, usage_retention_days=days), lambda: now).close()
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
