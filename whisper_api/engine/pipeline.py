"""One transcription: its stages, one after the other.

Beside them speakers are told apart, and the alignment model is fetched and loaded. Both are optional: an error of
theirs costs the speakers or the times of words, and becomes a warning. Only cancellation, the end of the engine and the
errors of the caller's own functions end a job whose text is there.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from whisper_api.engine import vad
from whisper_api.engine.audio.decode import AudioInput, decode
from whisper_api.engine.context import JobContext, forget_frames
from whisper_api.engine.sentences import split_sentences
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.model import Whisper
from whisper_api.engine.whisper.recognizer import Batching, Recognizer
from whisper_api.engine.whisper.tokens import hand_out_tokens
from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.errors import InvalidAudio, ModelError, ModelUnavailable
from whisper_api.schema import Segment, Stage, Transcript, WordTimes
from whisper_api.time_order import in_order

if TYPE_CHECKING:
    from whisper_api.engine.align.models import AlignmentModel
    from whisper_api.engine.audio.track import AudioMemory
    from whisper_api.engine.diarize.pipeline import Diarization
    from whisper_api.engine.models.store import LocalModel
    from whisper_api.engine.whisper.source import WhisperSource
    from whisper_api.engine.worker.device import Device

__all__ = ["WEIGHTS", "TranscriptionRun", "translates"]

log = logging.getLogger(__name__)

# How often the job's thread tells how far the diarization beside it is.
PROGRESS_SECONDS = 0.2

# What each stage takes of a job, about: for progress.
WEIGHTS: dict[Stage, float] = {"decode": 0.02, "load": 0.02, "vad": 0.04, "asr": 0.52, "align": 0.2, "diarize": 0.2}


class EngineParts(Protocol):
    """What a transcription takes from its engine.

    Attributes:
        batching: how windows share batches.
        max_audio_seconds: how long a recording may be; None for any length.
        audio_memory: the memory that decoded audio of all jobs may take.
    """

    batching: Batching
    max_audio_seconds: float | None
    audio_memory: AudioMemory

    def whisper_source(self, model: LocalModel, device: Device) -> WhisperSource:
        """How a model is loaded on a device."""


class TranscriptionRun:
    """One transcription on its way through the stages.

    Args:
        engine: whose models and settings it uses.
        ctx: the job.
        known_speakers: name to a recording of that person alone.
    """

    def __init__(self, engine: EngineParts, ctx: JobContext, known_speakers: Mapping[str, AudioInput]) -> None:
        self._engine = engine
        self._ctx = ctx
        self._known_speakers = known_speakers
        self._options = ctx.options
        self._timings: dict[str, float] = {}
        self._speakers: _Diarizing | None = None
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
            decoded = decode(
                source,
                check=ctx.check,
                progress=ctx.progress,
                audio_track=options.audio_track,
                max_seconds=self._engine.max_audio_seconds,
                memory=self._engine.audio_memory,
            )
            references = self._references()
        for warning in decoded.warnings:
            ctx.warn(warning)
        audio = decoded.audio
        with contextlib.ExitStack() as leases, contextlib.ExitStack() as beside:
            with self._stage("load"):
                local = ctx.fetch_model(options.model)
                whisper: Whisper = leases.enter_context(ctx.lease(self._engine.whisper_source(local, ctx.device)))
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
            if options.diarize is not False and spans:
                self._speakers = beside.enter_context(self._diarizing(audio, references))
            text = _Text(recognizer, audio, spans)
            with self._stage("asr"):
                text.language, probability = recognizer.resolve_language(options.language)
                alignment = self._alignment(text.language, leases, beside) if spans and options.align else None
                self._recognize(text, alignment)
            if options.align and text.segments:
                with self._stage("align"):
                    if alignment is not None and text.word_times == "none":
                        self._align(text)
            diarization = self._assign_speakers(text) if text.segments else None
        language = text.language
        # Each window is in order already; a window with more words than milliseconds runs into the next one.
        segments = in_order(hand_out_tokens(text.segments, whisper.token_bytes), 0.0, round(decoded.duration, 3))
        return self._transcript(
            local,
            decoded.duration,
            language=language,
            language_probability=probability,
            segments=tuple(replace(segment, id=number) for number, segment in enumerate(segments)),
            speakers=_in_order(segments),
            speaker_embeddings=_embeddings(diarization) if options.speaker_embeddings else None,
            word_times=text.word_times if segments else "none",
            alignment_model=text.alignment_model,
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

    def _recognize(self, text: _Text, alignment: BackgroundTask[AlignmentModel] | None) -> None:
        """Decode every window in which something is said.

        An alignment model that cannot be loaded after all is found out while windows are decoded: then they are decoded
        once more, with word times.
        """
        if not self._options.align:
            text.segments = self._decoded(text, timed=False)
        elif alignment is None:
            self._decode_timed(text)
        else:
            text.segments = self._decoded(text, timed=False, give_up=alignment.failed)
            while not alignment.wait(PROGRESS_SECONDS):
                self._ctx.check()
            try:
                alignment.result()
            except Exception as error:
                self._warn_of_attention(text.language, error)
                self._decode_timed(text)

    def _decode_timed(self, text: _Text) -> None:
        """Decode with word times from cross-attention; when that fails, without any, rather than lose the text."""
        try:
            text.segments, text.word_times = self._decoded(text, timed=True), "attention"
        except Exception as error:
            self._ctx.continue_without("there are no word times", error)
            text.segments, text.word_times = self._decoded(text, timed=False), "none"

    def _decoded(self, text: _Text, *, timed: bool, give_up: Callable[[], bool] = lambda: False) -> Sequence[Segment]:
        """The text of the windows, told as it is decoded, until it is to be given up.

        With times, that is its sentences, whose words have theirs.
        """
        ctx, recognizer = self._ctx, text.recognizer
        written = self._options.written_language(text.language)
        speech = sum(span.seconds for span in text.spans) or 1.0
        found: list[Segment] = []
        windows = recognizer.transcribe(
            text.language, word_times=timed, on_window=lambda done: ctx.progress(done / speech)
        )
        with contextlib.closing(windows):
            for index, segment in enumerate(windows):
                pieces = split_sentences([segment], written) if timed else (segment,)
                ctx.emit_partial(index, hand_out_tokens(pieces, recognizer.whisper.token_bytes), aligned=timed)
                found.extend(pieces)
                self._check_speakers()
                if give_up():
                    break
        return found

    def _align(self, text: _Text) -> None:
        """Give the words their times from the alignment model, told as they get them; else from cross-attention."""
        from whisper_api.engine.align.align import align

        untimed, token_bytes = text.segments, text.recognizer.whisper.token_bytes
        found: dict[int, tuple[Segment, ...]] = {}

        def tell(index: int, sentences: Sequence[Segment]) -> None:
            # Here and not in the alignment, whose times are WhisperX's to the last digit.
            found[index] = in_order(sentences, untimed[index].start, untimed[index].end)
            self._ctx.emit_partial(index, hand_out_tokens(found[index], token_bytes), aligned=True)

        try:
            model = align(self._ctx, text.audio, untimed, text.language, tell).model
        except Exception as error:
            self._warn_of_attention(text.language, error)
            self._decode_timed(text)
            if text.word_times == "none":
                text.segments = untimed
        else:
            text.segments = [sentence for index in sorted(found) for sentence in found[index]]
            text.word_times, text.alignment_model = "ctc", model

    def _references(self) -> dict[str, Any]:
        """The recordings of the known speakers, when they are to be looked for."""
        if not self._known_speakers:
            return {}
        if self._options.diarize is False or self._options.task == "detect_language":
            self._ctx.warn("the known speakers were not looked for, since the speakers were not to be told apart")
            return {}
        from whisper_api.engine.diarize.enrollment import decode_references

        try:
            return decode_references(self._ctx, self._known_speakers)
        except InvalidAudio:
            raise
        except Exception as error:
            self._ctx.continue_without("the known speakers were not looked for", error)
            return {}

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
    ) -> BackgroundTask[AlignmentModel] | None:
        """The alignment model that will give the word times, fetched and loaded beside the decoding of the text.

        None where there is none, or where one cannot be had without asking a source that is known not to answer.
        """
        from whisper_api.engine.align.align import alignment_source, has_model

        # An alignment model hears the language that is spoken; a translation is English text over other speech.
        if self._options.task == "translate" or not has_model(language):
            return None
        name = f"align-{language}"
        if self._ctx.store.find(name) is None and not self._ctx.store.can_fetch(name):
            self._warn_of_attention(language, ModelUnavailable(f"{name} is not here, and no source can be asked now"))
            return None
        stop = threading.Event()
        part = self._ctx.subcontext(stop)
        loading = BackgroundTask(
            "alignment", lambda: leases.enter_context(part.lease(alignment_source(part, language)))
        )
        # Waited for before the leases end, so that only one thread at a time has to do with them.
        beside.callback(loading.join)
        beside.callback(stop.set)
        return loading

    def _warn_of_attention(self, language: str, error: Exception) -> None:
        """Warn that another model than that of the language gives the word times.

        Raises:
            Exception: the error itself, when it ends the job.
        """
        if self._ctx.is_fatal(error) or not isinstance(error, ModelError):
            self._ctx.continue_without("word times come from Whisper's cross-attention", error)
            return
        log.info("no alignment model for %s: %s", language, error)
        # Without the error's text: a transcript may go to people who have no business with the machine's paths.
        self._ctx.warn(
            f"word times come from Whisper's cross-attention, since the alignment model align-{language} cannot be had "
            f"here; `whisper-api models pull align-{language}` fetches it or says why not"
        )
        forget_frames(error)

    @contextlib.contextmanager
    def _diarizing(self, audio: Any, references: Mapping[str, Any]) -> Iterator[_Diarizing]:
        """Tell the speakers apart in a thread of its own: it needs no text."""
        stop = threading.Event()
        beside = _Diarizing(self._ctx.subcontext(stop), audio, references)
        try:
            yield beside
        finally:
            stop.set()
            beside.join()

    def _check_speakers(self) -> None:
        """End a job early that was to tell the speakers apart and has no model to do it with.

        Raises:
            ModelError: why there is no model.
        """
        speakers = self._speakers
        if self._options.diarize and speakers is not None and speakers.failed():
            try:
                speakers.result()
            except ModelError:
                raise
            except Exception as error:
                log.debug("diarization has failed; the job goes on without it")
                forget_frames(error)

    def _assign_speakers(self, text: _Text) -> Diarization | None:
        """Wait for the speakers, and give them to the words. The stage's time is what the job waits."""
        from whisper_api.engine.diarize.assignment import assign_speakers

        speakers = self._speakers
        if speakers is None:
            return None
        with self._stage("diarize"):
            try:
                while not speakers.wait(PROGRESS_SECONDS):
                    self._ctx.progress(speakers.ctx.stage_done)
                diarization = speakers.result()
                text.segments = assign_speakers(text.segments, diarization.turns)
                return diarization
            except Exception as error:
                if self._ctx.is_fatal(error) or not isinstance(error, ModelError):
                    self._ctx.continue_without("the speakers were not told apart", error)
                elif self._options.diarize:
                    raise
                else:
                    log.info("no diarization model: %s", error)
                    self._ctx.warn(
                        "the speakers were not told apart, since no diarization model can be had here; "
                        "`whisper-api models pull ecapa` fetches one or says why not"
                    )
                    forget_frames(error)
                return None
            finally:
                for warning in speakers.ctx.warnings:
                    self._ctx.warn(warning)


@dataclass
class _Text:
    """What is said, and how far it is known.

    Attributes:
        recognizer: decodes the windows.
        audio: shape (samples,), mono, 16 kHz.
        spans: where somebody speaks.
        language: code, once it was judged.
        segments: the text.
        word_times: where the times of its words come from.
        alignment_model: the model of these times, if one gave them.
    """

    recognizer: Recognizer
    audio: Any
    spans: Sequence[Span]
    language: str = ""
    segments: Sequence[Segment] = ()
    word_times: WordTimes = "none"
    alignment_model: str | None = None


class _Diarizing(BackgroundTask["Diarization"]):
    """Who speaks when, by name where the voice is known."""

    def __init__(self, ctx: JobContext, audio: Any, references: Mapping[str, Any]) -> None:
        self.ctx = ctx
        # No function that closes over the audio: a frame of its own would keep what it closes over.
        super().__init__("diarize", functools.partial(self._diarize, audio, references))

    def _diarize(self, audio: Any, references: Mapping[str, Any]) -> Diarization:
        from whisper_api.engine.diarize.pipeline import diarize

        found = diarize(self.ctx, audio)
        if references:
            from whisper_api.engine.diarize.enrollment import name_speakers

            try:
                found = name_speakers(self.ctx, found, references)
            except Exception as error:
                self.ctx.continue_without("the known speakers were not looked for", error)
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
