"""A job whose model is downloaded does not delay other jobs, and only some keys may start a download."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fakes import Services, ended, submission, until

from whisper_api.access.keys import KeyRing
from whisper_api.errors import ModelUnavailable
from whisper_api.jobs.service import JobService
from whisper_api.key_values import Role
from whisper_api.testing import FakeExecutor


def submit(service: JobService, owner: str = "", **fields: Any) -> str:
    with service.reserve(owner) as place:
        return service.submit(submission(place, **fields), place).job_id


def wait_for(service: JobService, job_ids: list[str], state: str = "Completed") -> None:
    for job_id in job_ids:
        assert ended(service, job_id).status == state


def downloads(service: JobService) -> dict[str, int]:
    """Outcome to the number of downloads, as the metrics count them."""
    text = service.metrics.render()[0].decode()
    found = re.findall(r'^whisper_api_model_downloads_total\{outcome="(\w+)"\} (\d+)', text, re.MULTILINE)
    return {outcome: int(count) for outcome, count in found if int(count)}


@pytest.fixture
def executor() -> FakeExecutor:
    """An executor without the models large and huge. Downloads end once its gate is open."""
    executor = FakeExecutor()
    executor.missing = {"large", "huge"}
    executor.download_gate.clear()
    return executor


def test_other_jobs_go_ahead_while_a_model_is_downloaded(serve: Services, executor: FakeExecutor) -> None:
    service = serve(executor)
    waiting = [submit(service, model=name) for name in ("large", "huge", "large")]
    until(lambda: sorted(executor.downloads) == ["huge", "large"], "both models are being downloaded, each once")
    others = [submit(service) for _ in range(3)]
    wait_for(service, others)
    assert [service.status(job_id, None).queue_position for job_id in waiting] == [1, 2, 3]
    assert {service.status(job_id, None).stage for job_id in waiting} == {"download"}
    assert {status.stage for status in service.list_jobs(None)[0] if status.status == "Queued"} == {"download"}
    # A worker leaves a job after the job has ended.
    until(lambda: service.counts() == (3, 0), "three jobs wait and none runs")
    executor.download_gate.set()
    wait_for(service, waiting)
    assert len(executor.downloads) == 2
    assert executor.started[: len(others)] == others
    assert downloads(service) == {"completed": 2}


def test_jobs_whose_model_cannot_be_had_fail_with_the_reason(serve: Services, executor: FakeExecutor) -> None:
    executor.download_errors["large"] = ModelUnavailable("large: no source can be reached")
    service = serve(executor)
    jobs = [submit(service, model="large") for _ in range(2)]
    executor.download_gate.set()
    wait_for(service, jobs, "Failed")
    for job_id in jobs:
        assert "no source can be reached" in (service.status(job_id, None).error or "")
    assert executor.started == []
    # A job that comes after the first failure begins another one.
    assert set(downloads(service)) == {"failed"}


def test_a_download_ends_with_the_last_job_that_waits_for_it(serve: Services, executor: FakeExecutor) -> None:
    service = serve(executor)
    first, second = (submit(service, model="large") for _ in range(2))
    until(lambda: executor.downloads == ["large"])
    service.cancel(first, None)
    service.cancel(second, None)
    until(lambda: not executor.downloading, "the download has ended")
    assert executor.missing == {"large", "huge"}
    # A job that comes later begins the download again.
    executor.download_gate.set()
    third = submit(service, model="large")
    wait_for(service, [third])
    assert executor.downloads == ["large", "large"]


def test_a_running_job_gives_its_slot_back_while_a_model_is_downloaded(serve: Services, executor: FakeExecutor) -> None:
    """The job finds its alignment model only after it has detected the language."""
    executor.missing = {"nl"}
    service = serve(executor)
    first = submit(service, language="nl")
    until(lambda: executor.downloads == ["nl"])
    second = submit(service)
    wait_for(service, [second])
    status = service.status(first, None)
    assert (status.status, status.stage, status.queue_position) == ("Queued", "download", 1)
    executor.download_gate.set()
    wait_for(service, [first])
    assert executor.started == [first, second, first]
    assert executor.downloads == ["nl"]


def test_a_job_runs_without_a_model_that_it_can_do_without(serve: Services, executor: FakeExecutor) -> None:
    executor.missing = {"nl"}
    executor.download_errors["nl"] = ModelUnavailable("align-nl: no source can be reached")
    executor.download_gate.set()
    service = serve(executor)
    jobs = [submit(service, language="nl") for _ in range(2)]
    wait_for(service, jobs)
    # Each job asks once, and then waits for its turn for any time.
    assert len(executor.downloads) <= len(jobs)
    assert sorted(executor.started) == sorted(jobs * 2)


def test_a_job_is_canceled_while_it_waits_for_a_model_that_it_missed(serve: Services, executor: FakeExecutor) -> None:
    executor.missing = {"nl"}
    service = serve(executor)
    job_id = submit(service, language="nl")
    until(lambda: executor.downloads == ["nl"])
    service.cancel(job_id, None)
    until(lambda: not executor.downloading, "the download has ended")
    assert service.status(job_id, None).status == "Canceled"
    assert service.status(job_id, None).stage is None


def test_a_job_that_waits_for_its_model_survives_a_restart(serve: Services, executor: FakeExecutor) -> None:
    service = serve(executor)
    job_id = submit(service, model="large")
    until(lambda: executor.downloads == ["large"])
    service.stop(0.0)
    again = serve(FakeExecutor())
    wait_for(again, [job_id])


@pytest.mark.parametrize(
    ("policy", "role", "allowed"),
    [
        ("anyone", "user", True),
        ("anyone", "admin", True),
        ("administrators", "user", False),
        ("administrators", "admin", True),
        ("administrators", None, True),
        ("nobody", "user", False),
        ("nobody", "admin", False),
        ("nobody", None, False),
    ],
)
def test_the_configuration_decides_which_models_a_job_may_download(
    serve: Services, executor: FakeExecutor, policy: str, role: Role | None, allowed: bool
) -> None:
    """Without authorization there are no keys, and every caller has the rights of an administrator."""
    service = serve(executor, model_downloads=policy)
    owner = "" if role is None else KeyRing(service.store).create("ada", role)[0].key_id
    if allowed:
        assert submit(service, owner, model="large")
    else:
        with pytest.raises(ModelUnavailable, match=r"WHISPER_MODEL_DOWNLOADS .* models pull large"):
            submit(service, owner, model="large")
    # Models that the configuration names as the target of an alias are allowed as well.
    executor.trusted = {"huge"}
    submit(service, owner, model="huge")
    # Every key may use the models on this machine.
    submit(service, owner, model="other")
    submit(service, owner)
