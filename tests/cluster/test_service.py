"""Durable jobs on a cluster: none is lost, whatever dies."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import config_in, ended, running, submission, text_of, until

from cluster.conftest import SCRIPTED
from cluster.loopback import Loopback, cluster
from whisper_api.cluster.executor import RayExecutor
from whisper_api.jobs.service import JobService
from whisper_api.store.jobs import DATABASE_NAME, JobStore

pytestmark = pytest.mark.cluster


@contextlib.contextmanager
def service_on(loopback: Loopback, directory: Path, engines: int = 2, **settings: Any) -> Iterator[JobService]:
    """A service on a cluster, once its engines run."""
    config = config_in(
        directory, executor="ray", ray_address=loopback.address, model="tiny.en", device="cpu", **settings
    )
    store = JobStore(config.data_dir / DATABASE_NAME)
    store.exclusive()
    service = JobService(config, store, RayExecutor(config, SCRIPTED), preload_retry_seconds=(0.2,))
    try:
        service.start()
        until(lambda: sum(each.state == "ready" for each in service.facts().engines) == engines, "engines run")
        yield service
    finally:
        service.close()


def submit(service: JobService, *lines: str) -> str:
    with service.reserve("") as place:
        return service.submit(submission(place, "\n".join(lines)), place).job_id


def attempts(service: JobService, job_id: str) -> int:
    job = service.store.get(job_id)
    assert job is not None
    return job.attempts


def test_a_job_that_ends_its_engine_is_tried_again_and_at_last_fails(loopback: Loopback, tmp_path: Path) -> None:
    with service_on(loopback, tmp_path, max_job_attempts=2) as service:
        once = submit(service, f"die-once {tmp_path / 'mark'}", "say at last")
        always = submit(service, "die")
        innocent = submit(service, "say untouched")
        assert text_of(service, ended(service, once).job_id) == "at last"
        assert attempts(service, once) == 1
        failed = ended(service, always)
        assert failed.status == "Failed"
        assert "2 times while this job ran" in (failed.error or "")
        assert ended(service, innocent).status == "Completed"
        assert attempts(service, innocent) == 0
        # Both engines may have ended with these jobs; others take their places.
        until(lambda: service.health().ready, "an engine runs")


def test_jobs_of_a_lost_machine_run_on_another_and_its_place_is_filled(loopback: Loopback, tmp_path: Path) -> None:
    # Where the number of engines follows from the machines, a lost machine's engine is missed for a moment only.
    with service_on(loopback, tmp_path, cluster_workers=2) as service:
        jobs = [submit(service, "sleep 4" if number < 2 else "sleep 0", f"say {number}") for number in range(4)]
        until(lambda: all(service.status(each, None).progress for each in jobs[:2]), "two jobs have begun")
        loopback.kill(loopback.nodes[0])
        until(lambda: service.health().state == "degraded", "an engine is missed")
        assert service.health().ready
        loopback.add()
        assert [text_of(service, ended(service, each).job_id) for each in jobs] == ["0", "1", "2", "3"]
        assert sorted(attempts(service, each) for each in jobs) == [0, 0, 0, 1]
        until(lambda: service.health().state == "ready", "two engines run")
    assert loopback.left_over() == []


def test_jobs_of_a_front_that_was_killed_run_in_the_next(loopback: Loopback, tmp_path: Path) -> None:
    with service_on(loopback, tmp_path) as service:
        job_id = submit(service, "sleep 0.5", "say again")
        running(service, job_id)
        # A killed front leaves this state: the job is Processing, and the driver process is gone.
        process = service.executor._driver.pid  # type: ignore[attr-defined]  # noqa: SLF001
        os.kill(process, signal.SIGKILL)
        assert text_of(service, ended(service, job_id).job_id) == "again"


@pytest.mark.usefixtures("_environment")
def test_jobs_wait_while_the_cluster_is_away(tmp_path: Path) -> None:
    with cluster(tmp_path / "machines", machines=1) as own, service_on(own, tmp_path, engines=1) as service:
        interrupted = submit(service, "sleep 2", "say interrupted")
        running(service, interrupted)
        own.kill_head()
        until(lambda: not service.health().ready, "the cluster is missed")
        waiting = submit(service, "say waited")
        health = service.health()
        assert health.state == "degraded"
        assert "0 of 1 engines" in health.reason
        assert service.status(waiting, None).status == "Queued"
        own.start_head()
        own.add()
        assert text_of(service, ended(service, waiting).job_id) == "waited"
        assert text_of(service, ended(service, interrupted).job_id) == "interrupted"
        assert attempts(service, waiting) == 0
        assert service.health().ready
