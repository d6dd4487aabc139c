"""What is done with jobs that ran when the process ended, and how it is told whether one of them was to blame.

A job is found Processing only when the process ended without putting it back. It gets another try, in its old place.
A job that brings the process down must not do so for ever, so what happened is counted, and a job with anything counted
runs alone: from then on it can only be blamed for itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import IO, Literal

import msgspec

from whisper_api.store.jobs import Job, JobStore

__all__ = ["FaultLog", "Recovered", "end_of_last_process", "note_kills", "note_start", "note_stop", "recover"]

log = logging.getLogger("whisper_api.jobs")

# How the last process ended: by a fault that a job may have caused, by one that none did, when it was told to, with the
# machine, or killed from outside.
End = Literal["crash", "elsewhere", "stop", "reboot", "kill"]

MAX_CRASHES = 2
# What kills a process from outside says little against the job that ran, and may do so again and again. But a job may
# also end the process without a trace.
MAX_INTERRUPTIONS = 12
# From so many on a job that was interrupted waits behind all others.
LAST_AFTER_INTERRUPTIONS = 2

FAULT_LOGS_KEPT = 3
STOPPING = "stopping"
BOOT_ID = "boot_id"
KILLS = "oom_kills"

_FRAME = re.compile(r'File ".*?/whisper_api/([^"]+)", line \d+ in ')
# Where the threads begin that run jobs.
JOB_THREADS = ("jobs/lifecycle.py", "jobs/worker.py")


class Recovered(msgspec.Struct, frozen=True):
    """What became of the jobs that had been running.

    Attributes:
        requeued: ids of those that wait again.
        failed: ids of those that were tried too often.
    """

    requeued: tuple[str, ...]
    failed: tuple[str, ...]


class FaultLog:
    """The file into which Python writes where each thread was, when a fault (SIGSEGV, SIGABRT ...) ends the process.

    Args:
        directory: where it is, beside those of former faults.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "fault.log"
        self._file: IO[str] | None = None
        self._enabled_before = False

    def last(self) -> str:
        """What the last process left; empty when no fault ended it."""
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def begin(self) -> None:
        """Put away what the last process left, and have this one's faults written."""
        try:
            if self._path.exists() and self._path.stat().st_size:
                moment = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
                self._path.rename(self._path.with_name(f"fault.{moment}.log"))
            kept = sorted(self._path.parent.glob("fault.*.log"))
            for old in kept[:-FAULT_LOGS_KEPT]:
                old.unlink(missing_ok=True)
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a")
        except OSError as error:
            log.warning("faults of this process cannot be written down: %s", error.strerror)
            return
        self._enabled_before = faulthandler.is_enabled()
        faulthandler.enable(self._file)

    def close(self) -> None:
        """Write no more faults there. Whoever had asked for them before gets them on standard error."""
        if self._file is None:
            return
        faulthandler.disable()
        if self._enabled_before and sys.__stderr__ is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                faulthandler.enable(sys.__stderr__)
        self._file.close()
        self._file = None


def end_of_last_process(store: JobStore, fault: str) -> End:
    """How the process ended that worked on this database before.

    Args:
        store: with what that process noted.
        fault: what it left in its :class:`FaultLog`.
    """
    if fault:
        return _culprit(fault)
    if store.fact(BOOT_ID) != _boot_id():
        return "reboot"
    # The kernel counts what it killed for memory on the whole machine; that this process was meant is likely enough.
    if _kills() > int(store.fact(KILLS) or 0):
        return "crash"
    return "stop" if store.fact(STOPPING) is not None else "kill"


def note_start(store: JobStore) -> None:
    """Note what the next process needs to know to tell how this one ended."""
    store.set_fact(BOOT_ID, _boot_id())
    store.set_fact(KILLS, str(_kills()))
    store.set_fact(STOPPING, None)


def note_kills(store: JobStore) -> None:
    """Bring up to date how many processes the kernel has killed: no evidence, then, against the job that runs next."""
    kills = str(_kills())
    if store.fact(KILLS) != kills:
        store.set_fact(KILLS, kills)


def note_stop(store: JobStore) -> None:
    """Note that this process was told to stop: what ends it from now on is nobody's fault."""
    store.set_fact(STOPPING, "1")


def recover(store: JobStore, end: End, now: float) -> Recovered:
    """Put the jobs back that were running.

    Killed in the middle, it can simply be repeated: each job is put back together with what is counted.

    Args:
        store: the jobs.
        end: how the process ended that ran them.
        now: seconds since 1970.
    """
    requeued, failed = [], []
    for job in store.in_state("Processing"):
        reason = _recover(store, job, end, now)
        if reason:
            failed.append(job.job_id)
            log.error("job failed: %s", reason, extra={"job_id": job.job_id})
        else:
            requeued.append(job.job_id)
            log.warning("job requeued", extra={"job_id": job.job_id, "end": end})
    return Recovered(tuple(requeued), tuple(failed))


def _recover(store: JobStore, job: Job, end: End, now: float) -> str:
    """Put one job back; else the reason why not."""
    if end not in ("crash", "kill"):
        store.requeue(job.job_id)
        return ""
    crashes = job.crashes + (end == "crash")
    interruptions = job.interruptions + (end == "kill")
    reason = ""
    if crashes >= MAX_CRASHES:
        reason = f"the server went down {_times(crashes)} while this job ran: it is not tried again"
    elif interruptions >= MAX_INTERRUPTIONS:
        reason = f"the server was ended {_times(interruptions)} while this job ran: it is not tried again"
    if reason:
        store.fail(job.job_id, "", reason, now)
    else:
        store.requeue(
            job.job_id,
            crashes=int(end == "crash"),
            interruptions=int(end == "kill"),
            last=end == "kill" and interruptions >= LAST_AFTER_INTERRUPTIONS,
        )
    return reason


def _times(count: int) -> str:
    return {2: "twice", 3: "three times"}.get(count, f"{count} times")


def _culprit(fault: str) -> End:
    """Whether a fault happened in the work on a job.

    Args:
        fault: what :mod:`faulthandler` wrote: for each thread the files and functions it was in, innermost first.
    """
    threads = [text.splitlines() for text in fault.split("\n\n")]
    current = next((lines for lines in threads if lines[0].startswith("Current thread")), None)
    if current is not None:
        # What an upload brings down before it is accepted (a look at the file, a sample of a speaker's voice), or a
        # model while it is loaded, is no running job's fault.
        return "crash" if _works_on_jobs(current) else "elsewhere"
    # It was a thread of a native library, of which Python knows nothing. Models have such threads, and so the job is to
    # blame; unless audio was also decoded for a request at that moment, which leaves no more than a suspicion.
    return "kill" if any(_decodes_for_request(lines) for lines in threads) else "crash"


def _works_on_jobs(frames: list[str]) -> bool:
    """Whether a thread is one that runs jobs, or one in which the engine runs models for them."""
    module = _outermost_module(frames)
    return module.startswith("engine/") or module in JOB_THREADS


def _decodes_for_request(frames: list[str]) -> bool:
    decodes = any("/whisper_api/engine/" in frame for frame in frames)
    return decodes and _outermost_module(frames).startswith("server/")


def _outermost_module(frames: list[str]) -> str:
    """The module of this package in which a thread began, as a path inside the package; empty when there is none."""
    found = [match[1] for frame in frames if (match := _FRAME.search(frame.replace("\\", "/")))]
    return found[-1] if found else ""


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _kills() -> int:
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
