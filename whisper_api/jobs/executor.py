"""What runs a job: the engine of this process. Another way to run jobs is another class here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from whisper_api.errors import Canceled, DeviceError, EngineClosed, ModelUnavailable, UnknownModel
from whisper_api.schema import PartialSegments, Progress, Transcript, TranscriptionOptions
from whisper_api.store.jobs import Job

if TYPE_CHECKING:
    from whisper_api.config import Config
    from whisper_api.engine.engine import Engine
    from whisper_api.engine.models.store import DownloadProgress, ModelStore
    from whisper_api.engine.worker.device import Device

__all__ = ["EXECUTORS", "Executor", "ExecutorFacts", "LocalExecutor"]

log = logging.getLogger("whisper_api.jobs")

OnProgress = Callable[[Progress], None]
OnPartial = Callable[[PartialSegments], None]


class ExecutorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an executor is, for people to look at.

    Attributes:
        device: ``cpu``, ``cuda:0`` ...
        model: the Whisper model of jobs that name none.
        compute_type: as CTranslate2 names them; ``auto`` as long as nothing is loaded.
        resident_models: how many models are in memory.
        resident_bytes: what they take, about.
    """

    device: str
    model: str
    compute_type: str
    resident_models: int = 0
    resident_bytes: int = 0


class Executor(Protocol):
    """Runs jobs. Every method may be called from any thread, ``run`` from as many at once as jobs may run."""

    @property
    def device(self) -> str:
        """What jobs run on: ``cpu``, ``cuda:0`` ... To find out may take long, so not from an event loop."""

    @property
    def activity(self) -> str:
        """What keeps it busy beside its jobs, in a few words for people; empty when nothing does."""

    def facts(self) -> ExecutorFacts:
        """What it is."""

    def model_name(self, options: TranscriptionOptions) -> str:
        """The usual name of the model that a job with these options uses."""

    def preload(self) -> None:
        """Get ready to run jobs. May be called again after it failed.

        Raises:
            WhisperApiError: it cannot run jobs now; says why.
        """

    def warm_up(self) -> None:
        """Once ready, get what many jobs need and not all, so that the first of them does not wait. Jobs may run.

        Raises:
            WhisperApiError: it could not; such jobs get it themselves, or end with the reason.
        """

    def check(self, options: TranscriptionOptions, hf_token: str | None) -> None:
        """Refuse, before it is accepted, a job that cannot be run. Takes no longer than a look at the disk.

        Raises:
            UnknownModel: it names a model that is not served.
            ModelUnavailable: it asks for speakers by name, and there is no model to tell them apart; or its model is
                not here, and the disk has no room for it.
        """

    def missing_model(self, options: TranscriptionOptions) -> str | None:
        """The Whisper model that must be downloaded before a job with these options can run. A look at the disk.

        Returns:
            Its name; None when it is on this machine.
        """

    def download_model(self, name: str, cancel: threading.Event) -> None:
        """Download a model.

        Args:
            name: as :meth:`missing_model` gave it.
            cancel: set from another thread to break the download off.

        Raises:
            ModelUnavailable, ModelCorrupt: it cannot be had.
            Canceled: ``cancel`` was set.
        """

    def run(
        self, job: Job, audio: Path, *, on_progress: OnProgress, on_partial: OnPartial, cancel: threading.Event
    ) -> Transcript:
        """Run one job to its end.

        Args:
            job: what is asked for.
            audio: its upload; the recordings of its known speakers are beside it.
            on_progress: called as the job goes on, from this thread or another.
            on_partial: called with what is known of the text, as it gets known, from this thread.
            cancel: set from another thread to stop the job within one work item.

        Raises:
            Canceled: ``cancel`` was set.
            EngineClosed: the executor was closed, or has failed as a whole; a later call works again if it was not
                closed.
            Exception: whatever else the job ends with.
        """

    def close(self) -> None:
        """Free everything. Jobs that still run end with EngineClosed."""


@dataclass(frozen=True, eq=False)
class _Run:
    """A thread that uses the engine: what hears of downloads, and what stops them."""

    heard: Callable[[], None]
    cancel: threading.Event


class LocalExecutor:
    """Runs jobs on an :class:`~whisper_api.engine.engine.Engine` of its own, which is made when first needed.

    Args:
        config: describes the engine.
    """

    def __init__(self, config: Config) -> None:
        from whisper_api.engine.models.names import ModelNames

        self._config = config
        self._names = ModelNames.of(config.model, config.model_aliases)
        self._here = threading.local()
        self._making = threading.Lock()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._engine: Engine | None = None
        self._closed = False
        self._runs: set[_Run] = set()
        self._activity = ""
        self._device: Device | None = None
        self._preloading = config.preload_models

    @property
    def device(self) -> str:
        try:
            return self._chosen_device().torch_name
        except DeviceError:
            return self._config.device

    @property
    def activity(self) -> str:
        with self._lock:
            return self._activity

    def facts(self) -> ExecutorFacts:
        with self._lock:
            engine = self._engine
        resident = engine.models.resident() if engine is not None else []
        return ExecutorFacts(
            device=self.device,
            model=self.model_name(TranscriptionOptions()),
            compute_type=engine.compute_type if engine is not None else self._config.compute_type,
            resident_models=len(resident),
            resident_bytes=sum(model.bytes for model in resident),
        )

    def model_name(self, options: TranscriptionOptions) -> str:
        from whisper_api.engine.models.store import model_facts

        name = self._model(options)
        if name == "auto":
            from whisper_api.engine.engine import DEFAULT_MODEL

            name = DEFAULT_MODEL["cuda" if self.device.startswith("cuda") else "cpu"]
        entry = model_facts(name)
        return entry.name if entry is not None else name

    def preload(self) -> None:
        try:
            self._load(lambda engine: engine.preload())
        except BaseException:
            self._stop_promising()
            raise

    def warm_up(self) -> None:
        try:
            self._load(lambda engine: engine.preload_rest())
        finally:
            self._stop_promising()

    def check(self, options: TranscriptionOptions, hf_token: str | None) -> None:
        name = self._model(options)
        if not self._names.trusts(name):
            _check_name(name)
        self._check_room(options)
        if options.diarize and not self._tells_speakers_apart(hf_token):
            raise ModelUnavailable(
                "diarize: there is no model here to tell speakers apart; `whisper-api models pull ecapa` on the server "
                "fetches one or says why not"
            )

    def missing_model(self, options: TranscriptionOptions) -> str | None:
        from whisper_api.engine.models.files import resolve
        from whisper_api.engine.models.store import ModelStore

        name = self.model_name(options)
        # Names that mean nothing and directories without a model are errors of the job, not downloads.
        downloadable = resolve(name) is not None and not isinstance(resolve(name), Path)
        return name if downloadable and ModelStore(self._config.models_dir).find(name) is None else None

    def download_model(self, name: str, cancel: threading.Event) -> None:
        from whisper_api.engine.models.store import ModelStore

        def check() -> None:
            with self._lock:
                closed = self._closed
            if closed:
                raise EngineClosed("the executor was closed while a model was fetched")
            if cancel.is_set():
                raise Canceled("the download was canceled")

        with self._watched(_Run(lambda: None, cancel)):
            store = ModelStore(self._config.models_dir, hf_token=self._config.hf_token, progress=self._on_download)
            store.ensure(name, check=check)

    def run(
        self, job: Job, audio: Path, *, on_progress: OnProgress, on_partial: OnPartial, cancel: threading.Event
    ) -> Transcript:
        last = Progress(0.0, "load")

        def report(progress: Progress) -> None:
            nonlocal last
            last = progress
            on_progress(progress)

        with self._watched(_Run(lambda: on_progress(last), cancel)):
            engine = self._ready_engine()
            try:
                return engine.transcribe(
                    audio,
                    job.options,
                    on_progress=report,
                    on_partial=on_partial,
                    known_speakers={
                        name: audio.with_name(f"speaker-{number}") for number, name in enumerate(job.known_speakers)
                    },
                    cancel=cancel,
                    hf_token=job.hf_token or None,
                )
            except EngineClosed:
                self._replace(engine)
                raise

    def close(self) -> None:
        with self._lock:
            self._closed = True
        # After this nobody makes an engine any more.
        with self._making, self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _load(self, load: Callable[[Engine], None]) -> None:
        from whisper_api.engine.audio.process import DECODERS

        with self._watched(_Run(lambda: None, threading.Event())):
            engine = self._ready_engine()
            DECODERS.prestart()
            if self._config.preload_models:
                load(engine)

    def _stop_promising(self) -> None:
        """Models that are not there by now are not about to come."""
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

                engine = Engine.from_config(self._config, on_download=self._on_download, temp_dir=self._config.tmp_dir)
                with self._lock:
                    self._engine, self._device = engine, engine.device
            return engine

    def _replace(self, engine: Engine) -> None:
        """Let the next job have a new engine, when this one has closed by itself because its thread failed."""
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
        from whisper_api.engine.worker.device import choose_device

        device = choose_device(self._config.device, self._config.device_index)
        with self._lock:
            self._device = device
        return device

    def _check_room(self, options: TranscriptionOptions) -> None:
        from whisper_api.engine.models.download import require_space
        from whisper_api.engine.models.files import model_facts

        name = self.missing_model(options)
        entry = model_facts(name) if name is not None else None
        if entry is not None and entry.approximate_bytes:
            directory = self._config.models_dir.absolute()
            existing = next(place for place in (directory, *directory.parents) if place.is_dir())
            require_space(entry.name, existing, entry.approximate_bytes)

    def _model(self, options: TranscriptionOptions) -> str:
        return self._names.meaning(options.model)

    def _tells_speakers_apart(self, hf_token: str | None) -> bool:
        from whisper_api.engine.models.store import ModelStore

        with self._lock:
            preloading = self._preloading
        store = ModelStore(self._config.models_dir)
        # What is still being fetched for all jobs will be there for this one.
        return preloading or _has_open_models(store) or store.find("community-1") is not None or self._token(hf_token)

    def _token(self, hf_token: str | None) -> bool:
        if hf_token or self._config.hf_token:
            return True
        from huggingface_hub import get_token

        return bool(get_token())

    @contextmanager
    def _watched(self, run: _Run) -> Iterator[None]:
        """Let downloads that this thread begins be told to whoever waits, and be broken off when it is canceled."""
        self._here.run = run
        with self._lock:
            self._runs.add(run)
        try:
            yield
        finally:
            self._here.run = None
            with self._lock:
                self._runs.discard(run)
                self._activity = ""

    def _on_download(self, download: DownloadProgress) -> None:
        share = f" ({download.done / download.total:.0%})" if download.total else ""
        with self._lock:
            closed, runs = self._closed, list(self._runs)
            self._activity = f"fetching {download.name}{share}"
        own: _Run | None = getattr(self._here, "run", None)
        if closed:
            raise EngineClosed("the executor was closed while a model was fetched")
        if own is not None and own.cancel.is_set():
            raise Canceled("the job was canceled")
        # All of them, as others may wait for the same model.
        for run in runs:
            run.heard()


def _has_open_models(store: ModelStore) -> bool:
    return store.find("segmentation") is not None and store.find("ecapa") is not None


def _check_name(name: str) -> None:
    """Names of the catalogue only: a form must not make the server read a directory, or fetch what anybody published.

    Raises:
        UnknownModel: it is none of these.
    """
    from whisper_api.engine.models.catalog import ALIASES, CATALOGUE
    from whisper_api.engine.models.names import near_names

    if name in CATALOGUE and CATALOGUE[name].kind == "whisper":
        return
    served = [each for each in (*CATALOGUE, *ALIASES) if CATALOGUE[ALIASES.get(each, each)].kind == "whisper"]
    near = near_names(name, served)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(served)}"
    raise UnknownModel(f"model: {name[:80]!r} is not a Whisper model of this server; {hint}")


EXECUTORS: dict[str, Callable[[Config], Executor]] = {"local": LocalExecutor}
