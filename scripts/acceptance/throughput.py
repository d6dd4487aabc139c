"""Throughput beside whisperx, which is resident in the same run: windows, an hour, clients, alignment."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import clients as http
from gpu_floor import ceiling, whisper_floor
from gpu_gauge import WINDOW, speech
from measuring import Resident, Sample, median, resident, served, take_turns
from measuring.speech import write_wav
from random_models import SHAPES

from acceptance import server
from acceptance.conditions import Conditions
from acceptance.rows import Findings
from acceptance.speed import POOL, TORCH_POOL

__all__ = ["align", "clients", "hour", "large", "turbo"]

OURS, WHISPERX = "whisper-api", "whisperx, resident"
IN_FLIGHT = 64
# The goals. Without a GPU, they are only shown.
TURBO_TIMES, HOUR_SECONDS, CLIENTS_TIMES, ALIGN_TIMES, WHISPERX_TIMES = 1500.0, 12.0, 6.0, 10.0, 3.0


def turbo(conditions: Conditions, findings: Findings) -> None:
    """Many windows of turbo."""
    _windows(conditions, findings, "large-v3-turbo", TURBO_TIMES)


def large(conditions: Conditions, findings: Findings) -> None:
    """Many windows of large-v3."""
    if conditions.tiny:
        findings.skip("windows of large-v3", "with the smallest shape it is the same as turbo")
        return
    _windows(conditions, findings, "large-v3", None)


def _windows(conditions: Conditions, findings: Findings, name: str, goal: float | None) -> None:
    (name,) = conditions.names(name)
    windows = conditions.size(round(max(1.0, 4 * conditions.share)) * IN_FLIGHT, 1)
    setting = _setting(conditions, name)
    with contextlib.ExitStack() as stack:
        # Two lanes take half of the windows each.
        ours = stack.enter_context(resident("gpu_sides:ours", batch=IN_FLIGHT // 2, windows=windows, **setting))
        theirs = stack.enter_context(_peer("whisperx", batch=IN_FLIGHT, windows=windows, **setting))
        samples = _turns(conditions, {OURS: ours.run, WHISPERX: theirs.run})
        # The default beam takes more steps of the search; the goal is about greedy decoding.
        beams = ours.run(beam=5)
    what = f"{windows} windows of {name}, {IN_FLIGHT} in flight, greedy"
    _times(findings, what, samples, windows * WINDOW, goal)
    findings.figure("the same with beam 5", windows * WINDOW / beams.wall, "x real time")
    best = ceiling(conditions.device, quick=conditions.tiny)
    floor = windows * whisper_floor(SHAPES[name], best, tokens=conditions.tokens, batch=IN_FLIGHT)
    findings.figure("of the floor", 100 * floor / _wall(samples, OURS), "%", note=f"({best})")


def hour(conditions: Conditions, findings: Findings) -> None:
    """An hour of telephone speech through all stages. whisperx does it without diarization, which needs an account."""
    (name,) = conditions.names("large-v3-turbo")
    seconds = float(conditions.size(3600, 8))
    conditions.all_models(name)
    setting = {**_setting(conditions, name), "seconds": seconds}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(resident("gpu_sides:ours_hour", batch=IN_FLIGHT // 2, **setting))
        theirs = stack.enter_context(_peer("whisperx_hour", batch=IN_FLIGHT, **setting))
        samples = _turns(conditions, {OURS: ours.run, WHISPERX: theirs.run})
    findings.figure(f"{seconds:.0f} s through all stages", _wall(samples, OURS), "s", at_most=HOUR_SECONDS)
    for stage, spent in samples[OURS][-1].values.items():
        if stage.endswith(" s"):
            findings.figure(f"of that, {stage.removesuffix(' s')}", spent, "s")
    _times(findings, "the same", samples, seconds, None)


def clients(conditions: Conditions, findings: Findings) -> None:
    """Clients with clips of 10 s over HTTP, at once and one after the other, and whisperx behind a lock."""
    (name,) = conditions.names("large-v3-turbo")
    count, seconds = conditions.size(32, 2), conditions.size(10, 2)
    models = conditions.all_models(name)
    setting = {**_setting(conditions, name), "clients": count, "seconds": seconds}
    settings: dict[str, Any] = {
        "WHISPER_MODEL": name,
        "WHISPER_DEVICE": conditions.device,
        "ENABLE_CONCURRENCY": True,
        "MAX_CONCURRENT_JOBS": count,
        # All clients are one caller for the server.
        "MAX_UPLOADS_PER_KEY": count,
        "MAX_UPLOADS_PER_ADDRESS": count,
    }
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        folder = Path(directory)
        clips = [write_wav(folder / f"{n}.wav", speech(seconds, start=n)) for n in range(count)]
        variables = server.variables(conditions.tokens, conditions.device)
        running = stack.enter_context(
            served(folder / "server", models, program=server.PROGRAM, variables=variables, **settings)
        )
        theirs = stack.enter_context(_peer("whisperx_clients", batch=IN_FLIGHT, **setting))
        http.settled(running.url)

        def send(clip: Path) -> None:
            with contextlib.closing(http.Client(running.url, clip, align=False, beam_size=1)) as client:
                client.transcribe()

        def run(at_once: int) -> Sample:
            found = Sample()
            with ThreadPoolExecutor(at_once) as pool:
                found.wall = _seconds(lambda: list(pool.map(send, clips)))
            return found

        sides = {"one at a time": lambda: run(1), OURS: lambda: run(count), WHISPERX: theirs.run}
        samples = _turns(conditions, sides)
    what = f"{count} clients with {seconds} s each over HTTP, at once"
    _times(findings, what, samples, count * float(seconds), None)
    ratio = _wall(samples, "one at a time") / _wall(samples, OURS)
    findings.figure(f"{what}, over one at a time", ratio, "times", at_least=CLIENTS_TIMES)


def align(conditions: Conditions, findings: Findings) -> None:
    """The alignment stage beside ``whisperx.align``: the same network, segments and words."""
    segments, seconds = conditions.size(128, 1), conditions.size(30, 6)
    (name,) = conditions.names("base")
    conditions.all_models(name)
    setting = {**_setting(conditions, name), "segments": segments, "seconds": float(seconds)}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(resident("gpu_sides:ours_align", batch=1, **setting))
        theirs = stack.enter_context(_peer("whisperx_align", batch=1, **setting))
        samples = _turns(conditions, {OURS: ours.run, WHISPERX: theirs.run})
    mine, other = (samples[side][-1].values["with times"] for side in (OURS, WHISPERX))
    findings.figure("words with times, here over whisperx", mine / max(1.0, other), at_least=0.95)
    _times(findings, f"{segments} segments of {seconds} s", samples, segments * float(seconds), None, ALIGN_TIMES)


def _setting(conditions: Conditions, name: str) -> dict[str, Any]:
    conditions.whisper_dir(name)
    return {
        "models": conditions.models,
        "whisper": name,
        "device": conditions.device,
        "compute_type": conditions.compute_type,
        "tokens": conditions.tokens,
        "beam": 1,
    }


def _peer(function: str, **setting: Any) -> AbstractContextManager[Resident]:
    # With torch's own allocator, as it runs without this project.
    return resident(f"gpu_sides:{function}", variables={POOL: TORCH_POOL}, **setting)


def _turns(conditions: Conditions, sides: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    # The first round loads code and finds batch sizes.
    return take_turns(sides, conditions.size(2, 1), discard=conditions.size(1, 0))


def _times(
    findings: Findings,
    what: str,
    samples: dict[str, list[Sample]],
    seconds: float,
    goal: float | None,
    over: float = WHISPERX_TIMES,
) -> None:
    """Record the speed of both sides, their ratio, and the memory that they took."""
    findings.figure(what, seconds / _wall(samples, OURS), "x real time", at_least=goal)
    findings.figure(WHISPERX, seconds / _wall(samples, WHISPERX), "x real time")
    ratio = _wall(samples, WHISPERX) / _wall(samples, OURS)
    findings.figure("over whisperx, resident", ratio, "times", at_least=over)
    for side, runs in samples.items():
        if (taken := median(runs, "GPU MB")) is not None:
            findings.figure(f"memory of the GPU, {side}", taken, "MB")


def _wall(samples: dict[str, list[Sample]], side: str) -> float:
    return median(samples[side], "wall") or float("nan")


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
