"""The executor that runs jobs on an engine in this process, and the table of executors by name."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api.errors import DeviceError, EngineClosed, InvalidOption, ModelUnavailable, UnknownModel
from whisper_api.jobs.download_reports import DownloadReports
from whisper_api.jobs.executor import EngineCount, Executor, ExecutorFacts, OnMissingModel, OnPartial, OnProgress
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress, Transcript
from whisper_api.store.rows import Job

if TYPE_CHECKING:
    from whisper_api.config import Config
    from whisper_api.engine.engine import Engine
    from whisper_api.engine.models.store import ModelStore
    from whisper_api.engine.worker.device import Device
    from whisper_api.voices import VoiceEmbedding

log = logging.getLogger("whisper_api.jobs")


class LocalExecutor:
    """Runs jobs on its own :class:`~whisper_api.engine.engine.Engine`. ``preload`` or the first job creates the engine.

    Args:
        config: the configuration of the engine.
    """

    def __init__(self, config: Config) -> None:
        from whisper_api.engine.models.names import ModelNames
        from whisper_api.engine.models.store import ModelStore

        self._config = config
        self._names = ModelNames.of(config.model, config.model_aliases)
        self._downloads = DownloadReports()
        self._store = ModelStore(config.models_dir, hf_token=config.hf_token, progress=self._downloads.report)
        self._making = threading.Lock()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._engine: Engine | None = None
        self._closed = False
        self._device: Device | None = None
        self._preloading = config.preload_models

    @property
    def device(self) -> str:
        """The torch name of the device, or the configured name when the device cannot be used."""
        try:
            return self._chosen_device().torch_name
        except DeviceError:
            return self._config.device

    @property
    def activity(self) -> str:
        """The download that runs now, with its share; empty when there is none."""
        return self._downloads.activity

    isolates = False

    def engines(self) -> EngineCount:
        """The engine of this process."""
        return EngineCount(running=1, wanted=1)

    def on_engines(self, callback: Callable[[int], None]) -> None:
        """Call the function once: there is always one engine."""
        callback(1)

    def facts(self) -> ExecutorFacts:
        """The device, the default model and the models in memory. Loads nothing."""
        with self._lock:
            engine = self._engine
        resident = engine.models.resident() if engine is not None else []
        return ExecutorFacts(
            device=self.device,
            model=self.model_name(TranscriptionOptions()),
            compute_type=engine.compute_type if engine is not None else self._config.compute_type,
            resident_models=len(resident),
            resident_bytes=sum(model.bytes for model in resident),
            models=tuple(Path(path).name for model in resident if (path := getattr(model.source, "path", None))),
            devices=engine.statistics() if engine is not None else (),
        )

    def model_name(self, options: TranscriptionOptions) -> str:
        """The catalogue's name of the model, with aliases and ``auto`` resolved."""
        from whisper_api.engine.models.files import model_facts

        name = self._model(options)
        if name == "auto":
            from whisper_api.engine.engine import DEFAULT_MODEL

            name = DEFAULT_MODEL["cuda" if self.device.startswith("cuda") else "cpu"]
        entry = model_facts(name)
        return entry.name if entry is not None else name

    def preload(self) -> None:
        """Create the engine and, when the configuration says so, load the models of every job."""
        try:
            self._load(lambda engine: engine.preload())
        except BaseException:
            self._end_preloading()
            raise

    def warm_up(self) -> None:
        """Load the alignment and diarization models, when the configuration says so."""
        try:
            self._load(lambda engine: engine.preload_rest())
        finally:
            self._end_preloading()

    def check(self, options: TranscriptionOptions, hf_token: str | None) -> None:
        """Refuse unknown model names, a full disk, and diarization and redaction without what they need."""
        if options.redact:
            from whisper_api.engine.redaction import check_installed

            check_installed()
        self.check_name(options)
        self._check_room(options)
        if (options.diarize or options.task == "diarize") and not self._tells_speakers_apart(hf_token):
            raise ModelUnavailable(
                "diarize: there is no model here to tell speakers apart; `whisper-api models pull campplus` on the "
                "server fetches one or says why not"
            )

    def check_name(self, options: TranscriptionOptions) -> None:
        """Refuse a name that neither the configuration nor the catalogue has.

        Raises:
            UnknownModel: names what there is.
        """
        name = self._model(options)
        if not self._names.trusts(name):
            _check_name(name)

    def is_default(self, options: TranscriptionOptions) -> bool:
        """Whether the job uses the model of jobs that name no model."""
        return self._model(options) == self._model(TranscriptionOptions())

    def named_by_configuration(self, options: TranscriptionOptions) -> bool:
        """Whether ``WHISPER_MODEL`` or an alias names the model of the job."""
        return self._names.trusts(self._model(options))

    def missing_models(self, options: TranscriptionOptions, hf_token: str | None) -> tuple[str, ...]:
        """The models to download before the job runs, the Whisper model first."""
        whisper = self.model_name(options)
        needs_whisper = options.task != "diarize" and self._store.is_missing(whisper)
        optional = (name for name in self._optional_models(options, hf_token) if self._store.can_download(name))
        return (*((whisper,) if needs_whisper else ()), *optional)

    def _optional_models(self, options: TranscriptionOptions, hf_token: str | None) -> Iterator[str]:
        """The alignment and diarization models of a job, on this machine or not."""
        from whisper_api.engine.languages import language_or_auto

        if options.task == "detect_language":
            return
        if options.align and options.task == "transcribe":
            # A job with an unknown language fails with InvalidOption when it runs.
            with contextlib.suppress(InvalidOption):
                yield f"align-{language_or_auto(options.language or self._config.language)}"
        if options.diarize is not False and self._store.find("community-1") is None:
            yield from ("community-1",) if self._token(hf_token) else ("segmentation-3.0", "campplus")

    def download_model(self, name: str, cancel: threading.Event, hf_token: str | None) -> None:
        """Download a model into the models directory; ``cancel`` and :meth:`close` stop the download."""
        with self._downloads.watched(cancel) as check:
            self._store.ensure(name, hf_token=hf_token, check=check)

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
        """Run one job on the engine. After a failure of the engine, the next job gets a new one."""
        last = Progress(0.0, "load")

        def report(progress: Progress) -> None:
            nonlocal last
            last = progress
            on_progress(progress)

        def report_missing(name: str) -> None:
            # Only this executor's store knows which sources did not respond to its downloads.
            if self._store.can_download(name):
                on_missing_model(name)

        recordings = {name: audio.with_name(f"speaker-{number}") for number, name in enumerate(job.known_speakers)}
        with self._engine_for(cancel, lambda: on_progress(last)) as engine:
            return engine.transcribe(
                audio,
                job.options,
                on_progress=report,
                on_partial=on_partial,
                # The job's own recording of a person comes before the stored voice.
                known_speakers={**(voices or {}), **recordings},
                cancel=cancel,
                hf_token=job.hf_token or None,
                on_missing_model=report_missing,
            )

    def enroll(self, recordings: Sequence[bytes]) -> VoiceEmbedding:
        """Compute a voice on the engine."""
        cancel = threading.Event()
        with self._engine_for(cancel) as engine:
            return engine.enroll(*recordings, cancel=cancel)

    def close(self) -> None:
        """Close the engine. Jobs and downloads that still run end with EngineClosed."""
        with self._lock:
            self._closed = True
        self._downloads.close()
        # _ready_engine() makes no engine once _closed is set.
        with self._making, self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @contextlib.contextmanager
    def _engine_for(self, cancel: threading.Event, on_download: Callable[[], None] = lambda: None) -> Iterator[Engine]:
        """The engine for one call, made first if there is none; an engine that fails meanwhile is dropped."""
        with self._downloads.watched(cancel, on_download):
            engine = self._ready_engine()
            try:
                yield engine
            except EngineClosed:
                self._replace(engine)
                raise

    def _load(self, load: Callable[[Engine], None]) -> None:
        from whisper_api.engine.audio.process import DECODERS

        with self._downloads.watched(threading.Event()):
            engine = self._ready_engine()
            DECODERS.prestart()
            if self._config.preload_models:
                load(engine)

    def _end_preloading(self) -> None:
        """Stop counting on the preloading to bring the diarization models."""
        with self._lock:
            self._preloading = False

    def _ready_engine(self) -> Engine:
        with self._making:
            with self._lock:
                if self._closed:
                    raise EngineClosed("the executor is closed")
                engine = self._engine
            if engine is None:
                from whisper_api.engine.engine import Engine

                engine = Engine.from_config(
                    self._config, on_download=self._downloads.report, temp_dir=self._config.tmp_dir
                )
                with self._lock:
                    self._engine, self._device = engine, engine.device
                if engine.device.kind == "cuda" and not self._config.enable_concurrency:
                    log.info(
                        "one job runs at a time; with ENABLE_CONCURRENCY=true, short recordings share a GPU's batches"
                    )
            return engine

    def _replace(self, engine: Engine) -> None:
        """Drop an engine that closed itself after a thread failed, so that the next job gets a new engine."""
        with self._lock:
            if self._closed or self._engine is not engine:
                return
            self._engine = None
        log.error("the engine has failed: the next job gets a new one")
        engine.close()

    def _chosen_device(self) -> Device:
        with self._lock:
            if self._device is not None:
                return self._device
        from whisper_api.engine.worker.device import choose_devices

        device = choose_devices(self._config.device, self._config.device_index)[0]
        with self._lock:
            self._device = device
        return device

    def _check_room(self, options: TranscriptionOptions) -> None:
        from whisper_api.engine.models.download import require_space
        from whisper_api.engine.models.files import model_facts

        name = self.model_name(options)
        needed = options.task != "diarize" and self._store.is_missing(name)
        entry = model_facts(name) if needed else None
        if entry is not None and entry.approximate_bytes:
            directory = self._config.models_dir.absolute()
            existing = next(each for each in (directory, *directory.parents) if each.is_dir())
            require_space(entry.name, existing, entry.approximate_bytes)

    def _model(self, options: TranscriptionOptions) -> str:
        return self._names.meaning(options.model)

    def _tells_speakers_apart(self, hf_token: str | None) -> bool:
        with self._lock:
            preloading = self._preloading
        # The preloading ends before the job runs.
        return (
            preloading
            or _has_open_models(self._store)
            or self._store.find("community-1") is not None
            or self._token(hf_token)
        )

    def _token(self, hf_token: str | None) -> bool:
        if hf_token or self._config.hf_token:
            return True
        from huggingface_hub import get_token

        return bool(get_token())


def _has_open_models(store: ModelStore) -> bool:
    embedding = store.find("campplus") or store.find("ecapa")
    return store.find("segmentation") is not None and embedding is not None


def _check_name(name: str) -> None:
    """Accept only names of the catalogue, so that no request makes the server read a directory or a hub repository.

    Raises:
        UnknownModel: the catalogue has no Whisper model of this name.
    """
    from whisper_api.engine.models.catalog import ALIASES, CATALOGUE
    from whisper_api.engine.models.names import near_names

    if name in CATALOGUE and CATALOGUE[name].kind == "whisper":
        return
    served = [each for each in (*CATALOGUE, *ALIASES) if CATALOGUE[ALIASES.get(each, each)].kind == "whisper"]
    near = near_names(name, served)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(served)}"
    raise UnknownModel(f"model: {name[:80]!r} is not a Whisper model of this server; {hint}")


def _ray_executor(config: Config) -> Executor:
    """The executor of a cluster. Its package is imported only when it is configured."""
    executor: Executor = import_module("whisper_api.cluster.executor").RayExecutor(config)
    return executor


EXECUTORS: dict[str, Callable[[Config], Executor]] = {"local": LocalExecutor, "ray": _ray_executor}
