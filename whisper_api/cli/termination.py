"""Ends the process with a code of its own when a C++ library gives up because the GPU is lost.

CTranslate2 and torch free GPU memory in destructors. On a dead context, freeing throws, and an exception in a
destructor makes C++ call its terminate handler, which aborts the process, whatever Python does. Which comes first, this
abort or the report of the lost device, depends on the threads that run at the moment.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import sys

log = logging.getLogger(__name__)

# C++'s std::set_terminate(), which takes and returns a function without arguments.
SET_TERMINATE = "_ZSt13set_terminatePFvvE"
_Handler = ctypes.CFUNCTYPE(None)
# The handler must exist as long as the process.
_handlers: list[object] = []


def exit_when_lost(code: int) -> None:
    """Let the process end with this code when C++ terminates it and the GPU is lost.

    At the next start, the jobs go on as after a crash. If the GPU is not lost, C++ aborts the process as usual. Without
    effect where there is no GNU C++ library.

    Args:
        code: the exit code.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libstdc++.so.6")
        set_terminate = getattr(library, SET_TERMINATE)
        set_terminate.restype = ctypes.c_void_p

        def end() -> None:
            reason = _lost()
            if reason is not None:
                log.critical("the device is lost, and C++ ends the process: %s", reason)
                logging.shutdown()
                os._exit(code)
            if previous:
                _Handler(previous)()
            os.abort()

        handler = _Handler(end)
        _handlers.append(handler)
        previous = set_terminate(handler)
        # The interpreter is gone when the libraries' last destructors run.
        atexit.register(set_terminate, ctypes.c_void_p(previous))


def _lost() -> str | None:
    """What the GPUs say of themselves; None when none is lost."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return next(filter(None, map(_fault_of, range(torch.cuda.device_count()))), None)


def _fault_of(index: int) -> str | None:
    from whisper_api.engine.worker.device import Device
    from whisper_api.engine.worker.device_errors import first_line, kind_of

    try:
        Device("cuda", index).check()
    except Exception as error:
        return first_line(error) if kind_of(error) == "sticky" else None
    return None
