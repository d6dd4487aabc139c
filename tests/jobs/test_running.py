"""The running jobs: the reason of a stop, and progress."""

from __future__ import annotations

from typing import Literal

import pytest

from whisper_api.jobs.running import RunningJob, RunningJobs
from whisper_api.schema import Progress


@pytest.fixture
def jobs() -> RunningJobs:
    return RunningJobs(slots=2)


def entered(jobs: RunningJobs, job_id: str) -> RunningJob:
    job = jobs.enter(job_id, alone=False)
    assert job is not None
    return job


@pytest.mark.parametrize(("first", "second"), [("stop", "cancel"), ("cancel", "stop")])
def test_a_cancellation_outweighs_a_stop_in_either_order(
    jobs: RunningJobs, first: Literal["stop", "cancel"], second: Literal["stop", "cancel"]
) -> None:
    job = entered(jobs, "a")
    jobs.ask(job, first)
    assert job.cancel.is_set()
    jobs.ask(job, second)
    assert jobs.reason(job) == "cancel"


def test_progress_of_a_job_that_has_left_is_not_recorded_for_its_next_run(jobs: RunningJobs) -> None:
    before = entered(jobs, "a")
    assert jobs.note(before, Progress(0.1, "asr"))
    assert not jobs.note(before, Progress(0.1, "asr")), "nothing has changed"
    jobs.leave(before)
    assert not jobs.note(before, Progress(0.2, "asr"))
    assert jobs.snapshots() == {}
    again = entered(jobs, "a")
    assert not jobs.note(before, Progress(0.9, "asr"))
    assert jobs.snapshots()["a"].progress == again.progress == Progress(0.0, "load")
    # The end of the first run does not give back the slot of the second.
    jobs.leave(before)
    assert jobs.all() == [again]
