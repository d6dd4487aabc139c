"""One pool of GPU memory for torch and CTranslate2.

Each library has an allocator that takes memory from the CUDA driver's pool (``cudaMallocAsync``). With both, memory
that one library has freed serves the other, and as torch sets up the pool, the driver does not unmap freed memory at
every synchronisation. The libraries read these settings when they are loaded.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["share_device_memory"]

# What the driver makes on a machine with an NVIDIA GPU: on a server or PC, on a Jetson, in Windows' Linux.
DEVICE_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/nvhost-gpu", "/dev/dxg")
# torch 2.8 reads the first name, and later versions the second one too.
TORCH_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
CTRANSLATE2_NAME = "CT2_CUDA_ALLOCATOR"


def share_device_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch and CTranslate2 take memory from one pool where there may be a CUDA device.

    Settings of the user stay. Without effect after torch was imported.

    Args:
        environment: the variables of this process.
    """
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if hidden or not any(Path(file).exists() for file in DEVICE_FILES):
        return
    if not any(name in environment for name in TORCH_NAMES):
        environment[TORCH_NAMES[0]] = "backend:cudaMallocAsync"
    environment.setdefault(CTRANSLATE2_NAME, "cuda_malloc_async")
