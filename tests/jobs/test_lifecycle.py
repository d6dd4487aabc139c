"""Services that start, load their models, drain, stop and start again, and their health."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import threading
import time
from collections.abc import Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import (
    DEADLINE,
    Services,
    ended,
    holding,
    new_service,
    queued_in,
    running,
    submission,
    submit,
    text_of,
    until,
    uploads,
)

from whisper_api.errors import (
    Draining,
    ModelUnavailable,
    StorageError,
    StorageFull,
)
from whisper_api.jobs.service import JobService
from whisper_api.testing import FakeExecutor

# --- stopping and starting again ----------------------------------------------------------------------------------


def test_draining_refuses_new_work_and_lets_the_running_job_end(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    first, second = submit(service), submit(service)
    running(service, first)
    early = service.reserve("")
    service.drain()
    assert (service.health().ready, service.health().state) == (False, "draining")
    with pytest.raises(Draining) as caught:
        service.reserve("")
    assert caught.value.retry_after > 0
    wanted = submission(early)
    with pytest.raises(Draining):
        service.submit(wanted, early)
    assert early.job_id not in uploads(tmp_path)
    executor.release()
    assert ended(service, first).status == "Completed"
    service.stop(DEADLINE)
    assert service.status(second, None).status == "Queued"
    assert executor.started == [first]
    again = serve()
    assert ended(again, second).status == "Completed"
    assert text_of(again, second) == "hello"


def test_stopping_puts_the_running_job_back_and_counts_no_attempt(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    first, second = submit(service, "first"), submit(service, "second")
    running(service, first)
    service.stop(0.0)
    service.stop(0.0)
    row = service.store.get(first)
    assert row is not None
    assert (row.state, row.attempts, row.started_at) == ("Queued", 0, None)
    assert service.counts() == (1, 0)
    assert uploads(tmp_path) == sorted([first, second])
    assert service.status(first, None).status == "Queued"
    executor = FakeExecutor()
    again = serve(executor)
    assert [text_of(again, each) for each in (first, second) if ended(again, each)] == ["first", "second"]
    assert executor.started == [first, second]


def test_a_running_job_may_end_within_the_grace_of_a_stop(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    job_id = submit(service)
    running(service, job_id)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(service.stop, DEADLINE)
        until(lambda: service.health().state == "draining")
        executor.release()
        stopping.result(DEADLINE)
    assert service.status(job_id, None).status == "Completed"


@pytest.mark.parametrize("first", ["stop", "cancel"])
def test_a_cancel_by_force_outweighs_a_stop(serve: Services, first: str) -> None:
    hang = threading.Event()
    executor = FakeExecutor(behave=holding(hang))
    service = serve(executor)
    job_id = submit(service)
    until(lambda: job_id in executor.cancels)
    calls: dict[str, Callable[[], object]] = {
        "stop": functools.partial(service.stop, 0.0),
        "cancel": functools.partial(service.cancel, job_id, None, force=True),
    }
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(calls.pop(first))
        assert executor.cancels[job_id].wait(DEADLINE)
        second = pool.submit(calls.popitem()[1])
        until(lambda: service.health().state == "draining")
        hang.set()
        begun.result(DEADLINE)
        second.result(DEADLINE)
    assert service.status(job_id, None).status == "Canceled"


def test_stopping_meets_submitting_and_completing(serve: Services, tmp_path: Path) -> None:
    """Every accepted job completes exactly once, and refused submissions leave no files."""
    accepted: dict[str, str] = {}
    numbers = itertools.count()
    completed: set[str] = set()
    for _ in range(6):
        executor = FakeExecutor()
        service = serve(executor, enable_concurrency=True, max_concurrent_jobs=2)

        def fill(service: JobService = service) -> None:
            while True:
                text = str(next(numbers))
                try:
                    accepted[submit(service, text)] = text
                except Draining:
                    return

        before = len(accepted)
        with ThreadPoolExecutor(4) as pool:
            filling = [pool.submit(fill) for _ in range(4)]
            until(functools.partial(has_more, accepted, before + 20))
            service.stop(0.0)
            for each in filling:
                each.result(DEADLINE)
        waiting = {job.job_id for job in service.store.in_state("Queued")}
        done = {job.job_id for job in service.store.in_state("Completed")}
        assert waiting | done == set(accepted)
        assert completed <= done
        completed = done
        assert set(uploads(tmp_path)) == waiting
        assert not executor.used_after_close
    service = serve(enable_concurrency=True, max_concurrent_jobs=2)
    assert {job_id: text_of(service, job_id) for job_id in accepted if ended(service, job_id)} == accepted
    assert all(job.attempts == 0 for job in service.store.in_state("Completed"))


def test_the_executor_is_left_alone_after_it_was_closed(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    executor.preload_errors = [ModelUnavailable("not here")] * 1000
    service = serve(executor)
    running(service, submit(service))
    service.close()
    assert executor.closed
    threading.Event().wait(0.1)
    assert not executor.used_after_close
    service.close()


def test_a_service_that_was_not_started_can_be_closed(tmp_path: Path) -> None:
    service = new_service(tmp_path)
    assert service.health().state == "starting"
    job_id = submit(service, "kept")
    service.close()
    with pytest.raises(StorageError):
        service.status(job_id, None)
    again = new_service(tmp_path)
    assert queued_in(again.store) == [job_id]
    again.close()


# --- health -----------------------------------------------------------------------------------------------------


def test_jobs_wait_for_the_models(serve: Services) -> None:
    executor = FakeExecutor()
    executor.preload_gate.clear()
    executor.activity = "fetching base (43%)"
    service = serve(executor)
    health = service.health()
    assert (health.ready, health.state) == (False, "starting")
    assert "43%" in health.reason
    job_id = submit(service)
    time.sleep(0.05)
    assert service.status(job_id, None).status == "Queued"
    executor.preload_gate.set()
    assert ended(service, job_id).status == "Completed"
    assert service.health().ready
    assert service.health().reason == ""


def test_a_server_whose_models_are_missing_stays_up_and_says_what_to_do(serve: Services) -> None:
    executor = FakeExecutor()
    executor.preload_errors = [
        ModelUnavailable("base is not in /srv/secret/models and could not be fetched. hub: x") for _ in range(3)
    ]
    service = serve(executor, retry=1000.0)
    until(lambda: service.health().state == "failed")
    reason = service.health().reason
    assert "base is not in models" in reason
    assert "whisper-api models list" in reason
    assert "secret" not in reason
    assert "hub" not in reason
    ended(service, submit(service))
    until(lambda: service.health().ready, "a job that has run makes it ready")


def test_loading_the_models_is_tried_again(serve: Services) -> None:
    executor = FakeExecutor()
    executor.preload_errors = [ModelUnavailable("not here"), RuntimeError("odd"), MemoryError()]
    service = serve(executor)
    until(lambda: service.health().ready)
    assert not executor.preload_errors


def test_a_server_is_ready_before_all_models_are_loaded(serve: Services) -> None:
    executor = FakeExecutor()
    executor.warm_up_gate.clear()
    service = serve(executor)
    until(lambda: executor.warmed)
    assert service.health().ready
    assert "speakers" in service.health().loading
    assert ended(service, submit(service)).status == "Completed"
    executor.activity = "fetching ecapa (43%)"
    assert "43%" in service.health().loading
    executor.warm_up_gate.set()
    until(lambda: not service.health().loading)
    assert service.health().ready
    assert executor.warmed == 1


def test_models_that_only_some_jobs_need_are_loaded_when_no_job_runs(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    executor.preload_gate.clear()
    service = serve(executor)
    job_id = submit(service)
    executor.preload_gate.set()
    running(service, job_id)
    assert not executor.warmed
    executor.release()
    until(lambda: executor.warmed)


def test_models_that_only_some_jobs_need_may_be_missing(serve: Services, caplog: pytest.LogCaptureFixture) -> None:
    executor = FakeExecutor()
    executor.warm_up_errors = [ModelUnavailable("ecapa is not here")]
    service = serve(executor)
    until(lambda: "not all models were loaded: ecapa is not here" in caplog.text)
    until(lambda: not service.health().loading)
    assert service.health().ready


def test_a_service_that_is_closed_loads_nothing_more(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    running(service, submit(service))
    service.close()
    threading.Event().wait(0.1)
    assert not executor.warmed
    assert not executor.used_after_close


def test_a_stalled_job_makes_the_service_unready_until_it_goes_on(
    serve: Services, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "whisper_api.jobs")
    executor = FakeExecutor(held=True)
    service = serve(executor, stall_seconds=0.5)
    job_id = submit(service)
    until(lambda: service.health().state == "stalled")
    assert not service.health().ready
    assert "asr" in service.health().reason

    def logged(message: str) -> list[str]:
        return [each.__dict__["job_id"] for each in caplog.records if each.getMessage() == message]

    until(lambda: logged("job stalled"))
    executor.beats = True
    until(lambda: service.health().ready)
    until(lambda: logged("job goes on"))
    executor.release()
    assert ended(service, job_id).status == "Completed"
    assert set(logged("job stalled") + logged("job goes on")) == {job_id}


def has_more(things: Sized, number: int) -> bool:
    return len(things) > number


# --- the disk -----------------------------------------------------------------------------------------------------


class RolledBack(Exception):
    """Ends a transaction without a write."""


def limit_pages(service: JobService, pages: int) -> None:
    """Let the database's disk hold so many pages. The service does not notice: the transaction writes nothing."""
    with contextlib.suppress(RolledBack), service.store.database.write() as connection:
        connection.execute(f"PRAGMA max_page_count={pages}").fetchall()
        raise RolledBack


def test_a_full_disk_makes_the_service_unready_until_there_is_room(
    serve: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_api.jobs.health.MAX_TICK_SECONDS", 0.1)
    service = serve()
    until(lambda: service.health().ready)
    limit_pages(service, 1)

    def fill() -> None:
        for _ in range(1000):
            submit(service, file_name="x" * 5000)

    with pytest.raises(StorageFull):
        fill()
    health = service.health()
    assert (health.ready, health.state) == (False, "disk_full")
    assert "disk" in health.reason
    limit_pages(service, 1_000_000)
    until(lambda: service.health().ready, "the service is ready again without a request or a restart")
    assert ended(service, submit(service)).status == "Completed"


def test_a_disk_that_is_nearly_full_makes_the_service_unready(
    serve: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = serve()
    until(lambda: service.health().ready)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 << 20))
        health = service.health()
        assert (health.ready, health.state) == (False, "disk_full")
        assert "3 MB" in health.reason
        assert str(tmp_path) not in health.reason
    assert service.health().ready
