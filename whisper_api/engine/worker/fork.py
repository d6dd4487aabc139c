"""Remembers the process that runs models, and makes models harmless in its forked processes.

Neither Python's threads nor the thread pools of torch, CTranslate2 and ONNX Runtime exist in a forked process. A call
that needs these threads hangs there, and so does the end of the process when the libraries' destructors wait for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

from whisper_api.errors import ForkedProcess

# Id of the process that runs models; a forked process inherits its parent's id.
_user: int | None = None


def use_models() -> None:
    """Record that this process runs models.

    Raises:
        ForkedProcess: a parent of this process ran models before the fork.
    """
    global _user
    check()
    _user = os.getpid()


def check() -> None:
    """Refuse to run models in a forked process.

    Raises:
        ForkedProcess: a parent of this process ran models before the fork.
    """
    if inherited():
        raise ForkedProcess(
            f"models were used in process {_user} before it forked into this one ({os.getpid()}), and the threads that "
            "run models do not survive a fork: use an Engine for the first time after the fork (with Celery in the "
            "signal worker_process_init, with Gunicorn without --preload or in its hook post_fork), or start "
            "processes with multiprocessing's method 'spawn'"
        )


def inherited() -> bool:
    """Whether a parent of this process ran models before the fork."""
    return _user is not None and _user != os.getpid()


def keep_for_ever(model: object) -> None:
    """Prevent a model's destructor in this process, where it would wait for threads that do not exist."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(model))


def _skip_destructors() -> None:
    """Make a forked process skip the native libraries' destructors, which hang or crash without their threads.

    Python itself still ends in order: only the exit handlers that C and C++ code registered in the parent are skipped.
    """
    if inherited() and _at_exit is not None:
        _at_exit(_exit_now, None)


_at_exit = _exit_now = None
# glibc calls a handler with the exit status, and calls the handler that was registered last first.
with contextlib.suppress(OSError, TypeError, AttributeError):
    _libc = ctypes.CDLL(None)
    _at_exit, _exit_now = _libc.on_exit, _libc._exit  # noqa: SLF001 - C's name
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_skip_destructors)
