"""The executor that runs jobs on the engines of a Ray cluster."""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from whisper_api.cluster import messages
from whisper_api.cluster.actor import revisions
from whisper_api.cluster.job_call import BEAT_SECONDS, LOOK_SECONDS, until_end
from whisper_api.cluster.placement import parse_resources
from whisper_api.cluster.process import DriverProcess
from whisper_api.cluster.security import check_address
from whisper_api.errors import Canceled, EngineClosed, ModelUnavailable
from whisper_api.jobs.executor import EngineCount, ExecutorFacts, OnMissingModel, OnPartial, OnProgress
from whisper_api.jobs.local_executor import LocalExecutor
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress, Transcript
from whisper_api.store.rows import Job

if TYPE_CHECKING:
    from whisper_api.config import Config
    from whisper_api.engine.worker.statistics import DeviceStatistics
    from whisper_api.voices import VoiceEmbedding

log = logging.getLogger("whisper_api.cluster")

# What runs in each actor, by module and class.
LOCAL_ENGINE = "whisper_api.jobs.local_executor:LocalExecutor"
# For an answer before a job is accepted; an engine that is too busy to answer refuses nothing.
ANSWER_SECONDS = 5.0
# That an engine has all models of a job, and would run it, holds for the next jobs of its kind for this time.
HOLDS_SECONDS = 5.0
MOST_ANSWERS = 1000
# About the rate of compressed speech, for a job of unknown length.
BYTES_PER_SECOND = 16_000


class RayExecutor:
    """Runs jobs on engines that a driver process keeps on the machines of a cluster.

    Args:
        config: the configuration; the engines have the same, with the directories and the token of their machines.
        engine: module and class of the executor inside each actor.

    Raises:
        ConfigError: Ray is not installed, or the cluster may not be used without a token.
    """

    isolates = True

    def __init__(self, config: Config, engine: str = LOCAL_ENGINE) -> None:
        check_address(config.ray_address)
        # Knows names and the front's own models. It never makes an engine.
        self._names = LocalExecutor(config)
        workers = None if config.cluster_workers == "auto" else config.cluster_workers
        setup = messages.Setup(
            address=config.ray_address,
            config=pickle.dumps(config),
            engine=engine,
            workers=workers,
            resources=parse_resources(config.worker_resources),
            jobs_per_engine=config.max_concurrent_jobs if config.enable_concurrency else 1,
            revisions=revisions(config.models_dir, config.model),
        )
        self._workers = workers or 1
        self._configured_device = config.device
        self._driver = DriverProcess(setup, self._on_state)
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._state = messages.ClusterState()
        self._callbacks: list[Callable[[int], None]] = []
        self._running = 0
        self._told = ""
        self._closed = False
        self._content: dict[tuple[str, bytes], float] = {}

    @property
    def device(self) -> str:
        """The device of an engine, once one is ready."""
        return self._now().device or self._configured_device

    @property
    def activity(self) -> str:
        """What an engine does besides jobs."""
        return self._now().activity

    def engines(self) -> EngineCount:
        """The engines that take jobs, and how many are wanted."""
        state = self._now()
        return EngineCount(running=_ready(state), wanted=max(state.wanted, self._workers), reason=state.reason)

    def on_engines(self, callback: Callable[[int], None]) -> None:
        """Call the function with 0, and again as engines come and go."""
        with self._changed:
            self._callbacks.append(callback)
            running = self._running
        callback(running)

    def facts(self) -> ExecutorFacts:
        """The engines, and the device and the model of one that is ready."""
        from whisper_api.engine.worker.statistics import DeviceStatistics

        state = self._now()
        statistics: list[DeviceStatistics] = msgspec.convert(list(state.statistics), list[DeviceStatistics])
        return ExecutorFacts(
            device=self.device,
            model=self.model_name(TranscriptionOptions()),
            compute_type=state.compute_type or "auto",
            resident_models=sum(len(each.resident_models) for each in state.engines),
            resident_bytes=sum(each.resident_bytes for each in state.engines),
            models=tuple(sorted({name for each in state.engines for name in each.resident_models})),
            devices=tuple(statistics),
            engines=state.engines,
        )

    def model_name(self, options: TranscriptionOptions) -> str:
        """The catalogue's name of the model; ``auto`` is what it is on the engines."""
        model = self._now().model
        return model if model and self._names.is_default(options) else self._names.model_name(options)

    def preload(self) -> None:
        """Wait until an engine has tried to load its models."""
        self._driver.start()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._running > 0)
            if self._closed:
                raise EngineClosed("the executor is closed")
            failure = self._state.failure
        if failure:
            raise ModelUnavailable(failure)

    def warm_up(self) -> None:
        """Nothing: each engine does it by itself."""

    def check(self, options: TranscriptionOptions, hf_token: str | None) -> None:
        """Let an engine refuse a job. Without an engine, only names are checked."""
        self._names.check_name(options)
        self._until_content("check", options, hf_token)

    def named_by_configuration(self, options: TranscriptionOptions) -> bool:
        """Whether ``WHISPER_MODEL`` or an alias names the model of the job."""
        return self._names.named_by_configuration(options)

    def missing_models(self, options: TranscriptionOptions, hf_token: str | None) -> tuple[str, ...]:
        """The models to download before the job runs, on the engine that lacks least."""
        answers = self._until_content("missing_models", options, hf_token)
        return min((tuple(answer) for answer in answers), key=len, default=())

    def download_model(self, name: str, cancel: threading.Event, hf_token: str | None) -> None:
        """Download a model on every engine that lacks it."""
        if not self._ask("download_model", (name, hf_token), of="every", cancel=cancel):
            raise ModelUnavailable(f"{name}: no engine of the cluster runs now")

    def enroll(self, recordings: Sequence[bytes]) -> VoiceEmbedding:
        """Compute a voice on an engine."""
        answers = self._ask("enroll", (tuple(recordings),))
        if not answers:
            raise EngineClosed("no engine of the cluster runs now: try again later")
        voice: VoiceEmbedding = answers[0]
        return voice

    def run(
        self,
        job: Job,
        audio: Path,
        *,
        on_progress: OnProgress,
        on_partial: OnPartial,
        on_missing_model: OnMissingModel,
        cancel: threading.Event,
        voices: Mapping[str, VoiceEmbedding] | None = None,
    ) -> Transcript:
        """Run a job on an engine. Waits for an engine, and for the cluster, when there is none."""
        names = ("audio", *(f"speaker-{number}" for number in range(len(job.known_speakers))))
        encoded, known = msgspec.msgpack.encode(job), msgspec.msgpack.encode(voices or {})
        length = job.audio_seconds or job.audio_bytes / BYTES_PER_SECOND

        def request(call: int) -> messages.RunJob:
            return messages.RunJob(
                call=call,
                job=encoded,
                files={name: str(audio.with_name(name).absolute()) for name in names},
                voices=known,
                audio_seconds=length,
                model=self.model_name(job.options) if job.options.task != "diarize" else "",
                needs=_needs(job.options, job.hf_token),
                alone=job.attempts > 0,
            )

        while True:
            call = self._driver.open(request)
            try:
                found = until_end(self._driver, call, cancel, on_progress, on_partial, on_missing_model)
            finally:
                self._driver.end(call)
            if found is not None:
                return found
            # The driver has ended before the job had begun.
            self._wait_for_cluster(cancel, on_progress)

    def close(self) -> None:
        """End the driver process, and with it the engines."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._driver.close()
        self._names.close()

    def _now(self) -> messages.ClusterState:
        with self._changed:
            return self._state

    def _on_state(self, state: messages.ClusterState) -> None:
        with self._changed:
            if not state.connected:
                # Engines do not change their device and model while the cluster is away.
                before = self._state
                kept = {"device": before.device, "model": before.model, "compute_type": before.compute_type}
                state = replace(state, wanted=max(state.wanted, before.wanted), **kept)
            before_running, self._state, self._running = self._running, state, _ready(state)
            changed = before_running != self._running
            # Why no engine runs is logged once, also when none has ever run.
            told = changed or (not self._running and state.reason not in ("", self._told))
            self._told = state.reason
            callbacks = list(self._callbacks)
            running = self._running
            if changed:
                self._content.clear()
            self._changed.notify_all()
        if told and not self._closed:
            log.log(
                logging.INFO if running >= max(state.wanted, 1) else logging.WARNING,
                "engines",
                extra={"running": running, "wanted": state.wanted, "reason": state.reason or None},
            )
        if changed and not self._closed:
            for callback in callbacks:
                callback(running)

    def _wait_for_cluster(self, cancel: threading.Event, on_progress: OnProgress) -> None:
        beat = time.monotonic()
        with self._changed:
            while not self._running and not cancel.is_set():
                if self._closed:
                    raise EngineClosed("the executor was closed")
                self._changed.wait(LOOK_SECONDS)
                if time.monotonic() - beat > BEAT_SECONDS:
                    beat = time.monotonic()
                    on_progress(Progress(0.0, "load"))
        if cancel.is_set():
            raise Canceled("the job was canceled")

    def _until_content(self, method: str, options: TranscriptionOptions, hf_token: str | None) -> list[Any]:
        """Ask engines about a kind of jobs, unless one has just answered that nothing is in the way."""
        key = method, pickle.dumps((options, hf_token))
        with self._changed:
            if self._content.get(key, 0.0) > time.monotonic():
                return []
        of = "one" if method == "check" else "content"
        answers = self._ask(method, (options, hf_token), of=of, needs=_needs(options, hf_token), seconds=ANSWER_SECONDS)
        if answers and not all(answers):
            with self._changed:
                if len(self._content) > MOST_ANSWERS:
                    self._content.clear()
                self._content[key] = time.monotonic() + HOLDS_SECONDS
        return answers

    def _ask(
        self,
        method: str,
        arguments: tuple[Any, ...],
        *,
        of: str = "one",
        needs: str = "",
        cancel: threading.Event | None = None,
        seconds: float | None = None,
    ) -> list[Any]:
        """The answers of engines; none when no engine runs, or none answers in time."""
        content = pickle.dumps(arguments)
        call = self._driver.open(lambda number: messages.Ask(number, method, content, of, needs))
        deadline = time.monotonic() + (seconds if seconds is not None else float("inf"))
        asked = False
        try:
            while time.monotonic() < deadline:
                frame = call.next(LOOK_SECONDS)
                if cancel is not None and cancel.is_set() and not asked:
                    asked = self._driver.send(messages.Cancel(call.number))
                match frame:
                    case (messages.ANSWER, payload):
                        return [pickle.loads(answer) for answer in msgspec.msgpack.decode(payload, type=list[bytes])]
                    case (messages.RAISED, payload):
                        raise messages.decode_error(payload)
                    case (messages.GONE, _):
                        return []
            return []
        finally:
            self._driver.end(call)


def _ready(state: messages.ClusterState) -> int:
    return sum(each.state == "ready" for each in state.engines)


def _needs(options: TranscriptionOptions, hf_token: str | None) -> str:
    """What decides which models a job needs, in short; without a text of the job."""
    parts = (options.model, options.task, options.language, options.align, options.diarize, bool(hf_token))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
