"""A device that fails, and several devices."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import clients
from fixed_tokens import Tally, our_tokens_fixed
from gpu_gauge import speech
from measuring import clip, served

from acceptance import server
from acceptance.conditions import Conditions
from acceptance.rows import Findings

__all__ = ["device_assert", "several_gpus"]

JOBS = 6
EXIT_SECONDS = 40.0


def device_assert(conditions: Conditions, findings: Findings) -> None:
    """A server whose device fails under its jobs: how it ends, and what the next one makes of the jobs."""
    from whisper_api.cli.serve import EXIT_DEVICE_LOST

    name = conditions.names("base")[0]
    conditions.whisper_dir(name)
    models, jobs = Path(conditions.models), conditions.size(JOBS, 2)
    settings: dict[str, Any] = {"WHISPER_MODEL": name, "WHISPER_DEVICE": conditions.device, "ENABLE_CONCURRENCY": True}
    # The first batches must be those of the jobs.
    settings["PRELOAD_MODELS"] = False
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        folder = Path(directory)
        hold, fail = folder / "hold", folder / "fail"
        program = server.variables(conditions.tokens, conditions.device, hold, fail)
        first = stack.enter_context(served(folder, models, program=server.PROGRAM, variables=program, **settings))
        hold.touch()
        fail.touch()
        sender = clients.Client(first.url, clip(folder, 4.0).path, align=False)
        for _ in range(jobs):
            sender.submit()
        hold.unlink()
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = first.process.wait(EXIT_SECONDS)
        sender.close()
        findings.fact(
            "exit code after a device-side assert", str(EXIT_DEVICE_LOST), str(code), code == EXIT_DEVICE_LOST
        )
        log = (folder / "server.log").read_text(errors="replace")
        told = next((line for line in log.splitlines() if "device is lost" in line), "nothing")
        findings.fact("its log says why", "device-side assert triggered", told[:200], "assert" in told)
        # Where C++ ends the process, running jobs are put back by the next one.
        found, states = _states(folder)
        waiting = sum(states.get(state, 0) for state in ("Queued", "Processing")) == jobs
        findings.fact("its jobs", f"{jobs} Queued, or Processing where C++ has ended the process", found, waiting)
        fail.unlink()
        second = stack.enter_context(served(folder, models, program=server.PROGRAM, variables=program, **settings))
        sender = clients.Client(second.url, clip(folder, 4.0).path, align=False)
        for job_id in _ids(folder):
            while sender.status(job_id, wait=clients.WAIT_SECONDS)["status"] in ("Queued", "Processing"):
                pass
        sender.close()
        found, states = _states(folder)
        findings.fact("the same jobs in a new process", f"{jobs} Completed", found, states == {"Completed": jobs})


def several_gpus(conditions: Conditions, findings: Findings) -> None:
    """Jobs on all GPUs at once: each GPU runs some, and they give what one GPU gives."""
    import ctranslate2

    from whisper_api import Engine, TranscriptionOptions
    from whisper_api.engine.worker.device import choose_devices

    count = ctranslate2.get_cuda_device_count() if conditions.is_gpu else 0
    if count < 2:
        findings.skip("two GPUs", f"this run has {count}")
        return
    # CTranslate2's streams belong to threads: the second thread that tries the GPUs finds all of them too.
    for number in (1, 2):
        with ThreadPoolExecutor(1) as pool:
            usable = pool.submit(choose_devices, "cuda:all").result()
        findings.fact(
            f"GPUs that can be used, tried by thread {number}", str(count), str(len(usable)), len(usable) == count
        )
    options = TranscriptionOptions(language="en", align=True, diarize=True, beam_size=1)
    audio = [speech(60.0, start=number) for number in range(4 * count)]
    models = conditions.all_models("base")
    with our_tokens_fixed(conditions.tokens, Tally()):
        with Engine(device=conditions.device, model="base", models_dir=models, offline=True) as engine:
            expected = [len(engine.transcribe(one, options).segments) for one in audio]
        with (
            Engine(device="cuda:all", model="base", models_dir=models, offline=True) as engine,
            ThreadPoolExecutor(len(audio)) as pool,
        ):
            found = [len(each.segments) for each in pool.map(lambda one: engine.transcribe(one, options), audio)]
            batches = {each.device: each.counts.batches for each in engine.statistics()}
    findings.fact("every GPU runs batches", f"{count} GPUs", str(batches), sum(map(bool, batches.values())) == count)
    findings.fact("segments", f"as on one GPU: {sum(expected)}", str(sum(found)), found == expected)


def _rows(folder: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(folder / "data" / "jobs.db")) as database:
        return [(str(job), str(state)) for job, state in database.execute("SELECT job_id, state FROM jobs")]


def _ids(folder: Path) -> list[str]:
    return [job for job, _ in _rows(folder)]


def _states(folder: Path) -> tuple[str, dict[str, int]]:
    """The number of jobs in each state, in words and as such."""
    states = dict(Counter(state for _, state in _rows(folder)))
    return ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none", states
