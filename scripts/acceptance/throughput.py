"""Throughput beside whisperx, which is resident in the same run: windows, an hour, clients, alignment."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import clients as http
from gpu_floor import ceiling, whisper_floor
from gpu_gauge import WINDOW, speech
from measuring import Sample, median, resident, served, take_turns
from measuring.speech import write_wav
from random_models import SHAPES

from acceptance import server
from acceptance.conditions import Conditions
from acceptance.rows import Findings
from acceptance.speed import POOL, TORCH_POOL
from whisper_api.engine.worker.device import release_cached_memory

__all__ = ["align", "clients", "hour", "large", "turbo"]

OURS, WHISPERX = "whisper-api", "whisperx, resident"
IN_FLIGHT = 64
# Operations per second from which four batches are measured; a slower GPU gets fewer, to the same length of the run.
FAST = 250e12
# The peer takes its time, so it gets a part of the work. A longer run of the peer counts although it loads code.
QUICK_SECONDS = 20
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
    best = ceiling(conditions.device, quick=conditions.tiny)
    # Its matrices are freed, but this process would keep the memory.
    release_cached_memory()
    batches = 4 * conditions.share * min(1.0, best.flops / FAST)
    windows = conditions.size(max(1, round(batches)) * IN_FLIGHT, 1)
    setting = _setting(conditions, name)
    what = f"{windows} windows of {name}, {IN_FLIGHT} in flight, greedy"
    # Two lanes take half of the windows each.
    with resident("gpu_sides:ours", batch=IN_FLIGHT // 2, windows=windows, **setting) as ours:
        mine = _ours(conditions, findings, what, ours.run, windows * WINDOW, goal)
        floor = windows * whisper_floor(SHAPES[name], best, tokens=conditions.tokens, batch=IN_FLIGHT)
        findings.figure("of the floor", 100 * floor / _wall(mine), "%", note=f"({best})")
        # The default beam takes more steps of the search; the goal is about greedy decoding.
        beams = ours.run(beam=5)
        findings.figure("the same with beam 5", windows * WINDOW / beams.wall, "x real time")
    some = max(1, windows // 2)
    _against(conditions, findings, windows * WINDOW / _wall(mine), some * WINDOW, "whisperx", windows=some, **setting)


def hour(conditions: Conditions, findings: Findings) -> None:
    """An hour of telephone speech through all stages. whisperx does it without diarization, which needs an account."""
    (name,) = conditions.names("large-v3-turbo")
    seconds = float(conditions.size(3600, 8))
    conditions.all_models(name)
    setting = {**_setting(conditions, name), "seconds": seconds}
    with resident("gpu_sides:ours_hour", batch=IN_FLIGHT // 2, **setting) as ours:
        mine = _ours(conditions, findings, f"{seconds:.0f} s through all stages", ours.run, seconds, None)
    findings.figure("the same", _wall(mine), "s", at_most=HOUR_SECONDS)
    for stage, spent in mine[-1].values.items():
        if stage.endswith(" s"):
            findings.figure(f"of that, {stage.removesuffix(' s')}", spent, "s")
    setting["seconds"] = some = float(conditions.size(900, 8))
    _against(conditions, findings, seconds / _wall(mine), some, "whisperx_hour", **setting)


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
        http.settled(running.url)

        def send(clip: Path) -> None:
            with contextlib.closing(http.Client(running.url, clip, align=False, beam_size=1)) as client:
                client.transcribe()

        def run(at_once: int) -> Sample:
            found = Sample()
            with ThreadPoolExecutor(at_once) as pool:
                found.wall = _seconds(lambda: list(pool.map(send, clips)))
            return found

        what = f"{count} clients with {seconds} s each over HTTP, at once"
        mine = _ours(conditions, findings, what, lambda: run(count), count * float(seconds), None)
        findings.figure("over one at a time", run(1).wall / _wall(mine), "times", at_least=CLIENTS_TIMES)
    setting["clients"] = some = conditions.size(8, 1)
    speed = count * seconds / _wall(mine)
    _against(conditions, findings, speed, float(some * seconds), "whisperx_clients", **setting)


def align(conditions: Conditions, findings: Findings) -> None:
    """The alignment stage beside ``whisperx.align``: the same network, segments and words."""
    segments, seconds = conditions.size(48, 1), conditions.size(30, 6)
    (name,) = conditions.names("base")
    conditions.all_models(name)
    setting = {**_setting(conditions, name), "segments": segments, "seconds": float(seconds)}
    what = f"{segments} segments of {seconds} s"
    with resident("gpu_sides:ours_align", batch=1, **setting) as ours:
        mine = _ours(conditions, findings, what, ours.run, segments * float(seconds), None)
    setting["segments"] = some = conditions.size(12, 1)
    speed = segments * seconds / _wall(mine)
    other = _against(conditions, findings, speed, float(some * seconds), "whisperx_align", over=ALIGN_TIMES, **setting)
    if other is not None:
        timed, reference = (sample.values["with times"] / sample.values["words"] for sample in (mine[-1], other))
        findings.figure("part of the words with times, here over whisperx", timed / max(1e-9, reference), at_least=0.95)


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


def _ours(
    conditions: Conditions,
    findings: Findings,
    what: str,
    run: Callable[[], Sample],
    seconds: float,
    goal: float | None,
) -> list[Sample]:
    """Measure this side, and record its speed at once: the peer may outlast the time limit of the probe."""
    # The first run loads code and finds batch sizes.
    samples = take_turns({OURS: run}, conditions.size(2, 1), discard=conditions.size(1, 0))[OURS]
    findings.figure(what, seconds / _wall(samples), "x real time", at_least=goal)
    _memory(findings, OURS, samples)
    return samples


def _against(
    conditions: Conditions,
    findings: Findings,
    ours: float,
    audio: float,
    function: str,
    *,
    over: float = WHISPERX_TIMES,
    **setting: Any,
) -> Sample | None:
    """Measure the peer, and record its speed and the ratio. If it fails, batches may be too large for the memory.

    Args:
        conditions: of the probe.
        findings: take the rows.
        ours: the speed of this side, in times real time.
        audio: seconds of audio of a run of the peer.
        function: of ``gpu_sides``.
        over: the wanted ratio.
        setting: keyword arguments of the function.

    Returns:
        The measured run; None if there is none.
    """
    for batch in (IN_FLIGHT, IN_FLIGHT // 4):
        try:
            # With torch's own allocator, as it runs without this project.
            with resident(f"gpu_sides:{function}", variables={POOL: TORCH_POOL}, batch=batch, **setting) as theirs:
                found = theirs.run()
                if found.wall < conditions.size(QUICK_SECONDS, 0):
                    # That run loaded code.
                    found = theirs.run()
        except SystemExit as error:
            findings.skip(f"{WHISPERX}, batch {batch}", str(error))
            continue
        findings.figure(f"{WHISPERX}, batch {batch}", audio / found.wall, "x real time")
        findings.figure("over whisperx, resident", ours * found.wall / audio, "times", at_least=over)
        _memory(findings, WHISPERX, [found])
        return found
    return None


def _memory(findings: Findings, side: str, samples: list[Sample]) -> None:
    if (taken := median(samples, "GPU MB")) is not None:
        findings.figure(f"memory of the GPU, {side}", taken, "MB")


def _wall(samples: list[Sample]) -> float:
    return median(samples, "wall") or float("nan")


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
