"""The choice of the device of a job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.device_pool import DeviceRuntime, WorkerPool
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import EngineClosed

MakePool = Callable[[int], WorkerPool]


@pytest.fixture
def pool_of() -> Iterator[MakePool]:
    with ExitStack() as stack:

        def make(count: int) -> WorkerPool:
            pool = WorkerPool([DeviceRuntime(Device("cuda", i), GpuWorker(), ModelCache()) for i in range(count)])
            stack.callback(pool.close)
            return pool

        yield make


def test_a_job_goes_to_the_device_with_the_fewest_jobs(pool_of: MakePool) -> None:
    pool = pool_of(3)
    with pool.assign() as first, pool.assign() as second:
        with pool.assign() as third:
            assert [runtime.device.index for runtime in (first, second, third)] == [0, 1, 2]
        with pool.assign() as fourth:
            assert fourth is third
    with pool.assign() as runtime:
        assert runtime is first


def test_a_job_that_fails_leaves_its_station(pool_of: MakePool) -> None:
    pool = pool_of(2)
    with pytest.raises(KeyError), pool.assign():
        raise KeyError
    with pool.assign() as runtime:
        assert runtime.device.index == 0


def test_many_threads_leave_nothing_outstanding(pool_of: MakePool) -> None:
    pool = pool_of(3)
    most = threading.Semaphore(6)

    def job(_: int) -> None:
        for _ in range(200):
            with most, pool.assign(), pool.assign():
                pass

    with ThreadPoolExecutor(8) as jobs:
        list(jobs.map(job, range(8)))
    # If a device still had jobs, these jobs would not use it.
    with pool.assign() as first, pool.assign() as second, pool.assign() as third:
        assert {first, second, third} == set(pool.runtimes)


def test_closing_closes_every_station(pool_of: MakePool) -> None:
    pool = pool_of(2)
    pool.close()
    for runtime in pool.runtimes:
        with pytest.raises(EngineClosed):
            runtime.worker.submit("job", None, 1, 1.0)  # type: ignore[arg-type]


def test_a_pool_needs_a_device() -> None:
    with pytest.raises(ValueError, match="no devices"):
        WorkerPool([])
