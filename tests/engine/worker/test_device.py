"""Devices and compute types."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import pytest

from whisper_api.engine.worker import device as device_module
from whisper_api.engine.worker.device import (
    Device,
    choose_compute_type,
    choose_device,
    has_bfloat16,
    physical_cores,
    threads_and_lanes,
    visible_devices,
)
from whisper_api.errors import DeviceUnavailable, InvalidOption

gpus = ctranslate2.get_cuda_device_count()


@pytest.mark.parametrize(
    ("count", "problem", "chosen"),
    [(0, None, Device("cpu")), (2, None, Device("cuda", 0)), (2, "torch has no CUDA", Device("cpu"))],
)
def test_auto_is_the_first_gpu_that_can_be_used_or_else_the_cpu(
    count: int, problem: str | None, chosen: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: count)
    monkeypatch.setattr(device_module, "cuda_problem", lambda: problem)
    assert choose_device("auto") == chosen
    assert choose_device("cpu") == Device("cpu")
    if problem is not None:
        with pytest.raises(DeviceUnavailable, match=problem):
            choose_device("cuda")


def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(DeviceUnavailable, match=f"cuda:{gpus + 3}"):
        choose_device(f"cuda:{gpus + 3}")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:", ""])
def test_a_device_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match="device"):
        choose_device(name)


def test_a_cpu_computes_in_int8_unless_told_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    cpu = Device("cpu")
    assert choose_compute_type(cpu) == "int8"
    assert choose_compute_type(cpu, "float32") == "float32"
    with caplog.at_level("WARNING"):
        chosen = choose_compute_type(cpu, "int8_float16")
    assert chosen in ctranslate2.get_supported_compute_types("cpu")
    assert "int8_float16" in caplog.text
    with pytest.raises(InvalidOption, match="int4"):
        choose_compute_type(cpu, "int4")


@pytest.mark.gpu
@pytest.mark.skipif(gpus == 0, reason="no CUDA device")
def test_a_gpu_computes_in_float16() -> None:
    assert choose_compute_type(Device("cuda")) == "float16"


def test_cores_and_memory_are_those_of_a_machine() -> None:
    import os

    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    memory = Device("cpu").free_memory()
    assert memory is None or memory > 1 << 28


@pytest.mark.gpu
@pytest.mark.skipif(gpus == 0, reason="no CUDA device")
def test_the_free_memory_of_a_gpu_is_not_more_than_it_has() -> None:
    import torch

    free = Device("cuda").free_memory()
    assert free is not None
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize(("count", "names"), [(0, ["cpu"]), (1, ["cuda:0"]), (3, ["cuda:0", "cuda:1", "cuda:2"])])
def test_every_gpu_is_worth_using_and_the_cpu_without_one(
    count: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: count)
    assert [device.torch_name for device in visible_devices()] == names


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (4, 1)), (6, (4, 1)), (16, (4, 4))]
)
def test_lanes_take_the_cores_of_a_cpu(cores: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "physical_cores", lambda: cores)
    assert threads_and_lanes(Device("cpu")) == expected
    assert threads_and_lanes(Device("cuda")).lanes == 2
    assert threads_and_lanes(Device("cuda")).threads >= 1


CPUINFO = {
    "x86 with bfloat16": ("flags\t\t: fpu avx512f avx512_vnni avx512_bf16\n", True),
    "x86 with VNNI": ("flags\t\t: fpu avx2 avx_vnni\n", False),
    "old x86": ("model name\t: avx512_bf16 avx_vnni\nflags\t\t: fpu sse2\n", False),
    "Arm": ("Features\t: fp asimd asimddp bf16\n", True),
}


@pytest.mark.parametrize(("text", "bfloat16"), CPUINFO.values(), ids=CPUINFO)
def test_the_abilities_of_a_cpu_are_read_from_its_flags(
    text: str, bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    monkeypatch.setattr(device_module, "CPUINFO", cpuinfo)
    device_module.cpu_flags.cache_clear()
    try:
        assert has_bfloat16(Device("cpu")) is bfloat16
        monkeypatch.setattr(device_module, "CPUINFO", tmp_path / "none")
        device_module.cpu_flags.cache_clear()
        assert not has_bfloat16(Device("cpu"))
    finally:
        device_module.cpu_flags.cache_clear()


def test_this_cpu_can_do_what_its_libraries_say() -> None:
    torch = pytest.importorskip("torch")
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if not device_module.CPUINFO.is_file() or supported is None:
        pytest.skip("nothing to compare with")
    assert has_bfloat16(Device("cpu")) or not supported()
