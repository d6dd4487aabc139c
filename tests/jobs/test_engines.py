"""A service whose executor has a changing number of engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fakes import Services, ended, idle, new_service, running, submit, text_of, until

from whisper_api.errors import EngineLost
from whisper_api.jobs.executor import EngineCount
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor


class Cluster(FakeExecutor):
    """Engines that the test starts and ends."""

    isolates = True

    def __init__(self, engines: int = 0, *, held: bool = False, behave: Callable[..., None] | None = None) -> None:
        super().__init__(held=held, behave=behave)
        self.count = EngineCount(running=engines, wanted=2, reason="A machine is missing." if engines < 2 else "")
        self.callbacks: list[Callable[[int], None]] = []

    def engines(self) -> EngineCount:
        return self.count

    def on_engines(self, callback: Callable[[int], None]) -> None:
        self.callbacks.append(callback)
        callback(self.count.running)

    def change(self, engines: int) -> None:
        """Have so many engines from now on."""
        self.count = EngineCount(running=engines, wanted=2, reason="A machine is missing." if engines < 2 else "")
        for callback in self.callbacks:
            callback(engines)


def test_jobs_wait_for_engines_and_as_many_run_as_these_take(serve: Services) -> None:
    cluster = Cluster(held=True)
    service = serve(cluster, enable_concurrency=True, max_concurrent_jobs=2)
    jobs = [submit(service, str(number)) for number in range(6)]
    health = service.health()
    assert (health.ready, health.state) == (False, "degraded")
    assert health.reason == "0 of 2 engines run. A machine is missing. Jobs wait meanwhile."
    assert service.counts() == (6, 0)
    cluster.change(1)
    running(service, *jobs[:2])
    assert service.counts() == (4, 2)
    health = service.health()
    assert (health.ready, health.state) == (True, "degraded")
    assert health.reason == "1 of 2 engines run. A machine is missing."
    cluster.change(2)
    running(service, *jobs[:4])
    assert service.counts() == (2, 4)
    assert service.health().state == "ready"
    cluster.change(0)
    cluster.release()
    until(lambda: service.counts() == (2, 0), "the running jobs end and no other begins")
    cluster.change(1)
    idle(service)
    assert [text_of(service, each) for each in jobs] == ["0", "1", "2", "3", "4", "5"]
    assert cluster.most_active == 4


def test_a_job_that_loses_its_engine_is_counted_as_one_that_ends_the_process(tmp_path: Path) -> None:
    def behave(executor: FakeExecutor, job: Job) -> None:
        if job.attempts < 2:
            raise EngineLost("the machine has gone")

    service = new_service(tmp_path, Cluster(2, behave=behave), max_job_attempts=3)
    service.start()
    try:
        job_id = submit(service, "at last")
        ended(service, job_id)
        job = service.store.get(job_id)
        assert job is not None
        assert (job.state, job.attempts) == ("Completed", 2)
        assert service.fault is None
    finally:
        service.close()


def test_jobs_that_are_tried_again_do_not_stop_the_others_when_the_executor_isolates_them(tmp_path: Path) -> None:
    lost: set[str] = set()

    def behave(executor: FakeExecutor, job: Job) -> None:
        if job.job_id not in lost:
            lost.add(job.job_id)
            raise EngineLost("the machine has gone")

    cluster = Cluster(2, held=True, behave=behave)
    service = new_service(tmp_path, cluster)
    service.start()
    try:
        jobs = [submit(service, str(number)) for number in range(2)]
        until(lambda: len(lost) == 2 and cluster.active == 2, "both run again at the same time")
        cluster.release()
        assert all(ended(service, each).status == "Completed" for each in jobs)
    finally:
        service.close()
