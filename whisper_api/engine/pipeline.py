"""The engine: runs the stages of a transcription, one after the other, over one context per job."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from whisper_api.engine import vad
from whisper_api.engine.asr import FALLBACK_BEAM_SIZE, Batching, Recognizer
from whisper_api.engine.catalog import LocalModel, ModelStore
from whisper_api.engine.context import JobContext
from whisper_api.engine.decode import AudioInput, decode
from whisper_api.engine.device import choose_compute_type, choose_device, physical_cores
from whisper_api.engine.gpu_worker import GpuWorker
from whisper_api.engine.languages import language_code
from whisper_api.engine.models import ModelCache
from whisper_api.engine.sentences import split_sentences
from whisper_api.engine.whisper import Whisper, WhisperSource
from whisper_api.errors import EngineClosed, InvalidOption, ModelError
from whisper_api.schema import Progress, Segment, Stage, Transcript, TranscriptionOptions

if TYPE_CHECKING:
    from whisper_api.config import Config
    from whisper_api.engine.diarize import Diarization
    from whisper_api.engine.download import DownloadProgress

__all__ = ["Engine"]

log = logging.getLogger(__name__)

DEFAULT_MODEL = {"cuda": "large-v3", "cpu": "base"}
# On a CPU a batch saves some of the beam search's time, but holds up other jobs and takes memory while it runs.
# Its lengths are finer for the same reason: on a GPU a batch that is full matters more than one that is short.
BATCHING = {
    "cuda": Batching(16, float("inf"), bucket_seconds=5.0),
    "cpu": Batching(4, 60.0, bucket_seconds=1.0),
}
# Of the device's memory, what models may take; the rest is for activations.
MODEL_SHARE = 0.7

# What each stage takes of a job, about: for progress.
WEIGHTS: dict[Stage, float] = {"decode": 0.02, "load": 0.02, "vad": 0.04, "asr": 0.52, "align": 0.2, "diarize": 0.2}


class Engine:
    """Transcribes audio. Models are loaded when first used and stay; threads share them and their batches.

    Args:
        model: the Whisper model of jobs that name none; ``auto`` is large-v3 on a GPU and base on a CPU.
        language: the language of jobs that name none; ``auto`` detects it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.
        device_index: which GPU, for ``cuda``.
        compute_type: as CTranslate2 names them; ``auto`` is float16 on a GPU and int8 on a CPU.
        batch_size: windows of audio in one batch; None for what suits the device.
        models_dir: where model files are kept; None for ``models_cache`` in the user's cache directory.
        hf_token: for models that need an account; None uses ``HF_TOKEN``.
        keep_alive: seconds that an unused model stays; -1 for ever, 0 to free it after each job.
        memory_budget: bytes that models may take on the device; None for 70 % of its memory.
        offline: True to download nothing.
        on_download: called while a model is fetched.

    Raises:
        DeviceUnavailable: there is no such device.
        InvalidOption: a value is not one of those that are known.
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
        models_dir: str | os.PathLike[str] | None = None,
        hf_token: str | None = None,
        keep_alive: float = -1,
        memory_budget: int | None = None,
        offline: bool | None = None,
        on_download: Callable[[DownloadProgress], None] | None = None,
    ) -> None:
        self.device = choose_device(device, device_index)
        self.compute_type = choose_compute_type(self.device, compute_type)
        self.default_model = DEFAULT_MODEL[self.device.kind] if model == "auto" else model
        self.default_language = language if language == "auto" else language_code(language)
        self._hf_token = hf_token
        batching = BATCHING[self.device.kind]
        self.batching = (
            batching
            if batch_size is None
            else dataclasses.replace(batching, max_items=batch_size, max_cost=float("inf"))
        )
        self.store = ModelStore(
            Path(models_dir) if models_dir is not None else _user_models_dir(),
            hf_token=hf_token,
            offline=offline,
            progress=on_download,
        )
        if memory_budget is None and (total := self.device.total_memory()) is not None:
            memory_budget = int(total * MODEL_SHARE)
        self.models = ModelCache(keep_alive=keep_alive, budget=memory_budget)
        self._worker = GpuWorker(f"gpu-worker-{self.device.torch_name}", self.models.evict_idle)
        self._closed = False

    @classmethod
    def from_config(cls, config: Config, **overrides: Any) -> Engine:
        """The engine that a configuration describes.

        Args:
            config: where the defaults come from.
            overrides: arguments of :class:`Engine` that win over it.
        """
        arguments: dict[str, Any] = {
            "model": config.model,
            "language": config.language,
            "device": config.device,
            "device_index": config.device_index,
            "compute_type": config.compute_type,
            "batch_size": None if config.batch_size == "auto" else config.batch_size,
            "models_dir": config.models_dir,
            "hf_token": config.hf_token,
            "keep_alive": config.model_keep_alive_seconds,
        }
        return cls(**{**arguments, **overrides})

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the models. Jobs that still run end with :class:`~whisper_api.errors.EngineClosed`."""
        self._closed = True
        self._worker.close()
        self.models.close()

    def transcribe(
        self,
        source: AudioInput,
        options: TranscriptionOptions | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        hf_token: str | None = None,
    ) -> Transcript:
        """Transcribe one recording. May be called from any number of threads at once.

        Args:
            source: a path, the bytes of a file, a file object, or samples (float32, shape (samples,), mono, 16 kHz).
            options: what is asked for; None for the defaults.
            on_progress: called from this thread as the job goes on.
            cancel: set it from another thread to stop the job within one work item.
            hf_token: instead of the engine's.

        Returns:
            The transcript; without segments when nobody speaks.

        Raises:
            InvalidAudio: the source is not audio that can be decoded.
            InvalidOption: an option cannot be used.
            ModelError: a model that was asked for cannot be had.
            Canceled: ``cancel`` was set.
            EngineClosed: the engine was closed.
        """
        if self._closed:
            raise EngineClosed("the engine is closed")
        options = self._filled_in(options)
        ctx = JobContext(
            options=options,
            device=self.device,
            worker=self._worker,
            models=self.models,
            store=self.store,
            hf_token=hf_token or self._hf_token,
            cancel=cancel,
            on_progress=on_progress,
        )
        try:
            return _Job(self, ctx).run(source)
        finally:
            ctx.close()

    def preload(self, options: TranscriptionOptions | None = None) -> None:
        """Load the models that jobs with these options use, so that the first one does not wait for them.

        Raises:
            ModelError: the Whisper model cannot be had. Alignment and diarization models that cannot are left out, as
                they are in a job that does not ask for them by name.
        """
        options = self._filled_in(options)
        assert options.model
        assert options.language
        ctx = JobContext(options=options, device=self.device, worker=self._worker, models=self.models, store=self.store)
        with self.models.lease(self.whisper_source(self.store.ensure(options.model))):
            pass
        if options.align and options.language != "auto":
            from whisper_api.engine.align import alignment_source

            with contextlib.suppress(ModelError), self.models.lease(alignment_source(ctx, options.language)):
                pass
        if options.diarize is not False:
            from whisper_api.engine.diarize import open_sources

            with contextlib.suppress(ModelError):
                for source in open_sources(ctx):
                    with self.models.lease(source):
                        pass

    def whisper_source(self, model: LocalModel) -> WhisperSource:
        """How this engine loads a Whisper model."""
        return WhisperSource(str(model.path), self.device.kind, self.device.index, self.compute_type, physical_cores())

    def _filled_in(self, options: TranscriptionOptions | None) -> TranscriptionOptions:
        """The options with every default, checked against each other."""
        options = options or TranscriptionOptions()
        low, high = options.min_speakers, options.max_speakers
        if low is not None and high is not None and low > high:
            raise InvalidOption("min_speakers", f"{low} is more than max_speakers ({high})")
        settings = vad.settings_of(options)
        language = (options.language or self.default_language).strip().lower()
        return replace(
            options,
            model=options.model if options.model and options.model != "auto" else self.default_model,
            language=language if language == "auto" else language_code(language),
            beam_size=options.beam_size or FALLBACK_BEAM_SIZE,
            vad_onset=settings.onset,
            vad_offset=settings.offset,
            vad_min_silence=settings.min_silence,
            vad_padding=settings.padding,
        )


class _Job:
    """One transcription on its way through the stages."""

    def __init__(self, engine: Engine, ctx: JobContext) -> None:
        self._engine = engine
        self._ctx = ctx
        self._options = ctx.options
        self._timings: dict[str, float] = {}
        stages: list[Stage] = ["decode", "load", "vad", "asr"]
        if self._options.align:
            stages.append("align")
        if self._options.diarize is not False:
            stages.append("diarize")
        total = sum(WEIGHTS[stage] for stage in stages)
        self._bounds: dict[Stage, tuple[float, float]] = {}
        at = 0.0
        for stage in stages:
            self._bounds[stage] = (at, at + WEIGHTS[stage] / total)
            at += WEIGHTS[stage] / total

    def run(self, source: AudioInput) -> Transcript:
        ctx, options = self._ctx, self._options
        assert options.model
        assert options.language
        with self._stage("decode"):
            decoded = decode(source, check=ctx.check, progress=ctx.progress)
        for warning in decoded.warnings:
            ctx.warn(warning)
        audio = decoded.audio
        with contextlib.ExitStack() as leases:
            with self._stage("load"):
                local = ctx.store.ensure(options.model, hf_token=ctx.hf_token)
                whisper: Whisper = leases.enter_context(ctx.models.lease(self._engine.whisper_source(local)))
            if options.task == "translate" and not (whisper.multilingual and translates(local.name)):
                ctx.warn(f"{local.name} was not trained to translate: the text may be in the language that is spoken")
            with self._stage("vad"):
                spans = vad.detect(ctx, audio)
            recognizer = Recognizer(ctx, whisper, local.name, audio, spans, self._engine.batching)
            with self._stage("asr"):
                language, probability = recognizer.judge_language(options.language)
                with_model = bool(spans) and options.align and self._has_alignment(language, leases)
                speech = sum(span.seconds for span in spans) or 1.0
                segments: Sequence[Segment] = list(
                    recognizer.transcribe(
                        language,
                        word_times=options.align and not with_model,
                        on_window=lambda done: ctx.progress(done / speech),
                    )
                )
            alignment_model = None
            if options.align and segments:
                with self._stage("align"):
                    if with_model:
                        from whisper_api.engine.align import align

                        aligned = align(ctx, audio, segments, language)
                        segments, alignment_model = aligned.segments, aligned.model
                    else:
                        segments = split_sentences(segments, "en" if options.task == "translate" else language)
        diarization = self._diarize(audio) if options.diarize is not False and segments else None
        if diarization is not None:
            from whisper_api.engine.speakers import assign_speakers

            segments = assign_speakers(segments, diarization.turns)
        ctx.begin("done", 1.0, 1.0)
        return Transcript(
            language=language,
            language_probability=probability,
            duration=round(decoded.duration, 3),
            segments=tuple(segments),
            speakers=_in_order(segments),
            speaker_embeddings=_embeddings(diarization),
            word_times="none" if not (options.align and segments) else "ctc" if alignment_model else "attention",
            model=local.name,
            model_revision=local.revision,
            alignment_model=alignment_model,
            diarization_model=diarization.model if diarization else None,
            options=options,
            timings={stage: round(seconds, 4) for stage, seconds in self._timings.items()},
            warnings=tuple(ctx.warnings),
        )

    @contextlib.contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        begun = time.perf_counter()
        self._ctx.begin(stage, *self._bounds[stage])
        try:
            yield
        finally:
            self._timings[stage] = self._timings.get(stage, 0.0) + time.perf_counter() - begun

    def _has_alignment(self, language: str, leases: contextlib.ExitStack) -> bool:
        """Whether an alignment model will give the word times; leased before decoding, while there is a choice."""
        from whisper_api.engine.align import alignment_source, has_model

        # An alignment model hears the language that is spoken; a translation is English text over other speech.
        if self._options.task == "translate" or not has_model(language):
            return False
        try:
            leases.enter_context(self._ctx.models.lease(alignment_source(self._ctx, language)))
        except ModelError as error:
            log.info("no alignment model for %s: %s", language, error)
            # Without the error's text: a transcript may go to people who have no business with the machine's paths.
            self._ctx.warn(
                f"word times come from Whisper's cross-attention, since the alignment model align-{language} cannot be "
                f"had here; `whisper-api models pull align-{language}` fetches it or says why not"
            )
            return False
        return True

    def _diarize(self, audio: Any) -> Diarization | None:
        from whisper_api.engine.diarize import diarize

        with self._stage("diarize"):
            try:
                return diarize(self._ctx, audio)
            except ModelError as error:
                if self._options.diarize:
                    raise
                log.info("no diarization model: %s", error)
                self._ctx.warn(
                    "the speakers were not told apart, since no diarization model can be had here; "
                    "`whisper-api models pull ecapa` fetches one or says why not"
                )
                return None


def translates(model: str) -> bool:
    """Whether a multilingual Whisper model was trained to translate; turbo and the distilled ones were not."""
    return "turbo" not in model and not model.startswith("distil")


def _in_order(segments: Sequence[Segment]) -> tuple[str, ...]:
    """Speakers in order of appearance, those that only single words belong to included."""
    found: dict[str, None] = {}
    for segment in segments:
        for speaker in (*(word.speaker for word in segment.words), segment.speaker):
            if speaker is not None:
                found.setdefault(speaker)
    return tuple(found)


def _embeddings(diarization: Diarization | None) -> dict[str, tuple[float, ...]] | None:
    if diarization is None or diarization.embeddings is None:
        return None
    return {speaker: tuple(float(x) for x in vector) for speaker, vector in diarization.embeddings.items()}


def _user_models_dir() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("whisper-api", appauthor=False) / "models_cache"
