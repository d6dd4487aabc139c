"""Processes that are forked from one that has the imports already, in place of new interpreters.

A new interpreter of the server, or of a measuring script and its peers, takes two to six seconds of processor time for
its imports, and the tests start more than two hundred. Everything after the imports is the same: each is a process of
its own, with its own directory, environment, signals and exit code. tests/test_serve_command.py and
tests/test_measuring.py start new interpreters.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

from with_parent import end_with_parent

__all__ = ["Forked", "run_script"]

CONTEXT = multiprocessing.get_context("forkserver")
# The modules that the processes would import, also late; each brings others along.
MODULES = (
    "whisper_api.cli.keys",
    "whisper_api.cli.serve",
    "whisper_api.jobs.local_executor",
    "whisper_api.jobs.service",
    "whisper_api.server.app",
    "whisper_api.server.connections",
    "faster_whisper",
    "onnxruntime",
    "torch",
)


class Forked:
    """A running process, with the methods of ``subprocess.Popen`` that the tests use.

    Args:
        program: called in the process without arguments; its return value is the exit code. A function of a module.
        arguments: ``sys.argv`` of the process.
        directory: its working directory.
        environment: all of its environment variables.
        stdout, stderr: files that get the output, after their content.
        modules: more modules to import before, if this is the first process.
    """

    def __init__(
        self,
        program: Callable[[], int],
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        stdout: Path,
        stderr: Path,
        modules: Sequence[str] = (),
    ) -> None:
        CONTEXT.set_forkserver_preload([*MODULES, *modules])
        # Some modules read the environment when they are imported.
        with mock.patch.dict(os.environ, environment, clear=True):
            forkserver.ensure_running()
        given = (program, list(arguments), directory, dict(environment), stdout, stderr)
        self._process = CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid or 0

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Wait until the process has ended.

        Returns:
            Its exit code; minus the signal's number when a signal ended it.

        Raises:
            subprocess.TimeoutExpired: the process still runs.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self._process.exitcode


def _run(
    program: Callable[[], int],
    arguments: list[str],
    directory: Path,
    environment: dict[str, str],
    stdout: Path,
    stderr: Path,
) -> None:
    threading.Thread(target=_end_with_tests, name="end with the tests", daemon=True).start()
    os.setsid()
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        with path.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), descriptor)
    _renew_streams()
    os.chdir(directory)
    _replace_environment(environment)
    sys.argv = arguments
    sys.exit(program())


def _end_with_tests() -> None:
    """Wait for the end of the process of the tests, and then end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _replace_environment(environment: Mapping[str, str]) -> None:
    # pyannote.audio sets variables when it is imported, and reads them later.
    imported = {name: value for name, value in os.environ.items() if name.startswith("PYANNOTE_")}
    os.environ.clear()
    os.environ.update({**imported, **environment})


def _renew_streams() -> None:
    """Forget what the streams of the parent have buffered."""
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - open until the process ends
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


# --- scripts and the processes that they start -----------------------------------------------------------------------


def run_script() -> int:
    """Run the script that ``sys.argv[0]`` names; the Python programs that it starts are forked from its process."""
    import torch

    # A process in which PyTorch has computed with several threads cannot be forked.
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    with mock.patch.object(subprocess, "Popen", Forking):
        runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


class Forking(subprocess.Popen[Any]):
    """Starts a Python program by a fork of this process, as long as no other thread of the script runs."""

    # In the processes that the script starts, libraries may have threads that Python does not know of.
    counts_tasks = False

    def __init__(self, args: Sequence[str], **options: Any) -> None:
        # A decoder process gets a descriptor, and starts fast.
        is_program = args[0] == sys.executable and not options.get("pass_fds")
        # OpenTelemetry, which pyannote brings along, has daemon threads that wait.
        threads = [thread for thread in threading.enumerate() if not thread.daemon]
        is_alone = threads == [threading.main_thread()] and not (self.counts_tasks and _has_native_threads())
        if is_program and is_alone:
            sys.stdout.flush()
            sys.stderr.flush()
            # Called in the new process, which has its streams and its directory already.
            options["preexec_fn"] = functools.partial(_become, args[1:], options.get("env"))
        super().__init__(args, **options)


def _has_native_threads() -> bool:
    """Whether this process has threads that Python has not started; true where the system does not say."""
    tasks = Path("/proc/self/task")
    return not tasks.exists() or len(list(tasks.iterdir())) > threading.active_count()


def _become(arguments: Sequence[str], environment: Mapping[str, str] | None) -> None:
    """Run Python with these arguments in this process, and end it."""
    end_with_parent(os.getppid())
    # One of these tells Popen of a failed start; closed, it tells of a good one.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    _renew_streams()
    if environment is not None:
        _replace_environment(environment)
    Forking.counts_tasks = True
    if torch := sys.modules.get("torch"):
        # Makes torch's pool of threads anew, which several threads cannot do at once.
        torch.set_num_threads(1)
    code: object = 0
    try:
        _interpret(*arguments)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _interpret(first: str, *rest: str) -> None:
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = [*rest]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")
