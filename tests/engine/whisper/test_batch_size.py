"""The choice of a batch size, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from whisper_api.engine.whisper.settings import SIZES, choose_batch_size


class Device:
    """A fake device: ``seconds`` gives the time of a batch by its size; the first run of each size takes longer."""

    def __init__(self, seconds: Callable[[int], float], capacity: int = 1_000) -> None:
        self.now = 0.0
        self.ran: list[int] = []
        self._seconds = seconds
        self._capacity = capacity

    def run(self, size: int) -> None:
        if size > self._capacity:
            raise RuntimeError("CUDA failed with error out of memory")
        self.now += self._seconds(size) + (0.0 if size in self.ran else 10.0)
        self.ran.append(size)

    def choose(self, **arguments: float) -> int:
        return choose_batch_size(self.run, clock=lambda: self.now, **arguments)  # type: ignore[arg-type]


def test_the_smallest_of_nearly_equal_sizes_is_chosen() -> None:
    # Throughput still rises at the last size: 9, 17, 29, 44, 62, 76, 86, 93 items per second.
    assert Device(lambda size: 0.1 + 0.01 * size).choose() == 128
    assert Device(lambda size: 0.1 + 0.01 * size).choose(tolerance=0.15) == 64
    # Throughput is constant from 8 items on.
    assert Device(lambda size: max(8, size) * 0.1).choose() == 8


def test_a_device_that_gains_nothing_gets_single_items() -> None:
    device = Device(lambda size: 0.5 * size)
    assert device.choose() == 1
    assert sorted(set(device.ran)) == list(SIZES)


def test_the_sweep_stops_where_throughput_falls() -> None:
    device = Device(lambda size: 0.5 if size <= 4 else 0.2 * size)
    assert device.choose() == 4
    assert max(device.ran) == 8


def test_the_sweep_stops_where_memory_ends() -> None:
    device = Device(lambda size: 0.5, capacity=16)
    assert device.choose() == 16


def test_the_first_size_is_chosen_when_nothing_fits() -> None:
    assert Device(lambda size: 0.5, capacity=0).choose() == 1


def test_a_clock_that_stands_still_is_no_error() -> None:
    assert choose_batch_size(lambda size: None, clock=lambda: 0.0) == 128


def test_other_errors_are_raised() -> None:
    def run(size: int) -> None:
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        choose_batch_size(run)
    with pytest.raises(ValueError, match="no sizes"):
        choose_batch_size(run, sizes=())
