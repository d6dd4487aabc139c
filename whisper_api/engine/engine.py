"""The engine: resident models, and the worker threads that run them for all jobs."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_api.engine.audio.decode import AudioInput
from whisper_api.engine.audio.device_copies import COPIES
from whisper_api.engine.audio.process import DECODERS
from whisper_api.engine.audio.track import AudioMemory
from whisper_api.engine.context import JobContext
from whisper_api.engine.languages import language_or_auto
from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.models.names import AUTO, ModelNames, parse_aliases
from whisper_api.engine.models.store import ModelStore, user_models_dir
from whisper_api.engine.options import ResolvedOptions, resolve
from whisper_api.engine.pipeline import TranscriptionRun
from whisper_api.engine.whisper.settings import WhisperSettings
from whisper_api.engine.worker import fork
from whisper_api.engine.worker.background import DeviceThread
from whisper_api.engine.worker.device import Device, choose_devices
from whisper_api.engine.worker.device_errors import DeviceFault, kind_of
from whisper_api.engine.worker.device_pool import DeviceRuntime, WorkerPool
from whisper_api.engine.worker.statistics import DeviceStatistics
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import DeviceLost, EngineClosed, InvalidOption, ModelError, OutOfMemory
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import PartialSegments, Progress, Transcript

if TYPE_CHECKING:
    from whisper_api.config import Config
    from whisper_api.engine.models.download import DownloadProgress
    from whisper_api.engine.models.files import LocalModel
    from whisper_api.voices import VoiceEmbedding

log = logging.getLogger(__name__)

DEFAULT_MODEL = {"cuda": "large-v3", "cpu": "base"}
# Share of the device's free memory for models; the rest is for activations.
MODEL_SHARE = 0.7
# Bytes of decoded audio in memory: 2.3 hours. Further audio goes to files, whose pages the system can evict.
AUDIO_MEMORY = 512 << 20


class Engine:
    """Transcribes audio. Each model is loaded at its first use and stays loaded; jobs share models and batches.

    A forked process may use an engine that was never used before the fork. An engine that was used before cannot be
    used in the forked process, since threads do not survive a fork: every method raises
    :class:`~whisper_api.errors.ForkedProcess` there, and the original process is not affected. On a GPU, the
    construction of an engine counts as its first use.

    Args:
        model: the Whisper model of jobs that name no model; ``auto`` is large-v3 on a GPU and base on a CPU. Jobs that
            name one of OpenAI's models (``whisper-1``, ``gpt-4o-transcribe`` ...) also use this model.
        language: the language of jobs that name no language; ``auto`` detects the language,
            ``multi`` that of each part of a recording.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:<index>``, or ``cuda:all``, which assigns each job to the GPU with
            the fewest jobs.
        device_index: number of the GPU for ``cuda``.
        compute_type: a compute type of CTranslate2; ``auto`` is float16 on a GPU and int8 on a CPU.
        batch_size: number of windows in a batch on a GPU; None to measure the best number.
        encoder: what runs Whisper's encoder on a GPU: ``torch``, ``ctranslate2``, or ``auto``, which is torch where its
            encoder fits into the memory beside CTranslate2's and agrees with it.
        models_dir: directory of the model files; None for ``models_cache`` in the user's cache directory.
        hf_token: Hugging Face token for gated models; None uses ``HF_TOKEN``.
        keep_alive: seconds that an unused model stays loaded; -1 for ever, 0 to unload it after each job.
        memory_budget: bytes of device memory for models; None for 70 % of the free memory.
        offline: True to download nothing.
        max_audio_seconds: greatest length of a recording; None or 0 for any length.
        audio_memory: bytes of decoded audio in memory, over all jobs; further audio goes to temporary files, 230 MB
            for an hour.
        temp_dir: directory of the temporary files; None for the system's directory.
        on_download: called with the progress of a model's download.
        model_aliases: alias to model name; an alias wins over every other meaning of a name.

    Raises:
        DeviceUnavailable: the device does not exist or cannot be used.
        InvalidOption: an argument has an unknown value.
        ForkedProcess: a parent of this process ran models before the fork.
    """

    def __init__(
        self,
        *,
        model: str = "auto",
        language: str = "auto",
        device: str = "auto",
        device_index: int = 0,
        compute_type: str = "auto",
        batch_size: int | None = None,
        encoder: str = "auto",
        models_dir: str | os.PathLike[str] | None = None,
        hf_token: str | None = None,
        keep_alive: float = -1,
        memory_budget: int | None = None,
        offline: bool | None = None,
        max_audio_seconds: float | None = None,
        audio_memory: int = AUDIO_MEMORY,
        temp_dir: str | os.PathLike[str] | None = None,
        on_download: Callable[[DownloadProgress], None] | None = None,
        model_aliases: Mapping[str, str] | None = None,
    ) -> None:
        fork.check()
        devices = choose_devices(device, device_index)
        if devices[0].kind == "cuda":
            # After a request for a device, a forked process cannot use CUDA.
            fork.use_models()
        self.device = devices[0]
        self._names = ModelNames(model, model_aliases)
        self.default_model = self._model_named(None)
        self.default_language = language_or_auto(language)
        self._hf_token = hf_token
        self.store = ModelStore(
            Path(models_dir) if models_dir is not None else user_models_dir(),
            hf_token=hf_token,
            offline=offline,
            progress=on_download,
        )
        self.whisper = WhisperSettings(devices, compute_type, batch_size, encoder, offline=self.store.offline)
        self.compute_type = self.whisper.compute_types[self.device]
        self.max_audio_seconds = max_audio_seconds or None
        self.audio_memory = AudioMemory(audio_memory, None if temp_dir is None else Path(temp_dir))
        self._fault = DeviceFault()
        self._pool = WorkerPool([self._device_runtime(each, keep_alive, memory_budget) for each in devices])
        self._closed = threading.Event()

    def _device_runtime(self, device: Device, keep_alive: float, memory_budget: int | None) -> DeviceRuntime:
        if memory_budget is None and (free := device.free_memory()) is not None:
            memory_budget = int(free * MODEL_SHARE)
        # On a CPU, models may be loaded at once.
        thread = None if device.kind == "cpu" else DeviceThread(f"models-{device.torch_name}", device.scope)
        models = ModelCache(keep_alive=keep_alive, budget=memory_budget, thread=thread, fault=self._fault)
        name = f"gpu-worker-{device.torch_name}"

        def free_memory() -> bool:
            freed = models.evict_idle(), COPIES.drop(device.torch_name)
            return any(freed)

        threads = self.whisper.threads if device.kind == "cpu" else None
        worker = GpuWorker(name, free_memory, self.whisper.lanes, device.scope, device.check, self._fault, threads)
        return DeviceRuntime(device, worker, models)

    @property
    def models(self) -> ModelCache:
        """The cache of resident models; with several GPUs, the cache of the first."""
        return self._pool.runtimes[0].models

    def statistics(self) -> tuple[DeviceStatistics, ...]:
        """What each device has done since the engine was made."""
        return tuple(runtime.statistics() for runtime in self._pool.runtimes)

    @classmethod
    def from_config(cls, config: Config, **overrides: Any) -> Engine:
        """Make an engine from a configuration.

        Args:
            config: the configuration.
            overrides: arguments of :class:`Engine` that replace values of the configuration.
        """
        arguments: dict[str, Any] = {
            "model": config.model,
            "model_aliases": parse_aliases(config.model_aliases),
            "language": config.language,
            "device": config.device,
            "device_index": config.device_index,
            "compute_type": config.compute_type,
            "batch_size": None if config.batch_size == "auto" else config.batch_size,
            "encoder": config.encoder,
            "models_dir": config.models_dir,
            "hf_token": config.hf_token,
            "keep_alive": config.model_keep_alive_seconds,
            "max_audio_seconds": config.max_audio_seconds,
            "audio_memory": config.max_audio_memory,
        }
        return cls(**{**arguments, **overrides})

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload the models. Running jobs end with :class:`~whisper_api.errors.EngineClosed`."""
        self._closed.set()
        if not fork.inherited():
            self._pool.close()
            DECODERS.close()

    def transcribe(
        self,
        source: AudioInput,
        options: TranscriptionOptions | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_partial: Callable[[PartialSegments], None] | None = None,
        known_speakers: Mapping[str, AudioInput | VoiceEmbedding] | None = None,
        cancel: threading.Event | None = None,
        hf_token: str | None = None,
        on_missing_model: Callable[[str], None] | None = None,
    ) -> Transcript:
        """Transcribe one recording. Any number of threads may call this at once.

        Args:
            source: a path, the bytes of a file, a file object, or samples (float32, shape (samples,), mono, 16 kHz).
            options: the options of the job; None for the defaults.
            on_progress: called from this thread with the job's progress.
            on_partial: called from this thread with the text of each decoded window, and again when the window's words
                have their final times. With the option ``redact``, called once for each window, when all are decoded.
            known_speakers: name of a person to the voice (:meth:`enroll`), or to a recording of a few seconds in which
                only that person speaks. A recognised speaker gets the name as label; the others keep ``SPEAKER_NN``.
            cancel: an event that another thread sets to stop the job within one work item.
            hf_token: Hugging Face token that replaces the engine's.
            on_missing_model: called, from any thread, with the name of a model that is not on this machine. The model
                is then not downloaded: after the call, the job continues without the model or ends with
                ModelUnavailable. An error of the function ends the job. None downloads missing models.

        Returns:
            The transcript; without segments when nobody speaks.

        Raises:
            InvalidAudio: the source cannot be decoded as audio.
            InvalidOption: an option cannot be used.
            ModelError: a required model is not available.
            ExtraMissing: the option ``redact`` needs libraries that are not installed.
            Canceled: ``cancel`` was set.
            EngineClosed: the engine was closed.
            DeviceLost: the GPU has failed. Only a new process can use it.
            ForkedProcess: a parent of this process ran models before the fork.
        """
        fork.use_models()
        self._check_open()
        resolved = self.resolve(options)
        if resolved.redact:
            from whisper_api.engine.redaction import check_installed

            check_installed()
        if known_speakers:
            from whisper_api.engine.diarize.enrollment import check_names

            check_names(known_speakers)
        with self._job(
            resolved,
            hf_token=hf_token or self._hf_token,
            cancel=cancel,
            on_progress=on_progress,
            on_partial=on_partial,
            on_missing_model=on_missing_model,
        ) as ctx:
            return TranscriptionRun(self, ctx, known_speakers or {}).run(source)

    def enroll(self, *recordings: AudioInput, cancel: threading.Event | None = None) -> VoiceEmbedding:
        """Compute a person's voice, which ``known_speakers`` of :meth:`transcribe` takes instead of a recording.

        Args:
            recordings: one or several, of a few seconds each, in which only this person speaks; as ``source`` of
                :meth:`transcribe`. Of each, the first minute is used.
            cancel: an event that another thread sets to stop the work.

        Raises:
            InvalidAudio: a recording cannot be decoded, or nobody can be heard in it; the message has its number.
            InvalidOption: there is no recording.
            ModelError: no embedding model is available.
            Canceled: ``cancel`` was set.
            EngineClosed: the engine was closed.
            DeviceLost: the GPU has failed. Only a new process can use it.
            ForkedProcess: a parent of this process ran models before the fork.
        """
        from whisper_api.engine.diarize.enrollment import enroll

        fork.use_models()
        self._check_open()
        if not recordings:
            raise InvalidOption("recordings", "expected at least one")
        with self._job(self.resolve(None), hf_token=self._hf_token, cancel=cancel) as ctx:
            return enroll(ctx, recordings)

    @contextlib.contextmanager
    def _job(self, options: ResolvedOptions, **callers: Any) -> Iterator[JobContext]:
        """A job on one of the devices. Its end, with an error or not, frees what it has in memory."""
        with self._pool.assign() as runtime:
            ctx = self._context(runtime, options, **callers)
            try:
                yield ctx
            except BaseException as error:
                if kind_of(error) == "sticky" and not isinstance(error, DeviceLost):
                    # A stage that does not run on the worker has met the error. Its frames may hold tensors, which must
                    # not be freed.
                    raise self._fault.report(error) from None
                # The frames of a failed job reference its audio, and one of them may reference the error. Clearing the
                # frames frees the audio now, without waiting for the garbage collector.
                traceback.clear_frames(error.__traceback__)
                raise
            finally:
                ctx.close()

    def _context(self, runtime: DeviceRuntime, options: ResolvedOptions, **callers: Any) -> JobContext:
        return JobContext(
            options=options,
            device=runtime.device,
            worker=runtime.worker,
            models=runtime.models,
            store=self.store,
            closed=self._closed,
            **callers,
        )

    def preload(self, options: TranscriptionOptions | None = None) -> None:
        """Load the Whisper model that jobs with these options use, so that the first job does not wait for it.

        Of several GPUs, one that has too little memory for the model gets no jobs from now on; the log says so.

        Raises:
            OutOfMemory: no device has the memory for the model.
            ModelError: the model is not available.
            EngineClosed: the engine was closed.
            DeviceLost: the GPU has failed. Only a new process can use it.
            ForkedProcess: a parent of this process ran models before the fork.
        """
        fork.use_models()
        local = self.store.ensure(self.resolve(options).model, check=self._check_open)
        for runtime in self._pool.usable:
            self._preload(local, runtime)

    def _preload(self, local: LocalModel, runtime: DeviceRuntime) -> None:
        try:
            with runtime.models.lease(self.whisper.source(local, runtime.device), check=self._check_open):
                pass
        except OutOfMemory as error:
            if not self._pool.leave_out(runtime):
                raise
            log.warning("%s gets no jobs, because the model does not fit: %s", runtime.device.torch_name, error)

    def preload_rest(self, options: TranscriptionOptions | None = None) -> None:
        """Load the alignment and diarization models that jobs with these options use, if they are available.

        These models take longer to load than the Whisper model, since they need torch. Jobs may run meanwhile. On a
        GPU, this method also measures the best batch size, unless the engine has a fixed size.

        Raises:
            EngineClosed: the engine was closed.
            DeviceLost: the GPU has failed. Only a new process can use it.
            ForkedProcess: a parent of this process ran models before the fork.
        """
        fork.use_models()
        resolved = self.resolve(options)
        for runtime in self._pool.usable:
            if self.whisper.measures:
                # Before the other models are loaded, while the memory that the batches may take is free.
                self.whisper.measure_batches(self.store.ensure(resolved.model), runtime, resolved.beam_size)
            self._preload_rest(resolved, runtime)

    def _preload_rest(self, options: ResolvedOptions, runtime: DeviceRuntime) -> None:
        ctx = self._context(runtime, options, hf_token=self._hf_token)
        from whisper_api.engine.align.align import alignment_source, has_model

        if options.align and has_model(options.language):
            with contextlib.suppress(ModelError), ctx.lease(alignment_source(ctx, options.language)):
                pass
        if options.diarize is not False:
            from whisper_api.engine.diarize.open_models import open_models

            with contextlib.suppress(ModelError):
                for source in open_models(ctx).sources:
                    with ctx.lease(source):
                        pass

    def _check_open(self) -> None:
        """Raise EngineClosed when the engine was closed, and DeviceLost when its device has failed."""
        self._fault.check()
        if self._closed.is_set():
            raise EngineClosed("the engine is closed")

    def _model_named(self, name: str | None) -> str:
        """The model that a name stands for; ``auto`` and OpenAI's names stand for the default model."""
        model = self._names.meaning(name)
        return DEFAULT_MODEL[self.device.kind] if model == AUTO else model

    def resolve(self, options: TranscriptionOptions | None) -> ResolvedOptions:
        """The options of a job with this engine's defaults filled in.

        Raises:
            InvalidOption: no language has that code or name.
        """
        options = options or TranscriptionOptions()
        return resolve(options, model=self._model_named(options.model), language=self.default_language)
