"""The job service: submissions, statuses, results and limits, for each owner."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import (
    FaultyStore,
    Services,
    ended,
    faulty,
    idle,
    ids_in,
    run_one,
    running,
    submission,
    submit,
    text_of,
    until,
    uploads,
)

from whisper_api.errors import (
    CallerLimit,
    IdempotencyConflict,
    InvalidOption,
    JobFailed,
    JobNotFinished,
    JobNotFound,
    ModelUnavailable,
    QueueFull,
    StorageFull,
    UnknownModel,
)
from whisper_api.store.job_search import JobFilter
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

# --- one job ----------------------------------------------------------------------------------------------------


def test_a_job_is_run_and_its_audio_goes(serve: Services, tmp_path: Path) -> None:
    service = serve()
    job_id = submit(service, "what was said", warnings=("w",), hf_token="secret")
    status = ended(service, job_id)
    assert status.status == "Completed"
    assert (status.progress, status.stage, status.queue_position, status.error) == (1.0, "done", None, None)
    assert status.created_at <= (status.started_at or "") <= (status.finished_at or "")
    assert status.created_at.endswith("Z")
    assert status.audio_seconds == 10.0
    assert status.warnings == ("w",)
    assert text_of(service, job_id) == "what was said"
    idle(service)
    assert uploads(tmp_path) == []
    row = service.store.get(job_id)
    assert row is not None
    assert row.hf_token is None


def test_the_status_of_a_running_job_has_its_progress(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    job_id = submit(service)
    until(lambda: service.status(job_id, "").progress == 0.5)
    status = service.status(job_id, "")
    assert (status.status, status.stage, status.queue_position) == ("Processing", "asr", None)
    assert service.counts() == (0, 1)
    with pytest.raises(JobNotFinished):
        service.result(job_id, "")


def test_jobs_are_run_in_the_order_in_which_they_came(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    job_ids = [submit(service, str(number)) for number in range(12)]
    assert service.status(job_ids[-1], "").status == "Queued"
    executor.release()
    assert [text_of(service, each) for each in job_ids if ended(service, each)] == [str(n) for n in range(12)]
    assert executor.started == job_ids
    assert executor.most_active == 1


def test_a_failed_job_says_why_without_paths(serve: Services, tmp_path: Path) -> None:
    def behave(executor: FakeExecutor, job: Job) -> None:
        raise ValueError(f"cannot read {tmp_path}/models/base/model.bin\nnor that")

    service = serve(FakeExecutor(behave=behave))
    job_id = submit(service)
    status = ended(service, job_id)
    assert (status.status, status.error) == ("Failed", "cannot read model.bin nor that")
    with pytest.raises(JobFailed, match=r"cannot read model\.bin") as caught:
        service.result(job_id, None)
    assert caught.value.cause == "ValueError"
    idle(service)
    assert uploads(tmp_path) == []


def test_a_job_whose_audio_has_gone_fails_and_the_next_one_runs(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    first, second, third = (submit(service) for _ in range(3))
    (tmp_path / "uploads" / second / "audio").unlink()
    executor.release()
    assert "audio" in (ended(service, second).error or "")
    assert ended(service, first).status == ended(service, third).status == "Completed"


def test_a_base_exception_fails_only_its_job(serve: Services) -> None:
    def behave(executor: FakeExecutor, job: Job) -> None:
        if job.options.prompt:
            raise BaseException("a panic in a native library")

    service = serve(FakeExecutor(behave=behave))
    bad, good = submit(service, prompt="x"), submit(service)
    assert ended(service, bad).error == "a panic in a native library"
    assert ended(service, good).status == "Completed"


# --- owners and lists -------------------------------------------------------------------------------------------


def test_anothers_job_looks_like_none(serve: Services) -> None:
    service = serve()
    job_id = submit(service, owner="alice")
    ended(service, job_id)
    calls: list[Callable[[str | None], object]] = [
        lambda owner: service.status(job_id, owner),
        lambda owner: service.result(job_id, owner),
        lambda owner: service.cancel(job_id, owner),
    ]
    for call in calls:
        for other in ("bob", ""):
            with pytest.raises(JobNotFound, match=f"Job not found: {job_id}"):
                call(other)
    for call in calls:
        call("alice")
        service.status(job_id, None)
    with pytest.raises(JobNotFound):
        service.status(str(uuid.uuid4()), None)


def test_lists_go_page_by_page_from_the_newest(serve: Services) -> None:
    service = serve()
    job_ids = [submit(service, owner="alice") for _ in range(7)]
    other = submit(service, owner="bob")
    for job_id in [*job_ids, other]:
        ended(service, job_id)
    found: list[str] = []
    after = None
    for _ in range(4):
        page, after = service.list_jobs("alice", limit=2, after=after)
        found += [each.job_id for each in page]
    assert after is None
    assert found == job_ids[::-1]
    assert [each.job_id for each in service.list_jobs(None)[0]] == [other, *job_ids[::-1]]
    assert service.list_jobs("alice", JobFilter(state="Failed")) == ([], None)
    assert service.list_jobs("nobody") == ([], None)


def test_lists_have_the_positions_of_waiting_jobs(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    job_ids = [submit(service) for _ in range(4)]
    running(service, job_ids[0])
    page, _ = service.list_jobs(None)
    assert [each.queue_position for each in page] == [3, 2, 1, None]


@pytest.mark.parametrize("after", ["x", "", "!!!", "MTI=x", "ééé", "MS41", "LTE", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5"])
def test_a_cursor_that_none_of_our_answers_gave_is_refused(serve: Services, after: str) -> None:
    with pytest.raises(InvalidOption, match="after"):
        serve().list_jobs(None, after=after)


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_page_has_bounds(serve: Services, limit: int) -> None:
    with pytest.raises(InvalidOption, match="limit"):
        serve().list_jobs(None, limit=limit)


# --- places in the queue ----------------------------------------------------------------------------------------


def test_places_count_from_one(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    job_ids = [submit(service) for _ in range(4)]
    running(service, job_ids[0])
    assert [service.status(each, None).queue_position for each in job_ids] == [None, 1, 2, 3]
    assert service.counts() == (3, 1)
    executor.release(job_ids[0])
    running(service, job_ids[1])
    assert [service.status(each, None).queue_position for each in job_ids[2:]] == [1, 2]


def test_positions_count_batches_when_jobs_run_concurrently(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor, enable_concurrency=True, max_concurrent_jobs=2)
    job_ids = [submit(service) for _ in range(7)]
    running(service, *job_ids[:2])
    assert [service.status(each, None).queue_position for each in job_ids[2:]] == [1, 1, 2, 2, 3]
    executor.release()
    for job_id in job_ids:
        ended(service, job_id)
    assert executor.most_active == 2


def test_concurrency_has_to_be_enabled(serve: Services) -> None:
    executor = FakeExecutor()
    service = serve(executor, max_concurrent_jobs=4)
    for job_id in [submit(service) for _ in range(8)]:
        ended(service, job_id)
    assert executor.most_active == 1


def test_a_full_queue_refuses_and_places_come_back(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor, max_queued_jobs=2)
    first = submit(service)
    running(service, first)
    submit(service)
    second = submit(service)
    with pytest.raises(QueueFull) as caught:
        service.reserve("")
    assert caught.value.retry_after > 0
    service.cancel(second, None)
    submit(service)
    executor.release()


def test_uploads_on_their_way_take_no_place_in_the_queue(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor, max_queued_jobs=2)
    running(service, submit(service))
    with ExitStack() as stack:
        coming = [stack.enter_context(service.reserve(f"key {number}")) for number in range(20)]
        submit(service, owner="another")
        # One position is left: the first upload that completes gets it, and the next one is refused.
        service.submit(submission(coming[0]), coming[0])
        with pytest.raises(QueueFull):
            service.submit(submission(coming[1]), coming[1])
        assert not coming[1].open
        assert service.counts() == (2, 1)
    executor.release()
    idle(service)
    # No position was lost.
    for _ in range(2):
        ended(service, submit(service))
    assert uploads(tmp_path) == []


def test_a_key_may_have_a_limited_number_of_unfinished_jobs(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor, max_jobs_per_key=2)
    first = submit(service, owner="alice")
    with service.reserve("alice"), pytest.raises(CallerLimit):
        service.reserve("alice")
    submit(service, owner="alice")
    with pytest.raises(CallerLimit):
        submit(service, owner="alice")
    submit(service, owner="bob")
    for _ in range(5):
        submit(service)
    executor.release(first)
    ended(service, first)
    submit(service, owner="alice")
    executor.release()


def test_concurrent_submissions_do_not_exceed_the_limit_of_a_key(serve: Services) -> None:
    service = serve(FakeExecutor(held=True), max_jobs_per_key=3)

    def attempt(_: int) -> bool:
        try:
            submit(service, owner="alice")
        except CallerLimit:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(24))) == 3


def test_a_reservation_without_a_submission_leaves_no_files(serve: Services, tmp_path: Path) -> None:
    service = serve(max_queued_jobs=1)
    with service.reserve("") as place:
        place.directory.mkdir()
        (place.directory / "audio.part").write_text("half")
    assert uploads(tmp_path) == []
    place.release()
    ended(service, submit(service))


def test_a_sweep_keeps_an_unfinished_upload(serve: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisper_api.jobs.retention.WIPE_SECONDS", 0.01)
    service = serve()
    with service.reserve("") as reservation:
        reservation.directory.mkdir()
        (reservation.directory / "audio.part").write_text("half")
        orphan = tmp_path / "uploads" / str(uuid.uuid4())
        orphan.mkdir()
        until(lambda: not orphan.exists(), "a sweep has removed the upload that belongs to nobody")
        assert uploads(tmp_path) == [reservation.job_id]


# --- submission -------------------------------------------------------------------------------------------------


def test_a_refused_submission_is_not_stored(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor()
    service = serve(executor, max_queued_jobs=1)
    for refusal in (UnknownModel("no such model"), ModelUnavailable("no diarization")):
        executor.refusal = refusal
        with pytest.raises(type(refusal)):
            submit(service)
    assert ids_in(service.store) == set()
    assert uploads(tmp_path) == []
    executor.refusal = None
    ended(service, submit(service))


def test_a_disk_that_is_full_is_an_error_to_the_caller(serve: Services, tmp_path: Path) -> None:
    service = serve(store=FaultyStore, max_queued_jobs=1)
    faulty(service).broken.add("add")
    for _ in range(3):
        with pytest.raises(StorageFull):
            submit(service)
    assert uploads(tmp_path) == []
    faulty(service).broken.clear()
    ended(service, submit(service))


def test_the_same_submission_twice_is_one_job(serve: Services, tmp_path: Path) -> None:
    service = serve(max_queued_jobs=1)
    first = submit(service, "one", owner="alice", idempotency_key="k", fingerprint="f")
    ended(service, first)
    idle(service)
    for _ in range(3):
        assert submit(service, "one", owner="alice", idempotency_key="k", fingerprint="f") == first
    with pytest.raises(IdempotencyConflict):
        submit(service, "two", owner="alice", idempotency_key="k", fingerprint="g")
    other = submit(service, "three", owner="bob", idempotency_key="k", fingerprint="g")
    assert other != first
    ended(service, other)
    idle(service)
    assert uploads(tmp_path) == []
    assert ids_in(service.store) == {first, other}


def test_the_same_submission_many_times_at_once_is_one_job(serve: Services, tmp_path: Path) -> None:
    service = serve()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: submit(service, "x", idempotency_key="k", fingerprint="f"), range(24)))
    assert len(found) == 1
    ended(service, found.pop())
    idle(service)
    assert uploads(tmp_path) == []
    assert len(ids_in(service.store)) == 1


def test_a_place_serves_one_job_and_is_not_given_back_while_it_is_submitted(serve: Services, tmp_path: Path) -> None:
    class Leaving(FakeExecutor):
        """Release the reservation during the submission, as when the client leaves."""

        def check(self, options: Any, hf_token: str | None) -> None:
            place.release()

    service = serve(Leaving())
    place = service.reserve("")
    wanted = submission(place, "kept")
    service.submit(wanted, place)
    assert ended(service, place.job_id).status == "Completed"
    assert text_of(service, place.job_id) == "kept"
    with pytest.raises(RuntimeError):
        service.submit(wanted, place)


# --- time that is left --------------------------------------------------------------------------------------------


def test_the_time_left_is_known_once_a_job_has_ended(serve: Services) -> None:
    executor = FakeExecutor()
    executor.timings = {"decode": 1.0, "load": 9.0, "vad": 1.0, "asr": 6.0, "align": 1.0, "diarize": 1.0}
    service = serve(executor)
    run_one(service, "teacher")
    idle(service)
    executor.held = True
    first, second, third = (submit(service) for _ in range(3))
    unknown = submit(service, audio_seconds=None)
    behind = submit(service)
    until(lambda: service.status(first, None).progress == 0.5)
    left = [service.status(each, None).eta_seconds or 0.0 for each in (first, second, third)]
    assert 0 < left[0] < left[1] < left[2]
    assert service.status(unknown, None).eta_seconds is None
    assert service.status(behind, None).eta_seconds is None


def test_the_time_left_is_unknown_before_a_job_has_ended(serve: Services) -> None:
    service = serve(FakeExecutor(held=True))
    first, second = submit(service), submit(service)
    running(service, first)
    assert service.status(first, None).eta_seconds is None
    assert service.status(second, None).eta_seconds is None


def test_progress_and_warnings_are_told_from_the_first(serve: Services) -> None:
    service = serve(FakeExecutor(held=True))
    running(service, submit(service))
    waits = submit(service)
    status = service.status(waits, None)
    assert (status.status, status.progress, status.stage) == ("Queued", 0.0, None)
    told = msgspec.json.decode(msgspec.json.encode(status))
    assert (told["progress"], told["warnings"]) == (0.0, [])
