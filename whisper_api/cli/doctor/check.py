"""A check of ``whisper-api doctor``, and the remedy when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

State = Literal["ok", "missing", "warning", "failed"]

# Words in the text of an error to the remedy.
REMEDIES = {
    "cublas": "pip install nvidia-cublas-cu12, and put its lib directory on LD_LIBRARY_PATH (CUDA 12 is needed)",
    "cudnn": "pip install nvidia-cudnn-cu12, and put its lib directory on LD_LIBRARY_PATH (cuDNN 9 is needed)",
    "driver version is insufficient": "install a newer NVIDIA driver: this one is too old for CUDA 12",
    "no kernel image": "the installed build does not support this GPU: set WHISPER_DEVICE=cpu",
    "out of memory": "other programs use the device's memory, or the model is too large for it",
    "no module named": "install the missing package with pip",
}


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of one check.

    Attributes:
        name: name of the check.
        state: ``ok``, ``missing`` (not installed, which may be intended), ``warning`` (works now, but not for long) or
            ``failed``.
        detail: the finding, in a line.
        remedy: what the user can do; None when nothing is to be done.
    """

    name: str
    state: State
    detail: str
    remedy: str | None = None


def attempt(name: str, look: Callable[[], Check | str]) -> Check:
    """Run a check, and return its error as a failed check.

    Args:
        name: name of the check.
        look: returns the check, or the detail of a check that is ok.
    """
    try:
        found = look()
    except Exception as error:
        return failure(name, error)
    return found if isinstance(found, Check) else Check(name, "ok", found)


def failure(name: str, error: Exception) -> Check:
    """A failed check with the remedy for its error.

    Args:
        name: name of the check.
        error: the error of the check.
    """
    text = " ".join(str(error).split())
    remedy = next((help for words, help in REMEDIES.items() if words in text.lower()), None)
    return Check(name, "failed", f"{type(error).__name__}: {text}", remedy)
