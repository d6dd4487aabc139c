"""The copies of recordings on a GPU: each sample goes there once, within bounds, and is freed with its job."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.engine.audio import device_copies
from whisper_api.engine.audio.device_copies import COPY_BYTES, DeviceCopies
from whisper_api.engine.worker.device import Device

Floats = npt.NDArray[np.float32]
RATE = 16_000


@dataclass(frozen=True)
class Memory(Device):
    """A pretended GPU whose tensors are in the host's memory, or nowhere."""

    free: int = 64 << 30
    name: str = "cpu"

    @property
    def torch_name(self) -> str:
        return self.name

    def free_memory(self) -> int:
        return self.free


GPU = Memory("cuda")


class Transfers(list[int]):
    """The number of samples of each transfer, and the memory that it went to."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[weakref.ref[Floats]] = []


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Transfers:
    transfers = Transfers()
    send = device_copies._sent  # noqa: SLF001

    def counted(samples: Floats, device: str, **settings: Any) -> Any:
        transfers.append(len(samples))
        # A CPU's tensor would share the memory of the array.
        memory = samples.copy()
        transfers.memory.append(weakref.ref(memory))
        return send(memory, device, **settings)

    monkeypatch.setattr(device_copies, "_sent", counted)
    return transfers


def audio(seconds: float) -> Floats:
    return np.random.default_rng(0).standard_normal(int(seconds * RATE), np.float32)


def test_windows_that_overlap_are_sent_once(sent: Transfers) -> None:
    hour, copies = np.zeros(3600 * RATE, np.float32), DeviceCopies()
    with copies.kept(hour, Memory("cuda", name="meta")):
        for length, step in ((10, 2), (5, 1), (30, 30)):
            for start in range(0, len(hour) - length * RATE, step * RATE):
                tensor = copies.tensor(hour[start : start + length * RATE], "meta")
                assert tensor.shape == (length * RATE,)
    assert sent == [len(hour)]


@given(st.integers(0, RATE), st.integers(0, RATE))
def test_a_slice_of_the_copy_is_the_piece(first: int, last: int) -> None:
    recording, copies = audio(1.0), DeviceCopies()
    with copies.kept(recording, GPU):
        piece = recording[first:last]
        np.testing.assert_array_equal(copies.tensor(piece, "cpu").numpy(), piece)


def test_what_is_no_part_of_the_recording_is_sent_by_itself(sent: Transfers) -> None:
    recording, copies = audio(1.0), DeviceCopies()
    reversed_, every_second = recording[::-1].copy(), recording[:100:2]
    with copies.kept(recording, GPU):
        copies.tensor(recording[:10], "cpu")
        assert sent == [RATE]
        for other in (reversed_[:10], every_second, recording[:20].copy()):
            np.testing.assert_array_equal(copies.tensor(other, "cpu").numpy(), other)
        assert sent[1:] == [10, 50, 20]
        # Another device has no copy.
        assert copies.tensor(recording[:30], "meta").device.type == "meta"
        assert sent[-1] == 30


def test_a_cpu_needs_no_copy(sent: Transfers) -> None:
    recording, copies = audio(1.0), DeviceCopies()
    with copies.kept(recording, Device("cpu")):
        copies.tensor(recording[:10], "cpu")
    assert sent == [10]


def test_a_copy_is_freed_with_its_job_and_a_slice_keeps_it_while_a_batch_runs(sent: Transfers) -> None:
    recording, copies = audio(1.0), DeviceCopies()
    with copies.kept(recording, GPU):
        piece = copies.tensor(recording[:10], "cpu")
    (copy,) = sent.memory
    assert copy() is not None
    np.testing.assert_array_equal(piece.numpy(), recording[:10])
    held = weakref.ref(recording)
    del piece, recording
    assert copy() is None
    assert held() is None


def test_copies_are_bounded_over_all_jobs(sent: Transfers) -> None:
    copies = DeviceCopies()
    large = Memory("cuda", name="meta")
    most = COPY_BYTES // 4
    first, second = np.zeros(most // 2 + 1, np.float32), np.zeros(most // 2 + 1, np.float32)
    with copies.kept(first, large):
        with copies.kept(second, large):
            copies.tensor(first[:10], "meta")
            copies.tensor(second[:10], "meta")
        assert sent == [len(first), 10]
    with copies.kept(second, large):
        copies.tensor(second[:20], "meta")
    assert sent[2:] == [len(second)]
    # A GPU that is nearly full keeps none.
    with copies.kept(second, Memory("cuda", name="meta", free=2 * second.nbytes)):
        copies.tensor(second[:30], "meta")
    assert sent[3:] == [30]


def test_copies_give_way_when_memory_runs_out(sent: Transfers) -> None:
    recording, copies = audio(1.0), DeviceCopies()
    assert not copies.drop("cpu")
    with copies.kept(recording, GPU):
        copies.tensor(recording[:10], "cpu")
        (copy,) = sent.memory
        assert not copies.drop("cuda:1")
        assert copies.drop("cpu")
        assert copy() is None
        np.testing.assert_array_equal(copies.tensor(recording[5:25], "cpu").numpy(), recording[5:25])
        assert sent == [RATE, 20]


def test_a_recording_that_does_not_fit_costs_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    recording, copies = audio(1.0), DeviceCopies()
    send, tried = device_copies._sent, []  # noqa: SLF001

    def full(samples: Floats, device: str, *, whole: bool = False) -> Any:
        tried.append(len(samples))
        if whole:
            raise RuntimeError("CUDA out of memory. Tried to allocate 220.00 MiB")
        return send(samples, device)

    monkeypatch.setattr(device_copies, "_sent", full)
    with copies.kept(recording, GPU):
        for _ in range(2):
            np.testing.assert_array_equal(copies.tensor(recording[:10], "cpu").numpy(), recording[:10])
    assert tried == [RATE, 10, 10]


def test_an_error_of_the_device_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    recording, copies = audio(1.0), DeviceCopies()

    def broken(*ignored: object, **also_ignored: object) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device_copies, "_sent", broken)
    with copies.kept(recording, GPU), pytest.raises(RuntimeError, match="illegal memory access"):
        copies.tensor(recording[:10], "cpu")
