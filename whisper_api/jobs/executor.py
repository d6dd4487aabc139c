"""The interface of what runs jobs. :mod:`whisper_api.jobs.local_executor` has the implementation for one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from whisper_api.options import TranscriptionOptions
from whisper_api.schema import PartialSegments, Progress, Transcript
from whisper_api.store.rows import Job
from whisper_api.voices import VoiceEmbedding

if TYPE_CHECKING:
    from whisper_api.engine.worker.statistics import DeviceStatistics

OnProgress = Callable[[Progress], None]
OnPartial = Callable[[PartialSegments], None]
OnMissingModel = Callable[[str], None]


class EngineCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many engines run jobs.

    Attributes:
        running: number of engines that take jobs now.
        wanted: number of engines that the configuration and the machines ask for.
        reason: why fewer run than are wanted, in a sentence; empty while they start.
    """

    running: int
    wanted: int
    reason: str = ""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One engine of a cluster.

    Attributes:
        name: name of the engine.
        node: name of the machine that it runs on.
        state: ``starting`` loads models; ``ready`` takes jobs; ``draining`` ends its jobs and takes no others;
            ``refused`` cannot be used, for the reason; ``lost`` has ended and is started again.
        reason: a sentence about the state; empty when there is nothing to say.
        device: ``cpu``, ``cuda:0`` ...
        version: version of the package on the machine.
        running_jobs: number of jobs that it runs.
        queued_audio_seconds: seconds of audio of these jobs that remain.
        resident_models: names of the models in memory.
        resident_bytes: approximate size of these models.
        audio_seconds: seconds of audio of the jobs that it has completed.
        audio_seconds_per_second: the same for each second of the last minutes.
    """

    name: str
    node: str
    state: Literal["starting", "ready", "draining", "refused", "lost"]
    reason: str = ""
    device: str = ""
    version: str = ""
    running_jobs: int = 0
    queued_audio_seconds: float = 0.0
    resident_models: tuple[str, ...] = ()
    resident_bytes: int = 0
    audio_seconds: float = 0.0
    audio_seconds_per_second: float = 0.0


class ExecutorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A description of an executor, for status pages and logs.

    Attributes:
        device: ``cpu``, ``cuda:0`` ...
        model: the Whisper model of jobs that name no model.
        compute_type: CTranslate2's name of the type; ``auto`` while no model is loaded.
        resident_models: number of models in memory.
        resident_bytes: approximate size of these models.
        models: names of the models in memory, as far as their files have one.
        devices: what each device has done; empty while there is no engine.
        engines: the engines of a cluster; empty for an engine in this process.
    """

    device: str
    model: str
    compute_type: str
    resident_models: int = 0
    resident_bytes: int = 0
    models: tuple[str, ...] = ()
    devices: tuple[DeviceStatistics, ...] = ()
    engines: tuple[EngineFacts, ...] = ()


class Executor(Protocol):
    """Runs jobs. Any thread may call any method, and several threads may call ``run`` at the same time."""

    @property
    def device(self) -> str:
        """The device of jobs: ``cpu``, ``cuda:0`` ... The first read may take seconds: never on an event loop."""

    @property
    def activity(self) -> str:
        """A few words on the executor's other work, such as a download; empty when there is none."""

    @property
    def isolates(self) -> bool:
        """Whether :meth:`run` itself keeps a job that is tried again apart from other jobs."""

    def engines(self) -> EngineCount:
        """How many engines run jobs. Returns at once."""

    def on_engines(self, callback: Callable[[int], None]) -> None:
        """Call a function with the number of running engines: now, and in any thread whenever the number changes."""

    def facts(self) -> ExecutorFacts:
        """The description of this executor."""

    def model_name(self, options: TranscriptionOptions) -> str:
        """The name, after aliases, of the Whisper model that a job with these options uses."""

    def preload(self) -> None:
        """Load the models that every job needs. May be called again after an error.

        Raises:
            WhisperApiError: no job can run now.
        """

    def warm_up(self) -> None:
        """After :meth:`preload`, load the models that only some jobs need. Jobs may run meanwhile.

        Raises:
            WhisperApiError: a model could not be loaded. A job that needs the model loads it again.
        """

    def check(self, options: TranscriptionOptions, hf_token: str | None) -> None:
        """Refuse a job that cannot run, before the server accepts it. Reads directories only, loads nothing.

        Args:
            options: the job's options.
            hf_token: the job's token; None for the configured token.

        Raises:
            UnknownModel: the server does not serve the named model.
            ModelUnavailable: ``diarize`` is true and no diarization model is available, or the Whisper model must be
                downloaded and the disk has no room for it.
            ExtraMissing: ``redact`` needs libraries that are not installed.
        """

    def named_by_configuration(self, options: TranscriptionOptions) -> bool:
        """Whether the configuration itself names the model of a job with these options."""

    def missing_models(self, options: TranscriptionOptions, hf_token: str | None) -> tuple[str, ...]:
        """The models that a job needs and that are not on this machine. Reads directories only.

        Args:
            options: the job's options.
            hf_token: the job's token, for models that need an account; None for the configured token.

        Returns:
            The names: first the required Whisper model, then the optional models. The alignment model of a language
            that must be detected first is not included: :meth:`run` reports that model.
        """

    def download_model(self, name: str, cancel: threading.Event, hf_token: str | None) -> None:
        """Download a model.

        Args:
            name: a name from :meth:`missing_models` or from ``on_missing_model`` of :meth:`run`.
            cancel: another thread sets this event to stop the download.
            hf_token: the token of the job that needs the model; None for the configured token.

        Raises:
            ModelUnavailable, ModelCorrupt: the download failed, or its files are wrong.
            Canceled: ``cancel`` was set.
        """

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
        """Run one job to its end. Downloads nothing.

        Args:
            job: the job to run.
            audio: the job's upload; the recordings of its known speakers are in the same directory.
            on_progress: receives the job's progress, in this thread or another.
            on_partial: receives each part of the text as soon as it is recognised, in this thread.
            on_missing_model: receives the name of a model that could be downloaded. An exception from it ends the job;
                when it returns, the job runs without the model.
            cancel: another thread sets this event to stop the job within one work item.
            voices: name to voice of the people whom the job looks for besides those whose recordings it has.

        Returns:
            The transcript.

        Raises:
            Canceled: ``cancel`` was set.
            DeviceLost: the device has failed. No later call in this process can run a job.
            EngineClosed: the executor was closed, or its engine failed. After a failure, the next call gets a new
                engine.
            EngineLost: the engine's process or machine ended under the job. Other engines may run it again.
            Exception: any other error of the job.
        """

    def enroll(self, recordings: Sequence[bytes]) -> VoiceEmbedding:
        """Compute a person's voice. Downloads the models that are missing.

        Args:
            recordings: files, in each of which only this person speaks.

        Raises:
            InvalidAudio: a recording cannot be decoded, or nobody can be heard in it.
            ModelUnavailable: no embedding model is available.
            EngineClosed: the executor was closed, or its engine failed.
        """

    def close(self) -> None:
        """Free all models and threads. Jobs that still run end with EngineClosed."""
