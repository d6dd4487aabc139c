"""How long jobs will take, learned from those that have run: seconds of work for a second of audio, by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from whisper_api.errors import StorageError
from whisper_api.jobs.running import ProgressSnapshot
from whisper_api.schema import Stage, Task, Transcript, TranscriptionOptions
from whisper_api.store.jobs import Job, JobStore, Rates

__all__ = ["Estimates", "stages_of"]

# Whisper hears half a minute at a time, so a shorter recording takes about as long as one of this length, seconds.
SHORTEST = 10.0
# Loading takes no time once the models are resident; and what it takes does not depend on the audio.
UNTIMED: frozenset[str] = frozenset({"queue", "load", "done"})
# These go through all of the audio, whether anybody speaks or not.
OF_ALL_AUDIO: frozenset[str] = frozenset({"decode", "vad"})
# These take another time for another task: a translation is other text and gets its word times in another way.
OF_TASK: frozenset[str] = frozenset({"asr", "align"})
# How long the estimates of a whole queue are used again, seconds.
FRESH_SECONDS = 1.0


def stages_of(options: TranscriptionOptions) -> tuple[Stage, ...]:
    """The stages that a job with these options goes through, in order."""
    stages: list[Stage] = ["decode", "load", "vad", "asr"]
    if options.task == "detect_language":
        return tuple(stages)
    if options.align:
        stages.append("align")
    if options.diarize is not False:
        stages.append("diarize")
    return tuple(stages)


@dataclass(frozen=True)
class _Plan:
    """What of a job decides how long it takes."""

    model: str
    task: Task
    stages: tuple[Stage, ...]
    audio_seconds: float | None


class Estimates:
    """Seconds until jobs end. Safe to use from any thread.

    Args:
        store: keeps what was learned.
        device: tells what jobs run on; asked when it is needed.
        model: tells the usual name of the model that a job will use.
        slots: how many jobs run at a time.
    """

    def __init__(
        self, store: JobStore, device: Callable[[], str], model: Callable[[TranscriptionOptions], str], slots: int
    ) -> None:
        self._store = store
        self._device = device
        self._model = model
        self._slots = slots
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._rates: dict[tuple[str, str, str], float] | None = None
        self._plans: dict[str, _Plan] = {}
        self._queue: tuple[float, dict[str, float | None]] = (-FRESH_SECONDS, {})

    def expect(self, job: Job) -> None:
        """Take a job into account that waits or runs."""
        with self._lock:
            self._plans[job.job_id] = _Plan(
                job.options.model or "", job.options.task, stages_of(job.options), job.audio_seconds
            )

    def forget(self, job_id: str) -> None:
        """A job has ended."""
        with self._lock:
            self._plans.pop(job_id, None)

    def rates_of(self, transcript: Transcript) -> Rates:
        """What a job took, for the store to learn from."""
        task = transcript.options.task
        rates = {
            _rate_name(stage, task): taken / _length(stage, task, transcript.duration)
            for stage, taken in transcript.timings.items()
            if stage not in UNTIMED and (stage in OF_ALL_AUDIO or _has_speech(transcript))
        }
        return Rates(transcript.model, self._device(), rates)

    def learned(self) -> None:
        """The store has learned something: it is looked at when the next estimate is asked for."""
        with self._lock:
            self._rates = None

    def of_running(self, job_id: str, live: ProgressSnapshot) -> float | None:
        """Seconds until a job that runs will end; None when that cannot be told."""
        stages = self._stages(job_id)
        return None if stages is None else _rest(stages, live)

    def of_queued(self, job_id: str, order: Iterable[str], running: Mapping[str, ProgressSnapshot]) -> float | None:
        """Seconds until a job that waits will end.

        Args:
            job_id: which.
            order: the jobs that wait, first to last.
            running: how far those are that run.

        Returns:
            The time of all that comes before it, divided by the slots, and its own; None when that cannot be told.
        """
        now = time.monotonic()
        with self._lock:
            made, known = self._queue
        if job_id not in known or now - made >= FRESH_SECONDS:
            known = self._of_queue(order, running)
            with self._lock:
                self._queue = (now, known)
        return known.get(job_id)

    def _of_queue(self, order: Iterable[str], running: Mapping[str, ProgressSnapshot]) -> dict[str, float | None]:
        before: float | None = 0.0
        for job_id, live in running.items():
            before = _sum(before, self.of_running(job_id, live))
        found: dict[str, float | None] = {}
        for job_id in order:
            stages = self._stages(job_id) if before is not None else None
            own = sum(stages.values()) if stages is not None else None
            found[job_id] = None if before is None or own is None else before / self._slots + own
            before = _sum(before, own)
        return found

    def _stages(self, job_id: str) -> dict[Stage, float] | None:
        """Stage to the seconds it will take; None when a number is missing."""
        with self._lock:
            plan, rates = self._plans.get(job_id), self._rates
        if plan is None or plan.audio_seconds is None:
            return None
        if rates is None:
            rates = self._load()
        if not rates:
            return None
        # Asked for only now, as what it asks may take long to import, and is at hand once a job has run.
        model, device = self._model(TranscriptionOptions(model=plan.model or None)), self._device()
        found: dict[Stage, float] = {}
        for stage in plan.stages:
            rate = 0.0 if stage in UNTIMED else rates.get((model, device, _rate_name(stage, plan.task)))
            if rate is None:
                return None
            found[stage] = rate * _length(stage, plan.task, plan.audio_seconds)
        return found

    def _load(self) -> dict[tuple[str, str, str], float]:
        try:
            rates = self._store.stage_rates()
        except StorageError:
            return {}
        with self._lock:
            if self._rates is None:
                self._rates = rates
            return self._rates


def _rate_name(stage: str, task: Task) -> str:
    """Under which name a stage is learned. What the task makes longer or shorter is learned for each task apart."""
    return f"{stage} ({task})" if stage in OF_TASK and task != "transcribe" else stage


def _length(stage: str, task: Task, audio_seconds: float) -> float:
    """Seconds of audio that a stage works on, about."""
    # To tell the language, the model hears a few windows, however long the audio is.
    if stage == "asr" and task == "detect_language":
        return SHORTEST
    return max(audio_seconds, SHORTEST)


def _has_speech(transcript: Transcript) -> bool:
    """Whether anybody speaks. Otherwise the models had nothing to do, and how fast they are was not seen."""
    return bool(transcript.segments or transcript.language_probabilities)


def _sum(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right


def _rest(stages: Mapping[Stage, float], live: ProgressSnapshot) -> float | None:
    """What is left of the running stage, and the stages after it."""
    order = list(stages)
    stage = live.progress.stage
    if stage == "done":
        return 0.0
    if stage not in order:
        return None
    at = order.index(stage)
    later = sum(stages[each] for each in order[at + 1 :])
    part = _part_of_stage(order, live)
    if part <= 0.0:
        return max(stages[stage] - live.stage_seconds, 0.0) + later
    # Between what was expected and what this job shows itself, which counts for more the further it is.
    whole = (1.0 - part) * stages[stage] + live.stage_seconds
    return (1.0 - part) * whole + later


def _part_of_stage(order: list[Stage], live: ProgressSnapshot) -> float:
    """How far the running stage is, from 0 to 1."""
    from whisper_api.engine.engine import WEIGHTS

    total = sum(WEIGHTS[each] for each in order)
    start = sum(WEIGHTS[each] for each in order[: order.index(live.progress.stage)]) / total
    share = WEIGHTS[live.progress.stage] / total
    return min(max((live.progress.fraction - start) / share, 0.0), 1.0)
