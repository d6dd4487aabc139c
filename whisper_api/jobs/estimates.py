"""Estimates of how long jobs take, learned from earlier jobs: seconds of work for a second of audio, by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from whisper_api.errors import StorageError
from whisper_api.jobs.running import ProgressSnapshot
from whisper_api.options import Task, TranscriptionOptions
from whisper_api.schema import Stage, Transcript
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job, Rates

# A window of Whisper is 30 seconds long, so a shorter recording takes about as long as one of this length, in seconds.
SHORTEST = 10.0
# Loading takes no time once the models are resident, and its time does not depend on the audio.
UNTIMED: frozenset[str] = frozenset({"queue", "load", "done"})
# These stages process all of the audio, with or without speech.
OF_ALL_AUDIO: frozenset[str] = frozenset({"decode", "vad"})
# The time of these stages depends on the task: a translation has other text, and other word times.
OF_TASK: frozenset[str] = frozenset({"asr", "align"})
# How many channels a recording has whose channels are to be separated, until it is decoded.
LIKELY_CHANNELS = 2
# The estimates of the whole queue are reused for this time.
FRESH_SECONDS = 1.0


@dataclass(frozen=True)
class _Plan:
    """The parts of a job that decide how long it takes."""

    model: str
    task: Task
    stages: tuple[Stage, ...]
    audio_seconds: float | None
    channels: int = 1


class Estimates:
    """Seconds until jobs end. Safe to use from any thread.

    Args:
        store: keeps the learned speeds.
        device: gives the device that jobs run on.
        model: gives the usual name of the model that a job uses.
        slots: how many jobs run at a time.
    """

    def __init__(
        self, store: JobStore, device: Callable[[], str], model: Callable[[TranscriptionOptions], str], slots: int
    ) -> None:
        self._store = store
        self._device = device
        self._model = model
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._slots = slots
        self._rates: dict[tuple[str, str, str], float] | None = None
        self._plans: dict[str, _Plan] = {}
        self._queue: tuple[float, dict[str, float | None]] = (-FRESH_SECONDS, {})

    def resize(self, slots: int) -> None:
        """Change how many jobs run at a time."""
        with self._lock:
            self._slots = max(slots, 1)

    def expect(self, job: Job) -> None:
        """Include a job that waits or runs."""
        from whisper_api.engine.plan import StagePlan

        with self._lock:
            stages = StagePlan.of(job.options).stages
            separate = job.options.channels == "separate" and job.options.task != "detect_language"
            self._plans[job.job_id] = _Plan(
                job.options.model or "",
                job.options.task,
                tuple(stage for stage in stages if not (separate and stage == "diarize")),
                job.audio_seconds,
                LIKELY_CHANNELS if separate else 1,
            )

    def forget(self, job_id: str) -> None:
        """Drop a job that has ended."""
        with self._lock:
            self._plans.pop(job_id, None)

    def rates_of(self, transcript: Transcript) -> Rates:
        """The speed of a job, for the store to learn from."""
        task = transcript.options.task
        channels = len(transcript.channels)
        rates = {
            _rate_name(stage, task): seconds / _length(stage, task, transcript.duration, channels or 1)
            for stage, seconds in transcript.timings.items()
            if stage not in UNTIMED and (stage in OF_ALL_AUDIO or _has_speech(transcript))
            # Separate channels are speakers without diarization.
            if not (channels and stage == "diarize")
        }
        return Rates(transcript.model, self._device(), rates)

    def learned(self) -> None:
        """Read the speeds from the store again for the next estimate."""
        with self._lock:
            self._rates = None

    def of_running(self, job_id: str, live: ProgressSnapshot) -> float | None:
        """Seconds until a running job ends; None when that is unknown.

        Args:
            job_id: id of the job.
            live: the progress of the job.
        """
        stages = self._stages(job_id)
        return None if stages is None else _rest(stages, live)

    def of_queued(self, job_id: str, order: Iterable[str], running: Mapping[str, ProgressSnapshot]) -> float | None:
        """Seconds until a waiting job ends.

        Args:
            job_id: id of the job.
            order: the waiting jobs, first to last.
            running: the progress of the running jobs.

        Returns:
            The time of all jobs before it, divided by the slots, plus its own; None when that is unknown.
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
        # Called last, because the first call imports heavy libraries; after a job has run, they are imported.
        model, device = self._model(TranscriptionOptions(model=plan.model or None)), self._device()
        found: dict[Stage, float] = {}
        for stage in plan.stages:
            rate = 0.0 if stage in UNTIMED else rates.get((model, device, _rate_name(stage, plan.task)))
            if rate is None:
                return None
            found[stage] = rate * _length(stage, plan.task, plan.audio_seconds, plan.channels)
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
    """The name under which a stage is learned; stages that depend on the task are learned for each task."""
    # Beside recognition, diarization counts only for the time that it takes longer.
    of_task = task != "transcribe" if stage in OF_TASK else task == stage
    return f"{stage} ({task})" if of_task else stage


def _length(stage: str, task: Task, audio_seconds: float, channels: int = 1) -> float:
    """About how many seconds of audio a stage processes, where people on separate channels take turns."""
    # Language detection encodes a few windows, however long the audio is.
    if stage == "asr" and task == "detect_language":
        return SHORTEST
    return max(audio_seconds, SHORTEST) * (channels if stage in OF_ALL_AUDIO else 1)


def _has_speech(transcript: Transcript) -> bool:
    """Whether there is speech. Without speech the models had no work, and their speed is unknown."""
    return bool(transcript.segments or transcript.language_probabilities or transcript.turns)


def _sum(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right


def _rest(stages: Mapping[Stage, float], live: ProgressSnapshot) -> float | None:
    """The rest of the running stage, plus the stages after it."""
    order = list(stages)
    stage = live.progress.stage
    if stage == "done":
        return 0.0
    if stage not in order:
        return None
    at = order.index(stage)
    later = sum(stages[each] for each in order[at + 1 :])
    part = live.progress.stage_fraction
    if part <= 0.0:
        return max(stages[stage] - live.stage_seconds, 0.0) + later
    # A mean of the expected time and this job's own speed, which counts for more the further the job is.
    whole = (1.0 - part) * stages[stage] + live.stage_seconds
    return (1.0 - part) * whole + later
