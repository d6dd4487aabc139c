"""Whisper on a CPU: our own graphs and search. Other jobs get their turns between the steps of a decoding."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.mel import log_mel
from whisper_api.engine.whisper import dtw
from whisper_api.engine.whisper.model import (
    BEST_OF,
    FRAMES_PER_SECOND,
    Attention,
    DecodedTokens,
    DecodeSettings,
    Detected,
    DetectionInput,
    Row,
    Whisper,
    token_cap,
)
from whisper_api.engine.whisper.onnx.sampling import language_probabilities
from whisper_api.engine.whisper.onnx.search import Decoding, TokenRules, feed_sequence
from whisper_api.engine.whisper.onnx.sessions import Sessions, State, feed_together, open_sessions
from whisper_api.engine.worker.fair_queue import Again

# Most windows that are decoded together: one read of the decoder's matrices serves all of them.
TOGETHER = 4
# Steps of the decoder between two turns of other jobs: about a tenth of a second.
CHUNK = 8
# Shares of a window's work that encoding and one chunk of decoding take. The window's start tag advances by them.
ENCODING_SHARE, CHUNK_SHARE = 0.5, 0.05
# Size of the smallest multilingual vocabulary; English-only vocabularies are smaller.
MULTILINGUAL_VOCABULARY = 51865

Floats = NDArray[np.float32]


class OnnxWhisper(Whisper):
    """A model that ONNX Runtime runs.

    Args:
        directory: the directory of the model's files in CTranslate2's format.
        int8: True to compute in int8, False for float32.
        threads: number of threads of one call.
        offline: whether downloads are forbidden.

    Raises:
        ModelCorrupt: the files do not belong to a Whisper model.
    """

    tells_language: ClassVar[bool] = True
    keeps_encoded: ClassVar[bool] = True

    def __init__(self, directory: Path, *, int8: bool, threads: int, offline: bool = False) -> None:
        self._sessions: Sessions | None = open_sessions(directory, int8=int8, threads=threads)
        self._directory = directory
        shape = self._sessions.shape
        multilingual = shape.vocabulary >= MULTILINGUAL_VOCABULARY
        super().__init__(directory, shape.mels, multilingual=multilingual, offline=offline)

    def encode_and_detect(self, frames: int, max_items: int, max_cost: float) -> OnnxEncodeAndDetect:
        return OnnxEncodeAndDetect(self, frames)

    def decode(self, settings: DecodeSettings, max_items: int, max_cost: float) -> OnnxDecode:
        return OnnxDecode(self, settings)

    def unload(self) -> None:
        self._sessions = None

    def encode(self, samples: Floats, frames: int) -> Floats:
        """Encode one window.

        Args:
            samples: float32, shape (samples,), 16 kHz.
            frames: length of the padded window, 100 a second.

        Returns:
            float32, shape (positions, width).
        """
        return self._loaded.encode(log_mel(samples, frames, self.mels))

    def start(self, encoded: Floats) -> State:
        """The decoder's state for an encoder output of shape (positions, width)."""
        return self._loaded.start(encoded)

    @functools.cached_property
    def blank(self) -> tuple[int, ...]:
        """Tokens that a text does not begin with: a single space, and the end of text."""
        try:
            config = json.loads((self._directory / "config.json").read_text(encoding="utf-8"))
            return tuple(int(token) for token in config["suppress_ids_begin"])
        except (OSError, ValueError, KeyError, TypeError):
            return (*self.tokenizer("en").encode(" "), self.end_of_text)

    def languages_of(self, logits: Floats) -> dict[str, float]:
        """Language code to probability, from the logits after ``<|startoftranscript|>``."""
        codes = self.language_tokens
        probabilities = language_probabilities(logits, list(codes.values()))
        return dict(zip(codes, probabilities.tolist(), strict=True))

    def rules(self, suppress: tuple[int, ...]) -> TokenRules:
        """The rules of a decoding that never generates these tokens."""
        tokenizer = self.tokenizer("en")
        return TokenRules(
            sot=tokenizer.sot,
            eot=self.end_of_text,
            no_speech=tokenizer.no_speech,
            suppress=suppress,
            blank=self.blank,
            languages=tuple(self.language_tokens.values()) if self.multilingual else (),
        )

    @property
    def _loaded(self) -> Sessions:
        if self._sessions is None:
            raise RuntimeError("the model was unloaded while it was in use")
        return self._sessions


@dataclass(frozen=True)
class _OnnxOperation:
    whisper: OnnxWhisper

    max_cost: ClassVar[float] = float("inf")

    @property
    def memory_key(self) -> Hashable:
        """As in :class:`BatchOperation`."""
        return (type(self).__name__, id(self.whisper))


@dataclass(frozen=True)
class OnnxEncodeAndDetect(_OnnxOperation):
    """Encodes windows of ``frames``, and detects the language of each window from the encoder's output."""

    frames: int

    # Encoding is bound by arithmetic, so a batch saves nothing.
    max_items: ClassVar[int] = 1

    def run(self, inputs: Sequence[DetectionInput]) -> list[Detected]:
        """Encode the windows, and return the languages of each and of its parts."""
        return [self._encode_and_detect(each) for each in inputs]

    def _encode_and_detect(self, window: DetectionInput) -> Detected:
        encoded = self.whisper.encode(window.samples, self.frames)
        state = self.whisper.start(encoded)
        whole = self._languages(state)
        parts = []
        for first, after in window.parts:
            state.clear()
            state.attend_to(first, after)
            parts.append(self._languages(state))
        return Detected(encoded, whole, tuple(parts))

    def _languages(self, state: State) -> dict[str, float]:
        logits = feed_sequence(state, [self.whisper.tokenizer("en").sot])
        return self.whisper.languages_of(logits[0])


@dataclass(eq=False, slots=True)
class RunningDecode:
    """A window whose decoding has begun.

    Attributes:
        row: the window.
        settings: settings of the decoding.
        state: the decoder's state.
        decoding: the search.
        encoded: the encoder's output, if the result shall have it.
        whole: False after a failed step, which leaves the state inconsistent.
    """

    row: Row
    settings: DecodeSettings
    state: State
    decoding: Decoding
    encoded: Floats | None = None
    whole: bool = True


@dataclass(frozen=True)
class OnnxDecode(_OnnxOperation):
    """Encodes windows and feeds their prompts; :class:`OnnxAdvance` continues with the decoding."""

    settings: DecodeSettings

    max_items: ClassVar[int] = 1

    def run(self, inputs: Sequence[Row]) -> list[Again]:
        """Return an unfinished item for each row."""
        return [self._start(row) for row in inputs]

    def _start(self, row: Row) -> Again:
        settings = self.settings
        encoded = row.input if settings.encoded else self.whisper.encode(row.input, settings.frames)
        state = self.whisper.start(encoded)
        decoding = Decoding(
            state,
            row.prompt,
            rules=self.whisper.rules(settings.suppress),
            beam_size=settings.beam_size,
            temperature=settings.temperature,
            best_of=BEST_OF,
            max_new_tokens=token_cap(settings.frames),
            # A fixed seed: sampling gives the same text for the same audio.
            rng=np.random.default_rng(row.speech_frames),
        )
        decoding.accept(state.feed(*decoding.next_feed()))
        # The tag advances past the next windows of the recording: they are encoded first, then decoded with this one.
        seconds = settings.frames / FRAMES_PER_SECOND
        neighbours = 0 if row.alone else min(row.following, TOGETHER - 1)
        return Again(
            RunningDecode(row, settings, state, decoding, encoded if settings.keep_encoded else None),
            max(ENCODING_SHARE, neighbours) * seconds,
            OnnxAdvance(self.whisper, 1 if row.alone else TOGETHER),
        )


@dataclass(frozen=True)
class OnnxAdvance(_OnnxOperation):
    """Decodes encoded windows, of any job and with any settings, for a few steps."""

    max_items: int = TOGETHER

    def run(self, inputs: Sequence[RunningDecode]) -> list[DecodedTokens | Again]:
        """Return the text of each finished window, and an unfinished item for each of the others."""
        for running in inputs:
            if not running.whole and running.row.restarted:
                raise RuntimeError("the decoder failed twice on a window")
        if not all(running.whole for running in inputs):
            return [self._again(running) if running.whole else self._restart(running) for running in inputs]
        try:
            self._steps(inputs)
        except BaseException:
            for running in inputs:
                running.whole = False
            raise
        return [self._decoded(running) if running.decoding.finished else self._again(running) for running in inputs]

    def _steps(self, inputs: Sequence[RunningDecode]) -> None:
        for _ in range(CHUNK):
            # A finished window leaves the group, so the others need a new batch.
            if any(running.decoding.finished for running in inputs):
                break
            feeds = [running.decoding.next_feed() for running in inputs]
            logits = feed_together([running.state for running in inputs], feeds)
            for running, rows in zip(inputs, logits, strict=True):
                running.decoding.accept(rows)

    def _restart(self, running: RunningDecode) -> Again:
        """Decode a window from its beginning, after an error of this window or of another window in its batch."""
        return Again(replace(running.row, restarted=True), 0.0, OnnxDecode(self.whisper, running.settings))

    def _again(self, running: RunningDecode) -> Again:
        return Again(running, CHUNK_SHARE * running.settings.frames / FRAMES_PER_SECOND)

    def _decoded(self, running: RunningDecode) -> DecodedTokens:
        best = running.decoding.result()
        tokens = tuple(token for token in best.tokens if token < self.whisper.end_of_text)
        length = len(best.tokens)
        # The score is divided by the length without the end of text, but the mean includes the end of text.
        logprob = best.score * length / (length + 1) if length else best.score
        logprobs: tuple[float, ...] = ()
        if running.settings.logprobs_from is not None:
            pairs = zip(best.tokens, best.logprobs, strict=True)
            logprobs = tuple(each for token, each in pairs if token < self.whisper.end_of_text)
        languages = dict(zip(self.whisper.language_tokens, best.languages, strict=False))
        attention = self._align(running, tokens)
        return DecodedTokens(
            tokens, logprob, best.no_speech_prob, best.capped, attention, logprobs, languages, running.encoded
        )

    def _align(self, running: RunningDecode, tokens: tuple[int, ...]) -> Attention | None:
        start = running.settings.align_from
        if start is None or not running.settings.aligns(tokens):
            return None
        running.state.clear()
        frames = max(2, min(running.row.speech_frames, running.settings.frames))
        found: tuple[NDArray[Any], ...] = dtw.align(
            running.state,
            start,
            tokens,
            no_timestamps=self.whisper.tokenizer("en").no_timestamps,
            eot=self.whisper.end_of_text,
            frames=frames,
        )
        return Attention(*found)
