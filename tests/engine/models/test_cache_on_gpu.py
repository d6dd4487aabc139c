"""The model cache of a pretended GPU: its thread, its current device, memory, and a device that is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from fake_gpu import Block, FakeGpu, Rows
from fakes import DEADLINE, until

from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.worker.background import DeviceThread
from whisper_api.engine.worker.device_errors import DeviceFault
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import DeviceLost, OutOfMemory


@dataclass(frozen=True)
class Source:
    """A model that takes memory of the device."""

    gpu: FakeGpu = field(hash=False, compare=False)
    name: str = "a"
    rows: int = 1
    fails: bool = False
    gate: threading.Event | None = field(default=None, compare=False)

    def estimated_bytes(self) -> int:
        return self.rows

    def load(self) -> list[Block]:
        assert self.gate is None or self.gate.wait(DEADLINE)
        weights = [self.gpu.call("load", self.rows)]
        return [*weights, self.gpu.call("load", 0)]

    def unload(self, model: list[Block]) -> None:
        self.gpu.call("unload")
        model.clear()
        if self.fails:
            raise RuntimeError("CUDA failed with error invalid argument")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def cache_of(stack: ExitStack, gpu: FakeGpu, fault: DeviceFault | None = None, **settings: float) -> ModelCache:
    thread = DeviceThread(f"models-cuda:{gpu.index}", gpu.scope)
    cache = ModelCache(thread=thread, fault=fault, **settings)  # type: ignore[arg-type]
    stack.callback(cache.close)
    return cache


def use(cache: ModelCache, source: Source) -> None:
    with cache.lease(source) as model:
        assert len(model) == 2


@pytest.mark.parametrize("keep_alive", [-1.0, 0.0, 0.001])
def test_a_gpu_is_called_by_one_thread_of_its_own_in_its_scope(stack: ExitStack, keep_alive: float) -> None:
    gpus = [FakeGpu(index=index) for index in range(2)]
    caches = [cache_of(stack, gpu, keep_alive=keep_alive) for gpu in gpus]
    with ThreadPoolExecutor(8) as jobs:
        for number in range(40):
            gpu, cache = gpus[number % 2], caches[number % 2]
            jobs.submit(use, cache, Source(gpu, "abc"[number % 3]))
    for cache in caches:
        cache.close()
    for gpu in gpus:
        loads = [call for call in gpu.calls if call.what == "load"]
        assert loads
        # Two calls load a model, and one unloads it.
        assert 2 * sum(call.what == "unload" for call in gpu.calls) == len(loads)
        assert {call.device for call in gpu.calls} == {gpu.index}
        assert len({call.thread for call in gpu.calls}) == 1
    assert gpus[0].calls[0].thread != gpus[1].calls[0].thread


def test_the_threads_end_with_their_caches(stack: ExitStack) -> None:
    gpu = FakeGpu(index=7)
    cache = cache_of(stack, gpu)
    with cache.lease(Source(gpu)):
        cache.close()
        assert [call.what for call in gpu.calls] == ["load", "load"]
    # A lease that ends after the cache has its model unloaded, too.
    until(lambda: gpu.calls[-1].what == "unload")
    until(lambda: all(thread.name != "models-cuda:7" for thread in threading.enumerate()))


def test_a_job_that_ends_does_not_wait_for_a_load(stack: ExitStack) -> None:
    gpu, gate = FakeGpu(), threading.Event()
    cache = cache_of(stack, gpu, keep_alive=0)
    with ThreadPoolExecutor(1) as jobs:
        with cache.lease(Source(gpu, "first")):
            slow = jobs.submit(use, cache, Source(gpu, "slow", gate=gate))
            until(lambda: len(cache.resident()) == 1)
        # The first model's unloading waits behind the load; its job did not.
        assert all(call.what == "load" for call in gpu.calls)
        gate.set()
        slow.result(DEADLINE)
    until(lambda: sum(call.what == "unload" for call in gpu.calls) == 2)


def test_a_lane_that_needs_memory_waits_until_the_models_are_unloaded(stack: ExitStack) -> None:
    gpu = FakeGpu(capacity=4)
    cache = cache_of(stack, gpu)
    use(cache, Source(gpu, rows=4))
    worker = GpuWorker(on_out_of_memory=cache.evict_idle, scope=gpu.scope)
    stack.callback(worker.close)
    assert worker.submit("job", Rows(gpu), "x", 1.0).result(DEADLINE) == "x"
    assert gpu.calls[-2].what == "unload"


def test_an_unload_that_raises_leaves_the_model_loadable(stack: ExitStack) -> None:
    gpu = FakeGpu()
    cache = cache_of(stack, gpu, keep_alive=0, budget=1)
    for name in ("a", "a", "b", "a"):
        use(cache, Source(gpu, name, fails=True))
    cache.close()
    assert sum(call.what == "unload" for call in gpu.calls) == 4


def test_nothing_of_a_failed_load_is_alive_when_it_is_tried_again(stack: ExitStack) -> None:
    gpu = FakeGpu()
    cache = cache_of(stack, gpu)
    use(cache, Source(gpu, "idle", rows=3))

    class Growing(Source):
        def load(self) -> list[Block]:
            first = self.gpu.call("load", 2)
            self.gpu.failures = sum(call.what == "unload" for call in self.gpu.calls) == 0
            return [first, self.gpu.call("load", 2)]

    use(cache, Growing(gpu, "growing"))
    again = [call for call in gpu.calls if call.what == "load"][-2]
    assert again.alive == 0
    gpu.capacity = 0
    with pytest.raises(OutOfMemory, match="no memory"):
        use(cache, Source(gpu, "too large"))


def test_a_device_that_is_lost_while_a_model_is_loaded_is_not_called_again(stack: ExitStack) -> None:
    gpu, fault = FakeGpu(), DeviceFault()
    cache = cache_of(stack, gpu, fault, keep_alive=0.01)
    worker = GpuWorker(scope=gpu.scope, fault=fault)
    stack.callback(worker.close)
    with cache.lease(Source(gpu)):
        gpu.dies_at = len(gpu.calls)
        with pytest.raises(DeviceLost, match="illegal memory access"):
            use(cache, Source(gpu, "b"))
        with pytest.raises(DeviceLost):
            worker.submit("job", Rows(gpu), "x", 1.0)
    with pytest.raises(DeviceLost):
        use(cache, Source(gpu))
    threading.Event().wait(0.05)  # longer than the model is kept alive
    cache.close()
    assert [call.what for call in gpu.calls] == ["load"] * 3
