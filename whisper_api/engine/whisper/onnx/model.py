"""Whisper on a CPU: our own graphs and search, a window at a time, giving way to other jobs between steps."""

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
    Row,
    Whisper,
    token_cap,
)
from whisper_api.engine.whisper.onnx.sampling import language_probabilities
from whisper_api.engine.whisper.onnx.search import Decoding, TokenRules, feed_sequence
from whisper_api.engine.whisper.onnx.sessions import Sessions, State, feed_together, open_sessions
from whisper_api.engine.worker.worker import Again

__all__ = ["OnnxDecode", "OnnxEncodeAndDetect", "OnnxWhisper"]

# Windows that are decoded side by side at most: the decoder's matrices are then read once for all of them.
TOGETHER = 4
# Steps of the decoder between two moments at which another job may have its turn: about a tenth of a second.
CHUNK = 8
# Of a window's work, what encoding is, and what a chunk of decoding is: by so much its place in the queue moves back.
ENCODING_SHARE, CHUNK_SHARE = 0.5, 0.05
# The first multilingual vocabulary; those of English alone are smaller.
MULTILINGUAL_VOCABULARY = 51865

Floats = NDArray[np.float32]


class OnnxWhisper(Whisper):
    """A model that ONNX Runtime runs."""

    def __init__(self, directory: Path, sessions: Sessions, *, offline: bool = False) -> None:
        shape = sessions.shape
        multilingual = shape.vocabulary >= MULTILINGUAL_VOCABULARY
        super().__init__(directory, shape.mels, multilingual=multilingual, offline=offline)
        self._directory = directory
        self._sessions: Sessions | None = sessions

    @classmethod
    def load(cls, directory: Path, *, int8: bool, threads: int, offline: bool = False) -> OnnxWhisper:
        """Load a model from its files in CTranslate2's format.

        Args:
            directory: its files.
            int8: compute in int8, else in float32.
            threads: that one call may use.
            offline: whether nothing may be fetched for it.

        Raises:
            ModelCorrupt: the files are not those of a Whisper model.
        """
        return cls(directory, open_sessions(directory, int8=int8, threads=threads), offline=offline)

    def encode_and_detect(self, frames: int, max_items: int, max_cost: float) -> OnnxEncodeAndDetect:
        return OnnxEncodeAndDetect(self, frames)

    def decode(self, settings: DecodeSettings, max_items: int, max_cost: float) -> OnnxDecode:
        return OnnxDecode(self, settings)

    def unload(self) -> None:
        self._sessions = None

    def encode(self, samples: Floats, frames: int) -> Floats:
        """Samples, padded to so many frames, to the encoder's output (positions, width)."""
        return self._loaded.encode(log_mel(samples, frames, self.mels))

    def start(self, encoded: Floats) -> State:
        """Begin to decode what the encoder gave."""
        return self._loaded.start(encoded)

    @functools.cached_property
    def blank(self) -> tuple[int, ...]:
        """Tokens that a text cannot begin with: a space alone, and the end of text."""
        try:
            config = json.loads((self._directory / "config.json").read_text(encoding="utf-8"))
            return tuple(int(token) for token in config["suppress_ids_begin"])
        except (OSError, ValueError, KeyError, TypeError):
            return (*self.tokenizer("en").encode(" "), self.end_of_text)

    def rules(self, suppress: tuple[int, ...]) -> TokenRules:
        """What may be decoded when these tokens may not."""
        tokenizer = self.tokenizer("en")
        return TokenRules(
            sot=tokenizer.sot,
            eot=self.end_of_text,
            no_speech=tokenizer.no_speech,
            suppress=suppress,
            blank=self.blank,
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
        """What a limit learned from running out of memory is remembered under."""
        return (type(self).__name__, id(self.whisper))


@dataclass(frozen=True)
class OnnxEncodeAndDetect(_OnnxOperation):
    """Encode windows of ``frames``, and judge each one's language from the encoder's output."""

    frames: int

    # Encoding is bound by arithmetic, which a batch does not save.
    max_items: ClassVar[int] = 1

    def run(self, inputs: Sequence[Floats]) -> list[tuple[Floats, dict[str, float]]]:
        """Samples to the encoder's output and the probability of each language."""
        return [self._encode_and_detect(samples) for samples in inputs]

    def _encode_and_detect(self, samples: Floats) -> tuple[Floats, dict[str, float]]:
        encoded = self.whisper.encode(samples, self.frames)
        codes = self.whisper.language_tokens
        logits = feed_sequence(self.whisper.start(encoded), [self.whisper.tokenizer("en").sot])
        probabilities = language_probabilities(logits[0], list(codes.values()))
        return encoded, dict(zip(codes, probabilities.tolist(), strict=True))


@dataclass(eq=False, slots=True)
class RunningDecode:
    """A window on its way through the decoder.

    Attributes:
        row, settings: what is to be decoded, and how.
        state, decoding: how far it is.
        whole: False once a step has failed half way, so that it cannot go on from where it is.
    """

    row: Row
    settings: DecodeSettings
    state: State
    decoding: Decoding
    whole: bool = True


@dataclass(frozen=True)
class OnnxDecode(_OnnxOperation):
    """Decode windows into text tokens: encode them here, and go on with :class:`OnnxAdvance`."""

    settings: DecodeSettings

    max_items: ClassVar[int] = 1

    def run(self, inputs: Sequence[Row]) -> list[Again]:
        """For each row, what is to go on with it."""
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
            # The same audio gives the same text, also where that is sampled.
            rng=np.random.default_rng(row.speech_frames),
        )
        decoding.advance(1)
        # Behind the next windows of the same recording, so that they are encoded first and all decoded side by side.
        seconds = settings.frames / FRAMES_PER_SECOND
        beside = 0 if row.alone else min(row.following, TOGETHER - 1)
        return Again(
            RunningDecode(row, settings, state, decoding),
            max(ENCODING_SHARE, beside) * seconds,
            OnnxAdvance(self.whisper, 1 if row.alone else TOGETHER),
        )


@dataclass(frozen=True)
class OnnxAdvance(_OnnxOperation):
    """Decode windows that were encoded, of any job and with any settings, for a few steps."""

    max_items: int = TOGETHER

    def run(self, inputs: Sequence[RunningDecode]) -> list[DecodedTokens | Again]:
        """For each window its text, or that it is to go on."""
        for running in inputs:
            if not running.whole and running.row.restarted:
                raise RuntimeError("the decoder has failed twice on a window")
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
            # When one has its text, the others are put together anew.
            if any(running.decoding.finished for running in inputs):
                break
            feeds = [running.decoding.next_feed() for running in inputs]
            logits = feed_together([running.state for running in inputs], feeds)
            for running, rows in zip(inputs, logits, strict=True):
                running.decoding.accept(rows)

    def _restart(self, running: RunningDecode) -> Again:
        """Begin anew with a window that an error, perhaps another window's, has left half way."""
        return Again(replace(running.row, restarted=True), 0.0, OnnxDecode(self.whisper, running.settings))

    def _again(self, running: RunningDecode) -> Again:
        return Again(running, CHUNK_SHARE * running.settings.frames / FRAMES_PER_SECOND)

    def _decoded(self, running: RunningDecode) -> DecodedTokens:
        best = running.decoding.result()
        tokens = tuple(token for token in best.tokens if token < self.whisper.end_of_text)
        length = len(best.tokens)
        # The score is normalised by length; the end-of-text token counts in the mean but not in the length.
        logprob = best.score * length / (length + 1) if length else best.score
        logprobs: tuple[float, ...] = ()
        if running.settings.logprobs_from is not None:
            pairs = zip(best.tokens, best.logprobs, strict=True)
            logprobs = tuple(each for token, each in pairs if token < self.whisper.end_of_text)
        return DecodedTokens(tokens, logprob, best.no_speech_prob, best.capped, self._align(running, tokens), logprobs)

    def _align(self, running: RunningDecode, tokens: tuple[int, ...]) -> Attention | None:
        start = running.settings.align_from
        if start is None or not tokens:
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
