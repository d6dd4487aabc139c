"""Starts programs that end with the process which started them, even when that one is killed.

A run of tests that is killed for want of memory would leave servers and clusters behind otherwise. Only Linux has this;
elsewhere the programs just run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["end_with_parent", "with_parent"]

PR_SET_PDEATHSIG = 1


def with_parent(*program: str) -> list[str]:
    """The command that starts a program which ends with this process, or with the thread that starts it."""
    return [sys.executable, __file__, str(os.getpid()), *program]


def end_with_parent(parent: int) -> None:
    """Let the system kill this process when its parent has ended (prctl(2), PR_SET_PDEATHSIG).

    Args:
        parent: number of the parent, which may have ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
