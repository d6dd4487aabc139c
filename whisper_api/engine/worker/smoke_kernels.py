"""Runs one kernel of torch and one of CTranslate2 on a GPU, before a job does.

A library may have no code for the GPU's architecture, or need a newer driver. Neither shows before the first kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.engine.worker.device_errors import first_line, is_out_of_memory

SIDE = 16


def kernel_problem(index: int) -> str | None:
    """The reason why the kernels do not run on a GPU, and what to do; None when they run.

    They run in a thread of their own: CTranslate2's stream belongs to a thread, and stays on the first GPU that the
    thread uses, so a thread that has tried one GPU fails on the next.

    Args:
        index: number of the GPU.
    """

    def run() -> str | None:
        return _problem_of("torch", run_torch, index) or _problem_of("CTranslate2", run_ctranslate2, index)

    return BackgroundTask(f"kernels-cuda:{index}", run).result()


def _problem_of(library: str, run: Callable[[str], None], index: int) -> str | None:
    import torch

    try:
        with torch.cuda.device(index):
            run(f"cuda:{index}")
    except Exception as error:
        return _sentence(library, index, error)
    return None


def run_torch(device: str) -> None:
    """Multiply matrices with torch.

    Raises:
        RuntimeError: the kernel cannot run, or its result is wrong.
    """
    import torch

    ones = torch.ones(SIDE, SIDE, device=device, dtype=torch.float16)
    if float((ones @ ones).float().sum()) != SIDE**3:
        raise RuntimeError("a matrix product is wrong")


def run_ctranslate2(device: str) -> None:
    """Convert numbers to half precision with CTranslate2.

    Raises:
        RuntimeError: the kernel cannot run, or its result is wrong.
    """
    import ctranslate2
    import numpy as np
    import torch

    ones = torch.ones(SIDE, device=device)
    if ones.is_cuda:
        # CTranslate2's stream does not wait for torch's.
        torch.cuda.synchronize(device)
    array: Any = ones if ones.is_cuda else ones.numpy()
    view = ctranslate2.StorageView.from_array(array).to(ctranslate2.DataType.float16)
    if view.device != "cpu":
        view = view.to_device(ctranslate2.Device.cpu)
    if not np.array_equal(np.asarray(view), np.ones(SIDE, np.float16)):
        raise RuntimeError("a conversion is wrong")


def _sentence(library: str, index: int, error: Exception) -> str:
    text = str(error).lower()
    if is_out_of_memory(error):
        return f"the memory of GPU {index} is full: end the other programs that use it"
    # A driver compiles the intermediate code (PTX) of its own or of an earlier version of CUDA only.
    unknown_code = "unsupported toolchain" in text or "cudaerrorunsupportedptxversion" in text
    if unknown_code or ("driver" in text and ("insufficient" in text or "too old" in text)):
        return f"the NVIDIA driver is too old for {library}: update the driver"
    if "ptx jit compil" in text:
        return (
            f"the NVIDIA driver cannot compile {library}'s code for {_describe(index)} ({first_line(error)}): unset "
            "CUDA_DISABLE_PTX_JIT, and install the driver's library libnvidia-ptxjitcompiler"
        )
    if "no kernel image" in text or "cudaerrornokernelimagefordevice" in text:
        if library == "torch":
            advice = (
                "install a build of torch for CUDA 12.6 for a GPU before Turing, and the newest torch for a new GPU"
            )
        else:
            advice = "install the newest CTranslate2 for a new GPU; a GPU before Pascal cannot be used"
        return f"{library} has no code for {_describe(index)}: {advice}"
    if "operation not supported" in text or "asynchronous allocation is not supported" in text:
        return (
            f"{_describe(index)} has no pools of memory, as some virtual GPUs: start the process with "
            "PYTORCH_CUDA_ALLOC_CONF=backend:native and CT2_CUDA_ALLOCATOR=cub_caching"
        )
    return f"{library} cannot run a kernel on {_describe(index)} ({first_line(error)})"


def _describe(index: int) -> str:
    import torch

    with contextlib.suppress(Exception):
        major, minor = torch.cuda.get_device_capability(index)
        return f"GPU {index}, {torch.cuda.get_device_name(index)} of compute capability {major}.{minor}"
    return f"GPU {index}"
