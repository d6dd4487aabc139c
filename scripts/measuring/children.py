"""Sides in child processes: resident processes that run one job after another, and programs that end."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from measuring.machine import megabytes, own_seconds, peak_memory, reset_peak
from measuring.sampling import Sample, Watch

SCRIPTS = Path(__file__).parent.parent


class Resident:
    """A child process with loaded models that runs one job after another. :func:`resident` creates it."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name
        self.start_seconds = 0.0
        """Wall seconds from the start of the process until it accepts jobs."""

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def run(self, **job: Any) -> Sample:
        """Run and measure a job.

        Args:
            job: keyword arguments of the side's function; JSON values.

        Returns:
            The sample. ``text`` and ``values`` of the function's dictionary become those of the sample, and ``kept``
            has the rest.

        Raises:
            SystemExit: the child failed; standard error has its traceback.
        """
        watch = Watch()
        answer = self.ask(job)
        result: dict[str, Any] = answer["result"] or {}
        found = Sample(answer["wall"], answer["cpu"], answer["peak_mb"], result.pop("values", {}))
        found.text = result.pop("text", None)
        found.kept = result
        watch.note(found)
        return found

    def ask(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """Send the child a job, or None to wait for its start, and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            if message is not None:
                print(json.dumps(message), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def resident(function: str, *, variables: dict[str, str] | None = None, **settings: Any) -> Iterator[Resident]:
    """Start a side in a child process, and end the process afterwards.

    Args:
        function: ``module:function`` in the folder of the scripts. ``function(**settings)`` loads the models and
            returns the function that runs a job.
        variables: environment variables in addition to those of this process.
        settings: keyword arguments of the function; JSON values.

    Yields:
        The side, ready for jobs.
    """
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", "from measuring.children import serve; serve()", function, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(**{"PYTHONPATH": _python_path(), **(variables or {})}),
    )
    side = Resident(process, function)
    try:
        side.ask(None)
        side.start_seconds = time.perf_counter() - begun
        yield side
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def environment(**more: str) -> dict[str, str]:
    """This process's environment variables, with a directory for bytecode, because installed programs have bytecode.

    The directory belongs to this user alone. Python runs the content of a bytecode cache, so the cache must not be in
    the shared temporary directory, where another user could create it first.

    Args:
        more: additional variables.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if "PYTHONPYCACHEPREFIX" not in kept:
        directory = user_cache_path("whisper-api", appauthor=False) / "bytecode"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept["PYTHONPYCACHEPREFIX"] = str(directory)
    return {**kept, **more}


def _python_path() -> str:
    found = os.environ.get("PYTHONPATH")
    return f"{SCRIPTS}{os.pathsep}{found}" if found else str(SCRIPTS)


def serve() -> None:
    """The main function of the child: load the models, then read and answer a JSON line for each job until EOF."""
    # Libraries may print, so standard output becomes standard error, and the answers use the original descriptor.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    job = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        reset_peak()
        before, begun = own_seconds(), time.perf_counter()
        result = job(**json.loads(line))
        wall, cpu = time.perf_counter() - begun, own_seconds() - before
        answer = {"wall": wall, "cpu": cpu, "peak_mb": peak_memory(), "result": result}
        print(json.dumps(answer), file=answers, flush=True)
    # The exit does not wait for threads of the libraries.
    os._exit(0)


def one_process(command: Sequence[str], *, variables: dict[str, str] | None = None) -> Sample:
    """Run a program to its end.

    Returns:
        The sample; it includes children that the program waited for. ``kept["first"]`` is the seconds until the first
        line of output, ``text`` is the whole output.

    Raises:
        SystemExit: the program failed; the message has the end of its standard error.
    """
    watch = Watch()
    begun = time.perf_counter()
    # A file, because a full pipe without a reader would block the program.
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=said, env=environment(**(variables or {}))
        ) as process,
    ):
        assert process.stdout is not None
        head = process.stdout.readline()
        first = time.perf_counter() - begun
        text = (head + process.stdout.read()).decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begun
        if process.returncode:
            said.seek(0)
            end = said.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{end}\nstatus {process.returncode} from {' '.join(command)[:300]}")
    found = Sample(wall, usage.ru_utime + usage.ru_stime, megabytes(usage), text=text, kept={"first": first})
    watch.note(found, ended=True)
    return found
