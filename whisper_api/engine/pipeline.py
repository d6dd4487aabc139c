"""The stages of one transcription, in order: decode, load, VAD, ASR, alignment, diarization.

Diarization and the loading of alignment models run in threads of their own during ASR. Both are optional: their
errors become warnings, and the transcript lacks speakers or has word times of another kind. Only fatal errors
(:meth:`JobContext.is_fatal`) end a job whose text is there.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from whisper_api.engine import vad
from whisper_api.engine.align.loading import AlignmentModels, warn_of_attention
from whisper_api.engine.audio.decode import AudioInput, decode
from whisper_api.engine.audio.level import without_offset
from whisper_api.engine.context import JobContext, forget_frames
from whisper_api.engine.sentences import split_sentences
from whisper_api.engine.speakers import Diarizing, speaker_embeddings, speakers_in_order
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.model import Whisper
from whisper_api.engine.whisper.recognizer import Recognizer
from whisper_api.engine.whisper.tokens import hand_out_tokens
from whisper_api.engine.whisper.window_decoder import Batching
from whisper_api.errors import InvalidAudio, ModelError
from whisper_api.schema import Segment, Stage, Transcript, WordTimes
from whisper_api.time_order import in_order

if TYPE_CHECKING:
    from whisper_api.engine.audio.track import AudioMemory
    from whisper_api.engine.diarize.pipeline import Diarization
    from whisper_api.engine.models.store import LocalModel
    from whisper_api.engine.whisper.source import WhisperSource
    from whisper_api.engine.worker.device import Device

__all__ = ["TranscriptionRun", "translates"]

log = logging.getLogger(__name__)

# How often the job's thread reports the progress of diarization.
PROGRESS_SECONDS = 0.2


class EngineParts(Protocol):
    """The parts of an engine that a transcription uses.

    Attributes:
        batching: how windows share batches.
        max_audio_seconds: longest recording that is accepted, seconds; None for no limit.
        audio_memory: the memory budget of all decoded audio.
    """

    batching: Batching
    max_audio_seconds: float | None
    audio_memory: AudioMemory

    def whisper_source(self, model: LocalModel, device: Device) -> WhisperSource:
        """The source that loads a Whisper model on a device."""


class TranscriptionRun:
    """Runs the stages of one transcription.

    Args:
        engine: the engine whose models and settings are used.
        ctx: the job.
        known_speakers: name of a person to a recording of that person alone.
    """

    def __init__(self, engine: EngineParts, ctx: JobContext, known_speakers: Mapping[str, AudioInput]) -> None:
        self._engine = engine
        self._ctx = ctx
        self._known_speakers = known_speakers
        self._options = ctx.options
        self._timings: dict[str, float] = {}
        self._speakers: Diarizing | None = None

    def run(self, source: AudioInput) -> Transcript:
        """Run the stages. Raises the errors that :meth:`Engine.transcribe` documents."""
        ctx, options = self._ctx, self._options
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
        audio = without_offset(decoded.audio, shared=decoded.shared)
        with contextlib.ExitStack() as leases, contextlib.ExitStack() as background:
            with self._stage("load"):
                local = ctx.fetch_model(options.model)
                whisper: Whisper = leases.enter_context(ctx.lease(self._engine.whisper_source(local, ctx.device)))
            if options.task == "translate" and not (whisper.multilingual and translates(local.name)):
                ctx.warn(f"{local.name} was not trained to translate: the text may be in the language that is spoken")
            with self._stage("vad"):
                heard = vad.detect(ctx, audio)
                spans = heard.windows
                audio = heard.raised(audio, shared=decoded.shared and audio is decoded.audio)
            recognizer = Recognizer(
                ctx, whisper, local.name, audio, spans, self._engine.batching, heard.speech, doubtful=heard.doubtful
            )
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
                self._speakers = background.enter_context(self._diarizing(audio, references))
            text = _Text(recognizer, audio, spans)
            with self._stage("asr"):
                text.language, probability = recognizer.resolve_language(options.language)
                text.languages = recognizer.languages or (text.language,)
                models = AlignmentModels(ctx, text.languages, leases, background) if spans and options.align else None
                self._recognize(text, models)
            if models is not None and text.windows:
                with self._stage("align"):
                    aligned = [code for code in models.languages if text.windows_in(code)]
                    if aligned:
                        self._align(text, aligned)
            text.segments = [segment for window in text.windows for segment in window]
            diarization = self._assign_speakers(text) if text.segments else None
        # A window with more words than milliseconds may run into the next window.
        segments = in_order(hand_out_tokens(text.segments, whisper.token_bytes), 0.0, round(decoded.duration, 3))
        return self._transcript(
            local,
            decoded.duration,
            language=text.language,
            language_probability=probability,
            languages=recognizer.languages,
            segments=tuple(replace(segment, id=number) for number, segment in enumerate(segments)),
            speakers=speakers_in_order(segments),
            speaker_embeddings=speaker_embeddings(diarization) if options.speaker_embeddings else None,
            word_times=text.word_times if segments else "none",
            alignment_model=text.alignment_model,
            diarization_model=diarization.model if diarization else None,
        )

    def _transcript(self, model: LocalModel, duration: float, *, language: str, **found: Any) -> Transcript:
        self._ctx.begin("done")
        return Transcript(
            language=language,
            duration=round(duration, 3),
            model=model.name,
            model_revision=model.revision,
            options=self._options.for_transcript(),
            timings={stage: round(seconds, 4) for stage, seconds in self._timings.items()},
            warnings=tuple(self._ctx.warnings),
            **{"segments": (), **found},
        )

    def _recognize(self, text: _Text, models: AlignmentModels | None) -> None:
        """Decode every window of speech.

        If loading an alignment model fails meanwhile, all windows are decoded again, with word times from attention in
        that model's language.

        Args:
            text: the text so far, with its languages.
            models: the alignment models; None for a text without word times.
        """
        if models is None:
            self._decode(text, ())
            return
        while True:
            self._decode(text, set(text.languages).difference(models.languages), give_up=models.failed)
            if not models.drop_failed():
                break

    def _decode(self, text: _Text, timed: Collection[str], give_up: Callable[[], bool] = lambda: False) -> None:
        """Decode with word times from cross-attention. If that fails, decode without: the text matters more.

        Args:
            text: the text so far, with its languages.
            timed: the languages whose word times come from cross-attention.
            give_up: asked after every window; True ends the decoding.
        """
        try:
            text.windows = self._decoded(text, timed, give_up)
        except Exception as error:
            if not timed:
                raise
            self._ctx.continue_without("there are no word times", error)
            text.windows, timed = self._decoded(text, (), give_up), ()
        text.word_times = "attention" if timed else "none"

    def _decoded(self, text: _Text, timed: Collection[str], give_up: Callable[[], bool]) -> list[Sequence[Segment]]:
        """Decode the windows, and emit the text of each: sentences when their words have times, or one segment."""
        ctx, recognizer = self._ctx, text.recognizer
        speech = sum(span.seconds for span in text.spans) or 1.0
        found: list[Sequence[Segment]] = []
        with ctx.within(ctx.stage_done, 1.0):
            windows = recognizer.transcribe(
                text.language, word_times=timed, on_window=lambda done: ctx.progress(done / speech)
            )
            with contextlib.closing(windows):
                for index, segment in enumerate(windows):
                    spoken = segment.language or text.language
                    written = self._options.written_language(spoken)
                    pieces = split_sentences([segment], written) if spoken in timed else (segment,)
                    shown = hand_out_tokens(pieces, recognizer.whisper.token_bytes)
                    ctx.emit_partial(index, shown, aligned=spoken in timed)
                    found.append(pieces)
                    self._check_speakers()
                    if give_up():
                        break
        return found

    def _align(self, text: _Text, languages: Sequence[str]) -> None:
        """Take word times from the alignment models and emit them; if that fails, from cross-attention."""
        untimed = list(text.windows)
        seconds = {code: text.seconds_in(code) for code in languages}
        total, done, names = sum(seconds.values()), 0.0, []
        language = text.language
        try:
            for language, share in seconds.items():
                with self._ctx.within(done / total, (done + share) / total):
                    names.append(self._align_language(text, language))
                done += share
        except Exception as error:
            warn_of_attention(self._ctx, language, error)
            self._decode(text, text.languages)
            if text.word_times == "none":
                text.windows = untimed
        else:
            text.word_times, text.alignment_model = "ctc", ", ".join(names)

    def _align_language(self, text: _Text, language: str) -> str:
        """Take the word times of one language. Returns the name of the alignment model."""
        from whisper_api.engine.align.align import align

        token_bytes = text.recognizer.whisper.token_bytes
        indices = text.windows_in(language)
        untimed = [text.windows[index][0] for index in indices]

        def emit(number: int, sentences: Sequence[Segment]) -> None:
            # Not in align(), whose times equal WhisperX's to the last digit.
            index = indices[number]
            text.windows[index] = in_order(sentences, untimed[number].start, untimed[number].end)
            self._ctx.emit_partial(index, hand_out_tokens(text.windows[index], token_bytes), aligned=True)

        return align(self._ctx, text.audio, untimed, language, emit).model

    def _references(self) -> dict[str, Any]:
        """The decoded recordings of the known speakers; empty if they are not needed."""
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
        self._ctx.begin(stage)
        try:
            yield
        finally:
            self._timings[stage] = self._timings.get(stage, 0.0) + time.perf_counter() - begun

    @contextlib.contextmanager
    def _diarizing(self, audio: Any, references: Mapping[str, Any]) -> Iterator[Diarizing]:
        stop = threading.Event()
        task = Diarizing(self._ctx.subcontext(stop), audio, references)
        try:
            yield task
        finally:
            stop.set()
            task.join()

    def _check_speakers(self) -> None:
        """End a job early whose diarization has failed with an error that ends the job.

        Raises:
            ModelError: the job asks for speakers, and there is no diarization model.
            Exception: the error is fatal.
        """
        speakers = self._speakers
        if speakers is not None and speakers.failed():
            try:
                speakers.result()
            except Exception as error:
                demanded = self._options.diarize and isinstance(error, ModelError)
                if demanded or self._ctx.is_fatal(error):
                    raise
                log.debug("diarization has failed; the job goes on without it")
                forget_frames(error)

    def _assign_speakers(self, text: _Text) -> Diarization | None:
        """Wait for diarization and assign its speakers to the words. The timing of the stage is this wait."""
        from whisper_api.engine.diarize.assignment import assign_speakers

        speakers = self._speakers
        if speakers is None:
            return None
        with self._stage("diarize"):
            try:
                while not speakers.wait(PROGRESS_SECONDS):
                    self._ctx.progress(speakers.ctx.stage_done)
                diarization = speakers.result()
                text.segments = assign_speakers(text.segments, diarization.word_turns)
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
                        "`whisper-api models pull campplus` fetches one or says why not"
                    )
                    forget_frames(error)
                return None
            finally:
                for warning in speakers.ctx.warnings:
                    self._ctx.warn(warning)


@dataclass
class _Text:
    """The text of a job as it grows.

    Attributes:
        recognizer: decodes the windows.
        audio: shape (samples,), mono, 16 kHz.
        spans: the windows of speech.
        language: code of the spoken language, the one with most speech; empty before it is resolved.
        languages: all spoken languages.
        windows: the text of each window that has text.
        segments: the whole text.
        word_times: where the word times come from.
        alignment_model: names of the alignment models that gave word times.
    """

    recognizer: Recognizer
    audio: Any
    spans: Sequence[Span]
    language: str = ""
    languages: Sequence[str] = ()
    windows: list[Sequence[Segment]] = field(default_factory=list)
    segments: Sequence[Segment] = ()
    word_times: WordTimes = "none"
    alignment_model: str | None = None

    def windows_in(self, language: str) -> list[int]:
        """The indices of the windows in one language."""
        return [index for index, window in enumerate(self.windows) if (window[0].language or self.language) == language]

    def seconds_in(self, language: str) -> float:
        """The length of the windows in one language, which are not split into sentences yet."""
        return sum(self.windows[index][0].end - self.windows[index][0].start for index in self.windows_in(language))


def translates(model: str) -> bool:
    """Whether a multilingual Whisper model was trained to translate; turbo and the distilled ones were not."""
    return "turbo" not in model and not model.startswith("distil")
