"""One transcription: its stages, one after the other.

Beside them speakers are told apart, and the alignment model is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from whisper_api.engine import vad
from whisper_api.engine.asr import Recognizer
from whisper_api.engine.beside import Beside
from whisper_api.engine.context import JobContext
from whisper_api.engine.decode import AudioInput, decode
from whisper_api.engine.sentences import split_sentences
from whisper_api.engine.tokens import hand_out_tokens
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper import Whisper
from whisper_api.errors import ModelError
from whisper_api.schema import Segment, Stage, Transcript
from whisper_api.time_order import in_order

if TYPE_CHECKING:
    from whisper_api.engine.align_models import AlignmentModel
    from whisper_api.engine.catalog import LocalModel
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
        known_speakers: name to a recording of that person alone.
    """

    def __init__(self, engine: Engine, ctx: JobContext, known_speakers: Mapping[str, AudioInput]) -> None:
        self._engine = engine
        self._ctx = ctx
        self._known_speakers = known_speakers
        self._options = ctx.options
        self._timings: dict[str, float] = {}
        stages: list[Stage] = ["decode", "load", "vad", "asr"]
        if self._options.task != "detect_language":
            stages += ["align"] if self._options.align else []
            stages += ["diarize"] if self._options.diarize is not False else []
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
            references = self._references()
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
            recognizer = Recognizer(ctx, whisper, local.name, audio, spans, self._engine.batching)
            if options.task == "detect_language":
                with self._stage("asr"):
                    language, probabilities = recognizer.detect_language(options.language)
                return self._transcript(
                    local,
                    decoded.duration,
                    language=language,
                    language_probability=probabilities.get(language),
                    language_probabilities=probabilities,
                )
            speakers = (
                beside.enter_context(self._diarizing(audio, references))
                if options.diarize is not False and spans
                else None
            )
            with self._stage("asr"):
                language, probability = recognizer.judge_language(options.language)
                alignment = self._alignment(language, leases, beside) if spans and options.align else None
                segments, with_model = self._recognized(recognizer, language, spans, alignment)
            alignment_model = None
            if options.align and segments:
                with self._stage("align"):
                    if with_model:
                        segments, alignment_model = self._aligned(audio, segments, language, whisper)
            diarization = self._diarization(speakers) if speakers is not None and segments else None
        if diarization is not None:
            from whisper_api.engine.speakers import assign_speakers

            segments = assign_speakers(segments, diarization.turns)
        # Each window is in order already; a window with more words than milliseconds runs into the next one.
        segments = in_order(hand_out_tokens(segments, whisper.token_bytes), 0.0, round(decoded.duration, 3))
        return self._transcript(
            local,
            decoded.duration,
            language=language,
            language_probability=probability,
            segments=tuple(replace(segment, id=number) for number, segment in enumerate(segments)),
            speakers=_in_order(segments),
            speaker_embeddings=_embeddings(diarization) if options.speaker_embeddings else None,
            word_times="none" if not (options.align and segments) else "ctc" if alignment_model else "attention",
            alignment_model=alignment_model,
            diarization_model=diarization.model if diarization else None,
        )

    def _transcript(self, model: LocalModel, duration: float, *, language: str, **found: Any) -> Transcript:
        self._ctx.begin("done", 1.0, 1.0)
        return Transcript(
            language=language,
            duration=round(duration, 3),
            model=model.name,
            model_revision=model.revision,
            options=self._options,
            timings={stage: round(seconds, 4) for stage, seconds in self._timings.items()},
            warnings=tuple(self._ctx.warnings),
            **{"segments": (), **found},
        )

    def _recognized(
        self, recognizer: Recognizer, language: str, spans: Sequence[Span], alignment: Beside[AlignmentModel] | None
    ) -> tuple[Sequence[Segment], bool]:
        """The text of every window in which something is said, and whether an alignment model is there for its words.

        A model that was to be had and cannot be loaded is found out while windows are decoded: then they are decoded
        once more, with word times.
        """
        if alignment is not None:
            segments = self._decoded(recognizer, language, spans, timed=False, give_up=alignment.failed)
            try:
                alignment.result()
            except ModelError as error:
                self._warn_of_attention(language, error)
            else:
                return segments, True
        return self._decoded(recognizer, language, spans, timed=self._options.align), False

    def _decoded(
        self,
        recognizer: Recognizer,
        language: str,
        spans: Sequence[Span],
        *,
        timed: bool,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Sequence[Segment]:
        """The text of the windows, told as it is decoded, until it is to be given up.

        With times, that is its sentences, whose words have theirs.
        """
        ctx = self._ctx
        written = self._options.written_language(language)
        speech = sum(span.seconds for span in spans) or 1.0
        found: list[Segment] = []
        windows = recognizer.transcribe(language, word_times=timed, on_window=lambda done: ctx.progress(done / speech))
        with contextlib.closing(windows):
            for index, segment in enumerate(windows):
                pieces = split_sentences([segment], written) if timed else (segment,)
                ctx.tell(index, hand_out_tokens(pieces, recognizer.whisper.token_bytes), aligned=timed)
                found.extend(pieces)
                if give_up():
                    break
        return found

    def _aligned(
        self, audio: Any, segments: Sequence[Segment], language: str, whisper: Whisper
    ) -> tuple[Sequence[Segment], str]:
        """The sentences with their words' times, told as they get them, and the name of the model."""
        from whisper_api.engine.align import align

        found: dict[int, tuple[Segment, ...]] = {}

        def tell(index: int, sentences: Sequence[Segment]) -> None:
            # Here and not in the alignment, whose times are WhisperX's to the last digit.
            found[index] = in_order(sentences, segments[index].start, segments[index].end)
            self._ctx.tell(index, hand_out_tokens(found[index], whisper.token_bytes), aligned=True)

        model = align(self._ctx, audio, segments, language, tell).model
        return [sentence for index in sorted(found) for sentence in found[index]], model

    def _references(self) -> dict[str, Any]:
        """The recordings of the known speakers, when they are to be looked for."""
        if not self._known_speakers:
            return {}
        if self._options.diarize is False or self._options.task == "detect_language":
            self._ctx.warn("the known speakers were not looked for, since the speakers were not to be told apart")
            return {}
        from whisper_api.engine.known_speakers import decode_references

        return decode_references(self._ctx, self._known_speakers)

    @contextlib.contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        begun = time.perf_counter()
        self._ctx.begin(stage, *self._bounds[stage])
        try:
            yield
        finally:
            self._timings[stage] = self._timings.get(stage, 0.0) + time.perf_counter() - begun

    def _alignment(
        self, language: str, leases: contextlib.ExitStack, beside: contextlib.ExitStack
    ) -> Beside[AlignmentModel] | None:
        """The alignment model that will give the word times, on its way: nobody's first text waits for it."""
        from whisper_api.engine.align import alignment_source, has_model

        # An alignment model hears the language that is spoken; a translation is English text over other speech.
        if self._options.task == "translate" or not has_model(language):
            return None
        try:
            source = alignment_source(self._ctx, language)
        except ModelError as error:
            self._warn_of_attention(language, error)
            return None
        # Joined before the leases end, so that only one thread at a time has to do with them.
        loading = Beside("alignment", lambda: leases.enter_context(self._ctx.models.lease(source)))
        beside.callback(loading.join)
        return loading

    def _warn_of_attention(self, language: str, error: ModelError) -> None:
        log.info("no alignment model for %s: %s", language, error)
        # Without the error's text: a transcript may go to people who have no business with the machine's paths.
        self._ctx.warn(
            f"word times come from Whisper's cross-attention, since the alignment model align-{language} cannot be had "
            f"here; `whisper-api models pull align-{language}` fetches it or says why not"
        )

    @contextlib.contextmanager
    def _diarizing(self, audio: Any, references: Mapping[str, Any]) -> Iterator[_Diarizing]:
        """Tell the speakers apart in a thread of its own: it needs no text."""
        stop = threading.Event()
        beside = _Diarizing(self._ctx.beside(stop), audio, references)
        try:
            yield beside
        finally:
            stop.set()
            beside.join()

    def _diarization(self, beside: _Diarizing) -> Diarization | None:
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


class _Diarizing(Beside["Diarization"]):
    """Who speaks when, by name where the voice is known."""

    def __init__(self, ctx: JobContext, audio: Any, references: Mapping[str, Any]) -> None:
        self.ctx = ctx
        super().__init__("diarize", lambda: self._diarize(audio, references))

    def _diarize(self, audio: Any, references: Mapping[str, Any]) -> Diarization:
        from whisper_api.engine.diarize import diarize

        found = diarize(self.ctx, audio)
        if references:
            from whisper_api.engine.known_speakers import name_speakers

            found = name_speakers(self.ctx, found, references)
        return found


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
    if diarization is None:
        return None
    return {speaker: tuple(float(x) for x in vector) for speaker, vector in diarization.embeddings.items()}
