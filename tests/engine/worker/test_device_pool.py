"""The choice of the device of a job."""

from __future__ import annotations

import random
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


def test_a_job_goes_to_the_device_with_the_least_work(pool_of: MakePool) -> None:
    pool = pool_of(3)
    with pool.assign(100.0) as first, pool.assign(10.0) as second, pool.assign(50.0) as third:
        assert [runtime.device.index for runtime in (first, second, third)] == [0, 1, 2]
        with pool.assign(30.0) as fourth, pool.assign(1.0) as fifth:
            # 10 + 30 is still the least.
            assert (fourth, fifth) == (second, second)
    with pool.assign(1.0) as runtime:
        assert runtime is first


def test_jobs_of_unknown_length_are_spread(pool_of: MakePool) -> None:
    pool = pool_of(2)
    with pool.assign(0.0) as first, pool.assign(0.0) as second:
        assert first is not second


def test_a_job_that_fails_leaves_its_station(pool_of: MakePool) -> None:
    pool = pool_of(2)
    with pytest.raises(KeyError), pool.assign(100.0):
        raise KeyError
    with pool.assign(1.0) as runtime:
        assert runtime.device.index == 0


def test_many_threads_leave_nothing_outstanding(pool_of: MakePool) -> None:
    pool = pool_of(3)
    most = threading.Semaphore(6)

    def job(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(200):
            with most, pool.assign(dice.random()), pool.assign(dice.random()):
                pass

    with ThreadPoolExecutor(8) as jobs:
        list(jobs.map(job, range(8)))
    # If a device still had outstanding work, these jobs would not use it.
    with pool.assign(1e-9) as first, pool.assign(1e-9) as second, pool.assign(1e-9) as third:
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
