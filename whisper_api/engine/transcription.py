"""One transcription: its stages, one after the other, the telling apart of speakers beside them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from whisper_api.engine import vad
from whisper_api.engine.asr import Recognizer
from whisper_api.engine.context import JobContext
from whisper_api.engine.decode import AudioInput, decode
from whisper_api.engine.sentences import split_sentences
from whisper_api.engine.whisper import Whisper
from whisper_api.errors import ModelError
from whisper_api.schema import Segment, Stage, Transcript

if TYPE_CHECKING:
    from whisper_api.engine.diarize import Diarization
    from whisper_api.engine.pipeline import Engine

__all__ = ["WEIGHTS", "Transcription", "translates"]

log = logging.getLogger(__name__)

# How often the job's thread tells how far the diarization beside it is.
PROGRESS_SECONDS = 0.2

# What each stage takes of a job, about: for progress.
WEIGHTS: dict[Stage, float] = {"decode": 0.02, "load": 0.02, "vad": 0.04, "asr": 0.52, "align": 0.2, "diarize": 0.2}


class Transcription:
    """One transcription on its way through the stages.

    Args:
        engine: whose models and settings it uses.
        ctx: the job.
    """

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
        """Run the stages; raises what :meth:`Engine.transcribe` says."""
        ctx, options = self._ctx, self._options
        assert options.model
        assert options.language
        with self._stage("decode"):
            decoded = decode(source, check=ctx.check, progress=ctx.progress)
        for warning in decoded.warnings:
            ctx.warn(warning)
        audio = decoded.audio
        with contextlib.ExitStack() as leases, contextlib.ExitStack() as beside:
            with self._stage("load"):
                local = ctx.store.ensure(options.model, hf_token=ctx.hf_token)
                whisper: Whisper = leases.enter_context(
                    ctx.models.lease(self._engine.whisper_source(local, ctx.device))
                )
            if options.task == "translate" and not (whisper.multilingual and translates(local.name)):
                ctx.warn(f"{local.name} was not trained to translate: the text may be in the language that is spoken")
            with self._stage("vad"):
                spans = vad.detect(ctx, audio)
            speakers = beside.enter_context(self._diarizing(audio)) if options.diarize is not False and spans else None
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
            diarization = self._diarization(speakers) if speakers is not None and segments else None
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

    @contextlib.contextmanager
    def _diarizing(self, audio: Any) -> Iterator[_Beside]:
        """Tell the speakers apart in a thread of its own: it needs no text."""
        stop = threading.Event()
        beside = _Beside(self._ctx.beside(stop), audio)
        try:
            yield beside
        finally:
            stop.set()
            beside.join()

    def _diarization(self, beside: _Beside) -> Diarization | None:
        """Wait for it. The stage's time is what the job waits, not what diarization takes."""
        with self._stage("diarize"):
            try:
                while not beside.wait(PROGRESS_SECONDS):
                    self._ctx.progress(beside.ctx.stage_done)
                return beside.result()
            except ModelError as error:
                if self._options.diarize:
                    raise
                log.info("no diarization model: %s", error)
                self._ctx.warn(
                    "the speakers were not told apart, since no diarization model can be had here; "
                    "`whisper-api models pull ecapa` fetches one or says why not"
                )
                return None
            finally:
                for warning in beside.ctx.warnings:
                    self._ctx.warn(warning)


class _Beside:
    """Diarization in a thread beside the job's own."""

    def __init__(self, ctx: JobContext, audio: Any) -> None:
        self.ctx = ctx
        self._future: Future[Diarization] = Future()
        self._thread = threading.Thread(target=self._run, args=(audio,), name="diarize", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, at the latest after so many seconds."""
        return bool(wait((self._future,), timeout=seconds).done)

    def result(self) -> Diarization:
        """What it ended with."""
        return self._future.result()

    def join(self) -> None:
        """Wait for the thread."""
        self._thread.join()

    def _run(self, audio: Any) -> None:
        try:
            from whisper_api.engine.diarize import diarize

            self._future.set_result(diarize(self.ctx, audio))
        except BaseException as error:
            self._future.set_exception(error)


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
