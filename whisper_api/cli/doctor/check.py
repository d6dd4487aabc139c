"""One thing that ``whisper-api doctor`` looks at, and what helps when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

__all__ = ["Check", "State", "attempt", "failure"]

State = Literal["ok", "missing", "failed"]

# What the text of an error holds, and what helps.
REMEDIES = {
    "cublas": "pip install nvidia-cublas-cu12, and put its lib directory on LD_LIBRARY_PATH (CUDA 12 is needed)",
    "cudnn": "pip install nvidia-cudnn-cu12, and put its lib directory on LD_LIBRARY_PATH (cuDNN 9 is needed)",
    "driver version is insufficient": "install a newer NVIDIA driver: this one is too old for CUDA 12",
    "no kernel image": "the installed build does not support this GPU: set WHISPER_DEVICE=cpu",
    "out of memory": "other programs use the device's memory, or the model is too large for it",
    "no module named": "install the missing package with pip",
}


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at.

    Attributes:
        name: what.
        state: ``ok``, ``missing`` (not installed, which may be as intended) or ``failed``.
        detail: what was found, in a line.
        remedy: what to do about it, when something is to be done.
    """

    name: str
    state: State
    detail: str
    remedy: str | None = None


def attempt(name: str, look: Callable[[], Check | str]) -> Check:
    """Look at something; what goes wrong is what was found."""
    try:
        found = look()
    except Exception as error:
        return failure(name, error)
    return found if isinstance(found, Check) else Check(name, "ok", found)


def failure(name: str, error: Exception) -> Check:
    """A check that ended with an error, and what to do about that."""
    text = " ".join(str(error).split())
    remedy = next((help for words, help in REMEDIES.items() if words in text.lower()), None)
    return Check(name, "failed", f"{type(error).__name__}: {text}", remedy)
