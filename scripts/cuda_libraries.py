"""Whether CTranslate2 will find what it needs on a GPU: it opens cuBLAS when it first multiplies, by name."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

__all__ = ["load_cuda_libraries"]

CUBLAS = "libcublas.so.12"


def load_cuda_libraries(device: str) -> None:
    """Load cuBLAS 12 into the process, so that CTranslate2 finds it.

    Args:
        device: nothing is needed for ``cpu``.

    Raises:
        SystemExit: it cannot be had; says what to do.
    """
    if device == "cpu" or _opens(CUBLAS):
        return
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or ()) if package else ():
        # Opened by path, a library is found by its name from then on.
        if _opens(str(Path(folder) / "cublas" / "lib" / CUBLAS)):
            return
    raise SystemExit(
        f"{CUBLAS} cannot be opened, and without it CTranslate2 cannot use the GPU. It comes with torch 2.8 from PyPI "
        "and with `pip install nvidia-cublas-cu12`; that of an installed CUDA 12 must lie where the loader looks "
        "(LD_LIBRARY_PATH, set before the program starts)."
    )


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
