"""The table of error texts: each message as its library writes it, and what it means."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

from whisper_api.engine.worker.device_errors import (
    ERROR_TEXTS,
    STICKY_CODES,
    DeviceFault,
    ErrorKind,
    clear_frames,
    kind_of,
)
from whisper_api.errors import DeviceLost, ModelCorrupt, OutOfMemory

TORCH_ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)
MESSAGES: dict[str, ErrorKind] = {
    # torch
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB": "memory",
    f"CUDA error: out of memory{TORCH_ADVICE}": "memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "memory",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`": "memory",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED": "memory",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED": "memory",
    "GET was unable to find an engine to execute this computation": "memory",
    "FIND was unable to find an engine to execute this computation": "memory",
    "cuFFT error: CUFFT_ALLOC_FAILED": "memory",
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to": "memory",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes.": "memory",
    "unable to mmap 400 bytes from file <model.bin>: Cannot allocate memory (12)": "memory",
    f"CUDA error: an illegal memory access was encountered{TORCH_ADVICE}": "sticky",
    f"CUDA error: device-side assert triggered{TORCH_ADVICE}": "sticky",
    f"CUDA error: unspecified launch failure{TORCH_ADVICE}": "sticky",
    f"CUDA error: uncorrectable ECC error encountered{TORCH_ADVICE}": "sticky",
    f"CUDA error: unknown error{TORCH_ADVICE}": "sticky",
    f"CUDA error: misaligned address{TORCH_ADVICE}": "sticky",
    f"CUDA error: an illegal instruction was encountered{TORCH_ADVICE}": "sticky",
    f"CUDA error: the launch timed out and was terminated{TORCH_ADVICE}": "sticky",
    f"CUDA error: hardware stack error{TORCH_ADVICE}": "sticky",
    f"CUDA error: invalid program counter{TORCH_ADVICE}": "sticky",
    f"CUDA error: operation not supported on global/shared address space{TORCH_ADVICE}": "sticky",
    f"CUDA error: uncorrectable NVLink error detected during the execution{TORCH_ADVICE}": "sticky",
    f"CUDA error: context is destroyed{TORCH_ADVICE}": "sticky",
    f"CUDA error: driver shutting down{TORCH_ADVICE}": "sticky",
    f"CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error{TORCH_ADVICE}": "sticky",
    f"CUDA error: tensor memory not completely freed{TORCH_ADVICE}": "sticky",
    f"CUDA error: the MPS client has been terminated by the server{TORCH_ADVICE}": "sticky",
    f"CUDA error: CUDA-capable device(s) is/are busy or unavailable{TORCH_ADVICE}": "sticky",
    f"CUDA error: no CUDA-capable device is detected{TORCH_ADVICE}": "sticky",
    f"CUDA error: no kernel image is available for execution on the device{TORCH_ADVICE}": "other",
    f"CUDA error: invalid device ordinal{TORCH_ADVICE}": "other",
    f"CUDA error: invalid argument{TORCH_ADVICE}": "other",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`": "other",
    "mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)": "other",
    # CTranslate2
    "CUDA failed with error out of memory": "memory",
    "cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED": "memory",
    "cuBLAS failed with status CUBLAS_STATUS_NOT_INITIALIZED": "memory",
    "CUDA failed with error an illegal memory access was encountered": "sticky",
    "CUDA failed with error unspecified launch failure": "sticky",
    "CUDA failed with error unknown error": "sticky",
    "CUDA failed with error CUDA driver version is insufficient for CUDA runtime version": "other",
    "Library libcublas.so.12 is not found or cannot be loaded": "other",
    # Thrust
    "parallel_for failed: cudaErrorMemoryAllocation: out of memory": "memory",
    "after reduction step 1: cudaErrorIllegalAddress: an illegal memory access was encountered": "sticky",
    "for_each: failed to synchronize: cudaErrorUnknown: unknown error": "sticky",
    "parallel_for failed: cudaErrorNoKernelImageForDevice: no kernel image is available for execution": "other",
    # C++
    "std::bad_alloc": "memory",
    "unknown error": "other",
}
ONNX_MESSAGES: dict[str, ErrorKind] = {
    "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 80": "memory",
    "Available memory of 0 is smaller than requested bytes of 147456": "memory",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size);": "memory",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0": "memory",
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaStreamSynchronize(s)": "sticky",
    "CUDA failure 999: unknown error ; GPU=0": "sticky",
    "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0": "other",
}


@pytest.mark.parametrize(("text", "kind"), MESSAGES.items())
def test_a_message_means_what_its_library_means(text: str, kind: ErrorKind) -> None:
    assert kind_of(RuntimeError(text)) == kind
    # Programs that quote such a text in an error of another type do not speak of the device.
    assert kind_of(ValueError(text)) == "other"


@pytest.mark.parametrize(("text", "kind"), ONNX_MESSAGES.items())
def test_an_error_of_onnx_runtime_is_known_though_it_is_no_runtime_error(text: str, kind: ErrorKind) -> None:
    assert kind_of(onnx_errors.RuntimeException(text)) == kind


def test_every_row_of_the_table_has_a_message() -> None:
    messages = [text.lower() for text in (*MESSAGES, *ONNX_MESSAGES)]
    assert [words for words in ERROR_TEXTS if not any(words in text for text in messages)] == []


def test_the_words_of_every_sticky_code_are_in_the_table() -> None:
    runtime = pytest.importorskip("nvidia.cuda_runtime", reason="torch for CUDA 12 brings its runtime")
    (library,) = (path for folder in runtime.__path__ for path in Path(folder).glob("lib/libcudart.so.12"))
    words = ctypes.CDLL(str(library)).cudaGetErrorString
    words.restype = ctypes.c_char_p
    said = {code: f"CUDA error: {words(code).decode()}{TORCH_ADVICE}" for code in STICKY_CODES}
    assert {code for code, text in said.items() if kind_of(RuntimeError(text)) != "sticky"} == set()
    # The same as CTranslate2 puts it.
    quoted = [f"CUDA failed with error {words(code).decode()}" for code in STICKY_CODES]
    assert {kind_of(RuntimeError(text)) for text in quoted} == {"sticky"}
    others = [code for code in range(1, 900) if code not in STICKY_CODES and words(code) != b"unrecognized error code"]
    wrongly = {code for code in others if kind_of(RuntimeError(f"CUDA error: {words(code).decode()}")) == "sticky"}
    # What an earlier launch has left behind.
    assert wrongly == {53}


def test_a_lost_device_frees_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    fault = DeviceFault()
    kept = [torch.zeros(1).as_subclass(OnGpu), torch.zeros(1)]
    references = [weakref.ref(each) for each in kept]
    fault.report(RuntimeError("CUDA error: unspecified launch failure"))
    kept.clear()
    assert [each() is not None for each in references] == [True, False]


def test_types_and_causes_count_where_texts_say_nothing() -> None:
    class AcceleratorError(RuntimeError):
        error_code = 719

    assert kind_of(AcceleratorError("CUDA error")) == "sticky"
    assert kind_of(MemoryError()) == "memory"
    assert kind_of(OutOfMemory("one item does not fit")) == "memory"
    assert kind_of(DeviceLost("it is lost")) == "sticky"
    wrapped = ModelCorrupt("the model cannot be loaded")
    assert kind_of(wrapped) == "other"
    wrapped.__cause__ = RuntimeError("std::bad_alloc")
    assert kind_of(wrapped) == "memory"


class Tensor:
    """What a frame may hold."""


def test_cleared_frames_hold_nothing_of_the_error_or_of_those_before_it() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def inner() -> None:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise RuntimeError("first")

    def outer() -> None:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        try:
            inner()
        except RuntimeError as error:
            raise ValueError("second") from error

    try:
        outer()
    except ValueError as error:
        caught = error
    assert [ref() is not None for ref in alive] == [True, True]
    clear_frames(caught)
    assert [ref() for ref in alive] == [None, None]
    assert caught.__traceback__ is not None
    assert caught.__traceback__.tb_next is not None, "the log still shows where it was raised"


def test_a_fault_is_told_once_and_ends_everything_after_it() -> None:
    fault, told = DeviceFault(), list[str]()
    fault.on_report(lambda: told.append("told"))
    fault.check()
    first = fault.report(RuntimeError(f"CUDA error: device-side assert triggered{TORCH_ADVICE}"))
    second = fault.report(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert told == ["told"]
    assert str(first) == str(second)
    assert "device-side assert triggered" in str(first)
    assert "\n" not in str(first)
    with pytest.raises(DeviceLost, match="new process"):
        fault.check()
