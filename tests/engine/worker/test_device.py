"""Devices and compute types."""

from __future__ import annotations

import contextlib
import functools
import threading
from pathlib import Path

import ctranslate2
import pytest

from whisper_api.engine.worker import device as device_module
from whisper_api.engine.worker import smoke_kernels
from whisper_api.engine.worker.device import (
    Device,
    choose_compute_type,
    choose_devices,
    has_bfloat16,
    physical_cores,
    threads_and_lanes,
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
    monkeypatch.setattr(device_module, "cuda_problem", lambda index=0: problem)
    assert choose_devices("auto") == (chosen,)
    assert choose_devices("cpu") == (Device("cpu"),)
    if problem is not None:
        with pytest.raises(DeviceUnavailable, match=problem):
            choose_devices("cuda")


def test_of_several_gpus_those_are_used_that_can_run_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    problems = ["torch has no code for GPU 0", None, None]
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 3)
    monkeypatch.setattr(device_module, "cuda_problem", lambda index=0: problems[index])
    assert choose_devices("auto") == (Device("cuda", 1),)
    assert choose_devices("cuda:2") == (Device("cuda", 2),)
    with pytest.raises(DeviceUnavailable, match="no code for GPU 0"):
        choose_devices("cuda")
    with caplog.at_level("WARNING"):
        assert choose_devices("cuda:all") == (Device("cuda", 1), Device("cuda", 2))
    assert "cuda:0 is not used: torch has no code" in caplog.text
    problems[1:] = ["old", "older"]
    with pytest.raises(DeviceUnavailable, match="no code for GPU 0"):
        choose_devices("cuda:all")
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 0)
    with pytest.raises(DeviceUnavailable, match="no CUDA device"):
        choose_devices("cuda:all")


@pytest.fixture
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Let torch's streams and devices exist. Gives a list of the calls."""
    import torch

    calls: list[tuple[str, object]] = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: calls.append(("device", index)))
    monkeypatch.setattr(torch.cuda, "Stream", lambda index: index)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: calls.append(("synchronize", index)))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    return calls


def test_what_is_computed_in_float32_on_a_gpu_is_not_rounded_to_tf32(
    pretended_cuda: list[tuple[str, object]],
) -> None:
    import torch

    def rounds() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    with Device("cpu").scope():
        assert rounds() == (True, False)
    with Device("cuda", 2).scope():
        assert rounds() == (False, False)
        assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
        assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    Device("cuda", 2).check()
    assert pretended_cuda == [("device", 2), ("synchronize", 2)]


def test_the_kernels_that_are_tried_run_and_are_right() -> None:
    smoke_kernels.run_torch("cpu")
    smoke_kernels.run_ctranslate2("cpu")


NO_IMAGE = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be"


@pytest.mark.parametrize(
    ("library", "text", "words"),
    [
        ("torch", NO_IMAGE, ["torch has no code for GPU 1, Old of compute capability 6.1", "CUDA 12.6"]),
        ("ctranslate2", f"parallel_for failed: cudaErrorNoKernelImageForDevice: {NO_IMAGE}", ["newest CTranslate2"]),
        ("torch", "The NVIDIA driver on your system is too old (found version 11040)", ["update the driver"]),
        ("ctranslate2", "CUDA failed with error CUDA driver version is insufficient", ["update the driver"]),
        (
            "ctranslate2",
            "parallel_for failed: cudaErrorUnsupportedPtxVersion: the provided PTX was compiled with an unsupported "
            "toolchain.",
            ["NVIDIA driver is too old for CTranslate2", "update the driver"],
        ),
        ("ctranslate2", "CUDA failed with error PTX JIT compiler library not found", ["libnvidia-ptxjitcompiler"]),
        ("ctranslate2", "CUDA failed with error PTX JIT compilation was disabled", ["CUDA_DISABLE_PTX_JIT"]),
        ("torch", "CUDA out of memory. Tried to allocate 20 MB", ["memory of GPU 1 is full"]),
        ("ctranslate2", "CUDA failed with error something new\nmore", ["CTranslate2 cannot run", "something new)"]),
        ("torch", "CUDA error: operation not supported", ["PYTORCH_CUDA_ALLOC_CONF=backend:native"]),
        ("ctranslate2", "Asynchronous allocation is not supported by the current GPU", ["cub_caching"]),
        ("", "", []),
    ],
)
def test_a_gpu_whose_kernels_do_not_run_is_refused_with_what_to_install(
    library: str,
    text: str,
    words: list[str],
    pretended_cuda: list[tuple[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    def run(name: str, device: str) -> None:
        assert device == "cuda:1"
        if name == library:
            raise RuntimeError(text)

    for name in ("torch", "ctranslate2"):
        monkeypatch.setattr(smoke_kernels, f"run_{name}", functools.partial(run, name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device_module, "_opens", lambda library: True)
    problem = device_module.cuda_problem(1)
    if not words:
        assert problem is None
        return
    assert problem is not None
    assert "\n" not in problem
    for each in words:
        assert each in problem


def test_a_thread_that_tries_all_gpus_fails_on_none_though_streams_belong_to_threads(
    pretended_cuda: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    streams = threading.local()

    def run(device: str) -> None:
        # As CTranslate2's get_cuda_stream(): the first device that a thread uses gets the thread's only stream.
        if streams.__dict__.setdefault("device", device) != device:
            raise RuntimeError("parallel_for failed: cudaErrorInvalidResourceHandle: invalid resource handle")

    monkeypatch.setattr(smoke_kernels, "run_torch", lambda device: None)
    monkeypatch.setattr(smoke_kernels, "run_ctranslate2", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device_module, "_opens", lambda library: True)
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 3)
    assert choose_devices("cuda:all") == tuple(Device("cuda", index) for index in range(3))
    assert choose_devices("cuda:2") == (Device("cuda", 2),)


def test_memory_that_the_driver_keeps_for_this_process_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1 << 30, 16 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 8 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: 3 << 30)
    assert Device("cuda", 1).free_memory() == 6 << 30


def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(DeviceUnavailable, match=f"cuda:{gpus + 3}"):
        choose_devices(f"cuda:{gpus + 3}")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:", ""])
def test_a_device_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match="device"):
        choose_devices(name)


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
