"""Processes that crash while jobs run: no job is lost, and a job that causes the crash is not tried for ever."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest
from fakes import new_service, queued_in, submit, uploads, work
from forked import Forked

from whisper_api.config import Config
from whisper_api.jobs.lifecycle import recover
from whisper_api.options import TranscriptionOptions
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job
from whisper_api.testing import fake_transcript

KILLED = -signal.SIGKILL
EXITED = 7


def run(directory: Path, slots: int = 1, attempts: int = Config().max_job_attempts) -> int:
    """Run a service in another process until all jobs have ended or the process has crashed. Returns the exit code."""
    program = functools.partial(work, directory, slots, attempts)
    output = directory / "output"
    code = Forked(program, ["work"], directory, os.environ, output, output).wait(120)
    assert code in (0, EXITED) or code < 0, output.read_text()
    return code


def submit_all(directory: Path, **prompts: str) -> dict[str, str]:
    """Submit a job for each name, with the name as its text. Returns the ids by name."""
    service = new_service(directory)
    job_ids = {name: submit(service, name, prompt=prompt) for name, prompt in prompts.items()}
    service.close()
    return job_ids


def states(directory: Path, job_ids: dict[str, str]) -> dict[str, str]:
    """The states by name. A Completed job must have the right text."""
    service = new_service(directory)
    found: dict[str, str] = {}
    for name, job_id in job_ids.items():
        job = service.store.get(job_id)
        assert job is not None
        found[name] = job.state
        if job.state == "Completed":
            assert service.result(job_id, None)[1].text == name
    service.close()
    return found


# --- whole processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["segfault", "abort"])
def test_a_job_that_crashes_the_process_fails_after_the_configured_attempts_and_the_others_are_done(
    tmp_path: Path, way: str
) -> None:
    job_ids = submit_all(tmp_path, before="", poison=way, after="")
    crash = {"segfault": -signal.SIGSEGV, "abort": -signal.SIGABRT}[way]
    assert [run(tmp_path, attempts=2) for _ in range(3)] == [crash, crash, 0]
    assert states(tmp_path, job_ids) == {"before": "Completed", "poison": "Failed", "after": "Completed"}
    service = new_service(tmp_path)
    assert "ended 2 times" in (service.status(job_ids["poison"], None).error or "")
    service.close()
    assert uploads(tmp_path) == []


def test_jobs_that_ran_beside_a_crash_are_not_taken_for_it(tmp_path: Path) -> None:
    job_ids = submit_all(tmp_path, one="wait", poison="segfault together", two="wait", three="")
    assert [run(tmp_path, slots=3, attempts=2) for _ in range(3)] == [-signal.SIGSEGV, -signal.SIGSEGV, 0]
    assert states(tmp_path, job_ids) == {
        "one": "Completed",
        "poison": "Failed",
        "two": "Completed",
        "three": "Completed",
    }
    assert uploads(tmp_path) == []


def test_a_job_that_ends_the_process_without_a_trace_holds_up_nobody_and_fails_in_the_end(tmp_path: Path) -> None:
    job_ids = submit_all(tmp_path, poison="exit", other="")
    # From its second attempt on, the job waits behind the others.
    ends = [run(tmp_path) for _ in range(3)]
    assert states(tmp_path, job_ids) == {"poison": "Processing", "other": "Completed"}
    ends += [run(tmp_path) for _ in range(Config().max_job_attempts - 2)]
    assert ends == [EXITED] * Config().max_job_attempts + [0]
    assert states(tmp_path, job_ids)["poison"] == "Failed"
    assert uploads(tmp_path) == []


def test_a_process_that_is_killed_once_loses_nothing(tmp_path: Path) -> None:
    job_ids = submit_all(tmp_path, first="", victim="kill once", last="")
    assert [run(tmp_path) for _ in range(2)] == [KILLED, 0]
    assert set(states(tmp_path, job_ids).values()) == {"Completed"}
    assert uploads(tmp_path) == []


def test_a_job_is_not_given_up_because_the_process_was_killed_ten_times(tmp_path: Path) -> None:
    job_ids = submit_all(tmp_path, victim="kill")
    assert [run(tmp_path) for _ in range(10)] == [KILLED] * 10
    # The job was started again ten times.
    assert states(tmp_path, job_ids) == {"victim": "Processing"}


# --- the counter --------------------------------------------------------------------------------------------------


def processing(store: JobStore, job_id: str) -> None:
    """Add a job in the state Processing."""
    store.add(
        Job(
            job_id=job_id,
            owner="",
            options=TranscriptionOptions(),
            output_format="txt",
            audio_bytes=1,
            created_at=0.0,
        )
    )
    assert store.claim(job_id, 1.0)


def counted(store: JobStore, job_id: str) -> tuple[str, int]:
    job = store.get(job_id)
    assert job is not None
    return job.state, job.attempts


def test_attempts_are_counted_and_from_the_second_on_cost_the_place(store: JobStore) -> None:
    for job_id in "ab":
        processing(store, job_id)
        store.requeue(job_id)
    order = []
    for attempt in range(1, 5):
        store.claim("a", 3.0)
        failed = recover(store, 4, 2.0)
        order.append(queued_in(store))
        assert counted(store, "a") == (("Queued", attempt) if attempt < 4 else ("Failed", 3))
    assert order == [["a", "b"], ["b", "a"], ["b", "a"], ["b"]]
    assert [job.job_id for job in failed] == ["a"]


def test_recovery_puts_only_running_jobs_back_and_keeps_their_order(store: JobStore) -> None:
    for job_id in "abcd":
        processing(store, job_id)
    store.requeue("b")
    store.complete("d", fake_transcript("x"), 2.0)
    for _ in range(2):
        assert recover(store, 3, 2.0) == []
        assert queued_in(store) == ["a", "b", "c"]
        assert [counted(store, job_id) for job_id in "abc"] == [("Queued", 1), ("Queued", 0), ("Queued", 1)]
