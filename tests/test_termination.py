"""A process whose C++ libraries give up because the GPU is lost ends with the code that says so."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from whisper_api.cli.serve import EXIT_DEVICE_LOST

PROGRAM = """
import ctypes, sys, threading, types
from whisper_api.cli.termination import exit_when_lost

loader, lost = sys.argv[1:]

def synchronize(index):
    if lost == "lost" and index == 1:
        raise RuntimeError("CUDA error: device-side assert triggered\\nCompile with ...")

cuda = types.SimpleNamespace(is_initialized=lambda: True, device_count=lambda: 2, synchronize=synchronize)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
exit_when_lost(75)
# With PyDLL, the thread holds the interpreter's lock, as a tensor's destructor does; CTranslate2's threads do not.
thread = threading.Thread(target=getattr(ctypes, loader)("libstdc++.so.6")._ZSt9terminatev)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU C++ library")
@pytest.mark.parametrize("loader", ["CDLL", "PyDLL"])
def test_a_termination_on_a_lost_gpu_has_the_exit_code_of_a_lost_gpu(loader: str) -> None:
    lost, other = (
        subprocess.run([sys.executable, "-c", PROGRAM, loader, state], capture_output=True, text=True, check=False)
        for state in ("lost", "well")
    )
    assert lost.returncode == EXIT_DEVICE_LOST
    assert "the device is lost, and C++ ends the process: CUDA error: device-side assert triggered" in lost.stderr
    # Any other termination ends the process as C++ does.
    assert other.returncode == -signal.SIGABRT
    assert "terminate called" in other.stderr
