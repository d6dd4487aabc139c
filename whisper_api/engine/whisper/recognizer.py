"""Speech recognition: decodes windows of speech into text."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.context import JobContext
from whisper_api.engine.invented import InventedText
from whisper_api.engine.languages import AUTO, MULTI, RELATED_LANGUAGE, nearest_language
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.detection import (
    Disagreement,
    LanguageDetector,
    clearly_other,
    differ,
    mean_languages,
    speech_stretches,
    spread,
)
from whisper_api.engine.whisper.language_changes import in_their_languages
from whisper_api.engine.whisper.model import Row, Whisper
from whisper_api.engine.whisper.window import PROMPT_LEAK, SPARSE_PIECE_SECONDS, SPARSE_VOICED_SECONDS, Batching, Window
from whisper_api.engine.whisper.window_decoder import WindowDecoder
from whisper_api.engine.whisper.word_times import LEAD_SECONDS
from whisper_api.engine.worker.fair_queue import BatchOperation
from whisper_api.errors import InvalidOption
from whisper_api.schema import SAMPLE_RATE, Segment

# The language is detected on windows spread over the speech: the first words are often a name, a song or a greeting in
# another language. When no language has so much probability, more windows are heard.
LANGUAGE_WINDOWS, MORE_LANGUAGE_WINDOWS = 3, 9
CLEAR_LANGUAGE = 0.8
# The parts of windows that sound like another language are heard alone, until so many windows were heard in vain.
VAIN_CHECKS = 3
# Share of the recognition's progress that the detection of several languages takes.
DETECTION_SHARE = 0.2

Floats = NDArray[np.float32]


class Recognizer:
    """Speech recognition for one job.

    Args:
        ctx: the job.
        whisper: the leased model.
        model_name: name of the model, by which the lead of its word times is known.
        audio: float32, shape (samples,), mono, 16 kHz.
        spans: the windows to decode, each at most 30 s long.
        batching: the size of batches on this device.
        speech: the spans in which somebody speaks, in order; empty if that is not known.
        invented: judges invented text; None to keep it.
        elapsed: turns a time in the audio into a time in the recording, in seconds.

    Attributes:
        untimed: number of segments of the last :meth:`transcribe` that lack the word times it was to give.
        with_text: the span of each segment that the last call of :meth:`transcribe` gave.
    """

    def __init__(
        self,
        ctx: JobContext,
        whisper: Whisper,
        model_name: str,
        audio: Floats,
        spans: Sequence[Span],
        batching: Batching,
        speech: Sequence[Span] = (),
        invented: InventedText | None = None,
        elapsed: Callable[[float], float] = lambda time: time,
    ) -> None:
        self.ctx = ctx
        self.whisper = whisper
        self._model_name = model_name
        self.audio = audio
        self.batching = batching
        self.untimed = 0
        self.with_text: list[Span] = []
        self._invented = invented
        self._elapsed = elapsed
        self._speech = speech
        self._detector = LanguageDetector(ctx, whisper, audio, batching)
        # By index of the window: its languages, and those of its stretches of speech.
        self._heard: dict[int, dict[str, float]] = {}
        self._stretches: dict[int, list[tuple[Span, dict[str, float]]]] = {}
        self._checks = VAIN_CHECKS
        self._windows = [
            Window(span, batching.padded_frames(span.seconds), voiced=_overlap(span, speech)) for span in spans
        ]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the windows, the one with most speech first; empty unless the windows have their own."""
        seconds: dict[str, float] = {}
        for window in self._windows:
            if window.language is not None:
                seconds[window.language] = seconds.get(window.language, 0.0) + window.speech_seconds
        return tuple(sorted(seconds, key=lambda code: -seconds[code]))

    def detect_language(self, asked: str) -> tuple[str, dict[str, float]]:
        """Detect the spoken language.

        Args:
            asked: a language code, ``auto`` or ``multi``; returned if there is no speech.

        Returns:
            The most probable code, and code to probability in falling order; the latter is empty without speech.
        """
        if not self._windows:
            self.ctx.warn("the language was not detected, because nobody speaks")
            return ("en" if asked in (AUTO, MULTI) else asked), {}
        if not self.whisper.multilingual:
            self.ctx.warn("the model knows English only: it cannot tell languages apart")
            return "en", {"en": 1.0}
        found = self._detect(parts=self.whisper.tells_language)
        probabilities = {code: round(found[code], 4) for code in sorted(found, key=lambda code: (-found[code], code))}
        return next(iter(probabilities)), probabilities

    def resolve_language(self, asked: str) -> tuple[str, float | None]:
        """The language to transcribe in. With ``multi``, each window gets its own language.

        Args:
            asked: a language code, ``auto`` or ``multi``.

        Returns:
            The code (of the language with most speech), and its probability if it was detected as the only one.

        Raises:
            InvalidOption: the model knows neither the language nor a related one.
        """
        if not self.whisper.multilingual:
            if asked == MULTI:
                self.ctx.warn("the model knows English only: it cannot tell languages apart")
            elif asked not in (AUTO, "en"):
                self.ctx.warn(f"the model knows English only: transcribed as English, not as {asked!r}")
            return "en", None
        if asked not in (AUTO, MULTI, *self.whisper.languages):
            known = sorted(self.whisper.languages)
            related = nearest_language(asked, known, RELATED_LANGUAGE)
            if related is None:
                raise InvalidOption("language", f"this model does not know {asked!r}; it knows {', '.join(known)}")
            # Cantonese came with large-v3; earlier models write it as Chinese.
            self.ctx.warn(f"the model does not know {asked!r}: transcribed as {related!r}, the nearest that it knows")
            asked = related
        if not self._windows:
            return ("en" if asked in (AUTO, MULTI) else asked), None
        if asked == AUTO:
            found = self._detect(parts=self.whisper.tells_language)
            best = max(found, key=lambda code: found[code])
            return best, round(found[best], 4)
        if asked == MULTI:
            with self.ctx.within(0.0, DETECTION_SHARE):
                self._windows = in_their_languages(self._detector, self._windows, self._speech, self.ctx.progress)
            return self.languages[0], None
        if not self.whisper.tells_language:
            try:
                self._listen([0])
            except Exception as error:
                self.ctx.continue_without(f"it was not checked whether the audio is in {asked!r}", error)
        return asked, None

    def transcribe(
        self,
        language: str,
        *,
        word_times: bool | Collection[str],
        number_times: bool = False,
        on_window: Callable[[float], None] | None = None,
    ) -> Generator[Segment, None, None]:
        """Decode all windows. Closing the generator drops the windows that wait.

        Args:
            language: code of the spoken language, for windows without their own.
            word_times: whether to take word times from cross-attention, or the languages for which to do so.
            number_times: whether windows with digits or symbols get such times all the same.
            on_window: called with the seconds of speech that are decoded.

        Yields:
            One segment for each window with speech, in order, with ids 0, 1, 2 ...
        """
        decoders = {}
        for code in {window.language or language for window in self._windows}:
            timed = word_times if isinstance(word_times, bool) else code in word_times
            decoders[code] = self._decoder(
                code, word_times=timed or number_times, only_numbers=number_times and not timed
            )
        self.with_text = []
        if self._invented is not None:
            self._invented.begin()
        other = Disagreement(language)
        done, number, doubtful, leaked, textless = 0.0, 0, 0, 0, 0.0
        self.untimed = 0
        results = self.ctx.run(self._items(decoders, language), window=self.batching.window, ahead=1)
        for index, (window, decoded) in enumerate(zip(self._windows, results, strict=True)):
            before, left_out = number, False
            decoder = decoders[window.language or language]
            for piece, attempt in decoder.settle(window, decoder.attempt(decoded, decoder.first_temperature)):
                leaked += attempt.leaked
                segment = decoder.segment(number, piece, attempt)
                self.untimed = sum(each.untimed for each in decoders.values())
                if segment is not None and self._invented is not None:
                    segment = self._invented.of_window(segment)
                    left_out |= segment is None
                if segment is not None:
                    if window.language is not None:
                        segment = msgspec.structs.replace(segment, language=window.language)
                    self.with_text.append(piece.span)
                    yield segment
                    number += 1
                    doubtful += bool(set(segment.flags) - {PROMPT_LEAK})
            if number == before and not left_out and window.voiced >= SPARSE_VOICED_SECONDS:
                textless += window.voiced
            if window.language is None:
                self._compare(index, decoded.languages, other)
            done += window.span.seconds
            if on_window is not None:
                on_window(done)
        speech = sum(window.speech_seconds for window in self._windows)
        other.warn(self.ctx, speech, asked=self.ctx.options.language != AUTO, elapsed=self._elapsed)
        if textless:
            self.warn_of_textless(textless)
        if leaked:
            self.ctx.warn(
                f"the prompt's own words came out of {leaked} windows in which they were not heard; what these windows "
                "have without the prompt replaces them"
            )
        if doubtful:
            self.ctx.warn(
                f"{doubtful} of {number} windows stay doubtful after every attempt; their segments have flags"
            )

    def warn_of_textless(self, seconds: float) -> None:
        """Warn of seconds of speech without text."""
        self.ctx.warn(f"{seconds:.1f} s of what sounds like speech gave no text")

    def transcribe_again(self, language: str, spans: Sequence[Span]) -> list[Segment]:
        """Decode parts of windows whose text lacks what is spoken in them.

        Such a part may be noise, for which Whisper invents words, so only text without any doubt is returned. Prompt
        and hotwords are left out, because they come out of noise.

        Args:
            language: code of the spoken language.
            spans: the parts, in order of time.

        Returns:
            Segments in order of time, with word times from cross-attention.
        """
        decoder = self._decoder(language, word_times=True, prompted=False)
        attempts = decoder.once(spans, SPARSE_PIECE_SECONDS)
        found = (decoder.segment(0, piece, attempt) for piece, attempt in attempts if attempt.is_certain)
        return [segment for segment in found if segment is not None]

    def timed_by_attention(self, language: str, spans: Sequence[Span]) -> list[Segment | None]:
        """The windows with word times from cross-attention, decoded by a first attempt.

        Args:
            language: code of the spoken language.
            spans: windows, in order of time.
        """
        decoder = self._decoder(language, word_times=True)
        return [decoder.segment(0, piece, attempt) for piece, attempt in decoder.once(spans)]

    def _decoder(self, language: str, *, word_times: bool, **options: bool) -> WindowDecoder:
        lead = LEAD_SECONDS.get(self._model_name, 0.0) if word_times else None
        return WindowDecoder(
            self.ctx, self.whisper, self.audio, self.batching, language, lead, self._invented, **options
        )

    def _items(
        self, decoders: Mapping[str, WindowDecoder], language: str
    ) -> Iterator[tuple[BatchOperation, Row, float]]:
        """The work items of the first attempt on each window."""
        for number, window in enumerate(self._windows):
            following = len(self._windows) - 1 - number
            # The client waits for the text of the first window, so it does not wait for a batch.
            yield decoders[window.language or language].first_item(window, following, alone=number == 0)

    def _detect(self, *, parts: bool = False) -> dict[str, float]:
        """Probability of each language: the mean over windows that are spread over the speech.

        When no language is clear, more windows are heard.

        Args:
            parts: whether to detect the languages of the windows' parts too, for the warning about other languages.
        """
        mean: dict[str, float] = {}
        for count in (LANGUAGE_WINDOWS, MORE_LANGUAGE_WINDOWS):
            self._listen([index for index in spread(self._windows, count) if index not in self._heard], parts=parts)
            indices = sorted(self._heard)
            mean = mean_languages(
                [self._windows[index].speech_seconds for index in indices], [self._heard[index] for index in indices]
            )
            if max(mean.values()) >= CLEAR_LANGUAGE:
                break
        return mean

    def _listen(self, indices: Sequence[int], *, parts: bool = False) -> None:
        """Detect the languages of windows. Keeps the encodings for the decoding."""
        windows = [self._windows[index] for index in indices]
        spans = [speech_stretches(window.span, self._speech, self.audio) if parts else [] for window in windows]
        found = self._detector.windows(windows, spans, ahead=len(windows))
        for index, window, inside, detected in zip(indices, windows, spans, found, strict=True):
            self._windows[index] = replace(window, encoded=detected.encoded)
            self._heard[index] = detected.languages
            self._stretches[index] = list(zip(inside, detected.parts, strict=True))
        for index in indices:
            stretches = self._stretches[index]
            if differ(self._heard[index], stretches):
                # The language that a window begins with outweighs the others, so each stretch is heard alone.
                apart = [span for span, _ in stretches]
                alone = list(self._detector.alone(apart))
                self._stretches[index] = list(zip(apart, alone, strict=True))
                self._heard[index] = mean_languages([span.seconds for span in apart], alone)

    def _compare(self, index: int, languages: Mapping[str, float], other: Disagreement) -> None:
        """Compare the languages of a window and of its stretches of speech with the language of the transcript."""
        window = self._windows[index]
        languages = languages or self._heard.get(index, {})
        if other.add(window.span, window.speech_seconds, languages):
            return
        clear = [span for span, found in self._stretches.get(index, ()) if clearly_other(found, other.language)]
        if index not in self._stretches and self._checks and other.doubted(languages):
            # The language is clear in no part yet: hear each part alone.
            self._checks -= 1
            clear = speech_stretches(window.span, self._speech, self.audio)
        added = [
            other.add(span, span.seconds, found) for span, found in zip(clear, self._detector.alone(clear), strict=True)
        ]
        self._checks = VAIN_CHECKS if any(added) else self._checks


def _overlap(window: Span, speech: Sequence[Span]) -> float:
    """Seconds of speech in a window."""
    first = bisect.bisect_right(speech, window.start, key=lambda span: span.end)
    samples = 0
    for span in speech[first:]:
        if span.start >= window.end:
            break
        samples += min(span.end, window.end) - max(span.start, window.start)
    return samples / SAMPLE_RATE
