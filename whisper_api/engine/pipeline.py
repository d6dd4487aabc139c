"""The stages of one transcription, in order: decode, load, VAD, ASR, alignment, redaction, diarization.

Diarization and the loading of alignment models run in threads of their own during ASR. Both are optional: their
errors become warnings, and the transcript lacks speakers or has word times of another kind. Only fatal errors
(:meth:`JobContext.is_fatal`) end a job whose text is there.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from whisper_api.engine.align.ahead import EmissionsAhead
from whisper_api.engine.align.loading import AlignmentModels, warn_of_attention
from whisper_api.engine.audio.decode import AudioInput, decode
from whisper_api.engine.audio.device_copies import COPIES
from whisper_api.engine.context import JobContext, forget_frames
from whisper_api.engine.hearing import Heard, hear
from whisper_api.engine.invented import InventedText
from whisper_api.engine.languages import translates
from whisper_api.engine.lost_speech import decode_lost_speech
from whisper_api.engine.sentences import split_sentences
from whisper_api.engine.speakers import Diarizing, diarizing, found_in, known_voices, speakers_in_order
from whisper_api.engine.text import Text, untimed
from whisper_api.engine.whisper.model import Whisper
from whisper_api.engine.whisper.recognizer import Recognizer
from whisper_api.errors import ModelError
from whisper_api.options import redact_kinds
from whisper_api.schema import Redaction, Segment, Stage, Transcript
from whisper_api.time_order import in_order

if TYPE_CHECKING:
    from whisper_api.engine.audio.track import AudioMemory
    from whisper_api.engine.diarize.pipeline import Diarization
    from whisper_api.engine.models.files import LocalModel
    from whisper_api.engine.whisper.settings import WhisperSettings
    from whisper_api.voices import VoiceEmbedding

log = logging.getLogger(__name__)


class EngineParts(Protocol):
    """The parts of an engine that a transcription uses.

    Attributes:
        max_audio_seconds: longest recording that is accepted, seconds; None for no limit.
        audio_memory: the memory budget of all decoded audio.
        whisper: how Whisper runs on the devices.
    """

    max_audio_seconds: float | None
    audio_memory: AudioMemory
    whisper: WhisperSettings


class TranscriptionRun:
    """Runs the stages of one transcription.

    Args:
        engine: the engine whose models and settings are used.
        ctx: the job.
        known_speakers: name of a person to the voice, or to a recording of that person alone.
    """

    def __init__(
        self, engine: EngineParts, ctx: JobContext, known_speakers: Mapping[str, AudioInput | VoiceEmbedding]
    ) -> None:
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
                channels="mix" if options.task == "detect_language" else options.channels,
                max_seconds=self._engine.max_audio_seconds,
                memory=self._engine.audio_memory,
            )
            references = known_voices(ctx, self._known_speakers)
        for warning in decoded.warnings:
            ctx.warn(warning)
        duration = decoded.duration
        if options.task == "diarize":
            with self._stage("vad"):
                heard = hear(ctx, decoded, self._engine.audio_memory)
                del decoded
            return self._diarized(heard, references, duration)
        with contextlib.ExitStack() as leases, contextlib.ExitStack() as background:
            with self._stage("load"):
                local = ctx.fetch_model(options.model)
                whisper: Whisper = leases.enter_context(ctx.lease(self._engine.whisper.source(local, ctx.device)))
            if options.task == "translate" and not (whisper.multilingual and translates(local.name)):
                ctx.warn(f"{local.name} was not trained to translate: the text may be in the language that is spoken")
            with self._stage("vad"):
                heard = hear(ctx, decoded, self._engine.audio_memory)
                # Frees the separate channels and the mix that ``heard`` does not use.
                del decoded
            audio, spans = heard.audio, heard.windows
            leases.enter_context(COPIES.kept(audio, ctx.device))
            sizes = self._engine.whisper.batching(ctx.device)
            judge = InventedText.of(options, audio, heard.silero)
            recognizer = Recognizer(ctx, whisper, local.name, audio, spans, sizes, heard.speech, judge, heard.elapsed)
            if options.task == "detect_language":
                with self._stage("asr"):
                    language, probabilities = recognizer.detect_language(options.language)
                return self._transcript(
                    local,
                    duration,
                    language=language,
                    language_probability=probabilities.get(language),
                    language_probabilities=probabilities,
                )
            if options.diarize is not False and spans:
                self._speakers = background.enter_context(diarizing(ctx, heard, references))
            text = Text(recognizer, judge, heard)
            models: AlignmentModels | None = None
            with self._stage("asr"):
                text.language, probability = recognizer.resolve_language(options.language)
                text.languages = recognizer.languages or (text.language,)
                if spans and options.align:
                    # Diarization uses the lanes that decoding leaves idle.
                    ahead = None if self._speakers else EmissionsAhead.of(ctx, audio, spans, sizes.lanes)
                    models = AlignmentModels(ctx, text.languages, leases, background, ahead)
                self._recognize(text, models)
            if models is not None and text.windows:
                with self._stage("align"):
                    aligned = [code for code in models.languages if text.windows_in(code)]
                    if aligned:
                        self._align(text, aligned, models.ahead)
                    self._complete(text)
            redactions = self._redact(text) if options.redact else ()
            segments, diarization = self._assign_speakers(text)
        # A window with more words than milliseconds may run into the next window.
        segments = judge.settled(ctx, text.placed(segments), heard.elapsed)
        segments = in_order(segments, 0.0, round(duration, 3))
        return self._transcript(
            local,
            duration,
            language=text.language,
            language_probability=probability,
            languages=recognizer.languages,
            segments=tuple(replace(segment, id=number) for number, segment in enumerate(segments)),
            speakers=speakers_in_order(segments),
            channels=heard.channels,
            word_times=text.word_times if segments else "none",
            alignment_model=text.alignment_model,
            **found_in(ctx, heard, diarization),
            redactions=redactions,
        )

    def _diarized(self, heard: Heard, references: Mapping[str, Any], duration: float) -> Transcript:
        """The transcript of the task ``diarize``, which has turns and no text."""
        diarization = None
        if heard.windows:
            with (
                COPIES.kept(heard.audio, self._ctx.device),
                diarizing(self._ctx, heard, references) as speakers,
                self._stage("diarize"),
            ):
                diarization = speakers.awaited(self._ctx)
        found = found_in(self._ctx, heard, diarization)
        speaking = tuple(dict.fromkeys(turn.speaker for turn in found.get("turns", ())))
        return self._transcript(None, duration, language="", speakers=speaking, channels=heard.channels, **found)

    def _transcript(self, model: LocalModel | None, duration: float, *, language: str, **found: Any) -> Transcript:
        self._ctx.begin("done")
        return Transcript(
            language=language,
            duration=round(duration, 3),
            model="" if model is None else model.name,
            model_revision=None if model is None else model.revision,
            options=self._options.for_transcript(),
            timings={stage: round(seconds, 4) for stage, seconds in self._timings.items()},
            warnings=tuple(self._ctx.warnings),
            **{"segments": (), **found},
        )

    def _recognize(self, text: Text, models: AlignmentModels | None) -> None:
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
            timed = set(text.languages).difference(models.languages)
            self._decode(text, timed, number_times=bool(models.languages), give_up=models.failed)
            if not models.drop_failed():
                break

    def _decode(
        self,
        text: Text,
        timed: Collection[str],
        *,
        number_times: bool = False,
        give_up: Callable[[], bool] = lambda: False,
        windows: Sequence[Sequence[Segment]] | None = None,
    ) -> None:
        """Decode with word times from cross-attention. If that fails, take the text without, or decode it so.

        Args:
            text: the text so far, with its languages.
            timed: the languages whose word times come from cross-attention.
            number_times: whether windows with numbers, which alignment models cannot spell, have such times too.
            give_up: asked after every window; True ends the decoding.
            windows: the text without word times, if it is known.
        """
        try:
            text.windows = self._decoded(text, timed, number_times=number_times, give_up=give_up)
        except Exception as error:
            if not timed:
                raise
            self._ctx.continue_without("there are no word times", error)
            if windows is None:
                text.windows = self._decoded(text, (), give_up=give_up)
            else:
                text.windows = [untimed(window) for window in windows]
            text.word_times = "none"
            return
        has_words = timed and any(segment.words for segment in text.segments)
        text.word_times = "attention" if has_words else "none"
        if timed and (missing := text.recognizer.untimed):
            self._ctx.warn(f"{missing} segments have no word times, because of an error, which is in the log")

    def _decoded(
        self, text: Text, timed: Collection[str], *, number_times: bool = False, give_up: Callable[[], bool]
    ) -> list[Sequence[Segment]]:
        """Decode the windows, and emit the text of each: sentences when their words have times, or one segment."""
        ctx, recognizer = self._ctx, text.recognizer
        speech = sum(span.seconds for span in text.heard.windows) or 1.0
        found: list[Sequence[Segment]] = []
        with ctx.within(ctx.stage_done, 1.0):
            windows = recognizer.transcribe(
                text.language,
                word_times=timed,
                number_times=number_times,
                on_window=lambda done: ctx.progress(done / speech),
            )
            with contextlib.closing(windows):
                for index, segment in enumerate(windows):
                    spoken = segment.language or text.language
                    pieces: Sequence[Segment] = (segment,)
                    if spoken in timed:
                        sentences = split_sentences([segment], self._options.written_language(spoken))
                        pieces = text.judge.marked(text.bounded(sentences))
                    shown = text.shown(pieces if spoken in timed else untimed(pieces))
                    ctx.emit_partial(index, shown, aligned=spoken in timed)
                    found.append(pieces)
                    self._check_speakers()
                    if give_up():
                        break
        return found

    def _align(self, text: Text, languages: Sequence[str], ahead: EmissionsAhead | None) -> None:
        """Take word times from the alignment models and emit them; if that fails, from cross-attention."""
        windows = list(text.windows)
        seconds = {code: text.seconds_in(code) for code in languages}
        total, done, names = sum(seconds.values()), 0.0, []
        language = text.language
        try:
            for language, share in seconds.items():
                with self._ctx.within(done / total, (done + share) / total):
                    names.append(self._align_language(text, language, ahead))
                done += share
        except Exception as error:
            warn_of_attention(self._ctx, language, error)
            self._decode(text, text.languages, windows=windows)
        else:
            text.word_times, text.alignment_model = "ctc", ", ".join(names)
            text.aligned = frozenset(languages)

    def _align_language(self, text: Text, language: str, ahead: EmissionsAhead | None) -> str:
        """Take the word times of one language. Returns the name of the alignment model."""
        from whisper_api.engine.align.align import align

        indices = text.windows_in(language)
        windows = [text.windows[index][0] for index in indices]

        def emit(number: int, sentences: Sequence[Segment]) -> None:
            # Not in align(), whose times equal WhisperX's to the last digit.
            index = indices[number]
            bounded = in_order(text.bounded(sentences), windows[number].start, windows[number].end)
            text.windows[index] = text.judge.marked(bounded)
            self._ctx.emit_partial(index, text.shown(text.windows[index]), aligned=True)

        return align(self._ctx, text.heard.audio, windows, language, emit, ahead).model

    def _complete(self, text: Text) -> None:
        """Decode the stretches of voice without words again."""
        try:
            decode_lost_speech(text)
        except Exception as error:
            self._ctx.continue_without("speech without text was not decoded again", error)

    def _redact(self, text: Text) -> tuple[Redaction, ...]:
        """Replace personal data, and emit the text. An error ends the job: the text must not leave as it is."""
        from whisper_api.engine.redaction import limits, redact

        kinds = redact_kinds(self._options.redact)
        segments: list[Segment] = []
        redactions: list[Redaction] = []
        for spoken, part in itertools.groupby(text.segments, key=lambda segment: segment.language or text.language):
            before, written = list(part), self._options.written_language(spoken)
            for warning in limits(before, kinds, written):
                self._ctx.warn(warning)
            redacted = redact(before, kinds, written, self._known_speakers)
            segments += redacted.segments
            redactions += redacted.redactions
        text.take(segments)
        if redactions and self._options.logprobs:
            self._ctx.warn("redact: windows in which something was replaced have no log probabilities")
        for index, window in enumerate(text.windows):
            self._ctx.emit_partial(index, text.shown(window), aligned=text.word_times != "none", redacted=True)
        left_out = set(text.segments) - set(text.judge.kept(text.segments))
        places = [each for each in redactions if not any(s.start <= each.start <= each.end <= s.end for s in left_out)]
        return text.heard.placed_redactions(places)

    @contextlib.contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        begun = time.perf_counter()
        self._ctx.begin(stage)
        try:
            yield
        finally:
            self._timings[stage] = self._timings.get(stage, 0.0) + time.perf_counter() - begun

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

    def _assign_speakers(self, text: Text) -> tuple[Sequence[Segment], Diarization | None]:
        """Wait for diarization and assign its speakers to the words. The timing of the stage is this wait."""
        from whisper_api.engine.diarize.assignment import assign_speakers

        speakers = self._speakers
        if speakers is None or not text.windows:
            return text.segments, None
        with self._stage("diarize"):
            try:
                diarization = speakers.awaited(self._ctx)
                return assign_speakers(text.segments, diarization.word_turns), diarization
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
                return text.segments, None
