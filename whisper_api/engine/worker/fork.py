"""Which process runs the models, and what becomes of them in a process that is forked from it.

Neither Python's threads nor the thread pools of torch, CTranslate2 and ONNX Runtime exist in a forked process: a call
that needs them waits for ever there. So does the end of the process, when these libraries' destructors wait for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

from whisper_api.errors import ForkedProcess

__all__ = ["check", "inherited", "keep_for_ever", "use_models"]

# The process that runs models; a forked process finds its parent's number here.
_user: int | None = None


def use_models() -> None:
    """Note that this process runs models.

    Raises:
        ForkedProcess: it was forked from a process that ran models.
    """
    global _user
    check()
    _user = os.getpid()


def check() -> None:
    """Refuse to go on where models cannot be run.

    Raises:
        ForkedProcess: this process was forked from one that ran models.
    """
    if inherited():
        raise ForkedProcess(
            f"models were used in process {_user} before it forked into this one ({os.getpid()}), and the threads that "
            "run models do not survive a fork: use an Engine for the first time after the fork (with Celery in the "
            "signal worker_process_init, with Gunicorn without --preload or in its hook post_fork), or start "
            "processes with multiprocessing's method 'spawn'"
        )


def inherited() -> bool:
    """Whether this process was forked from one that ran models."""
    return _user is not None and _user != os.getpid()


def keep_for_ever(model: object) -> None:
    """Let a model's destructor never run in this process: it would wait for threads that do not exist here."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(model))


def _skip_destructors() -> None:
    """Let a forked process end without the native libraries' destructors, which hang or crash without their threads.

    Python has ended in order before: only the handlers that C and C++ code has registered in the parent are skipped.
    """
    if inherited() and _at_exit is not None:
        _at_exit(_exit_now, None)


_at_exit = _exit_now = None
# glibc calls the handler with the exit status; the last one that is registered is called first.
with contextlib.suppress(OSError, TypeError, AttributeError):
    _libc = ctypes.CDLL(None)
    _at_exit, _exit_now = _libc.on_exit, _libc._exit  # noqa: SLF001 - C's name
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_skip_destructors)
