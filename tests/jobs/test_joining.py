"""An equal submission of the same owner joins the job of the first one, while it runs or soon after its end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import DEADLINE, Services, ended, holding, idle, ids_in, running, submit, until, uploads
from store.test_jobs import TRANSCRIPT, new_job

from whisper_api.errors import IdempotencyConflict
from whisper_api.options import TranscriptionOptions
from whisper_api.store.jobs import AlreadyThere, JobStore
from whisper_api.testing import FakeExecutor


@pytest.mark.parametrize("owner", ["", "ada"])
def test_a_job_that_waits_or_runs_is_joined(serve: Services, tmp_path: Path, owner: str) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    first = submit(service, "one", owner=owner, fingerprint="f", join=True)
    running(service, first)
    second = submit(service, "two", owner=owner, fingerprint="g", join=True)
    for _ in range(2):
        assert submit(service, "one", owner=owner, fingerprint="f", join=True) == first
        assert submit(service, "two", owner=owner, fingerprint="g", join=True) == second
    assert uploads(tmp_path) == sorted((first, second))
    executor.release()
    ended(service, second)
    assert ids_in(service.store) == {first, second}


def test_submissions_that_differ_are_not_joined(serve: Services) -> None:
    service = serve(FakeExecutor(held=True))
    wanted: dict[str, Any] = {"owner": "ada", "fingerprint": "f"}
    others: list[dict[str, Any]] = [
        wanted,
        {**wanted, "owner": "bob"},
        {**wanted, "owner": ""},
        {**wanted, "fingerprint": "g"},
        {**wanted, "fingerprint": None},
        {**wanted, "language": "fr"},
        {**wanted, "output_format": "srt"},
    ]
    job_ids = {submit(service, join=True, **fields) for fields in others}
    job_ids.add(submit(service, join=True, owner="ada", fingerprint=None))
    job_ids.add(submit(service, **wanted))
    assert len(job_ids) == len(others) + 2


def test_a_job_with_an_idempotency_key_joins_none_and_is_joined_by_none(serve: Services) -> None:
    service = serve(FakeExecutor(held=True))
    wanted: dict[str, Any] = {"owner": "ada", "fingerprint": "f", "join": True}
    first = submit(service, **wanted)
    second = submit(service, **wanted, idempotency_key="k")
    assert second != first
    assert submit(service, **wanted) == first
    assert submit(service, **wanted, idempotency_key="k") == second
    assert submit(service, **wanted, not_to_join=frozenset((first,))) not in (first, second)
    with pytest.raises(IdempotencyConflict):
        submit(service, **{**wanted, "fingerprint": "g"}, idempotency_key="k")


def joins(store: JobStore, after: float = 100.0) -> bool:
    """Whether an equal submission joins the first job."""
    try:
        added = store.add(new_job("second", fingerprint="f"), join_after=after)
    except AlreadyThere as there:
        added = there.job
    return added.job_id == "first"


def completed(store: JobStore) -> None:
    store.claim("first", 101.0)
    store.complete("first", TRANSCRIPT, 200.0)


def test_a_job_that_was_completed_is_joined_for_a_while(store: JobStore) -> None:
    store.add(new_job("first", fingerprint="f"))
    assert joins(store)
    completed(store)
    assert joins(store, 100.0)
    assert joins(store, 200.0)
    assert not joins(store, 200.1)


def test_a_result_that_was_delivered_or_has_gone_is_not_joined(store: JobStore) -> None:
    store.add(new_job("first", fingerprint="f"))
    completed(store)
    store.mark_delivered("first", 201.0)
    assert not joins(store)
    store.delete("second")
    store.delete("first")
    store.add(new_job("first", fingerprint="f"))
    completed(store)
    store.drop_result("first")
    assert not joins(store)


def test_a_job_that_failed_or_was_canceled_is_not_joined(store: JobStore) -> None:
    store.add(new_job("first", fingerprint="f"))
    store.cancel("first", 200.0)
    assert not joins(store)
    store.delete("second")
    store.delete("first")
    store.add(new_job("first", fingerprint="f"))
    store.fail("first", "Error", "why", 200.0)
    assert not joins(store)


def test_a_job_that_is_being_canceled_is_not_joined(serve: Services) -> None:
    stuck = threading.Event()
    executor = FakeExecutor(behave=holding(stuck))
    service = serve(executor)
    first = submit(service, owner="ada", fingerprint="f", join=True)
    until(lambda: first in executor.cancels)
    with ThreadPoolExecutor(1) as pool:
        canceling = pool.submit(service.cancel, first, "ada", force=True)
        assert executor.cancels[first].wait(DEADLINE)
        second = submit(service, owner="ada", fingerprint="f", join=True)
        assert second != first
        assert submit(service, owner="ada", fingerprint="f", join=True) == second
        stuck.set()
        canceling.result(DEADLINE)
    assert ended(service, first).status == "Canceled"
    assert ended(service, second).status == "Completed"


def test_options_are_compared_as_they_are_kept(store: JobStore) -> None:
    options = TranscriptionOptions(model="base", prompt="naïve", num_speakers=2)
    store.add(new_job("first", fingerprint="f", options=options))
    with pytest.raises(AlreadyThere):
        store.add(new_job("second", fingerprint="f", options=options), join_after=100.0)


def test_many_equal_submissions_at_once_are_one_job(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: submit(service, "x", owner="ada", fingerprint="f", join=True), range(24)))
    assert len(found) == 1
    assert uploads(tmp_path) == sorted(found)
    executor.release()
    ended(service, found.pop())
    idle(service)
    assert uploads(tmp_path) == []
    assert len(ids_in(service.store)) == 1


def test_the_job_of_an_idempotency_key_is_found_before_anything_is_sent(serve: Services) -> None:
    service = serve()
    job_id = submit(service, owner="ada", idempotency_key="k", fingerprint="f")
    job = service.find_submitted("ada", {"k": "f", "other": "f"}).get("k")
    assert job is not None
    assert job.job_id == job_id
    assert service.find_submitted("bob", {"k": "f"}) == {}
    assert service.find_submitted("ada", {"other": "f"}) == {}
    with pytest.raises(IdempotencyConflict) as caught:
        service.find_submitted("ada", {"k": "g"})
    assert caught.value.job_id == job_id
